"""The image service, `POST /api/generate`: one prompt, one PNG."""

from __future__ import annotations

import secrets
import time
from typing import Any

from deployments.contracts.errors import AtelierError, InvalidRequest
from deployments.contracts.messages import ImageQueue, ImageRequest
from deployments.contracts.settings import ModelSettings
from serve_app.ingress.dialects.older import numbered
from serve_app.ingress.errors import retry_seconds

MAX_PROMPT = 512
ASPECT_RATIOS = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3")

CODES = {
    "prompt_empty": (1001, 400),
    "prompt": (1002, 400),
    "aspect_ratio": (1003, 400),
    "num_steps": (2001, 400),
    "cfg_scale": (2002, 400),
    "seed": (2003, 400),
    "loading": (3001, 503),
    "unavailable": (3001, 503),
    "overloaded": (3002, 503),
    "engine_failed": (4001, 500),
    "out_of_memory": (4001, 500),
    "encoding_failed": (4002, 500),
    "timeout": (4003, 504),
    "cancelled": (4004, 499),
    "internal": (5000, 500),
}
MALFORMED = 1000
"""The number of what is wrong with the request as a whole: not JSON, a wrong path or method, too large."""


def image_request(body: dict[str, Any], model: ModelSettings, request_id: str) -> ImageRequest:
    """The core request.

    Raises:
        InvalidRequest: `param` names the field.
    """
    assert model.generation is not None  # kept by ModelSettings: an image model has them
    negative = body.get("negative_prompt")
    if negative is not None and not isinstance(negative, str):
        raise InvalidRequest("'negative_prompt' must be a string.", param="negative_prompt")
    width, height = _size(body.get("aspect_ratio"), model)
    most = min(100, model.generation.max_steps)
    return ImageRequest(
        request_id=request_id,
        prompt=_prompt(body.get("prompt")),
        negative_prompt=model.generation.negative_prompt if negative is None else negative,
        width=width,
        height=height,
        steps=int(_number(body, "num_steps", 20, most, min(50, most), whole=True)),
        cfg_scale=float(_number(body, "cfg_scale", 1, 20, 4.0)),
        seed=_seed(body),
    )
