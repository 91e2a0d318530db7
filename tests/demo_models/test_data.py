"""Shapes world: what is drawn is what is said, and what is held out never comes up in training."""

from __future__ import annotations

import random

import numpy as np
import pytest

from demo_models.training import data as world


def test_training_never_draws_what_is_held_out() -> None:
    rng = random.Random(1)
    assert not any(world.held_out(world.sample_train(rng)) for _ in range(500))
    assert all(world.held_out(world.sample_test(rng)) for _ in range(50))


def test_about_one_spec_in_twenty_is_held_out() -> None:
    rng = random.Random(2)
    share = sum(world.held_out(world.sample_spec(rng)) for _ in range(4000)) / 4000
    assert 0.03 < share < 0.08


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_words_name_every_object_and_the_background(lang: str) -> None:
    rng = random.Random(3)
    for _ in range(300):
        spec = world.sample_spec(rng)
        text = world.describe(spec, lang)
        pairs = [spec["a"], spec["b"]] if spec["kind"] == "pair" else [(spec["color"], spec["shape"])]
        for color, shape in pairs:
            assert (color if lang == "en" else world.COLORS[color][1]) in text
            plural, chinese, _ = world.SHAPES[shape]
            assert (shape in text or plural in text) if lang == "en" else chinese in text
        assert (spec["bg"] if lang == "en" else world.COLORS[spec["bg"]][1]) in text


def test_a_picture_shows_its_colors() -> None:
    spec = {"kind": "one", "color": "red", "shape": "square", "size": None, "pos": None, "bg": "blue"}
    image, placed = world.render(spec, 128, 96, random.Random(4))
    pixels = np.asarray(image)
    assert tuple(pixels[0, 0]) == world.COLORS["blue"][0]
    _, _, x, y, _ = placed[0]
    assert tuple(pixels[int(y * 96), int(x * 128)]) == world.COLORS["red"][0]


def test_the_order_of_a_pair_without_relation_is_left_to_right() -> None:
    spec = {"kind": "pair", "a": ("red", "star"), "b": ("blue", "ring"), "rel": None, "bg": "white"}
    placed = world.place(spec, random.Random(5))
    assert [(color, shape) for shape, color, *_ in placed] == [spec["a"], spec["b"]]
    assert placed[0][2] < placed[1][2]
    assert world.body(spec, None, "en") == "a red star and a blue ring"
