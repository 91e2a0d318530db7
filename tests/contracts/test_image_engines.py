"""What every image engine promises, asked of the fake one and of diffusers with the demo checkpoint."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from deployments.contracts.engines import ImageEngine
from deployments.contracts.errors import Cancelled, EngineFailed, InvalidRequest, ModelLoading, Unavailable
from deployments.contracts.messages import (
    ImageDone,
    ImageEdit,
    ImageEvent,
    ImagePreview,
    ImageQueue,
    ImageQueued,
    ImageRequest,
    ImageStep,
    ImageUsage,
    Picture,
)
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.engines.factory import make_image_engine
from tests.devices import GPU_SHARE

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
        gpu_fraction=GPU_SHARE if kind == "diffusers" else 0,
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


async def collect(
    engine: ImageEngine, request: ImageRequest, sources: Sequence[Picture] = ()
) -> list[ImageEvent]:
    return [event async for event in engine.generate(request, sources)]


async def pictures(
    engine: ImageEngine, request: ImageRequest, sources: Sequence[Picture] = ()
) -> list[bytes]:
    """The finished pictures in the order of their index."""
    done = [event for event in await collect(engine, request, sources) if isinstance(event, ImageDone)]
    return [event.data for event in sorted(done, key=lambda event: event.index)]


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


async def until_queued(engine: ImageEngine, request_id: str) -> ImageQueue:
    """The queue, once it holds this request."""
    for _ in range(10_000):
        queue = await engine.queue()
        if request_id in {request.request_id for request in queue.requests}:
            return queue
        await asyncio.sleep(0.001)
    raise TimeoutError(request_id)


async def until_painting(events: Any) -> None:
    """Read on to the first step."""
    while not isinstance(await anext(events), ImageStep):
        pass


async def test_the_position_comes_first_steps_before_their_picture_and_usage_last(
    engine: ImageEngine,
) -> None:
    events = await collect(engine, replace(REQUEST, n=2))

    assert isinstance(events[0], ImageQueued)
    assert events[0].ahead == 0
    for index in range(2):
        own = [event for event in events if getattr(event, "index", None) == index]
        assert [type(event) for event in own] == [ImageStep] * 4 + [ImageDone]
        assert [event.step for event in own if isinstance(event, ImageStep)] == [1, 2, 3, 4]
    assert all(event.steps == 4 for event in events if isinstance(event, ImageStep))
    assert [event.seed for event in events if isinstance(event, ImageDone)] == [7, 8]
    assert not any(event.healed for event in events if isinstance(event, ImageDone))
    assert events[-1] == ImageUsage(text_tokens=7, image_tokens=2 * 64)


async def test_previews_are_pictures_on_the_way(engine: ImageEngine) -> None:
    events = await collect(engine, replace(REQUEST, steps=8, partial_images=3, output_format="webp"))
    previews = [event for event in events if isinstance(event, ImagePreview)]
    assert [(event.index, event.partial) for event in previews] == [(0, 0), (0, 1), (0, 2)]
    assert len({event.data for event in previews}) == 3
    for event in previews:
        image = Image.open(io.BytesIO(event.data))
        assert (image.size, image.format) == ((128, 128), "WEBP")
    steps = [event.step for event in events if isinstance(event, ImageStep)]
    assert steps == list(range(1, 9))
    whole = await pictures(engine, replace(REQUEST, steps=8, output_format="webp"))
    assert [event.data for event in events if isinstance(event, ImageDone)] == whole


async def test_the_same_picture_in_any_company(engine: ImageEngine) -> None:
    """Eight at once: each comes out as it does alone, to the byte."""
    requests = [
        replace(
            REQUEST,
            request_id=f"c-{number}",
            seed=number,
            steps=2 + number,
            cfg_scale=1.0 if number == 3 else 3.0,
            prompt=PROMPT + " red" * number,
            width=176 if number % 2 else 128,
            height=96 if number % 2 else 128,
        )
        for number in range(8)
    ]
    together = await asyncio.gather(*(pictures(engine, request) for request in requests))
    assert list(together) == [await pictures(engine, request) for request in requests]


async def test_cancelling_one_of_eight_never_changes_the_others(engine: ImageEngine) -> None:
    requests = [replace(REQUEST, request_id=f"x-{number}", seed=number, steps=6) for number in range(8)]
    undisturbed = [await pictures(engine, request) for request in requests]
    tasks = [asyncio.create_task(pictures(engine, request)) for request in requests]
    await until_queued(engine, "x-4")
    assert await engine.cancel("x-4")
    with pytest.raises(Cancelled):
        await tasks[4]
    assert not await engine.cancel("x-4")
    for number in (0, 1, 2, 3, 5, 6, 7):
        assert await tasks[number] == undisturbed[number]


async def test_cancelling_what_is_not_there(engine: ImageEngine) -> None:
    assert not await engine.cancel("nobody")


async def test_the_queue_is_told(engine: ImageEngine) -> None:
    await pictures(engine, REQUEST)
    running = engine.generate(replace(REQUEST, request_id="q-1", steps=1000, n=2))
    await until_painting(running)
    waiting = asyncio.create_task(pictures(engine, replace(REQUEST, request_id="q-2", steps=1000)))
    queue = await until_queued(engine, "q-2")
    first = queue.requests[0]
    assert {request.request_id for request in queue.requests} == {"q-1", "q-2"}
    assert {(request.width, request.height) for request in queue.requests} == {(128, 128)}
    assert sum(request.n for request in queue.requests) == 3
    assert first.ahead == 0
    assert all(0 <= request.step < request.steps == 1000 * request.n for request in queue.requests)
    assert all(request.eta_seconds is not None for request in queue.requests)
    assert queue.drain_seconds is not None
    assert queue.average_seconds is not None
    assert queue.memory_mb > 0
    await engine.cancel("q-2")
    with pytest.raises(Cancelled):
        await waiting
    await running.aclose()
    assert (await engine.queue()).requests == ()


def a_source(width: int = 128, height: int = 128) -> Picture:
    small = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return Picture(pixels, "source")


async def test_an_edit_follows_its_source_and_its_strength(engine: ImageEngine) -> None:
    source = a_source()
    away = []
    for strength in (1.0, 0.25):
        (data,) = await pictures(engine, replace(REQUEST, edit=ImageEdit(strength)), [source])
        away.append(np.abs(pixels_of(data).astype(int) - source.pixels.astype(int)).mean())
    assert away[1] < away[0]
    usage = (await collect(engine, replace(REQUEST, edit=ImageEdit()), [source]))[-1]
    assert usage == ImageUsage(7, 64, 64)


@pytest.mark.parametrize("strength", [1.0, 0.6])
async def test_unmasked_pixels_come_back_unchanged(engine: ImageEngine, strength: float) -> None:
    source = a_source()
    mask = np.zeros((128, 128), np.uint8)
    mask[37:91, 50:101] = 255
    request = replace(REQUEST, edit=ImageEdit(strength, masked=True), partial_images=1)
    events = await collect(engine, request, [source, Picture(mask, "mask")])
    shown = [event.data for event in events if isinstance(event, (ImagePreview, ImageDone))]
    painted = pixels_of(shown[-1])
    assert len(shown) == 2
    assert np.array_equal(painted[mask == 0], source.pixels[mask == 0])
    assert (painted[mask == 255] != source.pixels[mask == 255]).any(axis=1).mean() > 0.5


async def test_outpainting_keeps_the_source_where_it_is_placed(engine: ImageEngine) -> None:
    source = a_source(64, 48)
    request = replace(REQUEST, edit=ImageEdit(placement=(37, 70)))
    painted = pixels_of((await pictures(engine, request, [source]))[0])
    assert painted.shape == (128, 128, 3)
    assert np.array_equal(painted[70 : 70 + 48, 37 : 37 + 64], source.pixels)


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
    for stop_after in (1, 2, 6):
        events = engine.generate(replace(REQUEST, steps=1000, seed=99))
        for _ in range(stop_after):
            await anext(events)
        await events.aclose()
        assert await pictures(engine, REQUEST) == undisturbed


async def test_a_cancelled_task_frees_the_engine_unharmed(engine: ImageEngine) -> None:
    undisturbed = await pictures(engine, REQUEST)
    begun = asyncio.Event()

    async def consume() -> None:
        async for event in engine.generate(replace(REQUEST, steps=1000)):
            if isinstance(event, ImageStep):
                begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pictures(engine, REQUEST) == undisturbed


async def test_requests_wait_in_order_and_leave_the_queue_when_cancelled(engine: ImageEngine) -> None:
    running = engine.generate(replace(REQUEST, steps=1000))
    await until_painting(running)
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
        pixels = pixels_of((await pictures(engine, replace(REQUEST, prompt=prompt)))[0])
        assert tuple(pixels[0, 0]) == (34, 74, 214)
        assert tuple(pixels[64, 64]) == (226, 32, 38)
