"""Judges the image model on held-out prompts: by the pixels, and independently by the vision-language model.

    python -m demo_models.training.evaluate_image --image demo_models/image --vlm demo_models/vlm

A picture is right by the pixels if background, colours, shapes and their number are (`judge`), and right by
the model if its description says the same. A round trip is right if both are.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from demo_models.training import data as world
from demo_models.training import judge

KINDS = ("one", "many", "pair")
_COLORS = "|".join(world.COLORS)
_NAMES = {name: shape for shape, (plural, _, _) in world.SHAPES.items() for name in (shape, plural)}
_THING = re.compile(rf"\b(one|two|three|four|an?)\b (?:(?:small|large) )?({_COLORS}) ({'|'.join(_NAMES)})\b")
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_GROUND = re.compile(rf"\b({_COLORS}) background")


@dataclass(frozen=True)
class Painted:
    """A prompt, its picture, and what was found in it."""

    lang: str
    prompt: str
    spec: world.Spec
    image: Image.Image
    seconds: float
    verdict: judge.Verdict


def cases(per_kind: int, seed: int) -> list[tuple[str, str, world.Spec]]:
    """Language, prompt and spec: as many of each kind and language, none of them ever trained on."""
    rng, found = random.Random(seed), []
    for lang in ("en", "zh"):
        for kind in KINDS:
            wanted = len(found) + per_kind
            while len(found) < wanted:
                if (spec := world.sample_test(rng))["kind"] == kind:
                    found.append((lang, world.prompt(spec, rng, lang), spec))
    return found


def load(folder: Path, quantized: bool) -> Any:
    """The pipeline in bfloat16 on the CPU, quantized as the demo profile does it if asked for."""
    from deployments.engines.quantization import QuantizeArgs, load_pipeline

    return load_pipeline(folder, torch.bfloat16, QuantizeArgs() if quantized else None)


def paint(pipe: Any, wanted: list[tuple[str, str, world.Spec]], steps: int, guidance: float) -> list[Painted]:
    """One picture at a time, in all sizes in turn, as a server would."""
    pipe.set_progress_bar_config(disable=True)
    painted = []
    for number, (lang, prompt, spec) in enumerate([wanted[0], *wanted]):
        width, height = world.SIZES[number % len(world.SIZES)]
        began = time.perf_counter()
        image = pipe(
            prompt,
            negative_prompt=" ",
            true_cfg_scale=guidance,
            num_inference_steps=steps,
            width=width,
            height=height,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        seconds = time.perf_counter() - began
        painted.append(Painted(lang, prompt, spec, image, seconds, judge.judge(image, spec)))
    return painted[1:]  # the first was for warming up


def told(text: str) -> tuple[str | None, Counter[tuple[str, str]]]:
    """Background and things in an English description."""
    ground = _GROUND.search(text)
    things: Counter[tuple[str, str]] = Counter()
    for number, color, name in _THING.findall(text.lower()):
        things[color, _NAMES[name]] += _NUMBERS[number]
    return ground.group(1) if ground else None, things


def asked(spec: world.Spec) -> tuple[str, Counter[tuple[str, str]]]:
    """The same of a spec."""
    if spec["kind"] == "pair":
        return spec["bg"], Counter([spec["a"], spec["b"]])
    return spec["bg"], Counter({(spec["color"], spec["shape"]): spec.get("n", 1)})


def describe(painted: list[Painted], vlm: Path) -> list[str]:
    """What the vision-language model says of each picture."""
    from demo_models.training.evaluate_vlm import Case, Engine

    def ask(image: Image.Image) -> Case:
        parts = [
            {"type": "image_pil", "image_pil": image},
            {"type": "text", "text": "Describe the picture."},
        ]
        return Case("describe", "en", [{"role": "user", "content": parts}], "")

    return Engine(vlm).say([ask(one.image) for one in painted])


def figures(painted: list[Painted], said: list[str] | None) -> dict[str, Any]:
    """Shares of right pictures, by kind and language, and what the two judges agree on."""
    groups: dict[str, list[int]] = {}
    for number, one in enumerate(painted):
        for name in (one.spec["kind"], f"{one.spec['kind']}-{one.lang}"):
            groups.setdefault(name, []).append(number)

    def share(values: list[bool]) -> float:
        return round(sum(values) / len(values), 3)

    report: dict[str, Any] = {}
    seen = [told(text) == asked(one.spec) for text, one in zip(said or [], painted, strict=bool(said))]
    for name, numbers in groups.items():
        verdicts = [painted[i].verdict for i in numbers]
        row = {part: share([getattr(v, part) for v in verdicts]) for part in judge.PARTS}
        row["right"] = share([v.right for v in verdicts])
        if said:
            row["right by the model"] = share([seen[i] for i in numbers])
            row["both right"] = share([seen[i] and painted[i].verdict.right for i in numbers])
            row["judges agree"] = share([seen[i] == painted[i].verdict.right for i in numbers])
        report[name] = row
    times = sorted(one.seconds for one in painted)
    report["seconds per picture, median"] = round(times[len(times) // 2], 3)
    return report


def sheet(painted: list[Painted], columns: int = 12) -> Image.Image:
    """All pictures; the wrong ones framed in red."""
    side = 184
    rows = -(-len(painted) // columns)
    canvas = Image.new("RGB", (columns * side, rows * side), (128, 128, 128))
    for number, one in enumerate(painted):
        left, top = number % columns * side, number // columns * side
        frame = (128, 128, 128) if one.verdict.right else (255, 0, 0)
        canvas.paste(
            Image.new("RGB", (one.image.width + 6, one.image.height + 6), frame), (left + 1, top + 1)
        )
        canvas.paste(one.image, (left + 4, top + 4))
    return canvas


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--vlm", type=Path, help="also ask this model")
    parser.add_argument(
        "--quantized", action="store_true", help="uint4 + SVD 32, as the demo profile serves it"
    )
    parser.add_argument("--per-kind", type=int, default=50, help="prompts of each kind and language")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures and the misses")
    parser.add_argument("--sheet", type=Path, help="a PNG of all pictures")
    options = parser.parse_args()
    wanted = cases(options.per_kind, options.seed)
    painted = paint(load(options.image, options.quantized), wanted, options.steps, options.guidance)
    if options.sheet:
        sheet(painted).save(options.sheet)
    said = describe(painted, options.vlm) if options.vlm else None
    report = figures(painted, said)
    print(json.dumps(report, indent=1))
    if options.out:
        misses = [
            {"prompt": one.prompt, **asdict(one.verdict), "said": said[number] if said else None}
            for number, one in enumerate(painted)
            if not one.verdict.right
        ]
        text = json.dumps({"figures": report, "misses": misses}, ensure_ascii=False, indent=1)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
