"""The older services on Ray: full queues, counts over two ingress replicas, the log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ingress.golden import check, pairs, play
from tests.integration.conftest import serving

pytestmark = pytest.mark.real

PROFILE = """
models:
  - id: fake-vlm
    task: vision_language
    engine: fake
    num_cpus: 0.1
    engine_args: {token_seconds: 0.3}
    max_ongoing_requests: 1
    max_queued_requests: 1
  - id: fake-image
    task: image_generation
    engine: fake
    num_cpus: 0.1
    engine_args: {step_seconds: 0.05}
    max_ongoing_requests: 1
    max_queued_requests: 1
    generation: {size: 64x64, max_pixels: 65536, steps: 4, cfg_scale: 3}
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1, replicas: 2}
"""
PAIRS = pairs("full_queue")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fake"), PROFILE, seconds=240) as (url, _):
        # One of the two ingress replicas may have looked at the models' state a little later.
        while any(httpx.get(f"{url}/ready").status_code != 200 for _ in range(8)):
            time.sleep(0.5)
        yield url


@pytest.mark.parametrize("pair", PAIRS, ids=[pair["name"] for pair in PAIRS])
async def test_full_queue(url: str, pair: dict[str, Any]) -> None:
    for _ in range(4):  # a handle learns of its queue's bound with its first call
        await play(url, pair["ask"])
    flood = []
    for _ in range(16):
        flood.append(asyncio.create_task(play(url, pair["ask"])))
        # Serve does not count requests whose pictures are still on their way: all of one moment would pass.
        await asyncio.sleep(0.1)
    answers = await asyncio.gather(*flood)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 16
    for answer in refused:
        check(answer, pair["answer"])


async def test_counts_are_those_of_all_replicas(url: str) -> None:
    async def metrics() -> dict[str, Any]:
        async with httpx.AsyncClient() as http:  # a connection each: HAProxy sends them to both in turn
            return (await http.get(f"{url}/api/metrics")).json()

    before = (await metrics())["counts_by_code"].get("1001", 0)
    answers = await asyncio.gather(*[play(url, {"post": "/api/generate", "json": {}}) for _ in range(20)])
    assert {answer.status_code for answer in answers} == {400}
    seen = [(await metrics())["counts_by_code"]["1001"] for _ in range(6)]
    assert seen == [before + 20] * 6


async def test_a_failure_is_in_the_log_of_the_cluster(url: str) -> None:
    def ask(name: str) -> dict[str, Any]:
        body = {"prompt": "a lost picture", "num_steps": 20}
        return {"post": "/api/generate", "headers": {"x-request-id": name}, "json": body}

    name = f"find-me-{time.time_ns()}"
    answers = await asyncio.gather(*[play(url, ask(f"{name}.{i}")) for i in range(8)])
    refused = next(answer for answer in answers if answer.status_code == 503)
    (line,) = [line for line in _log_lines(refused.headers["x-request-id"]) if " failed: " in line]
    record = json.loads(line)
    assert "a lost picture" in record["message"]
    assert record["atelier_request_id"].startswith(refused.headers["x-request-id"])
    assert "Overloaded" in line
    assert "Traceback" in line


def _log_lines(word: str) -> list[str]:
    files = {file.resolve() for file in Path("/tmp/ray").glob("session_*/logs/serve/*Ingress*.log")}
    recent = [file for file in files if time.time() - file.stat().st_mtime < 600]
    return [line for file in recent for line in file.read_text().splitlines() if word in line]
