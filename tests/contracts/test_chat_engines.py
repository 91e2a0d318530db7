"""What every chat engine promises, run against the fake one and against vLLM on the demo checkpoint."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from deployments.contracts.errors import ContextTooLong, EngineFailed, InvalidRequest, ModelNotFound
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine
from deployments.engines.orphans import descendants
from tests.devices import GPU_SHARE

ENGINES = {
    "fake": {"engine": "fake", "engine_args": {"token_seconds": 0.002, "context": 256}},
    "vllm": {
        "engine": "vllm",
        "source": "demo_models/vlm",
        "gpu_fraction": GPU_SHARE,
        "engine_args": {
            "max-model-len": 256,
            "enforce_eager": True,
            "limit-mm-per-prompt": {"image": 2, "video": 0},
            "kv-cache-memory-bytes": 64 * 1024 * 1024,
            "tool-call-parser": "hermes",
            "enable-auto-tool-choice": True,
        },
    },
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


REAL = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["fake", pytest.param("vllm", marks=REAL)]
)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    settings = ModelSettings(
        id="demo", aliases=("also-demo",), task="vision_language", **ENGINES[request.param]
    )
    before = descendants({os.getpid()})
    made = make_chat_engine(settings)
    await made.start()
    yield made
    await made.close()
    await made.close()
    with pytest.raises(EngineFailed):
        await made.check_health()
    # multiprocessing's own resource tracker stays with its process; what has no command line has ended.
    left = {command(pid) for pid, _ in descendants({os.getpid()}) - before}
    assert [name for name in left if name and "resource_tracker" not in name] == []


def command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return "resource_tracker"  # gone meanwhile


def ask(content: Any = "Describe a small red square", *, id: str = "r1", **body: Any) -> ChatRequest:
    return ChatRequest(
        id, {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8, **body}
    )


def picture(red: int, green: int, blue: int) -> Picture:
    pixels = np.empty((64, 96, 3), np.uint8)
    pixels[:] = (red, green, blue)
    pixels.flags.writeable = False  # as it arrives by reference
    return Picture(pixels, hashlib.sha256(pixels.tobytes()).hexdigest())


PICTURE = {"type": "picture", "picture": 0}


async def whole(engine: Any, request: ChatRequest, *pictures: Picture) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await engine.chat(request, pictures))
    return answer


async def streamed(engine: Any, request: ChatRequest, *pictures: Picture) -> list[dict[str, Any]]:
    return [json.loads(chunk) async for chunk in engine.stream_chat(request, pictures)]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


async def test_a_whole_answer(engine: Any) -> None:
    answer = await whole(engine, ask(id="abc"))
    assert answer["id"] == "chatcmpl-abc"
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "demo"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_the_stream_equals_the_whole(engine: Any) -> None:
    answer = await whole(engine, ask())
    chunks = await streamed(engine, ask(id="abc", stream_options={"include_usage": True}))
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {("chatcmpl-abc", "chat.completion.chunk")}
    assert text_of(chunks) == answer["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert reasons == [answer["choices"][0]["finish_reason"]]
    assert chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == answer["usage"][name]


async def test_no_usage_in_the_stream_unless_asked_for(engine: Any) -> None:
    assert all(chunk["choices"] for chunk in await streamed(engine, ask()))


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_ends_with_length(engine: Any, limit: str) -> None:
    answer = await whole(engine, ask(**{"max_tokens": None, limit: 2, "ignore_eos": True}))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


async def test_pictures_change_the_answer(engine: Any) -> None:
    request = ask([PICTURE, {"type": "text", "text": "Describe the picture"}], max_tokens=24)
    red, blue = picture(255, 0, 0), picture(0, 0, 255)
    answers = [
        (await whole(engine, request, shown))["choices"][0]["message"]["content"]
        for shown in (red, blue, red)
    ]
    assert answers[0] == answers[2] != answers[1]
    assert text_of(await streamed(engine, request, blue)) == answers[1]


async def test_the_callers_body_is_left_alone(engine: Any) -> None:
    request = ask([PICTURE, {"type": "text", "text": "hi"}], stream_options={"include_usage": True})
    before = json.dumps(request.body)
    await whole(engine, request, picture(1, 2, 3))
    await streamed(engine, request, picture(1, 2, 3))
    assert json.dumps(request.body) == before


async def test_an_alias_is_a_name_too(engine: Any) -> None:
    assert (await whole(engine, ask(model="also-demo")))["choices"]


FORBIDDEN = [
    ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, "messages.0.content.0.image_url"),
    ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "messages.0.content.0.image_url"),
    ({"type": "video_url", "video_url": {"url": "http://127.0.0.1"}}, "messages.0.content.0.video_url"),
    ({"type": "input_audio", "input_audio": {"data": ""}}, "messages.0.content.0.input_audio"),
    ({"type": "image_embeds", "image_embeds": "AAAA"}, "messages.0.content.0.image_embeds"),
    ({"image_url": "http://127.0.0.1/x.png"}, "messages.0.content.0.type"),
    ({"type": "picture", "picture": 0}, "messages.0.content.0.picture"),
    ({"type": "picture", "picture": -1}, "messages.0.content.0.picture"),
    ({"type": "text", "text": 5}, "messages.0.content.0.text"),
    ("plain", "messages.0.content.0"),
]


@pytest.mark.parametrize(("part", "param"), FORBIDDEN)
@pytest.mark.parametrize("stream", [False, True])
async def test_parts_that_an_engine_must_not_see(engine: Any, part: Any, param: str, stream: bool) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await (streamed if stream else whole)(engine, ask([part]))
    assert caught.value.param == param


async def test_a_text_part_cannot_smuggle_a_url(engine: Any) -> None:
    plain = await whole(engine, ask([{"type": "text", "text": "hi"}]))
    part = {"type": "text", "text": "hi", "uuid": "x", "image_url": "http://127.0.0.1:9/x.png"}
    assert (await whole(engine, ask([part])))["usage"] == plain["usage"]


BAD_BODIES = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
    ({"mm_processor_kwargs": {"max_pixels": 10**9}}, "mm_processor_kwargs"),
    ({"media_io_kwargs": {"image": {}}}, "media_io_kwargs"),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_bodies_name_the_field(engine: Any, body: Any, param: str, stream: bool) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await (streamed if stream else whole)(engine, ask(**body))
    assert caught.value.param == param
    assert caught.value.message


async def test_an_unknown_model(engine: Any) -> None:
    with pytest.raises(ModelNotFound, match="nobody") as caught:
        await whole(engine, ask(model="nobody"))
    assert caught.value.param == "model"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_too_long_says_both_numbers(engine: Any, stream: bool) -> None:
    with pytest.raises(ContextTooLong, match=r"256.* \d{3,5} ") as caught:
        await (streamed if stream else whole)(engine, ask("word " * 600))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


async def test_more_tokens_than_the_context_holds(engine: Any) -> None:
    with pytest.raises(ContextTooLong, match=r"256.* 5000") as caught:
        await whole(engine, ask(max_tokens=5000))
    assert caught.value.param == "max_tokens"


async def freed(engine: Any) -> bool:
    for _ in range(100):
        if engine.unfinished() == 0:
            return True
        await asyncio.sleep(0.01)
    return False


LONG = {"max_tokens": 200, "ignore_eos": True}


async def test_closing_a_stream_frees_the_slot(engine: Any) -> None:
    stream = engine.stream_chat(ask(**LONG), ())
    for _ in range(3):
        await anext(stream)
    assert engine.unfinished() == 1
    await stream.aclose()
    assert await freed(engine)
    await engine.check_health()


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_frees_the_slot(engine: Any, stream: bool) -> None:
    task = asyncio.create_task((streamed if stream else whole)(engine, ask(**LONG)))
    while engine.unfinished() == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await freed(engine)
    assert (await whole(engine, ask()))["choices"]


async def test_many_at_once(engine: Any) -> None:
    alone = await whole(engine, ask())
    together = await asyncio.gather(*[whole(engine, ask(id=f"r{i}")) for i in range(8)])
    assert [answer["id"] for answer in together] == [f"chatcmpl-r{i}" for i in range(8)]
    assert {answer["usage"]["total_tokens"] for answer in together} == {alone["usage"]["total_tokens"]}


async def test_healthy(engine: Any) -> None:
    await engine.check_health()


async def test_close_before_start() -> None:
    for name in ENGINES:
        settings = ModelSettings(id="demo", task="vision_language", **ENGINES[name])
        await make_chat_engine(settings).close()
