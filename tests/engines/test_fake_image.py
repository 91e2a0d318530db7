"""What only the fake image engine does: it fails on request, keeps an exact queue, and edits by rule."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.errors import AtelierError, Cancelled, EncodingFailed, EngineFailed, OutOfMemory
from deployments.contracts.messages import (
    ImageDone,
    ImageEdit,
    ImageEvent,
    ImagePreview,
    ImageQueued,
    ImageRequest,
    ImageStep,
    ImageUsage,
    Picture,
)
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.engines.fake_image import FakeImageEngine

REQUEST = ImageRequest("r", "a green circle on a green background", " ", 64, 48, steps=4, cfg_scale=1, seed=1)


def make(**engine_args: Any) -> FakeImageEngine:
    return FakeImageEngine(
        ModelSettings(
            id="painter",
            task="image_generation",
            engine="fake",
            engine_args=engine_args,
            generation=GenerationDefaults(size="64x64", max_pixels=65536, steps=4, cfg_scale=1),
        )
    )


@pytest.fixture
async def engine() -> AsyncIterator[FakeImageEngine]:
    engine = make(step_seconds=0.005)
    await engine.start()
    yield engine
    await engine.close()


async def collect(
    engine: FakeImageEngine, request: ImageRequest, pictures: Sequence[Picture] = ()
) -> list[ImageEvent]:
    return [event async for event in engine.generate(request, pictures)]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def painted(events: list[ImageEvent]) -> np.ndarray:
    return next(pixels(event.data) for event in events if isinstance(event, ImageDone))


@pytest.mark.parametrize(
    ("fail", "error", "code"),
    [
        ("request", EngineFailed, "engine_failed"),
        ("oom", OutOfMemory, "out_of_memory"),
        ("not_finite", EngineFailed, "image_not_finite"),
        ("encode", EncodingFailed, "encoding_failed"),
    ],
)
async def test_it_fails_as_it_is_told(fail: str, error: type[AtelierError], code: str) -> None:
    engine = make(fail=fail)
    await engine.start()
    for _ in range(2):
        with pytest.raises(error) as caught:
            await collect(engine, REQUEST)
        assert caught.value.code == code
        assert (await engine.queue()).requests == ()


async def test_it_heals_as_it_is_told() -> None:
    engine = make(fail="heal")
    await engine.start()
    events = await collect(engine, replace(REQUEST, steps=10))
    (done,) = [event for event in events if isinstance(event, ImageDone)]
    assert (done.seed, done.steps) == (1001, 8)
    assert done.healed


@pytest.mark.parametrize(("steps", "wanted", "at"), [(4, 3, [1, 2, 3]), (8, 1, [4]), (2, 3, [1]), (1, 3, [])])
async def test_previews_are_spread_over_the_steps(
    engine: FakeImageEngine, steps: int, wanted: int, at: list[int]
) -> None:
    events = await collect(engine, replace(REQUEST, steps=steps, partial_images=wanted, n=2))
    found, step = [], None
    for event in events:
        if isinstance(event, ImageStep):
            step = event.step
        elif isinstance(event, ImagePreview):
            found.append((event.index, event.partial, step))
            assert pixels(event.data).shape == (48, 64, 3)
    assert found == [(index, k, step) for index in range(2) for k, step in enumerate(at)]


async def test_places_move_up_and_are_told(engine: FakeImageEngine) -> None:
    async with aclosing(engine.generate(replace(REQUEST, request_id="first", steps=1000))) as running:
        await anext(running)
        await anext(running)
        tasks = []
        for name in ("second", "third"):
            tasks.append(asyncio.create_task(collect(engine, replace(REQUEST, request_id=name))))
            await asyncio.sleep(0)
        queue = await engine.queue()
        assert [(r.request_id, r.ahead) for r in queue.requests] == [
            ("first", 0),
            ("second", 1),
            ("third", 2),
        ]
        etas = [r.eta_seconds for r in queue.requests]
        assert etas == sorted(etas)
        assert queue.drain_seconds == etas[-1]
    second, third = await asyncio.gather(*tasks)
    assert [e.ahead for e in second if isinstance(e, ImageQueued)] == [1, 0]
    assert [e.ahead for e in third if isinstance(e, ImageQueued)] == [2, 1, 0]
    after = await engine.queue()
    assert (after.requests, after.drain_seconds) == ((), 0.0)
    assert after.average_seconds > 0


async def test_cancelled_while_waiting_and_while_painting(engine: FakeImageEngine) -> None:
    tasks = {}
    for name in ("painting", "waiting", "stays"):
        tasks[name] = asyncio.create_task(collect(engine, replace(REQUEST, request_id=name, steps=20)))
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    assert await engine.cancel("waiting")
    assert await engine.cancel("painting")
    assert not await engine.cancel("nobody")
    for name in ("waiting", "painting"):
        with pytest.raises(Cancelled):
            await tasks[name]
    assert isinstance((await tasks["stays"])[-1], ImageUsage)
    assert not await engine.cancel("painting")


def picture(array: np.ndarray) -> Picture:
    return Picture(np.ascontiguousarray(array), "")


async def test_edits_by_rule(engine: FakeImageEngine) -> None:
    source = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :10] = 255
    green = (28, 160, 62)

    masked = replace(REQUEST, edit=ImageEdit(1.0, masked=True))
    events = await collect(engine, masked, [picture(source), picture(mask)])
    assert np.array_equal(painted(events)[:, 10:], source[:, 10:])
    assert np.all(painted(events)[:, :10] == green)
    assert events[-1] == ImageUsage(text_tokens=7, image_tokens=12, input_image_tokens=12)

    half = painted(await collect(engine, replace(REQUEST, edit=ImageEdit(0.5)), [picture(source)]))
    assert np.abs(half - (source.astype(float) + green) / 2).max() <= 1

    placed = replace(REQUEST, width=96, height=64, edit=ImageEdit(1.0, placement=(16, 8)))
    canvas = painted(await collect(engine, placed, [picture(source)]))
    assert np.array_equal(canvas[8:56, 16:80], source)
    assert np.all(canvas[:8] == green)

    scaled = replace(REQUEST, width=128, height=96, edit=ImageEdit(1.0, masked=True))
    canvas = painted(await collect(engine, scaled, [picture(source), picture(mask * 0)]))
    assert np.array_equal(canvas[::2, ::2], source)


async def test_strength_is_a_share_of_the_steps(engine: FakeImageEngine) -> None:
    source = [picture(np.zeros((48, 64, 3), np.uint8))]
    events = await collect(engine, replace(REQUEST, steps=10, edit=ImageEdit(0.3)), source)
    assert sum(isinstance(event, ImageStep) for event in events) == 3
