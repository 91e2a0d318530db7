"""Operations on pictures over backends that fail, hang, or lose their replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from deployments.contracts.errors import Cancelled, EngineFailed, ModelLoading, TimedOut, Unavailable
from deployments.contracts.messages import (
    ImageDone,
    ImageEvent,
    ImageQueue,
    ImageQueued,
    ImageRequest,
    ImageSource,
    ImageStep,
    ImageUsage,
    QueuedImage,
)
from deployments.contracts.request_ids import unique_id
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from serve_app.graph.backends import ReplicaLost
from serve_app.graph.catalog import Catalog
from serve_app.graph.operations import Operations
from serve_app.graph.readiness import Readiness, State

QUEUED, STEP = ImageQueued(0, None), ImageStep(0, 1, 1)
DONE, USAGE = ImageDone(0, b"picture", 1, 1), ImageUsage(1, 1)
WHOLE = [QUEUED, STEP, DONE, USAGE]
LOST = ReplicaLost("lost")


def model(name: str, **generation: Any) -> ModelSettings:
    defaults = {"size": "64x64", "max_pixels": 4096, "steps": 1, "cfg_scale": 1, **generation}
    return ModelSettings(
        id=name,
        task="image_generation",
        engine="fake",
        generation=GenerationDefaults.model_validate(defaults),
    )


class Backend:
    """Plays one script per attempt: events, exceptions to raise, and None to hang."""

    def __init__(self, *scripts: Sequence[ImageEvent | Exception | None], found: bool | Exception = False):
        self.scripts = list(scripts)
        self.found = found
        self.attempts: list[Sequence[Any]] = []
        self.closed = 0
        self.asked: list[str] = []

    async def generate(
        self, request: ImageRequest, pictures: Sequence[Any] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        self.attempts.append(pictures)
        try:
            for act in self.scripts[len(self.attempts) - 1]:
                if isinstance(act, Exception):
                    raise act
                if act is None:
                    await asyncio.Event().wait()
                else:
                    yield act
        finally:
            self.closed += 1

    async def queue(self) -> ImageQueue:
        self.asked.append("queue")
        return ImageQueue((QueuedImage("x", 0, 0, 1, 64, 64, 1, None),))

    async def cancel(self, name: str) -> bool:
        self.asked.append(name)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Preparing:
    def prepare(self, source: ImageSource) -> Any:
        return ("prepared", source)


Make = Callable[..., tuple[Operations, dict[str, State]]]


@pytest.fixture
def make() -> Make:
    def _make(*models: ModelSettings, peers: Any = None, **backends: Backend) -> tuple[Operations, Any]:
        states: dict[str, State] = {m.deployment_name: "ready" for m in models}

        async def probe() -> dict[str, State]:
            return states

        readiness = Readiness(models, probe)
        return Operations(Catalog(models), readiness, Preparing(), {}, backends, peers), states

    return _make


def request() -> ImageRequest:
    return ImageRequest(unique_id("mine"), "x", " ", 64, 64, steps=1, cfg_scale=1, seed=1)


async def run(operations: Operations, **options: Any) -> list[ImageEvent]:
    painter = operations.image_model(None)
    return [event async for event in operations.generate(painter, request(), **options)]


async def test_sources_are_prepared_and_arrive_in_order(make: Make) -> None:
    backend = Backend(WHOLE)
    operations, _ = make(model("a"), a=backend)
    await operations.readiness.refresh()
    sources = [ImageSource(url="1", purpose="paint"), ImageSource(url="2", purpose="mask")]
    assert await run(operations, sources=sources) == WHOLE
    assert backend.attempts == [[("prepared", source) for source in sources]]
    assert backend.closed == 1


@pytest.mark.parametrize("before", [[], [QUEUED], [QUEUED, STEP]])
async def test_a_lost_replica_is_made_up_for_until_something_was_shown(
    make: Make, before: list[ImageEvent]
) -> None:
    backend = Backend([*before, LOST], WHOLE)
    operations, _ = make(model("a"), a=backend)
    await operations.readiness.refresh()
    assert await run(operations) == [*before, *WHOLE]


async def test_after_that_or_a_second_time_it_is_told(make: Make) -> None:
    for scripts in ([[QUEUED, DONE, LOST], WHOLE], [[LOST], [QUEUED, LOST], WHOLE]):
        operations, _ = make(model("a"), a=Backend(*scripts))
        await operations.readiness.refresh()
        with pytest.raises(ReplicaLost):
            await run(operations)


async def test_other_failures_are_told_at_once(make: Make) -> None:
    backend = Backend([QUEUED, EngineFailed("no")], WHOLE)
    operations, _ = make(model("a"), a=backend)
    await operations.readiness.refresh()
    with pytest.raises(EngineFailed):
        await run(operations)
    assert len(backend.attempts) == 1


async def test_the_shorter_time_limit_stops_the_work(make: Make) -> None:
    for own, theirs in ((0.05, None), (60, 0.05), (0.05, 60), (None, 0.05)):
        backend = Backend([QUEUED, STEP, None])
        operations, _ = make(model("a", timeout_s=own), a=backend)
        await operations.readiness.refresh()
        with pytest.raises(TimedOut) as caught:
            await run(operations, timeout_s=theirs)
        assert caught.value.suggested_fix
        assert backend.closed == 1


async def test_a_request_to_a_model_that_is_not_up_is_refused(make: Make) -> None:
    operations, _ = make(model("a"), a=Backend())
    with pytest.raises(ModelLoading):
        operations.generate(operations.image_model(None), request())


async def test_a_waiting_request_is_refused_when_its_model_goes_down(make: Make) -> None:
    backend = Backend([None])
    operations, states = make(model("a"), a=backend)
    await operations.readiness.refresh()
    task = asyncio.create_task(run(operations))
    await asyncio.sleep(0.01)
    states[operations.image_model(None).deployment_name] = "loading"
    await operations.readiness.refresh()
    with pytest.raises(ModelLoading):
        await task
    assert backend.closed == 1


async def test_cancelling_before_any_answer(make: Make) -> None:
    backend = Backend([None])
    operations, _ = make(model("a"), a=backend)
    await operations.readiness.refresh()
    task = asyncio.create_task(run(operations))
    await asyncio.sleep(0.01)
    assert await operations.cancel_image(None, "mine")
    with pytest.raises(Cancelled):
        await task
    assert backend.closed == 1


async def test_all_ready_models_are_asked(make: Make) -> None:
    a, b, c = Backend(found=False), Backend(found=True), Backend(found=True)
    operations, states = make(model("a"), model("b"), model("c"), a=a, b=b, c=c)
    states[operations.image_model("c").deployment_name] = "loading"
    await operations.readiness.refresh()
    assert await operations.cancel_image(None, "x")
    assert (a.asked, b.asked, c.asked) == (["x"], ["x"], [])
    assert not await operations.cancel_image(operations.image_model("a"), "x")
    assert len((await operations.image_queue(operations.image_model("a"))).requests) == 1
    assert await operations.image_queue(operations.image_model("c")) == ImageQueue()


async def test_a_model_that_cannot_be_asked_matters_only_if_no_other_has_it(make: Make) -> None:
    broken = Backend(found=Unavailable("gone"))
    operations, _ = make(model("a"), model("b"), a=broken, b=Backend(found=True))
    await operations.readiness.refresh()
    assert await operations.cancel_image(None, "x")
    operations, _ = make(model("a"), model("b"), a=broken, b=Backend(found=False))
    await operations.readiness.refresh()
    with pytest.raises(Unavailable):
        await operations.cancel_image(None, "x")


async def test_peers_are_asked_first(make: Make) -> None:
    backend = Backend(found=False)

    class Peers:
        async def cancel_unanswered(self, name: str) -> bool:
            backend.asked.append(f"peers {name}")
            return True

    operations, _ = make(model("a"), peers=Peers(), a=backend)
    await operations.readiness.refresh()
    assert await operations.cancel_image(None, "x")
    assert backend.asked == ["peers x", "x"]
