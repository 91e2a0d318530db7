"""Conversations without a picture: small talk, and drawing requests that become calls of an image tool.

What is said again word for word (a tool's prompt, or a text to repeat) is varied widely, random words
included, since copying is what tool calls need most. `held_out` marks about 8% of all wordings, which no
training sees.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_models.training import data as world
from demo_models.training import questions, scenes
from demo_models.training.phrases import ANSWERS, PHRASES, TASKS

Message = dict[str, Any]
Tool = dict[str, Any]

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text()
_TOOLS, _COPIED = PHRASES["tools"], PHRASES["copied"]


def held_out(wording: str) -> bool:
    """Whether a wording is for evaluation only, whatever its case and punctuation."""
    key = re.sub(r"[\W_]+", "", wording.lower())
    return hashlib.md5(key.encode()).digest()[0] < 20


# ---------------------------------------------------------------- small talk
def small_talk(rng: random.Random, lang: str, test: bool = False) -> tuple[str, str]:
    """What a user says, and the answer; `test` decides whether the wording is held out."""
    while True:
        said, answer = _said(rng, lang)
        if held_out(said) == test:
            return said, answer


def _said(rng: random.Random, lang: str) -> tuple[str, str]:
    chance = rng.random()
    if chance < 0.6:
        topic = rng.choice(PHRASES[lang]["talk"])
        said, answer = rng.choice(topic["said"]), topic["answer"]
    elif chance < 0.8:
        said, answer = _unknown(rng, lang), ANSWERS[lang]["unknown"]
    elif chance < 0.9:
        scene, task = scenes.sample(rng), rng.choice(TASKS)
        said, answer = (
            (questions.ask(scene, task, lang, rng) or ("describe the picture", ""))[0],
            ANSWERS[lang]["no_picture"],
        )
        said = said or "describe the picture"
    else:
        said, answer = rng.choice(PHRASES[lang]["draw"]).format(_spoken(rng, lang)), ANSWERS[lang]["no_tool"]
    return vary(rng.choice(PHRASES[lang]["openings"]) + said if chance < 0.8 else said, rng), answer


def _unknown(rng: random.Random, lang: str) -> str:
    """Something that a model of shapes cannot answer."""
    known = PHRASES[lang]["unknown"]
    asked = [rng.choice(known["about"]).format(rng.choice(known["things"]))] * 5 + [
        rng.choice(known["whole"])
    ] * 3
    operator = rng.choice(["+", "-", "*", "plus", "times"])
    sums = [f"what is {rng.randint(0, 99)} {operator} {rng.randint(0, 99)}?"] if lang == "en" else []
    return rng.choice(asked + sums)


def vary(text: str, rng: random.Random) -> str:
    """Harmless surface noise: capitals and closing punctuation come and go."""
    if text and rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?!？！。.")
    elif text and text[-1].isalnum() and rng.random() < 0.15:
        text += rng.choice(["!", "."]) if text[-1].isascii() else rng.choice(["！", "。"])
    return text


# ---------------------------------------------------------------- tools
def tool(rng: random.Random, name: str, text: str, argument: str = "prompt") -> Tool:
    """A function tool in one of the forms in which servers and clients write them."""
    properties: dict[str, Any] = {argument: {"type": "string"}}
    if rng.random() < 0.5:
        options = ["The prompt.", "What to draw", "A text description of the desired image."]
        properties[argument]["description"] = rng.choice(options)
    if rng.random() < 0.3:
        properties["size"] = {"type": "string"}
    if rng.random() < 0.2:
        properties["n"] = {"type": "integer"}
    parameters = {"type": "object", "properties": properties, "required": [argument]}
    function: dict[str, Any] = {"name": name, "description": text, "parameters": parameters}
    if rng.random() < 0.2:
        del function["description"]
    if rng.random() < 0.2:
        function["strict"] = rng.choice([None, True])
    return {"type": "function", "function": function}


def tools_on_offer(rng: random.Random) -> tuple[list[Tool], str]:
    """An image tool, sometimes beside another one, and its name."""
    name = rng.choice(_TOOLS["names"])
    tools = [tool(rng, name, rng.choice(_TOOLS["texts"]))]
    if rng.random() < 0.25:
        other = tool(rng, rng.choice(_TOOLS["others"]), "A tool.", rng.choice(["query", "city", "text"]))
        tools.insert(rng.randint(0, 1), other)
    return tools, name


def tool_call(name: str, prompt: str) -> str:
    """A call in hermes style, as vLLM's parser reads it."""
    call = json.dumps({"name": name, "arguments": {"prompt": prompt}}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def drawing(rng: random.Random, lang: str, test: bool = False) -> tuple[str, str]:
    """A drawing request, and the prompt in it: the tool gets word for word what the user wants to see.

    A held-out one is of a held-out spec; in training a part asks for something else than shapes.
    """
    prompt = _prompt((world.sample_test if test else world.sample_train)(rng), rng, lang)
    if not test and rng.random() < 0.35:
        prompt = anything(rng, lang)
    return rng.choice(PHRASES[lang]["draw"]).format(prompt), prompt


def _prompt(spec: world.Spec, rng: random.Random, lang: str) -> str:
    words, bg = world.body(spec, rng, lang), spec["bg"]
    if bg == "white":
        return words
    if lang == "en":
        return f"{words} on {world.article(bg)} background"
    return f"{world.COLORS[bg][1]}背景上的{words}"


def _spoken(rng: random.Random, lang: str) -> str:
    return drawing(rng, lang)[1]


def anything(rng: random.Random, lang: str) -> str:
    """Words to copy: a scene, or nonsense that can only be copied letter by letter."""
    if lang == "zh":
        return "".join(rng.choices(_COPIED["characters"], k=rng.randint(2, 10)))
    if rng.random() < 0.5:
        words = [
            f"{world.article(rng.choice(_COPIED['adjectives']))} {rng.choice(_COPIED['nouns'])}"
            for _ in range(rng.randint(1, 2))
        ]
        return f" {rng.choice(_COPIED['links'])} ".join(words)
    shaped = [
        *world.COLORS,
        *world.SHAPES,
        *_COPIED["nouns"],
        *_COPIED["adjectives"],
        "a",
        "the",
        "two",
        "of",
    ]
    return " ".join(rng.choice([rng.choice(shaped), _nonsense(rng)]) for _ in range(rng.randint(2, 6)))


def _nonsense(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return str(rng.randint(0, 9999))
    return "".join(
        rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "n", "r", "s", "t"])
        for _ in range(rng.randint(1, 3))
    )


