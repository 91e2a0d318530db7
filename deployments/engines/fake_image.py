"""An image engine without a model: same events, same rules, pictures that follow the prompt's colour words.

Chosen by `engine: fake`; deterministic; needs Pillow only. For tests, demos and load generators.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deployments.contracts.errors import EngineFailed, InvalidRequest, ModelLoading, Unavailable
from deployments.contracts.messages import ImageDone, ImageEvent, ImageRequest, ImageStep, ImageUsage
from deployments.contracts.settings import ModelSettings
from deployments.engines.image_ops import encode

CELL = 16
COLORS = {
    ("red", "红"): (226, 32, 38),
    ("orange", "橙"): (255, 140, 0),
    ("yellow", "黄"): (255, 222, 20),
    ("green", "绿"): (28, 160, 62),
    ("cyan", "青"): (40, 205, 220),
    ("blue", "蓝"): (34, 74, 214),
    ("purple", "紫"): (126, 44, 176),
    ("pink", "粉"): (255, 150, 190),
    ("black", "黑"): (18, 18, 18),
    ("white", "白"): (255, 255, 255),
}
_BY_WORD = {word: color for words, color in COLORS.items() for word in words}
_WORDS = re.compile("|".join(rf"\b{en}\b|{zh}" for en, zh in COLORS), re.IGNORECASE)
_GROUND = re.compile(r"\s*(background\b|色?背景)", re.IGNORECASE)


class FakeImageArgs(BaseModel):
    """`engine_args` of the fake image engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_seconds: Annotated[float, Field(ge=0)] = 0
    load_seconds: Annotated[float, Field(ge=0)] = 0
    fail: Literal["start", "request"] | None = None
    """start: loading fails; request: every request fails."""


class FakeImageEngine:
    """Implements ImageEngine."""

    def __init__(self, settings: ModelSettings) -> None:
        self._args = FakeImageArgs.model_validate(settings.engine_args)
        self._turn = asyncio.Lock()
        self._ready = self._closed = False

    async def start(self) -> None:
        await asyncio.sleep(self._args.load_seconds)
        if self._args.fail == "start":
            raise RuntimeError("the fake image engine was told to fail at start")
        self._ready = True

    async def generate(self, request: ImageRequest) -> AsyncGenerator[ImageEvent, None]:
        self._require_open()
        async with self._turn:
            self._require_open()
            self._check(request)
            for index in range(request.n):
                for step in range(request.steps):
                    await asyncio.sleep(self._args.step_seconds)
                    self._require_open()
                    yield ImageStep(index, step + 1, request.steps)
                data = await asyncio.to_thread(self._paint, request, index)
                yield ImageDone(index, data, request.seed + index, request.steps)
            latents = (request.width // CELL) * (request.height // CELL)
            # A word of Latin letters or one CJK character is a token: about what a tokenizer counts.
            tokens = len(re.findall(r"[^\W\u3000-\u9fff]+|[\u3000-\u9fff]", request.prompt))
            yield ImageUsage(text_tokens=tokens, image_tokens=request.n * latents)

    async def check_health(self) -> None:
        if self._closed or not self._ready:
            raise EngineFailed("The image engine is not running.")

    async def close(self) -> None:
        self._closed, self._ready = True, False

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The image model is shutting down; try again.", retry_after=5)
        if not self._ready:
            raise ModelLoading("The image model is still loading; try again.", retry_after=5)

    def _check(self, request: ImageRequest) -> None:
        if request.width % CELL or request.height % CELL or min(request.width, request.height) < CELL:
            raise InvalidRequest(f"Width and height must be multiples of {CELL}.", param="size")
        if self._args.fail == "request":
            raise EngineFailed("The image engine failed on this request.")

    def _paint(self, request: ImageRequest, index: int) -> bytes:
        pixels = paint(request.prompt, request.width, request.height, request.seed + index)
        return encode(pixels, request.output_format, request.output_compression)


def paint(prompt: str, width: int, height: int, seed: int) -> np.ndarray:
    """A disc on a ground, in the prompt's colours; the seed decides where and how large."""
    from PIL import Image, ImageDraw

    ground, disc = _colors(prompt)
    chance = random.Random(f"{seed}:{prompt}".encode("utf-8", "replace"))
    radius = min(width, height) * chance.uniform(0.2, 0.35)
    x = width / 2 + chance.uniform(-0.1, 0.1) * width
    y = height / 2 + chance.uniform(-0.1, 0.1) * height
    image = Image.new("RGB", (width, height), ground)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=disc)
    return np.array(image)


def _colors(prompt: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ground: the colour before "background", else white. Disc: the first other colour, else a hash."""
    ground, disc = (255, 255, 255), None
    for match in _WORDS.finditer(prompt):
        color = _BY_WORD[match.group().lower()]
        if _GROUND.match(prompt, match.end()):
            ground = color
        elif disc is None:
            disc = color
    if disc is None:
        red, green, blue = hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:3]
        disc = (red, green, blue)
    return ground, disc
