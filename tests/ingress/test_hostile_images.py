"""A thousand hostile images and more than a hundred hostile URLs through the whole ingress, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.engines.hostile import file, hostile, noise, slow_jpeg
from tests.engines.test_fetch import ATTACKS

SPELLINGS = (
    "data:image/png;base64,{}",
    "data:image/svg+xml;base64,{}",
    "data:;base64,{}",
    "DATA:image/jpeg;charset=utf-8;base64,{}",
    "{}",
)
"""How a client may write an image; what it declares is never believed."""


async def ask(client: httpx.AsyncClient, url: str, content: Any = None) -> tuple[int, Any, float]:
    """Status, body and seconds of a chat request with this image."""
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    began = time.monotonic()
    answer = await client.post("/v1/chat/completions", json=body, timeout=30)
    return answer.status_code, answer.json(), time.monotonic() - began


async def ask_all(base: str, urls: list[str], at_once: int) -> list[tuple[int, Any, float]]:
    """All answers, in the order of the URLs. Raises what httpx raises, a reset connection above all."""
    turns = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=base) as client:

        async def one(url: str) -> tuple[int, Any, float]:
            async with turns:
                return await ask(client, url)

        return await asyncio.gather(*(one(url) for url in urls))


def data_url(data: bytes, spelling: str = SPELLINGS[0]) -> str:
    return spelling.format(base64.b64encode(data).decode())


def memory() -> tuple[float, float]:
    """Resident megabytes of the replica, which is this process, and of its largest decoding process."""
    gc.collect()
    children = [
        child.memory_info().rss
        for child in psutil.Process().children()
        if "deployments.engines.decode_worker" in child.cmdline()  # a test before this may have a server up
    ]
    return psutil.Process().memory_info().rss / 2**20, max(children) / 2**20


async def test_a_thousand_hostile_images(start) -> None:
    chance = random.Random(0)
    urls = [data_url(data, SPELLINGS[i % len(SPELLINGS)]) for i, data in enumerate(hostile(1000))]
    chance.shuffle(urls)
    base, _ = await start(prep={"cache_mb": 8})
    good = [file(noise(1200, 1000, i), kind) for i, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF") * 3)]
    assert {status for status, _, _ in await ask_all(base, [data_url(data) for data in good], 4)} == {200}
    before, _ = memory()
    answers = await ask_all(base, urls, 4)
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 400}, statuses
    assert statuses[400] > 400
    assert statuses[200] > 100
    for status, body, seconds in answers:
        assert seconds < 5, body
        if status == 400:
            error = body["error"]
            assert error["type"] == "invalid_request_error"
            assert error["param"] == "messages.0.content.0.image_url"
            assert not any(word in error["message"] for word in ("PIL", " at 0x", "Error", ".py"))
    after, decoder = memory()
    assert after < 1.05 * before
    assert decoder < 150  # 25 when it starts; up to 64 of what it had are kept
    assert (await ask_all(base, [data_url(good[0])], 1))[0][0] == 200


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:image/png;base64," + "A" * 28_000_000, 413),
        ("data:image/png;base64," + "%41" * 9_000_000, 400),
        ("data:image/png;base64," + " " * 28_000_000, 400),
        ("data:image/png;base64," + "=" * 10_000, 400),
        ("data:image/png;base64,iVBORw0KGgo=" + "A" * 10_000, 400),
        ("data:image/png," + "A" * 10_000, 400),
        ("data:" * 100_000, 400),
        ("iVBORw0KGgo" + "\u00e9" * 100, 400),
        ("iVBORw0KGgo" + "!" * 100, 400),
        ("iVBORw0KGgo" + "A" * 1000, 400),
        ("A" * 1_000_000, 400),
        ("", 400),
        ("\x00" * 1000, 400),
    ],
)
async def test_broken_and_giant_base64(url: str, status: int, shared: str) -> None:
    got, body, seconds = (await ask_all(shared, [url], 1))[0]
    assert got == status, body
    assert body["error"]["param"] == "messages.0.content.0.image_url"
    assert seconds < 5


@pytest.fixture
async def shared(start) -> str:
    """An application on the fake engines."""
    base, _ = await start()
    return base


async def test_an_image_that_never_ends_is_refused_in_time_while_others_pass(start) -> None:
    base, _ = await start(prep={"decode_timeout_s": 1})
    slow, good = data_url(slow_jpeg()), data_url(file(noise(64, 64)))
    answers = await ask_all(base, [slow, good, good, good], 4)
    status, body, seconds = answers[0]
    assert (status, body["error"]["code"]) == (400, "image_too_slow")
    assert seconds < 4
    assert [answer[0] for answer in answers[1:]] == [200] * 3


# ---------------------------------------------------------------------- URLs
class Connections:
    """Every address that this process connects to, as Python itself reports it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.on = True
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event == "socket.connect":
            self.seen.append(args[1])


@pytest.fixture
def connections() -> Iterator[Connections]:
    heard = Connections()
    yield heard
    heard.on = False  # an audit hook cannot be taken out again


async def test_a_hundred_url_attacks_connect_to_nothing(start, connections: Connections) -> None:
    assert len(set(ATTACKS)) >= 100
    base, _ = await start()
    port = httpx.URL(base).port
    answers = await ask_all(base, ATTACKS, 8)
    assert {status for status, _, _ in answers} == {400}
    codes = Counter(body["error"]["code"] for _, body, _ in answers)
    assert set(codes) <= {"image_url_forbidden", "image_fetch_failed", "invalid_image"}, codes
    assert max(seconds for _, _, seconds in answers) < 5
    # What is left are the client's own connections to the ingress. AF_UNIX and DNS would show up here too.
    assert {address for address in connections.seen if tuple(address)[:2] != ("127.0.0.1", port)} == set()


async def test_the_ear_hears(start, connections: Connections) -> None:
    """The test above would see a connection if there were one."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    base, _ = await start(prep={"fetch_private_hosts": [f"127.0.0.1:{port}"]})
    ((status, body, _),) = await ask_all(base, [f"http://127.0.0.1:{port}/x.png"], 1)
    assert (status, body["error"]["code"]) == (400, "image_fetch_failed")
    assert ("127.0.0.1", port) in [tuple(address)[:2] for address in connections.seen]
    server.close()
