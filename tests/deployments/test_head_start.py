"""Requests that come ahead of their calls: the shell and the real connection, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from deployments import head_start
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import ChatRequest
from deployments.contracts.settings import ModelSettings
from deployments.vision_language import VisionLanguage
from serve_app.graph.token_receiver import AHEAD, Pushing, Receiver


class Engine:
    """Says when it began and ended."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.log: list[str] = []
        self.ended = asyncio.Event()

    async def stream_chat(self, request: ChatRequest, pictures: Any) -> AsyncGenerator[bytes, None]:
        self.log.append("begin")
        try:
            if request.body.get("bad"):
                raise InvalidRequest("bad", param="bad")
            for chunk in (b"a", b"b", b"c"):
                await asyncio.sleep(self.seconds)
                yield chunk
        finally:
            self.log.append("end")
            self.ended.set()


class Response:
    """What Ray's call returns; who reads it is cancelled with it."""

    def __init__(self, stream: AsyncGenerator[list[bytes], None]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncGenerator[list[bytes], None]:
        return self._stream

    def cancel(self) -> None: ...


class Replica:
    """The shell; its calls take `call_s` to arrive, as through Serve."""

    def __init__(self, engine: Engine, call_s: float = 0.05) -> None:
        self.engine, self.call_s = engine, call_s
        self.shell: Any = VisionLanguage.__new__(VisionLanguage)

    async def started(self) -> Replica:
        await self.shell.__init__(ModelSettings(id="m", task="vision_language", engine="fake"))
        self.shell._engine = self.engine
        return self

    def close(self) -> None:
        self.shell._senders.close()
        self.shell._engine = None  # nothing of it is to be closed

    def remote(self, *args: Any) -> Response:
        return Response(self._call(*args))

    async def _call(self, *args: Any) -> AsyncGenerator[list[bytes], None]:
        await asyncio.sleep(self.call_s)
        self.engine.log.append("call")
        async for batch in self.shell.push_chat(*args):
            yield batch


Start = Callable[..., Awaitable[tuple[Pushing, Replica]]]


@pytest.fixture
async def start() -> AsyncGenerator[Start, None]:
    """A deployment with one replica that has answered once, so that its ingress knows the way."""
    receiver, replicas = Receiver("127.0.0.1"), []

    async def make(engine: Engine) -> tuple[Pushing, Replica]:
        replica = await Replica(engine).started()
        replicas.append(replica)
        pushing = Pushing(replica, receiver)
        assert await read(pushing) == b"abc"
        assert engine.log == ["call", "begin", "end"]
        engine.log.clear()
        engine.ended.clear()
        return pushing, replica

    yield make
    for replica in replicas:
        replica.close()
    receiver.close()


async def read(pushing: Pushing, **body: Any) -> bytes:
    stream = pushing.remote(ChatRequest("r", body))
    return b"".join([chunk async for batch in stream for chunk in batch])


async def test_a_lone_request_begins_before_its_call_arrives(start: Start) -> None:
    pushing, replica = await start(Engine())
    assert await read(pushing) == b"abc"
    assert replica.engine.log == ["begin", "call", "end"]


async def test_nothing_is_sent_before_the_call(start: Start) -> None:
    pushing, replica = await start(Engine())
    replica.call_s = 0.2
    stream = aiter(pushing.remote(ChatRequest("r", {})))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.wait([first], timeout=0.1)
    assert replica.engine.log == ["begin"]
    assert not first.done()
    assert (await first)[0] == b"a"
    assert b"".join([chunk async for batch in stream for chunk in batch]) == b"bc"


async def test_its_error_comes_with_the_call(start: Start) -> None:
    pushing, replica = await start(Engine())
    with pytest.raises(InvalidRequest, match="bad"):
        await read(pushing, bad=True)
    assert replica.engine.log == ["begin", "end", "call"]


async def test_what_no_call_asks_for_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_start, "UNCLAIMED_S", 0.05)
    engine = Engine()
    pushing, replica = await start(engine)
    engine.seconds = 30
    replica.call_s = 30
    reading = asyncio.create_task(read(pushing))
    await asyncio.wait_for(engine.ended.wait(), 10)
    assert engine.log == ["begin", "end"]
    reading.cancel()


async def test_who_leaves_ends_it(start: Start) -> None:
    engine = Engine()
    pushing, _ = await start(engine)
    engine.seconds = 0.2
    response = pushing.remote(ChatRequest("r", {}))
    stream = aiter(response)
    await anext(stream)
    assert engine.log == ["begin", "call"]
    response.cancel()
    await stream.aclose()
    await asyncio.wait_for(engine.ended.wait(), 10)


async def test_several_at_once_wait_for_their_calls(start: Start) -> None:
    pushing, replica = await start(Engine(0.1))
    assert await asyncio.gather(read(pushing), read(pushing)) == [b"abc", b"abc"]
    assert replica.engine.log[:2] == ["begin", "call"]  # the first was alone when it came


async def test_streams_of_the_deployment_s_other_methods_count(start: Start) -> None:
    pushing, replica = await start(Engine())
    pushing._ways.open_streams += 1  # as another Pushing over the same ways does while it streams
    assert await read(pushing) == b"abc"
    assert replica.engine.log == ["call", "begin", "end"]
    pushing._ways.open_streams -= 1
    replica.engine.log.clear()
    other = Pushing(replica, pushing._receiver, pushing._ways)
    assert await read(other) == b"abc"
    assert replica.engine.log == ["begin", "call", "end"]


async def test_only_to_a_replica_that_must_be_the_one(start: Start) -> None:
    pushing, first = await start(Engine())
    second = await Replica(Engine()).started()
    pushing._method = second
    first.engine.log.clear()
    assert await read(pushing) == b"abc"  # the other one's, whatever the first had begun
    assert second.engine.log == ["call", "begin", "end"]
    first.engine.log.clear()
    assert await read(pushing) == b"abc"  # both are known now
    assert (first.engine.log, second.engine.log) == ([], ["call", "begin", "end"] * 2)
    second.close()


@pytest.mark.parametrize("body", [{"text": "x" * AHEAD}, {"seed": 2**70}, {"text": "\ud800"}])
async def test_what_is_long_or_odd_comes_with_its_call(start: Start, body: dict[str, Any]) -> None:
    pushing, replica = await start(Engine())
    assert await read(pushing, **body) == b"abc"
    assert replica.engine.log == ["call", "begin", "end"]
