"""The size of a picture, from what a client may say: `auto`, pixels, or an aspect ratio."""

from __future__ import annotations

import math

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.settings import GenerationDefaults
from deployments.contracts.sizes import GRID, is_too_long, of_aspect, parse_aspect, parse_size

_NEAR = math.log(1.04)
"""A listed size this near to an aspect is meant by it: 1664x928 by 16:9, and on a small grid 176x96 too."""


def resolve_size(size: str | None, defaults: GenerationDefaults) -> tuple[int, int]:
    """Width and height in pixels.

    Args:
        size: `auto` or None (the model's own), `WIDTHxHEIGHT` in multiples of 16, or an aspect such as
            `16:9`: the nearest of the model's listed sizes if one is near, else computed at its own area.
        defaults: the model's.

    Raises:
        InvalidRequest: anything else, or a size that the model does not paint.
    """
    if size is None or size == "auto":
        size = defaults.size
    aspect = parse_aspect(size)
    if aspect is not None:
        return _of_aspect(aspect, defaults)
    parsed = parse_size(size)
    if parsed is None:
        raise _bad(
            f"'size' must be 'auto', 'WIDTHxHEIGHT' such as {defaults.size!r}, or an aspect such as '16:9'."
        )
    width, height = parsed
    if width % GRID or height % GRID or not width or not height:
        raise _bad("'size': width and height must be multiples of 16.")
    if is_too_long(width, height):
        raise _bad("'size': the longer side may be at most three times the shorter one.")
    if width * height > defaults.max_pixels:
        raise _bad(
            f"'size': {width}x{height} is over this model's limit of {defaults.max_pixels} pixels. "
            f"Good sizes: {', '.join(defaults.sizes or (defaults.size,))}."
        )
    return width, height


def _of_aspect(aspect: float, defaults: GenerationDefaults) -> tuple[int, int]:
    if is_too_long(aspect, 1):
        raise _bad("'size': the aspect must be between 1:3 and 3:1.")
    own = [size for text in (defaults.size, *defaults.sizes) if (size := parse_size(text))]
    nearest = min(own, key=lambda size: _distance(size, aspect))
    if _distance(nearest, aspect) <= _NEAR:
        return nearest
    return of_aspect(aspect, own[0][0] * own[0][1], defaults.max_pixels)


def _distance(size: tuple[int, int], aspect: float) -> float:
    return abs(math.log(size[0] / size[1] / aspect))


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="size", code="invalid_size")
