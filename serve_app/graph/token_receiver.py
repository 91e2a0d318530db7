"""The ingress's end of the connections that bring tokens from the replicas (see contracts/channel.py).

The streaming call that asks for them stays open meanwhile: it holds the replica's slot, carries the
cancellation, and says how the stream ended.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import secrets
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from deployments.contracts.channel import TOKEN_BYTES, Address, Frames, frame, parts_of
from deployments.contracts.errors import EngineFailed
from deployments.contracts.messages import ChatRequest, holds_at_most

PAUSE_BYTES = 256 * 1024
"""What may wait for one slow client before its replica is asked to pause."""
OUTRUN_S = 0.05
"""How long an error waits for what was sent before it: the two come over different connections."""
STRAY_S = 5.0
"""How long the last tokens may take after the call that asked for them has ended well."""
AHEAD = 2**13
"""Characters and list items of a request that is sent ahead: of a longer one, the way is a smaller part."""
AHEAD_S = 0.0015
"""By how much: what the call costs its replica then falls into the time in which the engine works."""


class Receiver:
    """Listens for replicas from the first stream on.

    Args:
        host: the address of this machine that replicas can reach.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._ids = itertools.count(1)
        self._inlets: dict[int, Inlet] = {}
        self._starting: asyncio.Future[int] | None = None
        self._server: asyncio.Server | None = None
        self.relays: set[asyncio.Task[None]] = set()
        """They may outlive the readers of their streams by a moment."""

    async def open(self, ways: Ways) -> Inlet:
        """A new stream, of the deployment that these ways lead to."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._listen())
        starting = self._starting
        port = starting.result() if starting.done() else await asyncio.shield(starting)
        stream = next(self._ids)
        inlet = self._inlets[stream] = Inlet(
            Address(self._host, port, self._token, stream), ways, lambda: self._inlets.pop(stream, None)
        )
        return inlet

    async def _listen(self) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self._token, self._inlets), self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()


class Ways:
    """The connections of one deployment's replicas, as far as its streams came over them."""

    def __init__(self) -> None:
        self._connections: set[_Connection] = set()
        self.open_streams = 0

    def add(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def send_ahead(self, stream: int, request: ChatRequest) -> bool:
        """Let a replica begin, if there is but one to choose and no other stream of its deployment open."""
        self._connections = {each for each in self._connections if each.open}
        if not (len(self._connections) == 1 == self.open_streams and holds_at_most(request.body, AHEAD)):
            return False
        try:
            next(iter(self._connections)).tell(stream, request)
        except (ValueError, OverflowError, RecursionError):
            return False  # a body that MessagePack has no form for
        return True


class Inlet:
    """What has arrived of one stream: from its connection, or handed in by whoever reads Ray's stream.

    Args:
        address: goes to the replica with the request.
        ways: hear by which connection it came.
        on_close: called once by `close`.
    """

    def __init__(self, address: Address, ways: Ways, on_close: Callable[[], object]) -> None:
        self.address = address
        self.ways = ways
        self._on_close = on_close
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._brake: Callable[[bool], None] | None = None
        self.begun = self.ended = False

    def feed(self, chunks: list[bytes], end: bool = False) -> None:
        """Chunks have arrived."""
        self._chunks += chunks
        self._bytes += sum(map(len, chunks))
        self.begun, self.ended = True, self.ended or end
        self._news.set()

    @property
    def overfull(self) -> bool:
        """Too much waits to be read, and the sender has not been asked to pause."""
        return self._brake is None and self._bytes > PAUSE_BYTES

    def pause(self, brake: Callable[[bool], None]) -> None:
        """Ask the sender to pause, by `brake(True)`, until what waits has been read."""
        self._brake = brake
        brake(True)

    def fail(self, error: Exception) -> None:
        """The stream breaks after what has arrived."""
        if not self.ended:
            self._error, self.ended = error, True
            self._news.set()

    async def get(self) -> list[bytes]:
        """All that has arrived since the last call, at least one chunk; empty at the end.

        Raises:
            Exception: what `fail` was given.
        """
        while not self._chunks and not self.ended:
            self._news.clear()
            await self._news.wait()
        chunks, self._chunks, self._bytes = self._chunks, [], 0
        if self._brake is not None:
            self._brake(False)
            self._brake = None
        if not chunks and self._error is not None:
            raise self._error
        return chunks

    def close(self) -> None:
        """Whatever still arrives is dropped."""
        self._on_close()


class Pushing:
    """A deployment's streaming method that sends its items to an address, as one that yields them.

    Args:
        method: takes the address first. Yields nothing, or, if it could not connect, the items.
        receiver: gives the address.
        ways: of the deployment, shared by all of its methods.
    """

    def __init__(self, method: Any, receiver: Receiver, ways: Ways | None = None) -> None:
        self._method = method
        self._receiver = receiver
        self._ways = ways or Ways()

    def remote(self, *args: Any) -> Pushed:
        return Pushed(self._method, args, self._receiver, self._ways)


class Pushed:
    """The stream of one call; read and cancelled like Ray's own."""

    def __init__(self, method: Any, args: tuple[Any, ...], receiver: Receiver, ways: Ways) -> None:
        self._method = method
        self._args = args
        self._receiver = receiver
        self._ways = ways
        self._relaying: asyncio.Task[None] | None = None
        self._response: Any = None

    async def __aiter__(self) -> AsyncGenerator[list[bytes], None]:
        inlet = await self._receiver.open(self._ways)
        self._ways.open_streams += 1
        try:
            match self._args:
                case [ChatRequest() as request] if self._ways.send_ahead(inlet.address.stream, request):
                    await asyncio.sleep(AHEAD_S)
            self._response = self._method.remote(inlet.address, *self._args)
            self._relaying = asyncio.create_task(self._relay(inlet))
            self._receiver.relays.add(self._relaying)
            self._relaying.add_done_callback(self._receiver.relays.discard)
            while batch := await inlet.get():
                yield batch
        finally:
            self._ways.open_streams -= 1
            inlet.close()

    async def _relay(self, inlet: Inlet) -> None:
        """Hear how the call ends; what its replica could not send to the address comes here as well."""
        pushed = True
        try:
            async for batch in self._response:
                pushed = False
                inlet.feed(batch)
            if pushed and not inlet.ended:
                await asyncio.sleep(STRAY_S)
                inlet.fail(EngineFailed("The connection to the model's replica broke."))
            inlet.feed([], end=True)
        except Exception as error:
            if inlet.begun:
                await asyncio.sleep(OUTRUN_S)
            inlet.fail(error)

    def cancel(self) -> None:
        if self._relaying is not None:
            self._relaying.cancel()
            self._response.cancel()


class _Connection(asyncio.Protocol):
    def __init__(self, token: bytes, inlets: dict[int, Inlet]) -> None:
        self._token = token
        self._inlets = inlets
        self._greeting = b""
        self._frames: Frames | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            self._greeting += data
            if len(self._greeting) < TOKEN_BYTES:
                return
            shown, data = self._greeting[:TOKEN_BYTES], self._greeting[TOKEN_BYTES:]
            self._greeting = b""
            if not hmac.compare_digest(shown, self._token):
                self._close()
                return
            self._frames = Frames()
        for payload in self._frames.feed(data):
            for stream, chunks, end in parts_of(payload):
                if inlet := self._inlets.get(stream):
                    if not inlet.begun:
                        inlet.ways.add(self)
                    inlet.feed(chunks, end)
                    if inlet.overfull:
                        inlet.pause(partial(self.tell, stream))

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def tell(self, stream: int, word: bool | ChatRequest) -> None:
        """Raises what `frame` does."""
        if self._transport is not None and self.open:
            self._transport.write(frame((stream, word)))

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
