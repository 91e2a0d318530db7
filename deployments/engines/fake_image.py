"""An image engine without a model: same events, same rules, pictures that follow the prompt's colour words.

Chosen by `engine: fake`; deterministic; needs Pillow only. For tests, demos and load generators.
"""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deployments.contracts.errors import (
    AtelierError,
    Cancelled,
    EncodingFailed,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    OutOfMemory,
    Unavailable,
)
from deployments.contracts.messages import (
    ImageDone,
    ImageEvent,
    ImagePreview,
    ImageQueue,
    ImageQueued,
    ImageRequest,
    ImageStep,
    ImageUsage,
    Picture,
    QueuedImage,
)
from deployments.contracts.settings import ModelSettings
from deployments.engines.fake_pictures import edit, paint, preview
from deployments.engines.image_ops import encode

CELL = 16
_FAILURES: dict[str, tuple[type[AtelierError], str, str | None, tuple[str, ...]]] = {
    "request": (EngineFailed, "The image engine failed on this request.", None, ()),
    "oom": (
        OutOfMemory,
        "The pictures do not fit into memory beside what is running.",
        None,
        ("Ask for a smaller size.", "Ask for fewer pictures at once."),
    ),
    "not_finite": (
        EngineFailed,
        "The picture has values that are not finite.",
        "image_not_finite",
        ("Use another seed.", "Lower the guidance."),
    ),
    "encode": (EncodingFailed, "The picture could not be encoded.", None, ("Use another output format.",)),
}


