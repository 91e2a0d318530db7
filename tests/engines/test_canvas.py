"""Edits in pixels: where the source lies, what may be repainted, and that the rest comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ImageEdit, ImageRequest, Picture
from deployments.engines.canvas import canvas, split


def request(width: int = 32, height: int = 16, edit: ImageEdit | None = None) -> ImageRequest:
    return ImageRequest("r", "p", None, width, height, 4, 1.0, 0, edit=edit or ImageEdit())


def picture(width: int = 32, height: int = 16) -> Picture:
    chance = np.random.default_rng(width * height)
    return Picture(chance.integers(0, 256, (height, width, 3), np.uint8), "p")


BOX = (slice(4, 8), slice(8, 16))


def mask(width: int = 32, height: int = 16) -> Picture:
    pixels = np.zeros((height, width), np.uint8)
    pixels[BOX] = 255
    return Picture(pixels, "m")


def test_without_a_mask_everything_may_change() -> None:
    laid = canvas(request(), picture(), None)
    assert np.array_equal(laid.pixels, picture().pixels)
    assert laid.repaint is None
    painted = np.zeros_like(laid.pixels)
    assert laid.keep_rest(painted) is painted


def test_the_source_is_scaled_to_the_canvas_and_the_mask_with_hard_edges() -> None:
    laid = canvas(request(64, 32, ImageEdit(masked=True)), picture(), mask())
    assert laid.pixels.shape == (32, 64, 3)
    assert laid.repaint is not None
    assert laid.repaint.sum() == 4 * 4 * 8
    assert laid.repaint[8:16, 16:32].all()


@given(st.integers(0, 32), st.integers(0, 16), st.booleans())
def test_the_source_comes_back_wherever_it_is_placed(left: int, top: int, masked: bool) -> None:
    edit = ImageEdit(masked=masked, placement=(left, top))
    source, stencil = picture(), mask() if masked else None
    split(request(64, 32, edit), [source, *([stencil] if stencil else [])])
    laid = canvas(request(64, 32, edit), source, stencil)
    painted = laid.keep_rest(np.full((32, 64, 3), 7, np.uint8))
    inside = painted[top : top + 16, left : left + 32]
    keep = np.ones((16, 32), bool) if stencil is None else stencil.pixels == 0
    assert np.array_equal(inside[keep], source.pixels[keep])
    assert (inside[~keep] == 7).all()
    assert laid.repaint is not None
    assert (painted[laid.repaint] == 7).all()
    assert laid.repaint.sum() == 64 * 32 - keep.sum()


def test_around_a_placed_source_its_border_goes_on() -> None:
    laid = canvas(request(64, 32, ImageEdit(placement=(10, 5))), picture(), None)
    assert np.array_equal(laid.pixels[0, 10:42], picture().pixels[0])
    assert np.array_equal(laid.pixels[5:21, 0], picture().pixels[:, 0])


def test_a_mask_of_the_canvas_s_size() -> None:
    edit = ImageEdit(masked=True, placement=(0, 0))
    laid = canvas(request(64, 32, edit), picture(), mask(64, 32))
    assert laid.repaint is not None
    assert laid.repaint[4:8, 8:16].all()
    assert not laid.repaint[:4, :32].any()


@pytest.mark.parametrize("placement", [(-1, 0), (0, -1), (33, 0), (0, 17)])
def test_a_source_that_does_not_fit_is_refused(placement: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="does not fit on a canvas of 64x32") as caught:
        split(request(64, 32, ImageEdit(placement=placement)), [picture()])
    assert caught.value.param == "placement"


def test_pictures_and_masks_are_told_apart() -> None:
    sources, stencil = split(request(edit=ImageEdit(masked=True)), [picture(), picture(16, 16), mask()])
    assert len(sources) == 2
    assert stencil is not None
    assert stencil.digest == "m"
    assert split(ImageRequest("r", "p", None, 16, 16, 1, 1.0, 0), []) == ([], None)
