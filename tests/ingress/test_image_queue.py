"""Waiting for a picture: the queue, cancelling by id, clients that go away, and time limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from tests.ingress.test_images import client

SLOW = {"engine_args": {"step_seconds": 0.02}}
FOREVER = {"num_inference_steps": 100}


async def eventually(check: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(10):
        while True:
            if value := await check():
                return value
            await asyncio.sleep(0.01)


class Server:
    """An application on the slow fake engine, and what a test asks of it."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http
        self.tasks: list[asyncio.Task[Any]] = []

    async def paint(self, name: str, stream: bool = False, **extra: Any) -> asyncio.Task[Any]:
        """Start a request with this id, and wait until it is in the queue."""
        body = {"prompt": "a red circle", "stream": stream, **FOREVER, **extra}
        task = asyncio.create_task(
            self.http.post(
                f"{self.url}/v1/images/generations", json=body, headers={"x-request-id": name}, timeout=30
            )
        )
        self.tasks.append(task)
        await eventually(lambda: self.entry(name))
        return task

    async def queue(self) -> dict[str, Any]:
        return (await self.http.get(f"{self.url}/v1/images/queue")).json()

    async def entry(self, name: str) -> dict[str, Any] | None:
        answer = await self.http.get(f"{self.url}/v1/images/queue/{name}")
        return answer.json() if answer.status_code == 200 else None

    async def empty(self) -> bool:
        return not (await self.queue())["data"]

    async def cancel(self, name: str) -> httpx.Response:
        return await self.http.delete(f"{self.url}/v1/images/requests/{name}")


@pytest.fixture
async def server(start):
    url, _ = await start(paint=SLOW)
    async with httpx.AsyncClient() as http:
        server = Server(url, http)
        yield server
        for task in server.tasks:
            task.cancel()


async def test_the_queue_shows_place_progress_and_time_left(server: Server) -> None:
    empty = await server.queue()
    assert empty["data"] == []
    assert empty["models"][0]["model"] == "fake-image"
    await server.paint("first")
    await server.paint("second", n=2, size="32x48")

    async def measured() -> Any:
        found = await server.queue()
        return found if found["data"][0]["step"] >= 2 else None

    queue = await eventually(measured)
    first, second = queue["data"]
    assert (first["id"], first["status"], first["ahead"]) == ("first", "painting", 0)
    assert (second["id"], second["status"], second["ahead"]) == ("second", "queued", 1)
    assert (first["steps"], second["steps"], second["step"]) == (100, 200, 0)
    assert (second["n"], second["size"], second["model"]) == (2, "32x48", "fake-image")
    assert 0 < first["eta_seconds"] < second["eta_seconds"]
    summary = queue["models"][0]
    assert (summary["painting"], summary["queued"]) == (1, 1)
    assert summary["drain_seconds"] == pytest.approx(second["eta_seconds"])
    assert summary["memory_mb"] > 0
    assert (await server.entry("second"))["ahead"] == 1


async def test_cancelled_requests_leave_and_their_clients_are_told(server: Server) -> None:
    painting = await server.paint("painting")
    waiting = await server.paint("waiting")
    stays = await server.paint("stays", num_inference_steps=1)
    for name, task in (("waiting", waiting), ("painting", painting)):
        answer = await server.cancel(name)
        assert answer.json() == {"id": name, "object": "image.request", "cancelled": True}
        told = await task
        assert told.status_code == 499
        assert told.json()["error"]["code"] == "request_cancelled"
    assert (await stays).status_code == 200
    assert await server.empty()


async def test_a_cancelled_stream_ends_with_the_error(server: Server) -> None:
    task = await server.paint("stream", stream=True)
    await server.cancel("stream")
    answer = await task
    assert answer.status_code == 200
    *_, error, done = answer.text.removesuffix("\n\n").split("\n\n")
    assert "request_cancelled" in error
    assert done == "data: [DONE]"


