"""What every chat engine promises on the surfaces beside chat, run against the fake one and against vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from deployments.contracts.errors import ContextTooLong, InvalidRequest, ModelNotFound
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine
from tests.contracts.test_chat_engines import ENGINES, PICTURE, REAL, freed, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["fake", pytest.param("vllm", marks=REAL)]
)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    settings = ModelSettings(id="demo", task="vision_language", **ENGINES[request.param])
    made = make_chat_engine(settings)
    await made.start()
    yield made
    await made.close()


def content(surface: str, content: Any) -> dict[str, Any]:
    """What the surface's body says in its own way."""
    if surface == "completions":
        turns = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        return {"prompt": turns}
    if surface == "responses":
        return {"input": [{"role": "user", "content": content}]}
    return {"messages": [{"role": "user", "content": content}]}


def ask(
    surface: str, text: Any = "Describe a small red square", *, id: str = "r1", **body: Any
) -> ChatRequest:
    most = "max_output_tokens" if surface == "responses" else "max_tokens"
    limit = {most: body.pop("limit", 8)} if surface in LIMITED else {}
    given = {"model": "demo", **content(surface, text), "temperature": 0, **limit, **body}
    return ChatRequest(id, given, surface)


STREAMED = ["completions", "responses", "messages"]
LIMITED = STREAMED


async def whole(engine: Any, request: ChatRequest, *pictures: Picture) -> dict[str, Any]:
    return json.loads(await engine.chat(request, pictures))


async def streamed(engine: Any, request: ChatRequest, *pictures: Picture) -> list[dict[str, Any]]:
    return [json.loads(chunk) async for chunk in engine.stream_chat(request, pictures)]


def text_of(surface: str, answer: dict[str, Any]) -> str:
    if surface == "completions":
        return answer["choices"][0]["text"]
    if surface == "responses":
        return answer["output"][0]["content"][0]["text"]
    return answer["content"][0]["text"]


def joined(surface: str, events: list[dict[str, Any]]) -> str:
    if surface == "completions":
        return "".join(event["choices"][0]["text"] for event in events)
    if surface == "responses":
        return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    return "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")


IDS = {"completions": "cmpl-abc", "responses": "resp_abc", "messages": "chatcmpl-abc"}


@pytest.mark.parametrize("surface", STREAMED)
async def test_the_stream_equals_the_whole(engine: Any, surface: str) -> None:
    answer = await whole(engine, ask(surface, id="abc"))
    assert answer["id"] == IDS[surface]
    assert answer["model"] == "demo"
    assert text_of(surface, answer)
    events = await streamed(engine, ask(surface))
    assert joined(surface, events) == text_of(surface, answer)
    first, last = events[0], events[-1]
    if surface == "responses":
        assert (first["type"], last["type"]) == ("response.created", "response.completed")
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert text_of(surface, last["response"]) == text_of(surface, answer)
    if surface == "messages":
        assert (first["type"], last["type"]) == ("message_start", "message_stop")


async def test_usage_in_each_dialect(engine: Any) -> None:
    for surface, names in {
        "completions": ("prompt_tokens", "completion_tokens"),
        "responses": ("input_tokens", "output_tokens"),
        "messages": ("input_tokens", "output_tokens"),
    }.items():
        usage = (await whole(engine, ask(surface)))["usage"]
        assert all(usage[name] > 0 for name in names), surface


@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_pictures_change_the_answer(engine: Any, surface: str) -> None:
    text = {"type": "input_text" if surface == "responses" else "text", "text": "Describe the picture"}
    request = ask(surface, [PICTURE, text], limit=24)
    red, blue = picture(255, 0, 0), picture(0, 0, 255)
    answers = [text_of(surface, await whole(engine, request, shown)) for shown in (red, blue, red)]
    assert answers[0] == answers[2] != answers[1]
    assert joined(surface, await streamed(engine, request, blue)) == answers[1]


