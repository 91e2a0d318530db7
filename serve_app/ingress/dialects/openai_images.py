"""OpenAI's image generations and edits: bodies to core requests."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from deployments.contracts.errors import InvalidImage, InvalidRequest
from deployments.contracts.messages import ImageEdit, ImageRequest, ImageSource, Purpose
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from serve_app.ingress.dialects.image_sizes import resolve_size
from serve_app.ingress.schemas.images import ImageReference, ImagesEdits, ImagesGenerations, Painting

W = TypeVar("W", bound=Painting)

_STEPS = {"low": 0.5, "high": 1.5, "hd": 1.5, "xhigh": 1.5, "max": 2.0}
"""Quality as a factor on the model's own step count; the others keep it."""

_STRENGTH = {"high": 0.4, "low": 0.7}
"""Input fidelity as the strength of an edit without a mask."""

_NOT_HERE = {
    "response_format": "'response_format' can only be 'b64_json': no store here gives out URLs.",
    "background": "'background' can only be 'auto' or 'opaque': the models here paint no transparency.",
    "images": '\'images\' must be a list such as [{"image_url": "data:image/png;base64,..."}]: '
    "a data URL or an http(s) URL in each.",
    "mask": '\'mask\' must be a file, or in a JSON body {"image_url": "data:image/png;base64,..."}.',
}


@dataclass(frozen=True)
class EditCall:
    """An edit: the fields, and the pictures in the order in which the core takes them, the mask last."""

    wire: ImagesEdits
    sources: tuple[ImageSource, ...]
    masked: bool


def parse_generation(body: dict[str, Any]) -> ImagesGenerations:
    """The body, checked field by field.

    Raises:
        InvalidRequest: the message says what is wrong, `param` names the field.
    """
    return _parse(body, ImagesGenerations)


def parse_edit_json(body: dict[str, Any], most: int) -> EditCall:
    """An edit whose pictures are URLs in JSON. Raises InvalidRequest."""
    wire = _parse(body, ImagesEdits)
    images = wire.images or []
    if not images:
        raise _missing('\'images\' is missing: send a list such as [{"image_url": "data:..."}].', "images")
    _check_count(images, most, "images")
    sources = [_by_url(image, f"images.{k}.image_url", "paint") for k, image in enumerate(images)]
    if wire.mask is not None:
        sources.append(_by_url(wire.mask, "mask.image_url", "mask"))
    return EditCall(wire, tuple(sources), wire.mask is not None)


def parse_edit_form(fields: dict[str, str], files: dict[str, list[bytes]], most: int) -> EditCall:
    """An edit as a form with files named `image`, `image[]` and `mask`. Raises InvalidRequest."""
    for name in ("image", "image[]", "mask"):
        if name in fields:
            raise InvalidRequest(f"'{name}' must be a file with a name, not a text field.", param=name)
    wire = _parse(fields, ImagesEdits, strict=False)
    for name in files.keys() - {"image", "image[]", "mask"}:
        raise InvalidRequest(
            f"'{name[:100]}' cannot be a file. Files here are 'image' and 'mask'.", param=name[:100]
        )
    images = [data for name, group in files.items() if name != "mask" for data in group]
    if not images:
        raise _missing("'image' is missing: send at least one file under this name.", "image")
    _check_count(images, most, "image")
    sources = [
        ImageSource(data=data, param="image" if len(images) == 1 else f"image[{k}]", purpose="paint")
        for k, data in enumerate(images)
    ]
    masks = files.get("mask", [])
    if len(masks) > 1:
        raise InvalidRequest("'mask' is given twice: there is one mask, for the first image.", param="mask")
    sources += [ImageSource(data=data, param="mask", purpose="mask") for data in masks]
    return EditCall(wire, tuple(sources), bool(masks))


