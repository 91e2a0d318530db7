"""The replica's end of the connections that carry its tokens to the ingress (see contracts/channel.py).

A stream that cannot have one goes over Ray's own streaming call, which is slower and always works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.contracts.channel import Address, Frames, Part, frame, word_of
from deployments.contracts.errors import EngineFailed
from deployments.head_start import HeadStarts

logger = logging.getLogger(__name__)

CONNECT_S = 2
RETRY_S = 60
"""Before an address that did not answer is tried again."""

Key = tuple[str, int]


class Senders:
    """One connection to each ingress replica that has asked for a stream.

    Args:
        head_starts: for the requests that come over one connection.
    """

    def __init__(self, head_starts: Callable[[], HeadStarts]) -> None:
        self._head_starts = head_starts
        self._connections: dict[Key, asyncio.Future[Connection | None]] = {}
        self._unreachable: dict[Key, float] = {}

    async def connection(self, address: Address) -> Connection | None:
        """The connection to an address, made if there is none; None if it does not answer."""
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):
            return None  # this connection is plain, as Ray's own are without it
        key = (address.host, address.port)
        found = self._connections.get(key)
        if found is None:
            if time.monotonic() < self._unreachable.get(key, 0):
                return None
            found = self._connections[key] = asyncio.ensure_future(self._connect(key, address.token))
        # Several requests may wait for it: one that is cancelled must not take it from the others.
        return found.result() if found.done() else await asyncio.shield(found)

    async def _connect(self, key: Key, token: bytes) -> Connection | None:
        loop = asyncio.get_running_loop()
        try:
            making = loop.create_connection(
                lambda: Connection(lambda: self._forget(key), self._head_starts()), *key
            )
            _, connection = await asyncio.wait_for(making, CONNECT_S)
        except (OSError, TimeoutError) as error:
            logger.warning("cannot reach the ingress at %s:%d: tokens go through Ray (%s)", *key, error)
            self._forget(key)
            self._unreachable[key] = time.monotonic() + RETRY_S
            return None
        connection.greet(token)
        return connection

    def _forget(self, key: Key) -> None:
        self._connections.pop(key, None)

    def close(self) -> None:
        """Close all connections."""
        for made in list(self._connections.values()):
            connection = made.result() if made.done() and not made.cancelled() else None
            if connection is not None:
                connection.close()


class Connection(asyncio.Protocol):
    """Collects what all streams have to send in one turn of the event loop, and writes it as one frame.

    Args:
        on_lost: called once, when the connection is gone.
        head_starts: takes the requests that come over it.
    """

    def __init__(self, on_lost: Callable[[], None], head_starts: HeadStarts) -> None:
        self._on_lost = on_lost
        self.head_starts = head_starts
        self._frames = Frames()
        self._parts: list[Part] = []
        self._outlets: dict[int, Outlet] = {}
        self._transport: asyncio.Transport | None = None
        self.room = asyncio.Event()
        """Cleared while the socket takes no more."""
        self.room.set()

    def greet(self, token: bytes) -> None:
        """Show the token that the address came with."""
        if self._transport is not None:
            self._transport.write(token)

    @contextmanager
    def outlet(self, stream: int, spacing: Callable[[], float] = lambda: 0) -> Iterator[Outlet]:
        """The way out for one stream, while the block lasts; all it was given is on its way afterwards.

        Args:
            spacing: the least seconds between two of its messages, asked for at each.
        """
        made = self._outlets[stream] = Outlet(self, stream, spacing)
        try:
            yield made
        finally:
            self._outlets.pop(stream, None)
            made.close()
            self._flush()

    @property
    def lost(self) -> bool:
        return self._transport is None

    def put(self, part: Part) -> None:
        """Send it with whatever else this turn of the event loop brings."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(part)

    def _flush(self) -> None:
        if self._parts and self._transport is not None:
            self._transport.write(frame(self._parts))
        self._parts = []

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        # A peer whose machine vanished is noticed although nothing is being sent.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            try:
                stream, word = word_of(payload)
            except RecursionError:
                continue  # a body nested too deeply to be sent ahead; its call will say so
            outlet = self._outlets.get(stream)
            if not isinstance(word, bool):
                if outlet is None:  # else its call was faster
                    self.head_starts.begin(stream, word)
            elif outlet is not None:
                outlet.open.clear() if word else outlet.open.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.room.set()
        for outlet in self._outlets.values():
            outlet.open.set()
        self.head_starts.close()
        self._on_lost()


class Outlet:
    """One stream's way out."""

    def __init__(self, connection: Connection, stream: int, spacing: Callable[[], float]) -> None:
        self._connection = connection
        self._stream = stream
        self._spacing = spacing
        self._held: list[bytes] = []
        self._sent = 0
        self._pause: asyncio.TimerHandle | None = None
        self.open = asyncio.Event()
        """Cleared while the reader asks for a pause."""
        self.open.set()

    async def send(self, chunks: list[bytes]) -> None:
        """Returns when more may be given. Raises EngineFailed if the reader cannot be reached any more."""
        self._held += chunks
        if self._pause is None or self._connection.lost:
            self._release()
        await self.open.wait()
        await self._connection.room.wait()

    def end(self) -> None:
        """The stream is complete."""
        self._put(True)

    def close(self) -> None:
        """Nothing more will be given; what was goes out."""
        if self._pause is not None:
            self._pause.cancel()
        if self._held and not self._connection.lost:
            self._put(False)

    def _release(self) -> None:
        self._pause = None
        if not self._held:
            return
        self._sent += len(self._held)
        self._put(False)
        # The first chunk may carry the role alone, the second the first token: neither makes one wait.
        if self._sent > 1 and (pause := self._spacing()) > 0:
            self._pause = asyncio.get_running_loop().call_later(pause, self._due)

    def _due(self) -> None:
        if self._connection.lost:
            self._pause = None  # the next `send` raises
        else:
            self._release()

    def _put(self, end: bool) -> None:
        if self._connection.lost:
            raise EngineFailed("The connection between the model's replica and the ingress broke.")
        self._connection.put((self._stream, self._held, end))
        self._held = []
