"""Sizes on the grid: within the limit, near the aspect, and nothing odd is read as a number."""

from __future__ import annotations

import math
import random

import pytest

from deployments.contracts.sizes import GRID, is_too_long, of_aspect, parse_aspect, parse_size, within


@pytest.mark.parametrize(
    "text", ["", "x", "64", "64x", "x64", "64x64x64", "-64x64", "٦٤x٦٤", "1e3x64", "123456x1"]
)
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None


@pytest.mark.parametrize("text", ["", ":", "16:", "16:9:4", "0:1", "1:0", "1.5:1", "16x9", "99999:1"])
def test_what_is_no_aspect(text: str) -> None:
    assert parse_aspect(text) is None


def test_parsing() -> None:
    assert parse_size("1664x928") == (1664, 928)
    assert parse_aspect("16:9") == 16 / 9


def test_any_aspect_and_area_gives_a_size_on_the_grid_within_the_limit() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        aspect = math.exp(chance.uniform(-math.log(3), math.log(3)))
        most = chance.randrange(GRID * GRID, 4_000_000)
        pixels = chance.randrange(GRID * GRID, 4_000_000)
        width, height = of_aspect(aspect, pixels, most)
        assert width % GRID == height % GRID == 0
        assert 0 < width * height <= most
        if min(pixels, most) > 500_000:
            assert abs(width / height / aspect - 1) < 0.04
            assert abs(width * height / min(pixels, most) - 1) < 0.06


def test_a_picture_s_own_size_is_kept_where_it_can_be() -> None:
    assert within(128, 96, 100_000) == (128, 96)
    assert within(100, 100, 100_000) == (96, 96)
    assert within(3, 5, 100_000) == (16, 16)
    assert within(4000, 3000, 1_048_576) == (1168, 880)
    chance = random.Random(8)
    for _ in range(2000):
        width, height = chance.randrange(1, 5000), chance.randrange(1, 5000)
        most = chance.randrange(GRID * GRID, 2_000_000)
        w, h = within(width, height, most)
        assert w % GRID == h % GRID == 0
        assert 0 < w * h <= most


def test_too_long() -> None:
    assert not is_too_long(3, 1)
    assert not is_too_long(1, 3)
    assert is_too_long(3.01, 1)
