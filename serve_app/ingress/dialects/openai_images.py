"""OpenAI image generations: JSON to the core request, and finished pictures back."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageDone, ImageRequest, ImageUsage
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from serve_app.ingress.schemas.images import ImagesGenerations

_STEPS = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 1.5, "max": 2.0}
"""Quality as a factor on the model's own step count; the others keep it."""

_NOT_HERE = {
    "stream": "Streaming of images is not available: leave 'stream' out.",
    "partial_images": "Partial images are not available: leave 'partial_images' out.",
    "response_format": "Only 'b64_json' is available as 'response_format'.",
    "background": "Only an opaque background is available: leave 'background' out.",
}


def parse(body: dict[str, Any]) -> ImagesGenerations:
    """The body, checked field by field.

    Raises:
        InvalidRequest: the message says what is wrong, `param` names the field.
    """
    try:
        wire = msgspec.convert(body, ImagesGenerations)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.strip(".`") or None
        if param is None and "field `" in what:
            param = what.split("field `")[1].split("`")[0]
        if param in _NOT_HERE:
            raise _not_here(param) from None
        field = f"'{param}': " if param else ""
        raise InvalidRequest(f"{field}{what}.", param=param, code="invalid_value") from None
    for name in ("stream", "partial_images"):
        if getattr(wire, name):
            raise _not_here(name)
    return wire


def _not_here(param: str) -> InvalidRequest:
    return InvalidRequest(_NOT_HERE[param], param=param, code="unsupported_value")


def image_request(wire: ImagesGenerations, model: ModelSettings, request_id: str) -> ImageRequest:
    """The core request, the model's defaults filled in; without a seed, a random one.

    Raises:
        InvalidRequest: a size, step count or prompt that this model does not take.
    """
    defaults = model.generation
    if defaults is None:  # kept by ModelSettings: an image model has them
        raise TypeError(f"{model.id} is not an image model")
    if not wire.prompt.strip():
        raise InvalidRequest("'prompt' is empty: say what to paint.", param="prompt", code="invalid_value")
    width, height = _size(wire.size, defaults)
    negative = wire.negative_prompt
    return ImageRequest(
        request_id=request_id,
        prompt=wire.prompt,
        negative_prompt=defaults.negative_prompt if negative is None else negative,
        width=width,
        height=height,
        steps=_steps(wire, defaults),
        cfg_scale=defaults.cfg_scale if wire.guidance is None else wire.guidance,
        seed=secrets.randbits(31) if wire.seed is None else wire.seed,
        n=wire.n or 1,
        output_format=wire.output_format or "png",
        output_compression=wire.output_compression,
    )


def _size(size: str | None, defaults: GenerationDefaults) -> tuple[int, int]:
    if size in (None, "auto"):
        size = defaults.size
    width, _, height = str(size).partition("x")
    # isdecimal alone takes other scripts' digits, and int() any length of them.
    if not all(side.isascii() and side.isdecimal() and len(side) <= 5 for side in (width, height)):
        raise _bad_size(f"'size' must be 'auto' or 'WIDTHxHEIGHT', for example {defaults.size!r}.")
    w, h = int(width), int(height)
    if w % 16 or h % 16 or not w or not h:
        raise _bad_size("'size': width and height must be multiples of 16.")
    if max(w, h) > 3 * min(w, h):
        raise _bad_size("'size': the longer side may be at most three times the shorter one.")
    if w * h > defaults.max_pixels:
        raise _bad_size(
            f"'size': {w}x{h} is over this model's limit of {defaults.max_pixels} pixels. "
            f"Good sizes: {', '.join(defaults.sizes or (defaults.size,))}."
        )
    return w, h


def _bad_size(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="size", code="invalid_size")


def _steps(wire: ImagesGenerations, defaults: GenerationDefaults) -> int:
    if wire.num_inference_steps is None:
        wanted = round(defaults.steps * _STEPS.get(wire.quality or "auto", 1.0))
        return max(1, min(wanted, defaults.max_steps))
    if wire.num_inference_steps > defaults.max_steps:
        raise InvalidRequest(
            f"'num_inference_steps' may be at most {defaults.max_steps} for this model.",
            param="num_inference_steps",
            code="invalid_value",
        )
    return wire.num_inference_steps


def render(
    wire: ImagesGenerations, request: ImageRequest, done: Sequence[ImageDone], usage: ImageUsage
) -> dict[str, Any]:
    """OpenAI's `ImagesResponse`; each picture also says its `seed`."""
    pictures = sorted(done, key=lambda picture: picture.index)
    return {
        "created": int(time.time()),
        "background": "opaque",
        "data": [{"b64_json": base64.b64encode(p.data).decode(), "seed": p.seed} for p in pictures],
        "output_format": request.output_format,
        "quality": wire.quality or "auto",
        "size": f"{request.width}x{request.height}",
        "usage": {
            "input_tokens": usage.text_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": usage.text_tokens},
            "output_tokens": usage.image_tokens,
            "total_tokens": usage.text_tokens + usage.image_tokens,
        },
    }
