"""Two replicas, one of which is killed under its requests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import psutil
import pytest
from openai import AsyncOpenAI

from tests.integration.conftest import serving

pytestmark = pytest.mark.real

# Half a second to each token: slow enough to be killed in the middle.
PROFILE = """
models:
  - id: fake-vlm
    task: vision_language
    engine: fake
    num_cpus: 0.1
    engine_args: {token_seconds: 0.5}
    autoscaling: {min_replicas: 2, max_replicas: 2}
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1}
"""
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[AsyncOpenAI, psutil.Process]]:
    with serving(tmp_path, PROFILE) as (url, process):
        yield AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), process


def replicas(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children(recursive=True) if "VisionLanguage" in " ".join(p.cmdline())]


async def test_requests_before_their_first_byte_move_to_the_other_replica(server) -> None:
    client, process = server
    messages = [[{"role": "user", "content": f"Hello, number {number}!"}] for number in range(8)]
    requests = [client.chat.completions.create(model="fake-vlm", messages=one) for one in messages]
    answers = asyncio.gather(*requests, return_exceptions=True)
    await asyncio.sleep(1)
    replicas(process)[0].send_signal(signal.SIGKILL)
    said = [answer for answer in await answers if not isinstance(answer, Exception)]
    assert len(said) == 8


async def test_streams_that_had_begun_end_with_an_error(server) -> None:
    client, process = server

    async def read(number: int) -> str:
        messages = [{"role": "user", "content": f"Hello, number {number}!"}]  # equal ones go to one replica
        stream = await client.chat.completions.create(model="fake-vlm", messages=messages, stream=True)
        seen = [chunk async for chunk in stream]
        return seen[-1].choices[0].finish_reason

    reads = asyncio.gather(*[read(number) for number in range(8)], return_exceptions=True)
    await asyncio.sleep(2)
    replicas(process)[0].send_signal(signal.SIGKILL)
    ends = await reads
    broken = [end for end in ends if isinstance(end, openai.APIError)]
    assert broken, "no stream was on the killed replica"
    assert [end for end in ends if end == "stop"], "no stream was on the other one"
    assert len(broken) + ends.count("stop") == 8, "a stream ended silently"
