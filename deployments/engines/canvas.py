"""Edits in pixels: the canvas an edit starts from, what of it may be repainted, and the two put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageRequest, Picture


@dataclass(frozen=True)
class Canvas:
    """The picture to start from, at the size of the result."""

    pixels: np.ndarray
    """uint8, (height, width, 3)."""
    repaint: np.ndarray | None
    """bool, (height, width): where it may change; None for everywhere."""

    def keep_rest(self, painted: np.ndarray) -> np.ndarray:
        """The painted picture with every pixel that may not change put back as it was."""
        if self.repaint is None:
            return painted
        return np.where(self.repaint[:, :, None], painted, self.pixels)


def split(request: ImageRequest, pictures: Sequence[Picture]) -> tuple[list[Picture], Picture | None]:
    """The pictures to paint from, and the mask. Raises InvalidRequest if they do not fit the edit."""
    edit = request.edit
    if edit is None:
        if pictures:
            raise InvalidRequest("Pictures were sent with a request that edits nothing.", param="image")
        return [], None
    sources = list(pictures[:-1] if edit.masked else pictures)
    if not sources:
        raise InvalidRequest("An edit needs at least one image.", param="image")
    if not 0 < edit.strength <= 1:
        raise InvalidRequest("strength must be above 0 and at most 1.", param="strength")
    if edit.placement is not None:
        _check_placement(request, sources[0])
    return sources, pictures[-1] if edit.masked else None


def canvas(request: ImageRequest, source: Picture, mask: Picture | None) -> Canvas:
    """Lay the source out: scaled to the canvas, or placed on a larger one whose rest is to be painted."""
    edit = request.edit
    placement = edit.placement if edit else None
    if placement is None:
        pixels = _scaled(source.pixels, request.width, request.height, smooth=True)
        repaint = None if mask is None else _scaled(mask.pixels, request.width, request.height) > 127
        return Canvas(pixels, repaint)
    height, width = source.pixels.shape[:2]
    left, top = placement
    around = ((top, request.height - top - height), (left, request.width - left - width))
    # The border goes on outwards: the encoder then sees no edge that is not in the picture.
    pixels = np.pad(source.pixels, (*around, (0, 0)), mode="edge")
    repaint = np.ones((request.height, request.width), bool)
    inside = np.zeros((height, width), bool)
    if mask is not None and mask.pixels.shape == repaint.shape != inside.shape:  # it is the canvas's already
        inside = mask.pixels[top : top + height, left : left + width] > 127
    elif mask is not None:
        inside = _scaled(mask.pixels, width, height) > 127
    repaint[top : top + height, left : left + width] = inside
    return Canvas(pixels, repaint)


def _check_placement(request: ImageRequest, source: Picture) -> None:
    edit = request.edit
    assert edit is not None
    assert edit.placement is not None
    height, width = source.pixels.shape[:2]
    left, top = edit.placement
    if left < 0 or top < 0 or left + width > request.width or top + height > request.height:
        raise InvalidRequest(
            f"The image is {width}x{height} and does not fit on a canvas of {request.width}x{request.height} "
            f"at {left},{top}: ask for a larger size, or place it elsewhere.",
            param="placement",
        )


def _scaled(pixels: np.ndarray, width: int, height: int, smooth: bool = False) -> np.ndarray:
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))
