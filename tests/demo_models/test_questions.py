"""Questions and descriptions: their answers follow from the scene."""

from __future__ import annotations

import random

import pytest
from transformers import Qwen2Tokenizer

from demo_models.training import data as world
from demo_models.training import descriptions, questions, scenes
from demo_models.training.evaluate_vlm import ENOUGH_SENTENCES, ENOUGH_TOKENS, sentences
from demo_models.training.phrases import TASKS
from demo_models.training.scenes import Scene, Thing

STAR, HEART = Thing("star", "red", 0.25, 0.5, 0.19), Thing("heart", "blue", 0.75, 0.5, 0.1)
PAIR = Scene("pair", "white", (STAR, HEART), {})
ONE = Scene("one", "black", (Thing("ring", "pink", 0.2, 0.25, 0.12),), {})


def asked(scene: Scene, task: str, lang: str = "en", tries: int = 60) -> set[tuple[str, str]]:
    rng = random.Random(0)
    return {turn for _ in range(tries) if (turn := questions.ask(scene, task, lang, rng))}


@pytest.mark.parametrize(
    ("scene", "task", "lang", "turn"),
    [
        (PAIR, "color", "en", ("What colour is the heart?", "The heart is blue.")),
        (PAIR, "background", "zh", ("背景是什么颜色？", "背景是白色的。")),
        (PAIR, "shape_of", "en", ("What shape is the red object?", "It is a star.")),
        (PAIR, "count", "en", ("Count the shapes.", "There are two shapes.")),
        (PAIR, "count_of", "zh", ("有几个星星？", "有一颗星星。")),
        (PAIR, "where", "en", ("Where is the star?", "The star is to the left of the heart.")),
        (PAIR, "where", "zh", ("心形在哪里？", "心形在星星的右边。")),
        (ONE, "where", "en", ("Where is the ring?", "The ring is at the top left.")),
        (ONE, "shape", "zh", ("这是什么形状？", "这是圆环。")),
    ],
)
def test_the_answer_follows_from_the_scene(scene: Scene, task: str, lang: str, turn: tuple[str, str]) -> None:
    assert turn in asked(scene, task, lang)


def test_there_is_no_one_shape_to_ask_for_in_a_pair() -> None:
    assert not asked(PAIR, "shape")


def test_descriptions_of_painted_scenes_are_those_of_their_specs() -> None:
    rng = random.Random(0)
    for _ in range(300):
        spec = world.sample_spec(rng)
        if spec["kind"] == "pair" and spec["rel"] is None:
            spec["rel"] = "left"
        scene = scenes.of_spec(spec, rng)
        for lang in ("en", "zh"):
            assert descriptions.describe(scene, lang) == world.describe(spec, lang)


def test_yes_and_no_are_balanced_and_true() -> None:
    rng, yes, total = random.Random(1), 0, 0
    for _ in range(400):
        scene = scenes.sample(rng)
        question, answer = questions.ask(scene, "yesno", "en", rng) or ("", "")
        yes, total = yes + answer.startswith("Yes"), total + 1
        words = question.rstrip("?").replace("in the picture", "").split()
        color = next((word for word in words if word in world.COLORS), None)
        shape = next((word for word in words if word in world.SHAPES), None)
        there = any(color in (None, a) and shape in (None, b) for a, b in scene.kinds)
        assert there == answer.startswith("Yes"), (question, answer, scene)
    assert 0.4 < yes / total < 0.6


def test_a_no_is_often_a_near_miss() -> None:
    nos = {question for question, answer in asked(PAIR, "yesno", tries=200) if answer.startswith("No, there")}
    assert any("blue star" in question for question in nos)
    assert any("red heart" in question for question in nos)


def test_descriptions_in_detail_are_long_and_compare_sizes() -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained("demo_models/vlm")
    rng = random.Random(2)
    for _ in range(150):
        scene = scenes.sample(rng)
        for lang, between in (("en", " "), ("zh", "")):
            told = descriptions.detail(scene, lang)
            text = between.join(told)
            assert sentences(text) == told
            assert len(told) >= ENOUGH_SENTENCES
            assert len(tokenizer(text).input_ids) >= ENOUGH_TOKENS, text
    assert "The star is larger than the heart." in descriptions.detail(PAIR, "en")


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_wordings_in_both_languages(task: str) -> None:
    scene = ONE if task == "shape" else PAIR
    assert len({question for question, _ in asked(scene, task, "en", 200)}) >= 3
    assert len({question for question, _ in asked(scene, task, "zh", 200)}) >= 2