def image_request(wire: Painting, model: ModelSettings, request_id: str) -> ImageRequest:
    """The core request, the model's defaults filled in; without a seed, a random one.

    Raises:
        InvalidRequest: a size, step count or prompt that this model does not take.
    """
    defaults = _defaults(model)
    if not wire.prompt.strip():
        raise InvalidRequest("'prompt' is empty: say what to paint.", param="prompt", code="invalid_value")
    _check_together(wire)
    width, height = resolve_size(wire.size, defaults)
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
        partial_images=wire.partial_images or 0,
        priority=wire.priority,
    )


def edit_request(call: EditCall, model: ModelSettings, request_id: str) -> ImageRequest:
    """The core request of an edit; without a size, the picture keeps its own.

    Raises:
        InvalidRequest: as `image_request`, or a placement that makes no sense.
    """
    wire = call.wire
    request = image_request(wire, model, request_id)
    placement = _placement(wire)
    # With a mask or new margins it is clear what is repainted, so all of that is.
    whole = call.masked or placement is not None
    strength = 1.0 if whole else _STRENGTH[wire.input_fidelity or "low"]
    edit = ImageEdit(wire.strength or strength, call.masked, placement)
    request = replace(request, edit=edit)
    return replace(request, width=0, height=0) if wire.size in (None, "auto") else request


def _parse(body: dict[str, Any], cls: type[W], strict: bool = True) -> W:
    try:
        return msgspec.convert(body, cls, strict=strict)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.strip(".`") or None
        if param is None and "field `" in what:
            param = what.split("field `")[1].split("`")[0]
        field = (param or "").partition("[")[0].partition(".")[0]
        if field in _NOT_HERE:
            raise InvalidRequest(_NOT_HERE[field], param=field, code="unsupported_value") from None
        named = f"'{param}': " if param else ""
        raise InvalidRequest(f"{named}{what}.", param=param, code="invalid_value") from None


def _check_together(wire: Painting) -> None:
    if wire.partial_images and not wire.stream:
        raise InvalidRequest(
            "'partial_images' are sent while the picture is painted: ask for them with 'stream': true.",
            param="partial_images",
            code="invalid_value",
        )
    lossy = wire.output_format in ("webp", "jpeg")
    if not lossy and wire.output_compression is not None and wire.output_compression < 100:
        raise InvalidRequest(
            "'output_compression' below 100 needs 'output_format' webp or jpeg: PNG loses nothing.",
            param="output_compression",
            code="invalid_value",
        )


def _steps(wire: Painting, defaults: GenerationDefaults) -> int:
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


def _placement(wire: ImagesEdits) -> tuple[int, int] | None:
    if wire.placement is None:
        return None
    left, _, top = wire.placement.partition(",")
    if not all(side.isascii() and side.isdecimal() and len(side) <= 5 for side in (left, top)):
        raise InvalidRequest(
            "'placement' must be LEFT,TOP in pixels, such as '64,0': where the image stands on the canvas.",
            param="placement",
            code="invalid_value",
        )
    if wire.size in (None, "auto"):
        raise _missing("'size' is missing: 'placement' needs the size of the canvas.", "size")
    return int(left), int(top)


def _by_url(image: ImageReference, param: str, purpose: Purpose) -> ImageSource:
    if not image.image_url.lower().startswith(("data:", "http://", "https://")):
        raise InvalidImage(
            f"'{param}' must hold an http(s) URL, or the image itself as 'data:image/png;base64,...'.",
            param=param,
        )
    return ImageSource(url=image.image_url, param=param, purpose=purpose)


def _check_count(images: Sequence[Any], most: int, param: str) -> None:
    if len(images) > most:
        raise InvalidImage(
            f"{len(images)} images in one request; at most {most} are allowed.",
            param=param,
            code="too_many_images",
        )


def _missing(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="missing_required_parameter")


def _defaults(model: ModelSettings) -> GenerationDefaults:
    if model.generation is None:  # kept by ModelSettings: an image model has them
        raise TypeError(f"{model.id} is not an image model")
    return model.generation
