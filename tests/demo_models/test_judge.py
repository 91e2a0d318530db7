"""The judge of pixels: right about drawn pictures, and not to be flattered."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from demo_models.training import data as world
from demo_models.training import judge

ONE = {"kind": "one", "color": "red", "shape": "star", "size": None, "pos": None, "bg": "white"}


def test_it_finds_drawn_pictures_right() -> None:
    rng = random.Random(1)
    for _ in range(200):
        spec = world.sample_spec(rng)
        image, _ = world.render(spec, *rng.choice(world.SIZES), rng, jitter=4)
        verdict = judge.judge(image, spec)
        assert verdict.right, spec
        assert verdict.places, spec


def test_it_finds_every_other_spec_wrong() -> None:
    rng = random.Random(2)
    for _ in range(100):
        spec, other = world.sample_spec(rng), world.sample_spec(rng)
        if spec == other or {**spec, "rel": 0, "size": 0, "pos": 0} == {
            **other,
            "rel": 0,
            "size": 0,
            "pos": 0,
        }:
            continue
        image, _ = world.render(spec, 128, 128, rng)
        verdict = judge.judge(image, other)
        assert not (verdict.right and verdict.places), (spec, other)


@pytest.mark.parametrize("shape", ["star", "heart", "cross", "ring", "triangle"])
def test_a_blob_in_the_right_color_and_place_is_wrong(shape: str) -> None:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((34, 40, 96, 90), fill=world.COLORS["red"][0])
    verdict = judge.judge(image, {**ONE, "shape": shape})
    assert verdict.background
    assert verdict.colors
    assert not verdict.right


def test_noise_is_wrong() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not judge.judge(Image.fromarray(noise), ONE).right


def test_soft_edges_do_not_matter() -> None:
    image, _ = world.render({**ONE, "size": "large"}, 128, 128, random.Random(4))
    assert judge.judge(image.filter(ImageFilter.GaussianBlur(1)), ONE).right


def test_one_too_many_is_wrong() -> None:
    rng = random.Random(5)
    three, _ = world.render(
        {"kind": "many", "n": 3, "color": "red", "shape": "star", "bg": "white"}, 128, 128, rng
    )
    four = {"kind": "many", "n": 4, "color": "red", "shape": "star", "bg": "white"}
    assert not judge.judge(three, four).right


def test_places_are_judged_apart() -> None:
    left, _ = world.render({**ONE, "pos": "left"}, 128, 128, random.Random(6))
    verdict = judge.judge(left, {**ONE, "pos": "right"})
    assert verdict.right
    assert not verdict.places


def worn(shape: str, side: int, random: np.random.Generator) -> np.ndarray:
    """A shape's segment with rounded corners and an uneven outline, as models draw them."""
    edges = np.pad(np.asarray(world.mask(shape, side), np.float32) / 255, side)
    edges = cv2.GaussianBlur(edges, (0, 0), side / 40)
    bumps = cv2.GaussianBlur(random.standard_normal(edges.shape), (0, 0), side / 8)
    near = cv2.GaussianBlur((abs(edges - 0.5) < 0.45).astype(float), (0, 0), 1) > 0.02
    worn = (edges + 0.2 * near * bumps / bumps.std() > 0.5).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(worn, connectivity=4)
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


@pytest.mark.parametrize("shape", list(world.SHAPES))
def test_shapes_with_uneven_outlines_are_told_apart(shape: str) -> None:
    random = np.random.default_rng(5)
    found = [judge.match_shape(worn(shape, side, random)) for side in range(24, 64) for _ in range(3)]
    assert found.count(shape) >= 0.9 * len(found)
