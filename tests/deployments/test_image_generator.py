"""The image shell: events pass through, failures are tamed, the engine is closed once."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments import image_generator
from deployments.contracts.errors import EngineFailed, InvalidRequest, Overloaded
from deployments.contracts.messages import (
    ImageDone,
    ImageEdit,
    ImageEvent,
    ImageQueue,
    ImageQueued,
    ImageRequest,
    ImageStep,
    ImageUsage,
    Picture,
    QueuedImage,
)
from deployments.contracts.request_ids import unique_id
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.image_generator import ImageGenerator

REQUEST = ImageRequest("req-9", "a red circle", " ", 64, 64, steps=3, cfg_scale=1.0, seed=1)
SETTINGS = ModelSettings(
    id="painter",
    task="image_generation",
    engine="fake",
    generation=GenerationDefaults(size="64x64", max_pixels=4096, steps=3, cfg_scale=1),
)


class Engine:
    """An engine that does what its `behave` says and counts its ends."""

    def __init__(self, failure: Exception | None = None, at_start: Exception | None = None) -> None:
        self.failure, self.at_start = failure, at_start
        self.closed = self.left = 0
        self.held: list[str] = []
        self.drain: float | None = None

    async def start(self) -> None:
        if self.at_start:
            raise self.at_start

    async def generate(
        self, request: ImageRequest, pictures: Sequence[Picture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        self.pictures, self.request = pictures, request
        self.held.append(request.request_id)
        try:
            for step in range(request.steps):
                yield ImageStep(0, step + 1, request.steps)
                if self.failure:
                    raise self.failure
            yield ImageDone(0, b"picture", request.seed, request.steps)
            yield ImageUsage(3, 16)
        finally:
            self.left += 1

    async def queue(self) -> ImageQueue:
        requests = tuple(QueuedImage(name, 0, 0, 3, 64, 64, 1, None) for name in self.held)
        return ImageQueue(requests, drain_seconds=self.drain)

    async def cancel(self, request_id: str) -> bool:
        self.held.remove(request_id)
        return True

    async def check_health(self) -> None:
        if self.failure:
            raise self.failure

    async def close(self) -> None:
        self.closed += 1


Make = Callable[..., Awaitable[tuple[ImageGenerator, Engine]]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    async def _make(**behaviour: Any) -> tuple[ImageGenerator, Engine]:
        engine = Engine(**behaviour)
        monkeypatch.setattr(image_generator, "make_image_engine", lambda settings: engine)
        replica = ImageGenerator.__new__(ImageGenerator)
        await ImageGenerator.__init__(replica, SETTINGS)
        return replica, engine

    return _make


async def test_the_engine_of_the_settings_paints() -> None:
    replica = ImageGenerator.__new__(ImageGenerator)
    await ImageGenerator.__init__(replica, SETTINGS)
    events = [event async for event in replica.generate(REQUEST)]
    assert [type(event) for event in events] == [ImageQueued, *[ImageStep] * 3, ImageDone, ImageUsage]
    await replica.check_health()


async def test_cancel_finds_the_requests_of_a_client_s_id_and_the_one_of_ours(make: Make) -> None:
    replica, engine = await make()
    ids = [unique_id("mine"), unique_id("mine"), unique_id("other"), unique_id("mine-too")]
    for request_id in ids:
        await anext(replica.generate(replace(REQUEST, request_id=request_id)))
    assert [r.request_id for r in (await replica.queue()).requests] == ids
    assert await replica.cancel("mine")
    assert engine.held == ids[2:]
    assert not await replica.cancel("mine")
    assert not await replica.cancel("")
    assert await replica.cancel(ids[3])
    assert engine.held == [ids[2]]


async def test_a_full_replica_refuses_at_once_and_says_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    monkeypatch.setattr(SETTINGS.__class__, "max_held_requests", property(lambda self: 2))
    replica, engine = await make()
    streams = [replica.generate(REQUEST) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    engine.drain = 500.0
    with pytest.raises(Overloaded) as caught:
        await anext(replica.generate(REQUEST))
    assert caught.value.retry_after == 120
    assert len(engine.held) == 2
    await streams[0].aclose()
    await anext(replica.generate(REQUEST))


PICTURE = Picture(np.zeros((48, 64, 3), np.uint8), "")


@pytest.mark.parametrize(
    ("size", "edit", "param"),
    [
        ((64, 64), ImageEdit(placement=(1, 0)), "placement"),
        ((64, 48), ImageEdit(placement=(0, 1)), "placement"),
        ((64, 48), ImageEdit(masked=True), "mask"),
        ((0, 0), ImageEdit(masked=True), "mask"),
    ],
)
async def test_an_edit_that_cannot_be_is_refused_before_the_engine(
    make: Make, size: tuple[int, int], edit: ImageEdit, param: str
) -> None:
    replica, engine = await make()
    mask = [Picture(np.zeros((48, 48), np.uint8), "")] if edit.masked else []
    request = replace(REQUEST, width=size[0], height=size[1], edit=edit)
    with pytest.raises(InvalidRequest) as caught:
        await anext(replica.generate(request, PICTURE, *mask))
    assert caught.value.param == param
    assert engine.held == []


async def test_an_edit_without_a_size_gets_its_picture_s(make: Make) -> None:
    replica, engine = await make()
    for pixels, expected in (((48, 64), (64, 48)), ((20, 50), (48, 16)), ((480, 640), (64, 48))):
        picture = Picture(np.zeros((*pixels, 3), np.uint8), "")
        await anext(replica.generate(replace(REQUEST, width=0, height=0, edit=ImageEdit()), picture))
        assert (engine.request.width, engine.request.height) == expected
        assert engine.pictures == (picture,)
    strip = Picture(np.zeros((10, 100, 3), np.uint8), "")
    with pytest.raises(InvalidRequest, match="3:1"):
        await anext(replica.generate(replace(REQUEST, width=0, height=0, edit=ImageEdit()), strip))


async def test_closing_the_stream_closes_the_engine_s(make: Make) -> None:
    replica, engine = await make()
    events = replica.generate(REQUEST)
    await anext(events)
    await events.aclose()
    assert engine.left == 1


async def test_cancelling_closes_the_engine_s_stream(make: Make) -> None:
    replica, engine = await make()

    async def consume() -> None:
        async for _ in replica.generate(REQUEST):
            await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()
    await asyncio.sleep(0)
    assert engine.left == 1


async def test_known_errors_pass_unchanged(make: Make) -> None:
    error = InvalidRequest("no", param="size")
    replica, engine = await make(failure=error)
    with pytest.raises(InvalidRequest) as caught:
        [event async for event in replica.generate(REQUEST)]
    assert caught.value is error
    assert engine.left == 1


async def test_unknown_errors_are_logged_with_the_request_and_not_told(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    replica, _ = await make(failure=KeyError("secret"))
    with caplog.at_level(logging.ERROR), pytest.raises(EngineFailed) as caught:
        [event async for event in replica.generate(REQUEST)]
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None
    assert "req-9" in caplog.text
    assert "secret" in caplog.text


async def test_health_is_the_engine_s(make: Make) -> None:
    replica, _ = await make(failure=EngineFailed("gone"))
    with pytest.raises(EngineFailed, match="gone"):
        await replica.check_health()


async def test_a_failed_start_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(at_start=OSError("no such checkpoint"))
    monkeypatch.setattr(image_generator, "make_image_engine", lambda settings: engine)
    replica = ImageGenerator.__new__(ImageGenerator)
    with pytest.raises(OSError, match="no such checkpoint"):
        await ImageGenerator.__init__(replica, SETTINGS)
    assert engine.closed == 1


async def test_serve_s_shutdown_hook_closes_once_and_leaves_no_coroutine(make: Make) -> None:
    replica, engine = await make()
    assert hasattr(replica, "__del__")
    await replica.__del__()  # what Serve does
    with pytest.raises(EngineFailed):
        await replica.check_health()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del replica
        gc.collect()
    assert engine.closed == 1


def test_importing_the_shells_brings_no_torch() -> None:
    code = (
        "import sys, deployments.image_generator, deployments.preprocessing, deployments.engines.fake_image, "
        "deployments.engines.diffusers_engine\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'sdnq', 'ray'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
