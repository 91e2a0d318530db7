"""The evaluation of the image model: what it asks, and how it reads a description."""

from __future__ import annotations

import random
from collections import Counter

from demo_models.training import data as world
from demo_models.training import evaluate_image as evaluate
from demo_models.training import judge


def test_cases_are_held_out_and_of_every_kind_and_language() -> None:
    found = evaluate.cases(5, seed=1)
    assert Counter((lang, spec["kind"]) for lang, _, spec in found) == {
        (lang, kind): 5 for lang in ("en", "zh") for kind in evaluate.KINDS
    }
    assert all(world.held_out(spec) for _, _, spec in found)


def test_a_description_is_read_as_it_was_written() -> None:
    rng = random.Random(2)
    for _ in range(500):
        spec = world.sample_spec(rng)
        assert evaluate.told(world.describe(spec, "en")) == evaluate.asked(spec)


def test_figures_count_each_judge_and_both() -> None:
    rng = random.Random(3)
    spec = {"kind": "one", "color": "red", "shape": "star", "size": None, "pos": None, "bg": "white"}
    other = {**spec, "shape": "ring"}
    painted = []
    for shown in (spec, other):
        image, _ = world.render(shown, 128, 128, rng)
        painted.append(evaluate.Painted("en", "", spec, image, 0.1, judge.judge(image, spec)))
    said = [world.describe(spec, "en")] * 2
    row = evaluate.figures(painted, said)[spec["kind"]]
    assert (row["right"], row["right by the model"], row["both right"], row["judges agree"]) == (
        0.5,
        1,
        0.5,
        0.5,
    )
