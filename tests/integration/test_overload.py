"""More requests than the queues hold: refused at once, with the time to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.conftest import serving

pytestmark = pytest.mark.real

PROFILE = """
models:
  - id: fake-vlm
    task: vision_language
    engine: fake
    num_cpus: 0.1
    engine_args: {token_seconds: 0.05}
    max_ongoing_requests: 2
    max_queued_requests: 4
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1}
"""
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path, PROFILE) as (url, _):
        yield url


async def ask(url: str, stream: bool, retries: int) -> str:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries)
    answer = await client.chat.completions.create(model="fake-vlm", messages=HELLO, stream=stream)
    if not stream:
        return answer.choices[0].message.content
    return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])


async def test_flood_is_refused_with_retry_after_and_the_sdk_gets_through(url: str) -> None:
    for stream in (False, True):
        ends = await asyncio.gather(*[ask(url, stream, 0) for _ in range(60)], return_exceptions=True)
        refused = [end for end in ends if isinstance(end, openai.APIStatusError)]
        assert refused
        assert len(refused) + sum(isinstance(end, str) for end in ends) == 60
        for error in refused:
            assert (error.status_code, error.code) == (503, "server_is_overloaded")
            assert 1 <= int(error.response.headers["retry-after"]) <= 120
        assert all(await asyncio.gather(*[ask(url, stream, 5) for _ in range(12)]))
