"""Readiness and its Retry-After, on a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from deployments.contracts.errors import ModelLoading, Unavailable
from deployments.contracts.settings import ModelSettings
from serve_app.graph.readiness import Readiness

MODEL = ModelSettings(id="m", task="vision_language", engine="fake", load_seconds=40)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.state = "loading"
        self.readiness = Readiness([MODEL], self.probe, clock=lambda: self.now)

    async def probe(self):
        if self.state == "broken":
            raise RuntimeError("no controller")
        return {MODEL.deployment_name: self.state}

    async def at(self, now: float, state: str) -> None:
        self.now, self.state = now, state
        await self.readiness.refresh()


async def test_time_left_shrinks_then_grows_when_the_estimate_was_short() -> None:
    world = World()
    await world.at(1010, "loading")
    assert world.readiness.retry_after("m") == 30
    await world.at(1100, "loading")
    assert world.readiness.retry_after("m") == 50
    await world.at(2000, "loading")
    assert world.readiness.retry_after("m") == 120  # beyond it the SDK would not retry


async def test_second_load_uses_the_measured_time() -> None:
    world = World()
    await world.at(1008, "ready")
    world.readiness.require(MODEL)
    await world.at(1100, "loading")
    with pytest.raises(ModelLoading) as caught:
        world.readiness.require(MODEL)
    assert caught.value.retry_after == 8


async def test_idle_takes_requests_and_failed_does_not() -> None:
    world = World()
    await world.at(1001, "idle")
    world.readiness.require(MODEL)
    await world.at(1002, "failed")
    with pytest.raises(Unavailable, match="failed to start") as caught:
        world.readiness.require(MODEL)
    assert caught.value.code == "model_failed"


async def test_last_answer_stands_while_the_controller_is_away() -> None:
    world = World()
    await world.at(1001, "ready")
    await world.at(1002, "broken")
    world.readiness.require(MODEL)


async def test_request_is_given_up_when_the_last_replica_goes() -> None:
    world = World()
    await world.at(1001, "ready")
    held = asyncio.Event()  # as Serve holds a request that no replica can take
    waiting = asyncio.create_task(world.readiness.while_up(MODEL, held.wait()))
    await asyncio.sleep(0)
    await world.at(1002, "loading")
    with pytest.raises(ModelLoading):
        await waiting


async def test_work_ends_as_it_ends_while_the_model_is_up() -> None:
    world = World()
    await world.at(1001, "ready")
    assert await world.readiness.while_up(MODEL, asyncio.sleep(0, "done")) == "done"

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await world.readiness.while_up(MODEL, fail())


async def test_cancelling_cancels_the_work() -> None:
    world = World()
    await world.at(1001, "ready")
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(world.readiness.while_up(MODEL, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(cancelled.wait(), 5)
