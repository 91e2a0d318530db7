"""Streams of pictures: OpenAI's events, progress in comments, errors, and when the headers go."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from serve_app.ingress import image_handlers
from serve_app.ingress.sse import with_heartbeat
from tests.ingress.test_images import client


async def frames(url: str, **body: Any) -> list[str]:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/images/generations", json={"stream": True, **body})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text.removesuffix("\n\n").split("\n\n")


def comments(found: list[str]) -> list[dict[str, Any]]:
    return [json.loads(frame[2:]) for frame in found if frame.startswith(": ")]


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


async def test_previews_then_the_picture_through_the_sdk(url: str) -> None:
    stream = await client(url).images.generate(
        prompt="a red circle",
        size="128x64",
        output_format="webp",
        stream=True,
        partial_images=3,
        extra_body={"seed": 5},
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 3,
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    for event in events:
        assert (event.size, event.quality, event.background) == ("128x64", "medium", "opaque")
        assert event.output_format == "webp"
        assert event.created_at > 0
        assert opened(event.b64_json).format == "WEBP"
        assert opened(event.b64_json).size == (128, 64)
    assert events[-1].usage.output_tokens == 32
    assert events[-1].usage.total_tokens == 32 + 3
    assert events[-1].seed == 5

    whole = await client(url).images.generate(
        prompt="a red circle", size="128x64", output_format="webp", extra_body={"seed": 5}
    )
    assert events[-1].b64_json == whole.data[0].b64_json


async def test_previews_approach_the_picture(url: str) -> None:
    stream = await client(url).images.generate(
        prompt="a red circle on a blue background", stream=True, partial_images=2
    )
    pictures = [opened(event.b64_json).convert("L").getextrema() async for event in stream]
    spans = [high - low for low, high in pictures]
    assert spans == sorted(spans)
    assert len(set(spans)) == 3


async def test_each_of_several_pictures_is_completed_and_usage_adds_up(url: str) -> None:
    stream = await client(url).images.generate(prompt="a cat", n=3, stream=True, extra_body={"seed": 9})
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.completed"] * 3
    assert [(event.index, event.seed) for event in events] == [(0, 9), (1, 10), (2, 11)]
    assert sum(event.usage.output_tokens for event in events) == 3 * 16
    assert sum(event.usage.input_tokens for event in events) == 2


async def test_frames_are_named_and_the_stream_ends_with_done(url: str) -> None:
    found = await frames(url, prompt="a cat")
    assert found[-1] == "data: [DONE]"
    name, data = found[-2].split("\n")
    assert name == "event: image_generation.completed"
    assert json.loads(data.removeprefix("data: "))["type"] == "image_generation.completed"


async def test_progress_stands_in_comments(url: str) -> None:
    said = comments(await frames(url, prompt="a cat", num_inference_steps=3))
    assert said[0] == {"type": "queued", "ahead": 0, "eta_seconds": None}
    assert said[1:] == [{"type": "step", "index": 0, "step": k, "steps": 3} for k in (1, 2, 3)]
    later = comments(await frames(url, prompt="a cat"))
    assert later[0]["eta_seconds"] >= 0


async def test_an_early_error_keeps_its_status(start) -> None:
    url, application = await start()
    with pytest.raises(openai.BadRequestError):
        await client(url).images.generate(prompt="x", size="100x100", stream=True)
    with pytest.raises(openai.NotFoundError):
        await client(url).images.generate(prompt="x", model="nobody", stream=True)
    await application.shells["fake-image"]._running().close()
    with pytest.raises(openai.InternalServerError):
        await client(url).images.generate(prompt="x", stream=True)


async def test_a_late_error_ends_the_stream_and_the_sdk_raises(start) -> None:
    url, _ = await start(paint={"engine_args": {"fail": "oom"}})
    stream = await client(url).images.generate(prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="memory") as caught:
        [event async for event in stream]
    assert caught.value.code == "out_of_memory"
    found = await frames(url, prompt="x")
    assert json.loads(found[-2].partition("data: ")[2])["error"]["suggested_fix"]
    assert found[-1] == "data: [DONE]"


async def test_headers_come_while_the_request_waits_in_the_queue(start) -> None:
    url, _ = await start(paint={"engine_args": {"step_seconds": 0.05}})
    long = asyncio.create_task(
        client(url).images.generate(prompt="x", extra_body={"num_inference_steps": 100})
    )
    await asyncio.sleep(0.2)
    async with (
        httpx.AsyncClient() as http,
        http.stream("POST", f"{url}/v1/images/generations", json={"prompt": "y", "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        first = json.loads((await anext(lines))[2:])
        assert (first["type"], first["ahead"]) == ("queued", 1)
        assert first["eta_seconds"] > 3
        assert not long.done()
    long.cancel()


async def test_a_silent_stream_sends_its_headers_and_then_beats(start, monkeypatch) -> None:
    monkeypatch.setattr(image_handlers, "HEARTBEAT_S", 0.05)
    url, _ = await start(paint={"engine_args": {"step_seconds": 0.5}})
    said = comments(await frames(url, prompt="x", num_inference_steps=1))
    assert [s["type"] for s in said if s["type"] != "waiting"] == ["queued", "step"]
    assert sum(s["type"] == "waiting" for s in said) >= 3


async def test_a_heartbeat_loses_no_item_and_closes_its_stream() -> None:
    closed = []

    async def slowly():
        try:
            for k in range(4):
                await asyncio.sleep(0.03 * (k % 2))
                yield [b"%d" % k]
        finally:
            closed.append(True)

    items = [item async for item in with_heartbeat(slowly(), [b"beat"], 0.01)]
    assert [item for item in items if item != [b"beat"]] == [[b"0"], [b"1"], [b"2"], [b"3"]]
    assert items.count([b"beat"]) >= 2
    assert closed == [True]

    stream = with_heartbeat(slowly(), [b"beat"], 0.01)
    assert await anext(stream) == [b"0"]
    assert await anext(stream) == [b"beat"]
    await stream.aclose()
    assert closed == [True, True]
