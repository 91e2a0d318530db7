"""Sizes of pictures: image models paint multiples of 16 pixels, between 1:3 and 3:1."""

from __future__ import annotations

import math

GRID = 16
MAX_ASPECT = 3.0


def parse_size(text: str) -> tuple[int, int] | None:
    """`WIDTHxHEIGHT` as numbers of up to five digits; None for anything else."""
    width, _, height = text.partition("x")
    return (int(width), int(height)) if _is_number(width, 5) and _is_number(height, 5) else None


def parse_aspect(text: str) -> float | None:
    """`16:9` as width over height; None for anything else."""
    width, _, height = text.partition(":")
    if not (_is_number(width, 4) and _is_number(height, 4)) or int(width) == 0 or int(height) == 0:
        return None
    return int(width) / int(height)


def is_too_long(width: float, height: float) -> bool:
    """Whether the longer side is more than three times the shorter one."""
    return max(width, height) > MAX_ASPECT * min(width, height)


def of_aspect(aspect: float, pixels: int, most: int) -> tuple[int, int]:
    """The size on the grid with about this aspect (width over height) and area, of at most `most` pixels."""
    height = math.sqrt(min(pixels, most) / aspect)
    width = aspect * height
    choices = [(w, h) for w in _around(width) for h in _around(height) if w * h <= most]
    return min(choices, key=lambda size: abs(math.log(size[0] / size[1] / aspect)), default=(GRID, GRID))


def within(width: int, height: int, pixels: int) -> tuple[int, int]:
    """A picture's own size brought onto the grid, reduced to `pixels` at most."""
    own = max(GRID, round(width / GRID) * GRID), max(GRID, round(height / GRID) * GRID)
    return own if own[0] * own[1] <= pixels else of_aspect(width / height, pixels, pixels)


def _around(side: float) -> tuple[int, int]:
    below = max(GRID, math.floor(side / GRID) * GRID)
    return below + GRID, below


def _is_number(text: str, digits: int) -> bool:
    # isdecimal alone takes other scripts' digits, and int() any length of them.
    return text.isascii() and text.isdecimal() and len(text) <= digits
