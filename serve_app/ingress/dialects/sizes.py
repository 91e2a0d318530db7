"""Aspect ratios as sizes that an image model paints well."""

from __future__ import annotations

import math

from deployments.contracts.settings import GenerationDefaults

GRID = 16
"""Sides are multiples of it."""
NEAR = 0.05
"""How far a listed size's aspect may be from the wanted one, as a share of it; beyond, a size is computed."""


def aspect_size(aspect: float, defaults: GenerationDefaults) -> tuple[int, int]:
    """Width and height in pixels for an aspect (width over height).

    The model's own size of that aspect if it lists one (16:9 may be 176x96, the nearest on its grid), else
    the largest of about that aspect which has no more pixels than those it lists.
    """
    listed = [_pixels(size) for size in (defaults.size, *defaults.sizes)]
    nearest = min(listed, key=lambda size: _error(size, aspect))
    if _error(nearest, aspect) <= NEAR:
        return nearest
    budget = min(defaults.max_pixels, max(w * h for w, h in listed))
    sides = range(GRID, max(GRID, math.isqrt(round(budget / aspect))) + GRID, GRID)
    sizes = [(max(GRID, round(h * aspect / GRID) * GRID), h) for h in sides]
    fitting = [size for size in sizes if size[0] * size[1] <= budget] or [(GRID, GRID)]
    close = [size for size in fitting if _error(size, aspect) <= NEAR]
    return max(close) if close else min(fitting, key=lambda size: _error(size, aspect))


def _pixels(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)


def _error(size: tuple[int, int], aspect: float) -> float:
    return abs(math.log(size[0] / size[1] / aspect))
