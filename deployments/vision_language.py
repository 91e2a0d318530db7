"""The replica of a vision-language model: one chat engine behind Ray Serve's calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

from deployments.contracts.channel import Address
from deployments.contracts.engines import ChatEngine
from deployments.contracts.errors import AtelierError, EngineFailed
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine
from deployments.head_start import HeadStarts
from deployments.replica import EngineReplica
from deployments.token_sender import Senders

logger = logging.getLogger(__name__)

SPACING_S = 0.0003
"""What one more open stream adds to the least time between two messages of each: about what a message costs.

Measured at 16 streams on 2 cores: 5 ms carry two tokens per message instead of one, and requests per second
rise by a quarter, while the first token, the time per token and the longest gaps all shrink. A model slower
than the spacing (any large one) is never held.
"""
SPACING_MAX_S = 0.01
LINGER_S = 0.01
"""How long a lone stream's call stays open after its last token.

The next request of the same client often comes at once: it should not have to wait for what Serve and gRPC do
about the end of the last one.
"""


class VisionLanguage(EngineReplica[ChatEngine]):
    """One replica; `serve_app/app.py` wraps it into a deployment."""

    _streams = 0

    # Serve awaits it, and routes here afterwards.
    async def __init__(self, settings: ModelSettings) -> None:  # type: ignore[misc]
        self._senders = Senders(lambda: HeadStarts(lambda request: self._running().stream_chat(request, ())))
        await self._start(make_chat_engine(settings))

    async def chat(self, request: ChatRequest, *pictures: Picture) -> bytes:
        """The whole answer as JSON of the request's surface."""
        with _only_our_errors(request):
            return await self._running().chat(request, pictures)

    async def stream_chat(
        self, request: ChatRequest, *pictures: Picture
    ) -> AsyncGenerator[list[bytes], None]:
        """Chunks or events as JSON, as many at a time as are ready: each item costs a message."""
        with _only_our_errors(request), self._counted():
            chunks = self._running().stream_chat(request, pictures)
            async with aclosing(coalesced(chunks, self._spacing)) as batches:
                async for batch in batches:
                    yield batch

    async def push_chat(
        self, address: Address, request: ChatRequest, *pictures: Picture
    ) -> AsyncGenerator[list[bytes], None]:
        """The same, sent straight to whoever listens at `address`.

        Yields nothing; or, if nobody answers there, what `stream_chat` yields.
        """
        connection = await self._senders.connection(address)
        if connection is None:
            async with aclosing(self.stream_chat(request, *pictures)) as batches:
                async for batch in batches:
                    yield batch
            return
        with _only_our_errors(request), self._counted():
            alone = self._streams == 1
            with connection.outlet(address.stream, self._spacing) as outlet:
                begun = connection.head_starts.claim(address.stream)
                async with aclosing(begun or self._running().stream_chat(request, pictures)) as chunks:
                    async for chunk in chunks:
                        await outlet.send([chunk])
                outlet.end()
        if alone:
            await asyncio.sleep(LINGER_S)

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        if (senders := self.__dict__.get("_senders")) is not None:
            senders.close()
        return super().__del__()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def _spacing(self) -> float:
        return min(self._streams * SPACING_S, SPACING_MAX_S) if self._streams > 1 else 0


async def coalesced(
    stream: AsyncGenerator[bytes, None], spacing: Callable[[], float] = lambda: 0
) -> AsyncGenerator[list[bytes], None]:
    """Collect what arrives while the consumer is busy, or within `spacing()` seconds of the last batch.

    The first token never waits. Closing it closes the stream, also while that waits for its next chunk.
    """
    ready: list[bytes] = []
    news = asyncio.Event()

    async def pump() -> None:
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    ready.append(chunk)
                    news.set()
        finally:
            news.set()

    pumping = asyncio.create_task(pump())
    sent = 0
    try:
        while ready or not pumping.done():
            if ready:
                batch = ready.copy()
                ready.clear()
                sent += len(batch)
                yield batch
                # The first chunk carries the role alone, the second the first token.
                if sent > 1 and (pause := spacing()) > 0:
                    await asyncio.wait([pumping], timeout=pause)
            else:
                news.clear()
                await news.wait()
        await pumping  # raises what the stream raised, after everything it had sent
    finally:
        pumping.cancel()
        await asyncio.wait([pumping])


@contextlib.contextmanager
def _only_our_errors(request: ChatRequest) -> Iterator[None]:
    """Log what is not ours and hide it: the text of an unknown exception may hold anything."""
    try:
        yield
    except AtelierError:
        raise
    except Exception:
        logger.exception("%s failed", request.surface, extra={"request_id": request.request_id})
        raise EngineFailed("The engine failed on this request.") from None
