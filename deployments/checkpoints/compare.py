"""Paint the same prompts from two checkpoints, with the engine that serves them, and measure the pictures."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deployments.checkpoints import words
from deployments.checkpoints.metrics import psnr, ssim
from deployments.contracts.messages import ImageDone, ImageRequest
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.engines.factory import make_image_engine

Progress = Callable[[str], None]
"""Called with a checkpoint's name after each of its pictures."""


@dataclass(frozen=True)
class Brush:
    """How every picture is painted. Picture i has the seed `seed + i`."""

    width: int
    height: int
    steps: int
    cfg_scale: float
    negative_prompt: str = " "
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    engine: Literal["diffusers", "fake"] = "diffusers"


@dataclass(frozen=True)
class Painted:
    """What one checkpoint painted: a picture a prompt, uint8 of shape (height, width, 3)."""

    name: str
    pictures: tuple[np.ndarray, ...]
    seconds: float
    """A picture, on average."""


@dataclass(frozen=True)
class Pair:
    """The two pictures of one prompt. The fields after `ssim` are None where nobody looked at them."""

    prompt: str
    seed: int
    psnr: float | None
    """dB; None if the pictures are identical."""
    ssim: float
    description_a: str | None = None
    description_b: str | None = None
    agree: bool | None = None
    """The descriptions are the same."""
    overlap: float | None = None
    """Words in both descriptions over words in either."""
    adherence_a: float | None = None
    """Share of the prompt's words that the description of A's picture has."""
    adherence_b: float | None = None


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    brush: Brush
    seconds_a: float
    seconds_b: float
    pairs: tuple[Pair, ...]

    @property
    def summary(self) -> dict[str, float | int | None]:
        """Means over the pictures. PSNR: over those that differ at all, None if none does."""
        pairs = self.pairs
        means: dict[str, float | int | None] = {
            "pictures": len(pairs),
            "identical": sum(pair.psnr is None for pair in pairs),
            "psnr": _mean([pair.psnr for pair in pairs]),
            "ssim": _mean([pair.ssim for pair in pairs]),
            "seconds_a": self.seconds_a,
            "seconds_b": self.seconds_b,
        }
        if pairs[0].description_a is not None:
            means |= {
                "agree": _mean([pair.agree for pair in pairs]),
                "overlap": _mean([pair.overlap for pair in pairs]),
                "adherence_a": _mean([pair.adherence_a for pair in pairs]),
                "adherence_b": _mean([pair.adherence_b for pair in pairs]),
                "complete_a": _mean([pair.adherence_a == 1 for pair in pairs]),
                "complete_b": _mean([pair.adherence_b == 1 for pair in pairs]),
            }
        return means

    def write(self, path: Path) -> None:
        brush = {key: value for key, value in asdict(self.brush).items() if key != "engine"}
        content = {
            "a": self.a,
            "b": self.b,
            "settings": brush,
            "summary": self.summary,
            "pictures": [asdict(pair) for pair in self.pairs],
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


async def paint(
    source: str, prompts: Sequence[str], brush: Brush, progress: Progress = lambda name: None
) -> Painted:
    """One picture a prompt, one after the other: what else is painted changes nothing, and time is honest.

    Raises:
        ValueError, OSError: there is no such checkpoint, or the engine cannot load it.
        AtelierError: the engine refuses a prompt or a size.
    """
    engine = make_image_engine(_settings(source, brush))
    name = Path(source).name or source
    try:
        await engine.start()
        began = time.monotonic()
        pictures = []
        for number, prompt in enumerate(prompts):
            pictures.append(await _paint_one(engine, number, prompt, brush))
            progress(name)
        return Painted(name, tuple(pictures), (time.monotonic() - began) / len(pictures))
    finally:
        await engine.close()


def compare(a: Painted, b: Painted, prompts: Sequence[str], brush: Brush) -> Comparison:
    """Measure pixels; `with_descriptions` adds what a reader saw."""
    pairs = tuple(
        Pair(prompt, brush.seed + i, psnr(first, second), ssim(first, second))
        for i, (prompt, first, second) in enumerate(zip(prompts, a.pictures, b.pictures, strict=True))
    )
    return Comparison(a.name, b.name, brush, a.seconds, b.seconds, pairs)


def with_descriptions(comparison: Comparison, a: Sequence[str], b: Sequence[str]) -> Comparison:
    """The comparison with a description of each picture of A and of B, and how they agree."""
    pairs = tuple(
        replace(
            pair,
            description_a=first,
            description_b=second,
            agree=words.same(first, second),
            overlap=words.overlap(first, second),
            adherence_a=words.adherence(pair.prompt, first),
            adherence_b=words.adherence(pair.prompt, second),
        )
        for pair, first, second in zip(comparison.pairs, a, b, strict=True)
    )
    return replace(comparison, pairs=pairs)


def _settings(source: str, brush: Brush) -> ModelSettings:
    # Told apart from a share of a card: this process has the whole of it.
    on_gpu = brush.device.startswith("cuda")
    engine_args: dict[str, Any] = {}
    if brush.engine == "diffusers":
        engine_args = {"device": brush.device} | ({"threads": brush.threads} if brush.threads else {})
    return ModelSettings(
        id="painter",
        task="image_generation",
        engine=brush.engine,
        source=source,
        gpu_fraction=1 if on_gpu else 0,
        engine_args=engine_args,
        generation=GenerationDefaults(
            size=f"{brush.width}x{brush.height}",
            max_pixels=brush.width * brush.height,
            steps=brush.steps,
            max_steps=max(100, brush.steps),
            cfg_scale=brush.cfg_scale,
        ),
    )


async def _paint_one(engine: Any, number: int, prompt: str, brush: Brush) -> np.ndarray:
    from PIL import Image

    request = ImageRequest(
        f"compare-{number}",
        prompt,
        brush.negative_prompt,
        brush.width,
        brush.height,
        brush.steps,
        brush.cfg_scale,
        brush.seed + number,
    )
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, ImageDone):
                return np.asarray(Image.open(io.BytesIO(event.data)).convert("RGB"))
    raise RuntimeError("the image engine ended without a picture")


def _mean(values: Sequence[float | bool | None]) -> float | None:
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None
