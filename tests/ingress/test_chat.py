"""Chat completions through the whole ingress on the fake engine, with the unmodified OpenAI client."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

HELLO = [{"role": "user", "content": "Hello there"}]


def client(url: str, retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries)


def data_url(colour: str, size: tuple[int, int] = (64, 48)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_message(url: str) -> list[dict]:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


async def test_whole_answer_with_usage_and_request_id(url: str) -> None:
    raw = await client(url).chat.completions.with_raw_response.create(model="fake-vlm", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert raw.headers["x-request-id"].startswith("req-")


async def test_stream_says_the_same_and_ends_with_usage(url: str) -> None:
    whole = await client(url).chat.completions.create(model="fake-vlm", messages=HELLO)
    stream = await client(url).chat.completions.create(
        model="fake-vlm", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


async def test_stream_on_the_wire_ends_with_done(url: str) -> None:
    async with httpx.AsyncClient() as http:
        body = {"model": "fake-vlm", "messages": HELLO, "stream": True}
        answer = await http.post(f"{url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: ") for frame in frames[:-1])


async def test_alias_and_missing_model_reach_the_model(url: str) -> None:
    named = await client(url).chat.completions.create(model="vlm", messages=HELLO)
    assert named.model == "fake-vlm"
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json={"messages": HELLO})
    assert answer.json()["model"] == "fake-vlm"


async def test_picture_reaches_the_engine(url: str) -> None:
    ask = client(url).chat.completions.create
    red, blue = [
        await ask(model="fake-vlm", messages=picture_message(data_url(c))) for c in ("#ff0000", "#0000ff")
    ]
    assert red.choices[0].message.content != blue.choices[0].message.content


@pytest.fixture
def web():
    """A web server on loopback; yields `host:port`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(base64.b64decode(data_url("#00ff00").split(",")[1]))

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


async def test_picture_behind_a_url(start, web: str) -> None:
    url, _ = await start(prep={"fetch_private_hosts": (web,)})
    ask = client(url).chat.completions.create
    fetched = await ask(model="vlm", messages=picture_message(f"http://{web}/green.png"))
    sent = await ask(model="vlm", messages=picture_message(data_url("#00ff00")))
    assert fetched.choices[0].message.content == sent.choices[0].message.content


async def test_url_to_a_private_address_is_refused(url: str, web: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client(url).chat.completions.create(
            model="vlm", messages=picture_message(f"http://{web}/green.png")
        )
    assert caught.value.code == "image_url_forbidden"


async def test_unknown_model_lists_the_models(url: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client(url).chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "fake-vlm" in caught.value.message
    assert caught.value.param == "model"
    assert caught.value.request_id


async def test_image_model_does_not_chat(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="fake-vlm"):
        await client(url).chat.completions.create(model="fake-image", messages=HELLO)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content.0.type"),
        ({"messages": picture_message("/etc/passwd")}, "messages.0.content.1.image_url"),
        ({"messages": picture_message("file:///etc/passwd")}, "messages.0.content.1.image_url"),
        ({"messages": picture_message("data:image/png;base64,AAAA")}, "messages.0.content.1.image_url"),
        ({"messages": HELLO, "model": 3}, "model"),
        ({"messages": HELLO, "n": 17}, "n"),
    ],
)
async def test_bad_field_is_named(url: str, body: dict, param: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) > 20


async def test_too_many_images(start) -> None:
    url, _ = await start(ingress={"max_images": 1})
    part = picture_message(data_url("red"))[0]["content"][1]
    with pytest.raises(openai.BadRequestError) as caught:
        await client(url).chat.completions.create(
            model="vlm", messages=[{"role": "user", "content": [part, part]}]
        )
    assert caught.value.code == "too_many_images"


async def test_loading_model_answers_503_with_the_time_left(start) -> None:
    url, application = await start()
    application.states["VisionLanguage-fake-vlm"] = "loading"
    async with httpx.AsyncClient() as http:
        answer = await _until(503, lambda: http.post(f"{url}/v1/chat/completions", json={"messages": HELLO}))
        assert answer.json()["error"]["code"] == "model_loading"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        ready = await http.get(f"{url}/ready")
        assert (ready.status_code, ready.json()["models"]["fake-vlm"]) == (503, "loading")
        assert int(ready.headers["retry-after"]) >= 1
        assert (await http.get(f"{url}/health")).json() == {"status": "ok"}


async def test_sdk_retries_carry_a_client_through_loading(start) -> None:
    url, application = await start(chat={"load_seconds": 1})
    deployment = application.models[0].deployment_name
    application.states[deployment] = "loading"
    async with httpx.AsyncClient() as http:
        await _until(503, lambda: http.get(f"{url}/ready"))
    request = asyncio.create_task(client(url, retries=2).chat.completions.create(model="vlm", messages=HELLO))
    await asyncio.sleep(0.2)
    application.states[deployment] = "ready"
    assert (await request).choices[0].message.content


async def _until(status: int, get) -> httpx.Response:
    for _ in range(200):
        answer = await get()
        if answer.status_code == status:
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"never answered {status}")


async def test_engine_failure_is_hidden_and_typed(start) -> None:
    url, _ = await start(chat={"engine_args": {"fail": "request"}})
    with pytest.raises(openai.InternalServerError) as caught:
        await client(url).chat.completions.create(model="vlm", messages=HELLO)
    assert caught.value.type == "server_error"
    assert "Traceback" not in str(caught.value)


async def test_early_failure_keeps_its_status_when_streaming(start) -> None:
    url, _ = await start(chat={"engine_args": {"fail": "request"}})
    with pytest.raises(openai.InternalServerError):
        await client(url).chat.completions.create(model="vlm", messages=HELLO, stream=True)


async def test_late_failure_ends_the_stream_with_an_error_frame(start) -> None:
    url, _ = await start(chat={"engine_args": {"fail": "mid_stream"}})
    stream = await client(url).chat.completions.create(model="vlm", messages=HELLO, stream=True)
    assert (await anext(aiter(stream))).choices
    with pytest.raises(openai.APIError):
        [chunk async for chunk in stream]
    async with httpx.AsyncClient() as http:
        body = {"messages": HELLO, "stream": True}
        raw = await http.post(f"{url}/v1/chat/completions", json=body)
    assert raw.text.endswith("data: [DONE]\n\n")


async def test_context_overflow(start) -> None:
    url, _ = await start(chat={"engine_args": {"context": 4}})
    with pytest.raises(openai.BadRequestError) as caught:
        await client(url).chat.completions.create(
            model="vlm", messages=[{"role": "user", "content": "one two three four five six"}]
        )
    assert caught.value.code == "context_length_exceeded"
