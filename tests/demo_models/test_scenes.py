"""Scenes: what training may draw, and that words and pictures leave no doubt."""

from __future__ import annotations

import random

import numpy as np
import pytest

from demo_models.training import data as world
from demo_models.training import scenes


def sampled(count: int, test: bool = False, seed: int = 0) -> list[scenes.Scene]:
    rng = random.Random(seed)
    return [scenes.sample(rng, test) for _ in range(count)]


def test_training_never_draws_what_is_held_out() -> None:
    assert not any(world.held_out(scene.spec) for scene in sampled(400))
    assert all(world.held_out(scene.spec) for scene in sampled(100, test=True))


def test_every_kind_comes_up_free_and_as_the_image_model_paints() -> None:
    kinds = {(scene.kind, scene.spec["kind"] == "free") for scene in sampled(500)}
    assert kinds == {(kind, free) for kind in ("one", "many", "pair") for free in (False, True)} | {
        ("mix", True)
    }


def test_objects_keep_their_distance_and_have_different_shapes_unless_alike() -> None:
    for scene in sampled(400):
        for i, a in enumerate(scene.things):
            for b in scene.things[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius - 0.03
        if scene.kind != "many":
            assert len({thing.shape for thing in scene.things}) == len(scene.things)
        assert all(thing.color != scene.bg for thing in scene.things)


def test_things_stand_in_reading_order() -> None:
    for scene in sampled(300):
        if scene.spec["kind"] == "free":
            rows = [thing.cell[::-1] for thing in scene.things]
            assert rows == sorted(rows)


def test_pairs_stand_clearly_beside_or_above_each_other() -> None:
    for scene in sampled(600):
        if scene.kind == "pair":
            a, b = scene.things
            aside, down = b.x - a.x, b.y - a.y
            assert (aside if scene.across else down) > 1.5 * abs(down if scene.across else aside)


@pytest.mark.parametrize("size", scenes.SOURCES)
def test_pictures_come_in_the_size_asked_for(size: tuple[int, int]) -> None:
    rng = random.Random(1)
    pixels = scenes.picture(scenes.sample(rng), size, rng)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_wear_leaves_the_background_recognisable() -> None:
    rng = random.Random(2)
    for scene in sampled(40, seed=3):
        image = scenes.wear(scenes.draw(scene, (128, 128), rng), rng)
        pixels = np.asarray(image).astype(int)
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        middle = np.median(edge, axis=0)
        distance = {name: np.abs(middle - rgb).sum() for name, (rgb, _) in world.COLORS.items()}
        assert min(distance, key=distance.__getitem__) == scene.bg
