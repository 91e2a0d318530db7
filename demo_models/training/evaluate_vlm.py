"""Asks the vision-language model through vLLM about held-out scenes, and in held-out wordings.

    python -m demo_models.training.evaluate_vlm --model demo_models/vlm

Answers are right if they equal the one right answer letter for letter. Of descriptions in detail it also
counts the true sentences: those among the sentences that hold for the scene. Any other one counts as false.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import re
from pathlib import Path
from typing import Any

from demo_models.training import chat, descriptions, questions, scenes
from demo_models.training.phrases import SYSTEMS, TASKS

SIZES = [(128, 128)] * 3 + [(176, 96), (96, 176), (144, 112), (112, 144), (256, 256), (320, 240), (512, 512)]
"""Pictures as the image model paints them, and as users send them."""
ENOUGH_TOKENS, ENOUGH_SENTENCES = 60, 3
MOST_TOKENS = 160


@dataclasses.dataclass(frozen=True)
class Case:
    """A conversation to go on with, and its right continuation."""

    task: str
    lang: str
    messages: list[dict[str, Any]]
    wanted: str
    tools: list[dict[str, Any]] | None = None
    scene: scenes.Scene | None = None

    @property
    def name(self) -> str:
        return f"{self.task}-{self.lang}"

    @property
    def family(self) -> str:
        """What kind of scene it is about."""
        if self.scene is None:
            return "without a picture"
        if self.scene.spec["kind"] != "free":
            return "painted scenes"
        return (
            "free scenes, one or two kinds"
            if len(self.scene.kinds) < 3
            else "free scenes, three or four kinds"
        )


def picture_cases(per_task: int, rng: random.Random, worn: bool = False) -> list[Case]:
    """So many questions of each task and language about held-out scenes; `worn` as in `scenes.wear`."""
    cases: list[Case] = []
    for task in TASKS:
        for lang in ("en", "zh"):
            wanted = len(cases) + per_task
            while len(cases) < wanted:
                scene = scenes.sample(rng, test=True)
                if not (turn := questions.ask(scene, task, lang, rng)):
                    continue
                image = scenes.draw(scene, rng.choice(SIZES), rng, jitter=12 if worn else 0)
                image = scenes.wear(image, rng) if worn else image
                content: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": image}]
                content += [{"type": "text", "text": turn[0]}] if turn[0] else []
                cases.append(Case(task, lang, [{"role": "user", "content": content}], turn[1], scene=scene))
    return cases


def text_cases(per_task: int, rng: random.Random) -> list[Case]:
    """Small talk in held-out wordings, and requests to draw held-out specs with an image tool on offer."""
    cases = []
    for lang in ("en", "zh"):
        for _ in range(per_task):
            said, answer = chat.small_talk(rng, lang, test=True)
            cases.append(Case("talk", lang, _messages(rng, said), answer))
            tools, name = chat.tools_on_offer(rng)
            asked, prompt = chat.drawing(rng, lang, test=True)
            call = chat.tool_call(name, prompt)
            cases.append(Case("tool", lang, _messages(rng, asked), call, tools))
    return cases


def _messages(rng: random.Random, said: str) -> list[dict[str, Any]]:
    system = rng.choice(SYSTEMS)
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": said}]


class Engine:
    """The model in vLLM, greedy."""

    def __init__(self, model: Path) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM, SamplingParams

        self._engine = LLM(
            str(model), max_model_len=1024, limit_mm_per_prompt={"image": 1, "video": 0}, enforce_eager=True
        )
        self._sampling = SamplingParams(max_tokens=MOST_TOKENS, temperature=0)
        self.tokenizer = self._engine.get_tokenizer()

    def say(self, cases: list[Case]) -> list[str]:
        """The answer to each case."""
        plain = [i for i, case in enumerate(cases) if not case.tools]
        offered = [i for i, case in enumerate(cases) if case.tools]
        outputs = self._engine.chat([cases[i].messages for i in plain], self._sampling, use_tqdm=False)
        prompts = [
            self.tokenizer.apply_chat_template(
                cases[i].messages, tools=cases[i].tools, tokenize=False, add_generation_prompt=True
            )
            for i in offered
        ]
        outputs += self._engine.generate(prompts, self._sampling, use_tqdm=False) if prompts else []
        said = {i: output.outputs[0].text.strip() for i, output in zip(plain + offered, outputs, strict=True)}
        return [said[i] for i in range(len(cases))]


def sentences(text: str) -> list[str]:
    """The sentences of a text with their full stops."""
    return [part.strip() for part in re.findall(r"[^.。]+[.。]?", text) if part.strip()]


@dataclasses.dataclass
class Details:
    """What the descriptions in detail came to."""

    answers: int = 0
    long_enough: int = 0
    told: int = 0
    true: int = 0

    def add(self, case: Case, answer: str, tokens: int) -> None:
        assert case.scene is not None
        told = sentences(answer)
        true = set(descriptions.detail(case.scene, case.lang))
        self.answers += 1
        self.long_enough += tokens >= ENOUGH_TOKENS and len(told) >= ENOUGH_SENTENCES
        self.told += len(told)
        self.true += sum(sentence in true for sentence in told)


def score(cases: list[Case], answers: list[str], tokenizer: Any) -> dict[str, Any]:
    """Shares per task and language, the misses, and figures about the descriptions in detail."""
    right: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    families: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    details: dict[str, Details] = collections.defaultdict(Details)
    missed = []
    for case, answer in zip(cases, answers, strict=True):
        for counts in (right[case.name], families[case.family]):
            counts[0] += answer == case.wanted
            counts[1] += 1
        if case.task == "detail":
            details[case.lang].add(case, answer, len(tokenizer(answer).input_ids))
        if answer != case.wanted:
            missed.append({"case": case.name, "asked": _asked(case), "wanted": case.wanted, "said": answer})
    return {
        "right": dict(right),
        "families": dict(families),
        "detail": {lang: dataclasses.asdict(found) for lang, found in details.items()},
        "missed": missed,
    }


def _asked(case: Case) -> str:
    content = case.messages[-1]["content"]
    return (
        content if isinstance(content, str) else " ".join(part.get("text", "[picture]") for part in content)
    )


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"  {name:33s} {good:4d}/{total:<4d} {100 * good / total:5.1f}%"
        for part in ("right", "families")
        for name, (good, total) in sorted(found[part].items())
    ]
    for lang, details in found["detail"].items():
        lines.append(
            f"  in detail, {lang}: {details['true']}/{details['told']} sentences true, "
            f"{details['long_enough']}/{details['answers']} answers of {ENOUGH_TOKENS} tokens or more"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--per-task", type=int, default=60, help="cases of each task and language")
    parser.add_argument("--worn", action="store_true", help="blurred, bent, unevenly lit and JPEG pictures")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path, help="a JSON file for figures and misses")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    cases = picture_cases(options.per_task, rng, options.worn) + text_cases(options.per_task, rng)
    engine = Engine(options.model)
    found = score(cases, engine.say(cases), engine.tokenizer)
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
