"""The life of a request on real Serve: a client that leaves frees its slot, a full queue answers at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.conftest import serving

pytestmark = pytest.mark.real

# One slot: whoever is answered has it.
PROFILE = """
models:
  - id: fake-vlm
    task: vision_language
    engine: fake
    num_cpus: 0.1
    engine_args: {token_seconds: 0.02}
    max_ongoing_requests: 1
    max_queued_requests: 2
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1}
"""
HELLO = [{"role": "user", "content": "Hello there"}]
ENDLESS = {"model": "fake-vlm", "messages": HELLO, "ignore_eos": True, "max_tokens": 4000}
"""80 seconds of tokens."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("life"), PROFILE) as (url, _):
        yield url


async def seconds_until_answered(url: str) -> float:
    began = time.monotonic()
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    await client.chat.completions.create(model="fake-vlm", messages=HELLO)
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_slot(url: str, stream: bool) -> None:
    alone = await seconds_until_answered(url)
    async with httpx.AsyncClient() as client:
        body = {**ENDLESS, "stream": stream}
        if stream:
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                await anext(answer.aiter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{url}/v1/chat/completions", json=body, timeout=1)
    assert await seconds_until_answered(url) < alone + 1


async def test_a_full_queue_answers_at_once(url: str) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        first = client.stream("POST", f"{url}/v1/chat/completions", json={**ENDLESS, "stream": True})
        await stack.enter_async_context(first)
        waiting = [asyncio.create_task(seconds_until_answered(url)) for _ in range(2)]
        await asyncio.sleep(3)  # both are in the queue by now
        refusals = []
        end = time.monotonic() + 30
        while len(refusals) < 20 and time.monotonic() < end:
            began = time.monotonic()
            answer = await client.post(
                f"{url}/v1/chat/completions", json={"model": "fake-vlm", "messages": HELLO}, timeout=10
            )
            refusals.append(time.monotonic() - began)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "server_is_overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
        # The quickest, since the machine may have other things to do: none may be held by design.
        assert min(refusals) < 0.05
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert await seconds_until_answered(url) < 5


async def test_a_stream_that_is_refused_keeps_its_status(url: str) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="fake-vlm", messages=HELLO, max_tokens=100_000, stream=True
        )
    assert caught.value.code == "context_length_exceeded"
    assert "4096" in caught.value.message
    assert "100000" in caught.value.message