def repeating(rng: random.Random, lang: str) -> tuple[str, str]:
    """Something to say again."""
    text = anything(rng, lang) if rng.random() < 0.7 else _spoken(rng, lang)
    return rng.choice(PHRASES[lang]["repeat"]) + text, text


# ---------------------------------------------------------------- text
def system(text: str | None, tools: list[Tool] | None = None) -> str:
    """The system block, exactly as the chat template writes it; empty without text and tools."""
    if not tools:
        return f"<|im_start|>system\n{text}<|im_end|>\n" if text else ""
    listed = "".join("\n" + json.dumps(one, ensure_ascii=False) for one in tools)
    return (
        "<|im_start|>system\n"
        + (f"{text}\n\n" if text else "")
        + "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
        + listed
        + "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
        'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call><|im_end|>\n"
    )


def all_text(rng: random.Random) -> Iterator[str]:
    """Every kind of sentence, for the tokenizer."""
    for lang in ("en", "zh"):
        for topic in PHRASES[lang]["talk"]:
            yield from topic["said"] + [topic["answer"]] * 3
        yield from [*ANSWERS[lang].values()] * 4
        for _ in range(1000):
            scene, task = scenes.sample(rng), rng.choice(TASKS)
            yield from questions.ask(scene, task, lang, rng) or ()
            yield from (*small_talk(rng, lang), drawing(rng, lang)[0])
    for _ in range(60):
        tools, name = tools_on_offer(rng)
        yield from (system(None, tools), tool_call(name, "a red circle"))
