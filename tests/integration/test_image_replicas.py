"""Two image replicas behind two ingresses: one queue, and a cancellation that finds its request anywhere."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from openai import AsyncOpenAI
from PIL import Image

from tests.integration.conftest import serving

pytestmark = pytest.mark.real

# A replica holds six requests. `sleepy` is scaled to zero: its requests wait in Serve's own queue.
PROFILE = """
models:
  - id: fake-image
    task: image_generation
    engine: fake
    num_cpus: 0.1
    engine_args: {step_seconds: 0.2}
    autoscaling: {min_replicas: 2, max_replicas: 2}
    max_ongoing_requests: 2
    max_queued_requests: 4
    generation: &generation {size: 64x64, max_pixels: 4194304, steps: 2, max_steps: 1000, cfg_scale: 3}
  - id: sleepy
    task: image_generation
    engine: fake
    num_cpus: 0.1
    engine_args: {load_seconds: 30}
    autoscaling: {min_replicas: 0, max_replicas: 1}
    generation: *generation
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1, replicas: 2, max_replicas: 2}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    with serving(folder, PROFILE, seconds=180) as running:
        yield running


@pytest.fixture
async def http(server: tuple[str, psutil.Process]) -> AsyncIterator[httpx.AsyncClient]:
    # No kept connection: each request may come to the other ingress.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server[0], limits=limits, timeout=60) as http:
        yield http
        await until(lambda: count(http, 0))


async def until(check: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            if value := await check():
                return value
            await asyncio.sleep(0.05)


async def names(http: httpx.AsyncClient) -> list[str]:
    answer = await http.get("/v1/images/queue")
    assert answer.status_code == 200, answer.text
    return [entry["id"] for entry in answer.json()["data"]]


async def count(http: httpx.AsyncClient, wanted: int) -> bool:
    return len(await names(http)) == wanted


def paint(http: httpx.AsyncClient, name: str, **body: Any) -> asyncio.Task[httpx.Response]:
    body = {"prompt": "a red circle", "num_inference_steps": 1000, **body}
    headers = {"x-request-id": name}
    return asyncio.create_task(http.post("/v1/images/generations", json=body, headers=headers))


async def test_every_ingress_shows_the_queues_of_all_replicas(http: httpx.AsyncClient) -> None:
    tasks = {name: paint(http, name) for name in ("a", "b", "c", "d")}
    await until(lambda: count(http, 4))
    for _ in range(10):
        queue = (await http.get("/v1/images/queue")).json()
        assert {entry["id"] for entry in queue["data"]} == set("abcd")
        assert [entry["ahead"] for entry in queue["data"]][:2] == [0, 0]
        assert (await http.get("/v1/images/queue/c")).json()["id"] == "c"
    for name in tasks:
        assert (await http.delete(f"/v1/images/requests/{name}")).json()["cancelled"]
    for task in tasks.values():
        answer = await task
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, "request_cancelled")


async def test_full_replicas_still_show_and_cancel_and_refuse_the_rest(http: httpx.AsyncClient) -> None:
    tasks = {f"r{k}": paint(http, f"r{k}") for k in range(16)}

    async def settled() -> bool:
        return len(await names(http)) + sum(task.done() for task in tasks.values()) == 16

    await until(settled)
    refused = {name for name, task in tasks.items() if task.done()}
    assert 4 <= len(refused) <= 10
    for name in refused:
        answer = await tasks[name]
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
    for name in tasks.keys() - refused:
        answer = await http.delete(f"/v1/images/requests/{name}")
        assert answer.status_code == 200, (name, answer.text)
        assert (await tasks[name]).status_code == 499
    assert (await http.delete("/v1/images/requests/r1")).status_code == 404


async def test_a_cancellation_finds_its_request_in_serve_s_queue_at_any_ingress(
    http: httpx.AsyncClient,
) -> None:
    tasks = {f"s{k}": paint(http, f"s{k}", model="sleepy") for k in range(6)}
    await asyncio.sleep(2)
    for name, task in tasks.items():
        assert not task.done(), (await task).text
        answer = await http.delete(f"/v1/images/requests/{name}")
        assert answer.status_code == 200, (name, answer.text)
        assert (await task).status_code == 499


async def test_clients_that_go_away_empty_the_queue(http: httpx.AsyncClient) -> None:
    tasks = [paint(http, f"gone{k}", stream=k % 2 == 0) for k in range(6)]
    await until(lambda: count(http, 6))
    for task in tasks:
        task.cancel()
    await until(lambda: count(http, 0), 10)


@pytest.mark.parametrize("stream", [False, True])
async def test_time_limits_answer_in_our_envelope(http: httpx.AsyncClient, stream: bool) -> None:
    answer = await http.post(
        "/v1/images/generations",
        json={"prompt": "x", "num_inference_steps": 1000, "stream": stream},
        headers={"x-request-timeout-seconds": "1"},
    )
    assert answer.status_code == (200 if stream else 504), answer.text
    assert '"code":"timeout"' in answer.text
    assert not stream or answer.text.endswith("data: [DONE]\n\n")


async def test_a_large_picture_is_edited_and_streamed(server: tuple[str, psutil.Process]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1024, 1536, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert buffer.tell() > 4 * 1024 * 1024, "more than a message of Serve's gRPC transport takes"
    client = AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    stream = await client.images.edit(
        image=("large.png", buffer.getvalue(), "image/png"),
        prompt="a red circle",
        size="1536x1024",
        stream=True,
        partial_images=1,
        extra_body={"strength": 1.0},
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].usage.input_tokens_details.image_tokens == 96 * 64


async def test_a_lost_replica_s_requests_move_to_the_other_one(
    server: tuple[str, psutil.Process], http: httpx.AsyncClient
) -> None:
    tasks = [paint(http, f"k{k}", stream=True) for k in range(4)]
    await until(lambda: count(http, 4))
    replicas = [p for p in server[1].children(recursive=True) if "ImageGenerator" in " ".join(p.cmdline())]
    assert len(replicas) == 2
    replicas[0].send_signal(signal.SIGKILL)

    async def together() -> bool:
        found = {entry["id"]: entry for entry in (await http.get("/v1/images/queue")).json()["data"]}
        return len(found) == 4 and sum(entry["ahead"] == 0 for entry in found.values()) == 1

    # Nothing of the pictures had been sent yet: those of the lost replica begin anew at the other one.
    await until(together)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