async def test_a_picture_in_the_result_of_a_tool(engine: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [PICTURE]}
    if type(engine).__name__ == "FakeChatEngine":
        pytest.skip("the fake engine knows no tools")
    messages = [
        {"role": "user", "content": "What color is the background?"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    answers = [
        await whole(engine, ask("messages", messages=messages, limit=24), picture(*colour))
        for colour in ((255, 0, 0), (0, 0, 255))
    ]
    assert text_of("messages", answers[0]) != text_of("messages", answers[1])
    call = {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "t1", "output": [PICTURE]}
    given = [{"role": "user", "content": "What color is the background?"}, call, output]
    said = await whole(engine, ask("responses", input=given), picture(255, 0, 0))
    assert text_of("responses", said)


URLS = {
    "responses": {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
    "messages": {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/x.png"}},
    "count_tokens": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}},
}


@pytest.mark.parametrize("surface", list(URLS))
async def test_an_engine_never_sees_a_url(engine: Any, surface: str) -> None:
    with pytest.raises(InvalidRequest):
        await whole(engine, ask(surface, [URLS[surface]]))


@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_a_picture_that_was_not_sent(engine: Any, surface: str) -> None:
    for number in (0, -1, "0"):
        with pytest.raises(InvalidRequest):
            await whole(engine, ask(surface, [{"type": "picture", "picture": number}]))


@pytest.mark.parametrize("surface", [*STREAMED, "count_tokens", "tokenize", "tokenize_chat", "detokenize"])
@pytest.mark.parametrize("name", ["mm_processor_kwargs", "chat_template", "kv_transfer_params"])
async def test_fields_of_the_operator(engine: Any, surface: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await whole(engine, ask(surface, **{name: {"x": 1}}))
    assert caught.value.param == name


@pytest.mark.parametrize("surface", STREAMED)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_too_long_names_its_field(engine: Any, surface: str, stream: bool) -> None:
    with pytest.raises(ContextTooLong, match=r"256.* \d{3,5} ") as caught:
        await (streamed if stream else whole)(engine, ask(surface, "word " * 600))
    if type(engine).__name__ != "FakeChatEngine":
        field = {"completions": "prompt", "responses": "input", "messages": "messages"}
        assert caught.value.param == field[surface]


@pytest.mark.parametrize("surface", STREAMED)
async def test_an_unknown_model(engine: Any, surface: str) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        await whole(engine, ask(surface, model="nobody"))


@pytest.mark.parametrize("surface", STREAMED)
async def test_closing_a_stream_frees_the_slot(engine: Any, surface: str) -> None:
    endless = {} if surface == "messages" else {"ignore_eos": True}
    stream = engine.stream_chat(ask(surface, "Count for long", limit=200, **endless), ())
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    assert await freed(engine)
    await engine.check_health()


@pytest.mark.parametrize("surface", ["completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_frees_the_slot(engine: Any, surface: str, stream: bool) -> None:
    request = ask(surface, limit=200, ignore_eos=True)
    task = asyncio.create_task((streamed if stream else whole)(engine, request))
    while engine.unfinished() == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await freed(engine)


async def test_counts_of_tokens_agree(engine: Any) -> None:
    counted = (await whole(engine, ask("count_tokens")))["input_tokens"]
    assert counted == (await whole(engine, ask("tokenize_chat")))["count"]
    assert counted == (await whole(engine, ask("messages")))["usage"]["input_tokens"]
    shown = [PICTURE, {"type": "text", "text": "Describe a small red square"}]
    assert (await whole(engine, ask("count_tokens", shown), picture(1, 2, 3)))["input_tokens"] > counted


async def test_tokens_and_back(engine: Any) -> None:
    answer = await whole(engine, ChatRequest("r1", {"prompt": "a small red square"}, "tokenize"))
    assert answer["count"] == len(answer["tokens"]) > 0
    back = ChatRequest("r2", {"tokens": answer["tokens"]}, "detokenize")
    if type(engine).__name__ == "FakeChatEngine":
        with pytest.raises(InvalidRequest, match="detokenize"):
            await whole(engine, back)
    else:
        assert (await whole(engine, back))["prompt"] == "a small red square"