class FakeImageArgs(BaseModel):
    """`engine_args` of the fake image engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_seconds: Annotated[float, Field(ge=0)] = 0
    load_seconds: Annotated[float, Field(ge=0)] = 0
    fail: Literal["start", "request", "oom", "not_finite", "encode", "heal"] | None = None
    """start: loading fails. request, oom, not_finite: each request fails at its first step; encode: at its
    end. heal: each picture fails once and is painted again with fewer steps and another seed."""


class FakeImageEngine:
    """Implements ImageEngine: one request at a time, those of a higher priority first."""

    def __init__(self, settings: ModelSettings) -> None:
        self._args = FakeImageArgs.model_validate(settings.engine_args)
        self._line: list[_Job] = []
        self._step_seconds: float | None = None
        self._durations: deque[float] = deque(maxlen=32)
        self._ready = self._closed = False

    async def start(self) -> None:
        await asyncio.sleep(self._args.load_seconds)
        if self._args.fail == "start":
            raise RuntimeError("the fake image engine was told to fail at start")
        self._ready = True

    async def generate(
        self, request: ImageRequest, pictures: Sequence[Picture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        self._require_open()
        _check(request)
        job = self._enter(request)
        try:
            told = -1
            while told != 0:
                ahead = self._line.index(job)
                if ahead != told:
                    yield ImageQueued(ahead, self._eta(job))
                    told = ahead
                    continue
                await job.changed.wait()
                job.changed.clear()
                self._require(job)
            for index in range(request.n):
                async for event in self._work(job, index, pictures):
                    yield event
            self._durations.append(time.monotonic() - job.since)
            yield _usage(request, pictures)
        finally:
            self._line.remove(job)
            self._wake()

    async def cancel(self, request_id: str) -> bool:
        jobs = [job for job in self._line if job.request.request_id == request_id and not job.cancelled]
        for job in jobs:
            job.cancelled = True
            job.changed.set()
        return bool(jobs)

    async def queue(self) -> ImageQueue:
        requests = tuple(self._entry(job, ahead) for ahead, job in enumerate(self._line))
        durations = self._durations
        return ImageQueue(
            requests=requests,
            drain_seconds=self._eta(self._line[-1]) if self._line else self._step_seconds and 0.0,
            average_seconds=sum(durations) / len(durations) if durations else None,
            memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )

    async def check_health(self) -> None:
        if self._closed or not self._ready:
            raise EngineFailed("The image engine is not running.")

    async def close(self) -> None:
        self._closed, self._ready = True, False
        self._wake()

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The image model is shutting down; try again.", retry_after=5)
        if not self._ready:
            raise ModelLoading("The image model is still loading; try again.", retry_after=5)

    def _require(self, job: _Job) -> None:
        self._require_open()
        if job.cancelled:
            raise Cancelled("The request was cancelled.")

    def _enter(self, request: ImageRequest) -> _Job:
        job = _Job(request)
        # Behind its equals; never before the one that is being painted.
        place = len(self._line)
        while place > 1 and self._line[place - 1].request.priority < request.priority:
            place -= 1
        self._line.insert(place, job)
        self._wake()
        return job

    def _wake(self) -> None:
        for job in self._line:
            job.changed.set()

    def _eta(self, job: _Job) -> float | None:
        """Seconds until the job's last picture: all steps up to its own, at the measured time of one."""
        if self._step_seconds is None:
            return None
        steps = sum(other.all_steps - other.step for other in self._line[: self._line.index(job) + 1])
        return steps * self._step_seconds

    def _entry(self, job: _Job, ahead: int) -> QueuedImage:
        request = job.request
        return QueuedImage(
            request_id=request.request_id,
            ahead=ahead,
            step=job.step,
            steps=job.all_steps,
            width=request.width,
            height=request.height,
            n=request.n,
            eta_seconds=self._eta(job),
        )

    async def _work(
        self, job: _Job, index: int, pictures: Sequence[Picture]
    ) -> AsyncGenerator[ImageEvent, None]:
        """Steps and previews of one picture, then the picture."""
        request, steps, healed = job.request, job.steps, None
        request = replace(request, seed=request.seed + index)
        if self._args.fail == "heal":
            steps, healed = max(1, round(0.8 * steps)), "the first attempt was not finite"
            request = replace(request, seed=request.seed + 1000)
        pixels = await asyncio.to_thread(_paint, request, pictures)
        at = sorted({(k + 1) * steps // (request.partial_images + 1) for k in range(request.partial_images)})
        at = [step for step in at if 0 < step < steps]
        for step in range(1, steps + 1):
            await self._step(job)
            yield ImageStep(index, step, steps)
            if step in at:
                data = await asyncio.to_thread(_encode, request, preview(pixels, step / steps))
                yield ImagePreview(index, at.index(step), data)
        self._fail("encode")
        data = await asyncio.to_thread(_encode, request, pixels)
        yield ImageDone(index, data, request.seed, steps, healed)

    async def _step(self, job: _Job) -> None:
        begun = time.monotonic()
        await asyncio.sleep(self._args.step_seconds)
        self._require(job)
        self._fail("request", "oom", "not_finite")
        took = time.monotonic() - begun
        before = self._step_seconds
        self._step_seconds = took if before is None else 0.8 * before + 0.2 * took
        job.step += 1

    def _fail(self, *modes: str) -> None:
        if self._args.fail in modes:
            error, message, code, fixes = _FAILURES[self._args.fail]
            raise error(message, code=code, suggested_fix=fixes)


class _Job:
    """One request in the line."""

    def __init__(self, request: ImageRequest) -> None:
        self.request = request
        self.since = time.monotonic()
        share = request.edit.strength if request.edit else 1.0
        self.steps = max(1, round(request.steps * share))
        self.all_steps = self.steps * request.n
        self.step = 0
        self.cancelled = False
        self.changed = asyncio.Event()


def _check(request: ImageRequest) -> None:
    if request.width % CELL or request.height % CELL or min(request.width, request.height) < CELL:
        raise InvalidRequest(f"Width and height must be multiples of {CELL}.", param="size")


def _paint(request: ImageRequest, pictures: Sequence[Picture]) -> np.ndarray:
    painted = paint(request.prompt, request.width, request.height, request.seed)
    if request.edit is None:
        return painted
    mask = pictures[-1].pixels if request.edit.masked else None
    return edit(painted, pictures[0].pixels, mask, request.edit)


def _encode(request: ImageRequest, pixels: np.ndarray) -> bytes:
    return encode(pixels, request.output_format, request.output_compression)


def _usage(request: ImageRequest, pictures: Sequence[Picture]) -> ImageUsage:
    latents = (request.width // CELL) * (request.height // CELL)
    # A word of Latin letters or one CJK character is a token: about what a tokenizer counts.
    tokens = len(re.findall(r"[^\W\u3000-\u9fff]+|[\u3000-\u9fff]", request.prompt))
    masked = request.edit is not None and request.edit.masked
    return ImageUsage(
        text_tokens=tokens,
        image_tokens=request.n * latents,
        input_image_tokens=(len(pictures) - masked) * latents,
    )
