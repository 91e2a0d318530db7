"""Words that count, in two languages."""

from __future__ import annotations

import pytest

from deployments.checkpoints.words import adherence, overlap, same, words


def test_words_that_count() -> None:
    assert words("Please draw a Red circle, on a blue background.") == {"red", "circle", "blue", "background"}
    assert words("画一个红色圆形，蓝色背景。") == set("红色圆形蓝背景")
    assert words("两颗 red 星星") == {"两", "red", "星"}
    assert words("ＲＥＤ 3 circles") == {"red", "3", "circles"}  # full width


@pytest.mark.parametrize(
    ("prompt", "description", "share"),
    [
        ("a red circle on a blue background", "A red circle on a blue background.", 1),
        ("a red circle on a blue background", "A blue circle on a red background.", 1),  # order is not seen
        ("a red circle on a blue background", "A red heart on a blue background.", 0.75),
        ("a red circle on a blue background", "", 0),
        ("红色圆形", "蓝色圆形", 0.75),
        ("draw a picture", "nothing", 1),  # asks for nothing in particular
    ],
)
def test_adherence_is_the_share_of_the_prompts_words(prompt: str, description: str, share: float) -> None:
    assert adherence(prompt, description) == share


def test_descriptions_agree_but_for_case_and_punctuation() -> None:
    assert same("A red circle.", "a red  circle")
    assert same("红色圆形。", "红色圆形")
    assert not same("a red circle on blue", "a blue circle on red")
    assert not same("three circles", "four circles")


def test_overlap() -> None:
    assert overlap("a red circle", "A red circle!") == 1
    assert overlap("a red circle", "a red heart") == pytest.approx(1 / 3)
    assert overlap("", "the") == 1
    assert overlap("", "red") == 0
