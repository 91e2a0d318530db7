"""The vision-language shell on the fake engine, without Ray."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from deployments.contracts.errors import EngineFailed, InvalidRequest
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.vision_language import SPACING_MAX_S, VisionLanguage, coalesced
from serve_app.graph.token_receiver import Pushing, Receiver

Make = Callable[..., Awaitable[VisionLanguage]]


@pytest.fixture
async def shell() -> AsyncGenerator[Make, None]:
    """Makes a shell as Serve does: `engine = await shell(token_seconds=0.01)`."""
    made: list[VisionLanguage] = []

    async def make(**engine_args: Any) -> VisionLanguage:
        settings = ModelSettings(id="m", task="vision_language", engine="fake", engine_args=engine_args)
        replica = VisionLanguage.__new__(VisionLanguage)
        await replica.__init__(settings)
        made.append(replica)
        return replica

    yield make
    for replica in made:
        if closing := replica.__del__():
            await closing


def ask(text: str = "one two three", **body: Any) -> ChatRequest:
    return ChatRequest("r1", {"messages": [{"role": "user", "content": text}], **body})


def text_of(chunks: list[bytes]) -> str:
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


class Source:
    """A stream that the test feeds."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True

    def send(self, *items: bytes | Exception | None) -> None:
        for item in items:
            self.queue.put_nowait(item)


async def test_whole_and_streamed_answers_agree(shell: Make) -> None:
    engine = await shell()
    whole = json.loads(await engine.chat(ask()))
    chunks = [chunk async for batch in engine.stream_chat(ask()) for chunk in batch]
    assert whole["choices"][0]["message"]["content"] == text_of(chunks) == "You said: one two three"


class Called:
    """The shell's streaming method as Ray would return it."""

    def __init__(self, method: Callable[..., AsyncGenerator[list[bytes], None]]) -> None:
        self._method = method

    def remote(self, *args: Any) -> AsyncGenerator[list[bytes], None]:
        return self._method(*args)


async def test_pushed_answers_are_those_that_are_streamed(shell: Make) -> None:
    engine = await shell()
    receiver = Receiver("127.0.0.1")
    pushing = Pushing(Called(engine.push_chat), receiver)
    streamed = [chunk async for batch in engine.stream_chat(ask()) for chunk in batch]
    pushed = [chunk async for batch in pushing.remote(ask()) for chunk in batch]
    assert text_of(pushed) == text_of(streamed) == "You said: one two three"
    with pytest.raises(InvalidRequest):
        await anext(aiter(pushing.remote(ask(max_tokens=0))))
    receiver.close()


async def test_pictures_reach_the_engine(shell: Make) -> None:
    engine = await shell()
    content = [{"type": "picture", "picture": 0}]
    request = ChatRequest("r1", {"messages": [{"role": "user", "content": content}]})
    answer = await engine.chat(request, Picture(np.full((2, 3, 3), 255, np.uint8), "d"))
    assert b"[3x2 #ffffff]" in answer


async def test_a_slow_consumer_gets_fewer_and_fuller_messages() -> None:
    source = Source()
    batches = coalesced(source.stream())
    source.send(b"first")
    assert await anext(batches) == [b"first"]
    source.send(b"a", b"b", b"c", None)
    await asyncio.sleep(0.01)  # the consumer is busy meanwhile
    assert [batch async for batch in batches] == [[b"a", b"b", b"c"]]


async def test_no_chunk_waits_for_another() -> None:
    source = Source()
    batches = coalesced(source.stream())
    for chunk in (b"a", b"b"):
        source.send(chunk)
        assert await asyncio.wait_for(anext(batches), 1) == [chunk]
    await batches.aclose()


async def test_messages_keep_their_distance_but_for_the_first_token_and_the_end() -> None:
    source = Source()
    batches = coalesced(source.stream(), lambda: 0.05)
    for chunk in (b"role", b"first"):
        source.send(chunk)
        assert await asyncio.wait_for(anext(batches), 0.04) == [chunk]
    following = asyncio.ensure_future(anext(batches))
    for chunk in (b"a", b"b", b"c"):
        source.send(chunk)
        await asyncio.sleep(0.001)
    assert await following == [b"a", b"b", b"c"]
    source.send(b"last", None)
    assert await asyncio.wait_for(anext(batches), 0.04) == [b"last"]


async def test_only_several_streams_are_spaced() -> None:
    replica = VisionLanguage.__new__(VisionLanguage)
    spacings = []
    for replica._streams in (1, 2, 16, 200):
        spacings.append(replica._spacing())
    assert spacings[0] == 0 < spacings[1] < spacings[2] < spacings[3] == SPACING_MAX_S


async def test_what_came_before_an_error_is_delivered_first() -> None:
    source = Source()
    source.send(b"a", b"b", EngineFailed("broken"))
    batches = coalesced(source.stream())
    assert await anext(batches) == [b"a", b"b"]
    with pytest.raises(EngineFailed, match="broken"):
        await anext(batches)


async def test_closing_stops_a_stream_that_waits() -> None:
    source = Source()
    batches = coalesced(source.stream())
    source.send(b"a")
    await anext(batches)
    await batches.aclose()
    assert source.closed


async def test_failure_mid_stream(shell: Make) -> None:
    engine = await shell(fail="mid_stream")
    got: list[bytes] = []

    async def collect() -> None:
        async for batch in engine.stream_chat(ask()):
            got.extend(batch)

    with pytest.raises(EngineFailed):
        await collect()
    assert text_of(got) == "You said:"


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_client_that_goes_away_frees_the_slot(shell: Make, how: str) -> None:
    engine = await shell(token_seconds=0.01)
    stream = engine.stream_chat(ask(ignore_eos=True))
    await anext(stream)
    await anext(stream)
    fake: Any = engine._engine
    assert fake.unfinished() == 1
    if how == "close":
        await stream.aclose()
    else:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    assert fake.unfinished() == 0


async def test_unknown_exceptions_are_logged_and_hidden(
    shell: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await shell()

    async def broken(*args: Any) -> bytes:
        raise KeyError("secret")

    monkeypatch.setattr(engine._engine, "chat", broken)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineFailed) as caught:
        await engine.chat(ask())
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caplog.records[0].request_id == "r1"  # type: ignore[attr-defined]


async def test_our_errors_pass(shell: Make) -> None:
    engine = await shell()
    with pytest.raises(InvalidRequest) as caught:
        await engine.chat(ChatRequest("r1", {"messages": []}))
    assert caught.value.param == "messages"


async def test_a_failed_start_fails_the_replica(shell: Make) -> None:
    with pytest.raises(RuntimeError, match="told to fail"):
        await shell(fail="start")


async def test_closed_once_by_serve(shell: Make) -> None:
    engine = await shell()
    await engine.check_health()
    closing = engine.__del__()
    assert closing is not None
    await closing
    assert engine.__del__() is None
    with pytest.raises(EngineFailed):
        await engine.check_health()
