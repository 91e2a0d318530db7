"""Tokens over a connection of their own: both ends on real sockets, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from deployments.contracts.channel import Address
from deployments.contracts.errors import EngineFailed
from deployments.contracts.messages import ChatRequest
from deployments.head_start import HeadStarts
from deployments.token_sender import Senders
from serve_app.graph.token_receiver import PAUSE_BYTES, Pushed, Pushing, Receiver, Ways

Items = Callable[[], AsyncGenerator[list[bytes], None]]


def unexpected(request: ChatRequest) -> AsyncGenerator[bytes, None]:
    raise AssertionError("only a ChatRequest is sent ahead")


def senders() -> Senders:
    return Senders(lambda: HeadStarts(unexpected))


class Response:
    """What Ray's streaming call returns."""

    def __init__(self, stream: AsyncGenerator[list[bytes], None]) -> None:
        self._stream = stream
        self.cancelled = False

    def __aiter__(self) -> AsyncGenerator[list[bytes], None]:
        return self._stream

    def cancel(self) -> None:
        self.cancelled = True


class Replica:
    """Sends as the shell of a model does."""

    def __init__(
        self,
        items: Items,
        change: Callable[[Address], Address] = lambda address: address,
        spacing: float = 0,
    ) -> None:
        self._spacing = spacing
        self.senders = senders()
        self.responses: list[Response] = []
        self._items = items
        self._change = change

    def remote(self, address: Address) -> Response:
        self.responses.append(Response(self._push(self._change(address))))
        return self.responses[-1]

    async def _push(self, address: Address) -> AsyncGenerator[list[bytes], None]:
        connection = await self.senders.connection(address)
        async with aclosing(self._items()) as items:
            if connection is None:
                async for item in items:
                    yield item
                return
            with connection.outlet(address.stream, lambda: self._spacing) as outlet:
                async for item in items:
                    await outlet.send(item)
                outlet.end()


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    made = Receiver("127.0.0.1")
    yield made
    made.close()


async def read(pushed: Pushed) -> bytes:
    return b"".join([chunk async for batch in pushed for chunk in batch])


def counting(n: int, pause: float = 0) -> Items:
    async def items() -> AsyncGenerator[list[bytes], None]:
        for i in range(n):
            await asyncio.sleep(pause)
            yield [b"%d " % i]

    return items


async def test_many_streams_share_a_connection(receiver: Receiver) -> None:
    replica = Replica(counting(50, 0.001))
    said = await asyncio.gather(*[read(Pushing(replica, receiver).remote()) for _ in range(20)])
    assert said == [b"".join(b"%d " % i for i in range(50))] * 20
    assert len(replica.senders._connections) == 1
    assert not receiver._inlets
    replica.senders.close()


async def test_messages_keep_their_distance_but_for_the_first_token_and_the_end(receiver: Receiver) -> None:
    inlet = await receiver.open(Ways())
    connection = await senders().connection(inlet.address)
    assert connection is not None
    with connection.outlet(inlet.address.stream, lambda: 0.05) as outlet:
        for chunk in (b"role", b"first"):
            await outlet.send([chunk])
            assert await asyncio.wait_for(inlet.get(), 0.04) == [chunk]
        for chunk in (b"a", b"b", b"c"):
            await outlet.send([chunk])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inlet.get(), 0.01)
        assert await inlet.get() == [b"a", b"b", b"c"]
        await outlet.send([b"last"])
        outlet.end()
        assert await asyncio.wait_for(inlet.get(), 0.04) == [b"last"]
        assert await inlet.get() == []


async def test_an_error_comes_after_what_was_held(receiver: Receiver) -> None:
    async def items() -> AsyncGenerator[list[bytes], None]:
        for chunk in (b"a", b"b", b"c", b"d"):
            yield [chunk]
        await asyncio.sleep(0.05)
        raise EngineFailed("broke")

    said: list[bytes] = []

    async def listen() -> None:
        async for batch in Pushing(Replica(items, spacing=0.5), receiver).remote():
            said.extend(batch)

    with pytest.raises(EngineFailed, match="broke"):
        await listen()
    assert said == [b"a", b"b", b"c", b"d"]