async def test_the_sdk_hears_of_a_cancelled_request_and_does_not_retry(server: Server) -> None:
    sdk = client(server.url).with_options(max_retries=5)
    task = asyncio.create_task(
        sdk.images.generate(prompt="x", extra_body=FOREVER, extra_headers={"X-Request-Id": "by-sdk"})
    )
    await eventually(lambda: server.entry("by-sdk"))
    await server.cancel("by-sdk")
    with pytest.raises(openai.APIStatusError) as caught:
        await task
    assert caught.value.status_code == 499
    assert await server.empty()


async def test_a_minted_id_works_too(server: Server) -> None:
    request = server.http.build_request(
        "POST", f"{server.url}/v1/images/generations", json={"prompt": "x", "stream": True, **FOREVER}
    )
    answer = await server.http.send(request, stream=True)
    name = answer.headers["x-request-id"]
    assert (await server.entry(name))["id"] == name
    assert (await server.cancel(name)).status_code == 200
    await answer.aclose()
    await eventually(server.empty)


async def test_an_id_that_several_clients_chose_means_all_of_them(server: Server) -> None:
    tasks = [await server.paint("same") for _ in range(2)]
    await eventually(lambda: two(server))
    assert (await server.cancel("same")).status_code == 200
    assert [(await task).status_code for task in tasks] == [499, 499]


async def two(server: Server) -> bool:
    return len((await server.queue())["data"]) == 2


async def test_unknown_ids_are_404(server: Server) -> None:
    for answer in (
        await server.cancel("nobody"),
        await server.http.get(f"{server.url}/v1/images/queue/nobody"),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "request_not_found"
        assert "x-request-id" in answer.json()["error"]["message"]
    unknown = await server.http.get(f"{server.url}/v1/images/queue", params={"model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_client_that_goes_away_leaves_the_queue(server: Server, stream: bool, waits: bool) -> None:
    if waits:
        await server.paint("before")
    async with httpx.AsyncClient() as other:
        task = await Server(server.url, other).paint("leaves", stream=stream)
        await eventually(lambda: server.entry("leaves"))
        task.cancel()

    async def gone() -> bool:
        return await server.entry("leaves") is None

    await eventually(gone)
    if waits:
        assert (await server.entry("before"))["status"] == "painting"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_s_time_limit(server: Server, stream: bool) -> None:
    answer = await server.http.post(
        f"{server.url}/v1/images/generations",
        json={"prompt": "x", "stream": stream, **FOREVER},
        headers={"x-request-timeout-seconds": "0.4"},
    )
    assert answer.status_code == (200 if stream else 504)
    assert '"code":"timeout"' in answer.text
    await eventually(server.empty)


async def test_the_profile_s_time_limit(start) -> None:
    generation = {"size": "64x64", "max_pixels": 65536, "steps": 4, "cfg_scale": 3, "timeout_s": 0.3}
    url, _ = await start(paint={**SLOW, "generation": generation})
    async with httpx.AsyncClient() as http:
        for headers in ({}, {"x-request-timeout-seconds": "60"}, {"x-request-timeout-seconds": "0"}):
            answer = await http.post(
                f"{url}/v1/images/generations", json={"prompt": "x", **FOREVER}, headers=headers
            )
            assert answer.status_code == 504
            assert answer.json()["error"]["suggested_fix"]
        quick = await http.post(f"{url}/v1/images/generations", json={"prompt": "x"})
        assert quick.status_code == 200


@pytest.mark.parametrize("value", ["soon", "nan", ""])
async def test_a_time_limit_that_is_none_is_refused(url: str, value: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{url}/v1/images/generations",
            json={"prompt": "x"},
            headers={"x-request-timeout-seconds": value},
        )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout-seconds")


@pytest.mark.parametrize("value", ["0", "-1", "inf", "60"])
async def test_time_limits_that_hold_nobody_up(url: str, value: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{url}/v1/images/generations",
            json={"prompt": "x"},
            headers={"x-request-timeout-seconds": value},
        )
    assert answer.status_code == 200


async def test_higher_priority_goes_first(server: Server) -> None:
    await server.paint("painting")
    await server.paint("low", priority=-1)
    await server.paint("plain")
    await server.paint("high", priority=5)
    assert [entry["id"] for entry in (await server.queue())["data"]] == ["painting", "high", "plain", "low"]
