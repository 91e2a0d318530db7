"""What every image engine promises, asked of the fake one and of diffusers with the demo checkpoint."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import EngineFailed, InvalidRequest, ModelLoading, Unavailable
from deployments.contracts.messages import ImageDone, ImageEvent, ImageRequest, ImageStep, ImageUsage
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.engines.factory import make_image_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "a red circle on a blue background"
REQUEST = ImageRequest("req-1", PROMPT, " ", 128, 128, steps=4, cfg_scale=3.0, seed=7)
KINDS = [pytest.param("fake"), pytest.param("diffusers", marks=pytest.mark.real)]


def settings(kind: Any, **engine_args: Any) -> ModelSettings:
    return ModelSettings(
        id="painter",
        task="image_generation",
        engine=kind,
        source="demo_models/image" if kind == "diffusers" else "",
        # One thread: two on two busy cores are 20 times slower.
        engine_args=({"threads": 1} if kind == "diffusers" else {}) | engine_args,
        generation=GenerationDefaults(size="128x128", max_pixels=32768, steps=4, cfg_scale=3),
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(kind: str) -> AsyncIterator[ImageEngine]:
    engine = make_image_engine(settings(kind))
    await engine.start()
    yield engine
    await engine.close()


async def collect(engine: ImageEngine, request: ImageRequest) -> list[ImageEvent]:
    return [event async for event in engine.generate(request)]


async def pictures(engine: ImageEngine, request: ImageRequest) -> list[bytes]:
    return [event.data for event in await collect(engine, request) if isinstance(event, ImageDone)]


async def test_steps_come_before_their_picture_and_usage_last(engine: ImageEngine) -> None:
    events = await collect(engine, replace(REQUEST, n=2))

    shape = [(type(e).__name__, getattr(e, "index", None), getattr(e, "step", None)) for e in events]
    expected = []
    for index in range(2):
        expected += [("ImageStep", index, step) for step in (1, 2, 3, 4)] + [("ImageDone", index, None)]
    assert shape == [*expected, ("ImageUsage", None, None)]
    assert all(event.steps == 4 for event in events if isinstance(event, ImageStep))
    assert [event.seed for event in events if isinstance(event, ImageDone)] == [7, 8]
    assert events[-1] == ImageUsage(text_tokens=7, image_tokens=2 * 64)


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("size", [(128, 128), (176, 96)])
async def test_size_and_format_are_the_ones_asked_for(
    engine: ImageEngine, output_format: Any, size: tuple[int, int]
) -> None:
    request = replace(REQUEST, steps=2, width=size[0], height=size[1], output_format=output_format)
    image = Image.open(io.BytesIO((await pictures(engine, request))[0]))
    image.load()
    assert (image.size, image.format, image.mode) == (size, output_format.upper(), "RGB")


async def test_compression_is_honoured(engine: ImageEngine) -> None:
    sizes = [
        len((await pictures(engine, replace(REQUEST, output_format="jpeg", output_compression=quality)))[0])
        for quality in (0, 95)
    ]
    assert sizes[0] < sizes[1]


async def test_the_seed_decides_the_picture(engine: ImageEngine) -> None:
    first, again = await pictures(engine, REQUEST), await pictures(engine, REQUEST)
    other = await pictures(engine, replace(REQUEST, seed=8))
    assert first == again
    assert first != other


async def test_sample_i_is_the_picture_of_seed_plus_i(engine: ImageEngine) -> None:
    together = await pictures(engine, replace(REQUEST, n=3))
    alone = [(await pictures(engine, replace(REQUEST, seed=7 + i)))[0] for i in range(3)]
    assert together == alone


async def test_one_step_gives_a_picture(engine: ImageEngine) -> None:
    data = await pictures(engine, replace(REQUEST, steps=1))
    assert np.asarray(Image.open(io.BytesIO(data[0]))).max() > 0


async def test_large_seeds_are_seeds(engine: ImageEngine) -> None:
    events = await collect(engine, replace(REQUEST, seed=2**64 - 1, n=2, steps=2))
    assert [event.seed for event in events if isinstance(event, ImageDone)] == [2**64 - 1, 2**64]


async def test_closing_between_steps_frees_the_engine_unharmed(engine: ImageEngine) -> None:
    undisturbed = await pictures(engine, REQUEST)
    for stop_after in (1, 2, 5):
        events = engine.generate(replace(REQUEST, steps=1000, seed=99))
        for _ in range(stop_after):
            await anext(events)
        await events.aclose()
        assert await pictures(engine, REQUEST) == undisturbed


async def test_a_cancelled_task_frees_the_engine_unharmed(engine: ImageEngine) -> None:
    undisturbed = await pictures(engine, REQUEST)
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in engine.generate(replace(REQUEST, steps=1000)):
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pictures(engine, REQUEST) == undisturbed


async def test_requests_wait_in_order_and_leave_the_queue_when_cancelled(engine: ImageEngine) -> None:
    running = engine.generate(replace(REQUEST, steps=1000))
    await anext(running)
    finished: list[str] = []

    async def wait(name: str) -> None:
        await pictures(engine, replace(REQUEST, steps=2))
        finished.append(name)

    tasks = []
    for name in "abc":
        tasks.append(asyncio.create_task(wait(name)))
        await asyncio.sleep(0)
    tasks[1].cancel()
    # It leaves at once: the request before it is still running.
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    await running.aclose()
    await asyncio.gather(tasks[0], tasks[2])
    assert finished == ["a", "c"]


async def test_a_refused_request_harms_nobody(engine: ImageEngine) -> None:
    with pytest.raises(InvalidRequest, match="multiples of 16") as caught:
        await collect(engine, replace(REQUEST, width=100))
    assert caught.value.param == "size"
    assert await pictures(engine, replace(REQUEST, prompt="\ud800 a <|image_pad|> {} {0}", steps=2))


async def test_healthy_while_serving(engine: ImageEngine) -> None:
    events = engine.generate(REQUEST)
    await anext(events)
    await engine.check_health()
    await events.aclose()
    await engine.check_health()


async def test_life_from_loading_to_closed(kind: str) -> None:
    engine = make_image_engine(settings(kind))
    with pytest.raises(ModelLoading):
        await collect(engine, REQUEST)
    with pytest.raises(EngineFailed):
        await engine.check_health()

    await engine.start()
    events = engine.generate(replace(REQUEST, steps=1000))
    await anext(events)
    waiting = asyncio.create_task(collect(engine, REQUEST))
    await asyncio.sleep(0)
    await asyncio.gather(engine.close(), engine.close())
    with pytest.raises(Unavailable):
        async for _ in events:
            pass
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await collect(engine, REQUEST)
    with pytest.raises(EngineFailed):
        await engine.check_health()
    await engine.close()


async def test_closing_before_start(kind: str) -> None:
    engine = make_image_engine(settings(kind))
    await engine.close()
    await engine.close()


async def test_an_unknown_engine_argument_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match="step_count"):
        make_image_engine(settings(kind, step_count=3))


async def test_the_fake_fails_when_told_to() -> None:
    with pytest.raises(RuntimeError):
        await make_image_engine(settings("fake", fail="start")).start()
    engine = make_image_engine(settings("fake", fail="request"))
    await engine.start()
    with pytest.raises(EngineFailed):
        await collect(engine, REQUEST)


async def test_the_fake_paints_the_colours_of_the_prompt() -> None:
    engine = make_image_engine(settings("fake"))
    await engine.start()
    for prompt in (PROMPT, "蓝色背景上的一个红色圆形"):
        data = (await pictures(engine, replace(REQUEST, prompt=prompt)))[0]
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert tuple(pixels[0, 0]) == (34, 74, 214)
        assert tuple(pixels[64, 64]) == (226, 32, 38)