async def test_an_error_comes_after_what_was_sent(receiver: Receiver) -> None:
    async def items() -> AsyncGenerator[list[bytes], None]:
        yield [b"a"]
        await asyncio.sleep(0.05)
        raise EngineFailed("broke")

    stream = Pushing(Replica(items), receiver).remote().__aiter__()
    assert await anext(stream) == [b"a"]
    with pytest.raises(EngineFailed, match="broke"):
        await anext(stream)


async def test_an_error_before_anything(receiver: Receiver) -> None:
    async def items() -> AsyncGenerator[list[bytes], None]:
        raise EngineFailed("broke")
        yield []

    with pytest.raises(EngineFailed, match="broke"):
        await read(Pushing(Replica(items), receiver).remote())


async def test_who_cannot_connect_sends_through_ray(receiver: Receiver, unused_tcp_port: int) -> None:
    def elsewhere(address: Address) -> Address:
        return Address(address.host, unused_tcp_port, address.token, address.stream)

    replica = Replica(counting(5), elsewhere)
    assert await read(Pushing(replica, receiver).remote()) == b"0 1 2 3 4 "
    # It is not tried again for each request.
    assert await read(Pushing(replica, receiver).remote()) == b"0 1 2 3 4 "


async def test_a_wrong_token_reaches_nobody(receiver: Receiver) -> None:
    inlet = await receiver.open(Ways())
    wrong = Address(inlet.address.host, inlet.address.port, b"x" * 32, inlet.address.stream)
    connection = await senders().connection(wrong)
    assert connection is not None
    with connection.outlet(wrong.stream) as outlet:
        while not connection.lost:
            await outlet.send([b"forged"])
            await asyncio.sleep(0.01)
        with pytest.raises(EngineFailed):
            await outlet.send([b"forged"])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(inlet.get(), 0.05)


async def test_a_slow_reader_holds_its_own_stream_only(receiver: Receiver) -> None:
    made: dict[str, int] = {"slow": 0, "fast": 0}

    def big(name: str, n: int) -> Items:
        async def items() -> AsyncGenerator[list[bytes], None]:
            for _ in range(n):
                made[name] += 1
                yield [b"x" * 50_000]
                await asyncio.sleep(0.001)

        return items

    slow = Pushing(Replica(big("slow", 100)), receiver).remote().__aiter__()
    await anext(slow)
    fast = await read(Pushing(Replica(big("fast", 100)), receiver).remote())
    assert len(fast) == 100 * 50_000
    assert made["slow"] * 50_000 < 4 * PAUSE_BYTES
    rest = [batch async for batch in slow]
    assert sum(len(chunk) for batch in rest for chunk in batch) == 99 * 50_000


async def test_who_stops_reading_cancels_the_call(receiver: Receiver) -> None:
    replica = Replica(counting(1000, 0.01))
    pushed = Pushing(replica, receiver).remote()
    async with aclosing(pushed.__aiter__()) as stream:
        await anext(stream)
    pushed.cancel()
    assert replica.responses[0].cancelled
    assert not receiver._inlets
    await asyncio.sleep(0.03)  # what still arrives is dropped
    assert await read(Pushing(Replica(counting(2)), receiver).remote()) == b"0 1 "


async def test_a_connection_that_breaks_in_the_middle_is_made_anew(receiver: Receiver) -> None:
    replica = Replica(counting(100, 0.005))
    pushed = Pushing(replica, receiver).remote()
    stream = pushed.__aiter__()
    assert await anext(stream) == [b"0 "]
    replica.senders.close()
    with pytest.raises(EngineFailed, match="broke"):
        _ = [batch async for batch in stream]
    assert await read(Pushing(replica, receiver).remote()) == await read(Pushing(replica, receiver).remote())
