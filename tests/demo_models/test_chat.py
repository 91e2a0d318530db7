"""Conversations without a picture: held-out wordings, copying, and the template they are written in."""

from __future__ import annotations

import json
import random

import pytest
from transformers import Qwen2Tokenizer

from demo_models.training import chat
from demo_models.training import data as world
from demo_models.training.phrases import ANSWERS, PHRASES, SYSTEMS


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer.from_pretrained("demo_models/vlm")
    tokenizer.chat_template = chat.TEMPLATE
    return tokenizer


def test_a_wording_is_held_out_whatever_its_case_and_punctuation() -> None:
    rng = random.Random(0)
    said = [chat.small_talk(rng, lang, test=test)[0] for lang in ("en", "zh") for test in (False, True) * 100]
    for text in said:
        assert chat.held_out(text) == chat.held_out(text.upper() + "!")
    assert any(chat.held_out(text) for text in said)


def test_training_never_says_a_held_out_wording() -> None:
    rng = random.Random(1)
    assert not any(chat.held_out(chat.small_talk(rng, "en")[0]) for _ in range(300))
    assert all(chat.held_out(chat.small_talk(rng, "zh", test=True)[0]) for _ in range(50))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_small_talk_has_an_answer_to_everything(lang: str) -> None:
    rng = random.Random(2)
    known = {topic["answer"] for topic in PHRASES[lang]["talk"]} | set(ANSWERS[lang].values())
    answers = {chat.small_talk(rng, lang)[1] for _ in range(800)}
    assert answers == known - {ANSWERS[lang]["done"]}


def test_a_tool_gets_word_for_word_what_was_asked_for() -> None:
    rng = random.Random(3)
    for _ in range(200):
        asked, prompt = chat.drawing(rng, rng.choice(["en", "zh"]))
        assert prompt in asked
        call = chat.tool_call("paint", prompt).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        assert json.loads(call) == {"name": "paint", "arguments": {"prompt": prompt}}


def test_held_out_drawings_are_of_held_out_specs() -> None:
    class Recorder(random.Random):
        specs: list[world.Spec] = []

    original, rng = world.sample_test, Recorder(4)
    prompts = {chat.drawing(rng, "en", test=True)[1] for _ in range(60)}
    rng = Recorder(5)
    trained = {chat.drawing(rng, "en")[1] for _ in range(3000)}
    assert original is world.sample_test
    assert len(prompts & trained) <= 1  # a spec with a white background may read like another one's wording


@pytest.mark.parametrize("system", SYSTEMS[3:])
def test_the_system_block_is_the_one_of_the_template(tokenizer: Qwen2Tokenizer, system: str | None) -> None:
    rng = random.Random(5)
    head = [{"role": "system", "content": system}] if system else []
    messages = [*head, {"role": "user", "content": "hi"}]
    for tools in (None, chat.tools_on_offer(rng)[0], chat.tools_on_offer(rng)[0]):
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert text == chat.system(system, tools) + "<|im_start|>user\nhi<|im_end|>\n"


def test_the_tokenizer_has_sentences_of_every_kind() -> None:
    text = "\n".join(chat.all_text(random.Random(6)))
    for part in (
        "# Tools",
        "<tool_call>",
        "Describe the picture in detail.",
        "我不会"[:1],
        "There are three shapes.",
    ):
        assert part in text
