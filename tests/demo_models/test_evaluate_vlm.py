"""The evaluation: only held-out data, and a score that cannot flatter."""

from __future__ import annotations

import random

from transformers import Qwen2Tokenizer

from demo_models.training import chat, descriptions, evaluate_vlm
from demo_models.training import data as world
from demo_models.training.evaluate_vlm import Case, picture_cases, score, sentences, table, text_cases
from demo_models.training.phrases import TASKS


def test_cases_are_held_out_and_equal_in_number() -> None:
    cases = picture_cases(3, random.Random(0))
    assert len(cases) == 3 * len(TASKS) * 2
    assert all(case.scene is not None and world.held_out(case.scene.spec) for case in cases)
    talk = [case for case in text_cases(10, random.Random(1)) if case.task == "talk"]
    assert len(talk) == 20
    assert all(chat.held_out(case.messages[-1]["content"]) for case in talk)


def test_worn_pictures_are_other_pictures_of_the_same_scenes() -> None:
    clean, worn = (picture_cases(1, random.Random(2), worn) for worn in (False, True))
    assert [case.wanted for case in clean][:1] == [case.wanted for case in worn][:1]
    assert clean[0].messages[0]["content"][0]["image_pil"] != worn[0].messages[0]["content"][0]["image_pil"]


def test_sentences_end_with_a_full_stop() -> None:
    assert sentences("One. Two.三。") == ["One.", "Two.", "三。"]
    assert sentences("cut") == ["cut"]


def test_the_score_counts_letters_and_true_sentences() -> None:
    tokenizer = Qwen2Tokenizer.from_pretrained("demo_models/vlm")
    case = next(case for case in picture_cases(1, random.Random(3)) if case.task == "detail")
    assert case.scene is not None
    told = descriptions.detail(case.scene, case.lang)
    perfect = score([case], [case.wanted], tokenizer)
    assert perfect["right"] == {case.name: [1, 1]}
    assert perfect["families"] == {case.family: [1, 1]}
    assert perfect["detail"][case.lang] == {
        "answers": 1,
        "long_enough": 1,
        "told": len(told),
        "true": len(told),
    }
    spoilt = score([case], [case.wanted.replace(told[0], "The picture is empty.")], tokenizer)
    assert spoilt["right"] == {case.name: [0, 1]}
    assert spoilt["detail"][case.lang]["true"] == len(told) - 1
    short = score([case], [told[0]], tokenizer)
    assert short["detail"][case.lang] == {"answers": 1, "long_enough": 0, "told": 1, "true": 1}
    assert "0.0%" in table(spoilt)
    assert spoilt["missed"][0]["wanted"] == case.wanted


def test_a_case_knows_its_name() -> None:
    assert Case("tool", "zh", [], "").name == "tool-zh"
    assert evaluate_vlm.ENOUGH_TOKENS == 60
