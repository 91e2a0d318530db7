"""Completions, responses, messages and tokenize through the whole ingress on the fake engine."""

from __future__ import annotations

import base64
import io
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from PIL import Image

HELLO = [{"role": "user", "content": "Hello there"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello there"},
    "/v1/responses": {"input": "Hello there"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 20},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/tokenize": {"prompt": "Hello there"},
}


def gpt(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def claude(url: str) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


def png(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def post(url: str, path: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json={"model": "fake-vlm", **body})


async def test_completions(url: str) -> None:
    ask = gpt(url).completions.create
    whole = await ask(model="vlm", prompt="Hello there")
    assert whole.choices[0].text == "You said: Hello there"
    chunks = [chunk async for chunk in await ask(model="vlm", prompt="Hello there", stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


async def test_responses(url: str) -> None:
    ask = gpt(url).responses.create
    whole = await ask(model="vlm", input="Hello there")
    assert whole.output_text == "You said: Hello there"
    events = [event async for event in await ask(model="vlm", input="Hello there", stream=True)]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text


async def test_messages(url: str) -> None:
    whole = await claude(url).messages.create(model="vlm", messages=HELLO, max_tokens=20)
    assert whole.content[0].text == "You said: Hello there"
    async with claude(url).messages.stream(model="vlm", messages=HELLO, max_tokens=20) as stream:
        assert await stream.get_final_text() == whole.content[0].text
    counted = await claude(url).messages.count_tokens(model="vlm", messages=HELLO)
    assert counted.input_tokens == whole.usage.input_tokens == 2


@pytest.mark.parametrize(("path", "event"), [("/v1/messages", "message_stop"), ("/v1/responses", None)])
async def test_named_events_on_the_wire(url: str, path: str, event: str | None) -> None:
    answer = await post(url, path, **BODIES[path], stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames.pop() == ""
    for frame in frames:
        name, data = frame.split("\n")
        assert httpx.Response(200, text=data.removeprefix("data: ")).json()["type"] == name[len("event: ") :]
    assert frames[-1].startswith(f"event: {event or 'response.completed'}\n")
    assert "[DONE]" not in answer.text


async def test_completions_end_with_done(url: str) -> None:
    answer = await post(url, "/v1/completions", prompt="Hello", stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_images_of_responses_reach_the_engine(url: str) -> None:
    said = []
    for colour in ("#ff0000", "#0000ff"):
        image = {"type": "input_image", "image_url": f"data:image/png;base64,{png(colour)}"}
        given = [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, image]}]
        said.append((await gpt(url).responses.create(model="vlm", input=given)).output_text)
    assert said[0] != said[1]
    assert "64x48" in said[0]


async def test_images_of_messages_reach_the_engine(url: str) -> None:
    said = []
    for colour in ("#ff0000", "#0000ff"):
        source = {"type": "base64", "media_type": "image/png", "data": png(colour)}
        content = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
        messages = [{"role": "user", "content": content}]
        answer = await claude(url).messages.create(model="vlm", messages=messages, max_tokens=20)
        said.append(answer.content[0].text)
    assert said[0] != said[1]
    assert "64x48" in said[0]


def said(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [image(type="url", url="file:///etc/passwd")]}

REFUSED = [
    ("/v1/completions", {}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": ["hi"] * 17}, "prompt"),
    ("/v1/completions", {"prompt": [[1, 2]] * 17}, "prompt"),
    ("/v1/completions", {"prompt": "hi", "n": 17}, "n"),
    ("/v1/completions", {"prompt": "hi", "prompt_embeds": "AAAA"}, "prompt_embeds"),
    ("/v1/completions", {"prompt": "hi", "kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ("/v1/responses", {}, "input"),
    ("/v1/responses", {"input": []}, "input"),
    ("/v1/responses", {"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("/v1/responses", {"input": "hi", "conversation": "conv_1"}, "conversation"),
    ("/v1/responses", {"input": "hi", "background": True}, "background"),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "web_search"}]}, "tools.0.type"),
    ("/v1/responses", {"input": "hi", "mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    ("/v1/responses", {"input": said({"type": "input_file"})}, "input.0.content.0.type"),
    ("/v1/responses", {"input": said({"type": "picture", "picture": 0})}, "input.0.content.0.type"),
    (
        "/v1/responses",
        {"input": said({"type": "input_image", "file_id": "f"})},
        "input.0.content.0.image_url",
    ),
    (
        "/v1/responses",
        {"input": said({"type": "input_image", "image_url": "picture:0"})},
        "input.0.content.0.image_url",
    ),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"messages": said({"type": "video"})}, "messages.0.content.0.type"),
    ("/tokenize", {"messages": HELLO, "chat_template": "x"}, "chat_template"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [1]}, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
async def test_bad_field_is_named(url: str, path: str, body: dict, param: str) -> None:
    answer = await post(url, path, **body)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) > 20


REFUSED_MESSAGES = [
    ({}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": said({"type": "document"})}, "messages.0.content.0.type"),
    ({"messages": said({"type": "picture", "picture": 0})}, "messages.0.content.0.type"),
    ({"messages": said(image(type="file", file_id="f"))}, "messages.0.content.0.source.type"),
    ({"messages": said(image(type="url", url="picture:0"))}, "messages.0.content.0.source.url"),
    ({"messages": said(RESULT)}, "messages.0.content.0.content.0.source.url"),
    ({"messages": HELLO, "system": [image(type="url", url="http://x")]}, "system.0.type"),
    ({"messages": HELLO, "chat_template_kwargs": {"chat_template": "x"}}, "chat_template"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED_MESSAGES)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_bad_field_in_anthropics_envelope(url: str, path: str, body: dict, words: str) -> None:
    answer = await post(url, path, max_tokens=20, **body)
    assert answer.status_code == 400
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"]
    assert error["request_id"]


async def test_anthropics_envelope_by_kind(start) -> None:
    url, _ = await start(ingress={"max_body_bytes": 1000})
    with pytest.raises(anthropic.NotFoundError) as missing:
        await claude(url).messages.create(model="nobody", messages=HELLO, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"
    large = await post(url, "/v1/messages", messages=said({"type": "text", "text": "x" * 2000}))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    async with httpx.AsyncClient() as http:
        wrong = await http.get(f"{url}/v1/messages")
        broken = await http.post(f"{url}/v1/messages", content=b"{")
    assert (wrong.status_code, wrong.json()["type"]) == (405, "error")
    assert broken.json()["error"]["type"] == "invalid_request_error"


async def test_anthropics_envelope_of_an_early_failure(start) -> None:
    url, _ = await start(chat={"engine_args": {"fail": "request"}})
    with pytest.raises(anthropic.InternalServerError) as failed:
        await claude(url).messages.create(model="vlm", messages=HELLO, max_tokens=5, stream=True)
    assert failed.value.body["error"]["type"] == "api_error"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_late_failure_ends_with_the_dialects_own_error(start, path: str) -> None:
    url, _ = await start(chat={"engine_args": {"fail": "mid_stream"}})
    answer = await post(url, path, **BODIES[path], stream=True)
    last = answer.text.split("\n\n")[-2]
    assert last.startswith("event: error\ndata: ")
    event = httpx.Response(200, text=last.split("data: ")[1]).json()
    assert event["type"] == "error"
    if path == "/v1/messages":
        assert event["error"]["type"] == "api_error"
        with pytest.raises(anthropic.APIStatusError):
            async with claude(url).messages.stream(model="vlm", messages=HELLO, max_tokens=20) as stream:
                await stream.get_final_text()
    else:
        assert event["sequence_number"] == answer.text.count("event: ") - 1
        assert (event["code"], event["param"]) == ("engine_failed", None)
        with pytest.raises(openai.APIError, match="middle"):
            [e async for e in await gpt(url).responses.create(model="vlm", input="hi you", stream=True)]


async def test_store_is_taken_and_means_nothing(url: str) -> None:
    answer = await gpt(url).responses.create(model="vlm", input="Hello there", store=True)
    assert answer.output_text


@pytest.mark.parametrize("path", list(BODIES))
async def test_an_alias_or_no_model_reach_the_model(url: str, path: str) -> None:
    assert (await post(url, path, **BODIES[path] | {"model": "vlm"})).status_code == 200
    async with httpx.AsyncClient() as http:
        assert (await http.post(url + path, json=BODIES[path])).status_code == 200
