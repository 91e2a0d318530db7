"""Requests that came ahead of the calls that ask for them: the engine begins, and nothing is sent yet.

A call through Serve wakes several threads on its way, which takes a lone request longer than all else that is
done for it outside of the engine. So the ingress sends such a request over the tokens' connection, too. The
call still decides: what it does not ask for within UNCLAIMED_S is dropped, and nobody hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from deployments.contracts.messages import ChatRequest

UNCLAIMED_S = 0.5
Chunks = AsyncGenerator[bytes, None]


class HeadStarts:
    """Those of one connection.

    Args:
        stream: begins a request.
    """

    def __init__(self, stream: Callable[[ChatRequest], Chunks]) -> None:
        self._stream = stream
        self._begun: dict[int, tuple[Chunks, asyncio.Task[bytes | None], asyncio.TimerHandle]] = {}
        self._dropped: set[asyncio.Task[None]] = set()

    def begin(self, number: int, request: ChatRequest) -> None:
        """Let the engine begin with what will be asked for under this number."""
        chunks = self._stream(request)
        expiry = asyncio.get_running_loop().call_later(UNCLAIMED_S, self._drop, number)
        self._begun[number] = chunks, asyncio.create_task(_first(chunks)), expiry

    def claim(self, number: int) -> Chunks | None:
        """The chunks of a request that has begun, to be read at once; None if it has not."""
        if (begun := self._begun.pop(number, None)) is None:
            return None
        chunks, first, expiry = begun
        expiry.cancel()
        return _resumed(chunks, first)

    def close(self) -> None:
        """Drop what was not claimed."""
        for number in list(self._begun):
            self._drop(number)

    def _drop(self, number: int) -> None:
        chunks, first, expiry = self._begun.pop(number)
        expiry.cancel()
        dropping = asyncio.create_task(_end(chunks, first))
        self._dropped.add(dropping)
        dropping.add_done_callback(self._dropped.discard)


async def _first(chunks: Chunks) -> bytes | None:
    return await anext(chunks, None)


async def _resumed(chunks: Chunks, first: asyncio.Task[bytes | None]) -> Chunks:
    try:
        chunk = await first
        if chunk is not None:
            yield chunk
        async for chunk in chunks:
            yield chunk
    finally:
        await _end(chunks, first)


async def _end(chunks: Chunks, first: asyncio.Task[bytes | None]) -> None:
    first.cancel()
    # A generator cannot be closed while it runs. Its error was for the call, which has it or did not come.
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await first
    await chunks.aclose()
