"""Requests without an answer: given up by name, and let go once they have one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deployments.contracts.errors import Cancelled
from deployments.contracts.request_ids import unique_id
from serve_app.graph.unanswered import Unanswered


class Source:
    """A stream that waits before its first item."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            await self.go.wait()
            for item in range(3):
                yield item
        finally:
            self.closed = True


async def waiting(unanswered: Unanswered, source: Source, request_id: str) -> asyncio.Task[list[int]]:
    async def read() -> list[int]:
        return [item async for item in unanswered.watch(request_id, source.stream())]

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    return task


async def test_a_stream_passes_unchanged_and_is_forgotten() -> None:
    unanswered, source, ours = Unanswered(), Source(), unique_id("mine")
    task = await waiting(unanswered, source, ours)
    source.go.set()
    assert await task == [0, 1, 2]
    assert not unanswered.cancel("mine")


async def test_a_waiting_stream_is_given_up_by_either_id() -> None:
    for by_ours in (False, True):
        unanswered, source, ours = Unanswered(), Source(), unique_id("mine")
        task = await waiting(unanswered, source, ours)
        assert not unanswered.cancel("other")
        assert unanswered.cancel(ours if by_ours else "mine")
        with pytest.raises(Cancelled):
            await task
        assert source.closed
        assert not unanswered.cancel("mine")


async def test_only_those_that_are_meant() -> None:
    unanswered, sources = Unanswered(), [Source(), Source(), Source()]
    names = ["same", "same", "other"]
    tasks = [await waiting(unanswered, s, unique_id(n)) for s, n in zip(sources, names, strict=True)]
    assert unanswered.cancel("same")
    assert [type(end) for end in await asyncio.gather(*tasks[:2], return_exceptions=True)] == [Cancelled] * 2
    sources[2].go.set()
    assert await tasks[2] == [0, 1, 2]


async def test_an_answered_stream_is_out_of_reach() -> None:
    unanswered, source = Unanswered(), Source()
    source.go.set()
    stream = unanswered.watch(unique_id("mine"), source.stream())
    assert await anext(stream) == 0
    assert not unanswered.cancel("mine")
    await stream.aclose()
    assert source.closed


async def test_a_reader_that_is_cancelled_is_cancelled() -> None:
    unanswered, source = Unanswered(), Source()
    task = await waiting(unanswered, source, unique_id("mine"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed
