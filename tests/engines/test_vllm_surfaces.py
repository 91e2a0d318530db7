"""What is put around vLLM's classes, on stand-ins for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import Picture
from deployments.engines.vllm_surfaces import keep_errors, read_item, show_pictures, shown

PICTURE = Picture(np.zeros((2, 3, 3), np.uint8), "digest")


async def rendered(*parts: Any, pictures: tuple[Picture, ...] = (PICTURE,)) -> list[Any]:
    """What vLLM's renderer gets of these parts."""
    seen: list[Any] = []

    async def preprocess_chat(request: Any, messages: Any) -> None:
        seen.extend(messages)

    renderer = SimpleNamespace(preprocess_chat=preprocess_chat)
    show_pictures(renderer)
    token = shown.set(pictures)
    try:
        await renderer.preprocess_chat(None, [{"role": "user", "content": iter(parts)}])
    finally:
        shown.reset(token)
    return seen[0]["content"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "picture:0"}},
        {"type": "input_image", "image_url": "picture:0"},
    ],
)
async def test_a_placeholder_becomes_its_picture(part: dict[str, Any]) -> None:
    text, picture = await rendered({"type": "text", "text": "hi"}, part)
    assert text == {"type": "text", "text": "hi"}
    assert (picture["type"], picture["image_pil"].size, picture["uuid"]) == ("image_pil", (3, 2), "digest")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "picture:1"}},
        {"type": "image_url", "image_url": {"url": "picture:-1"}},
        {"type": "input_image", "image_url": "http://127.0.0.1/x.png"},
        {"type": "input_image", "file_id": "x"},
        {"type": "video_url", "video_url": {"url": "picture:0"}},
        {"image_url": "http://127.0.0.1/x.png"},
        {"type": "input_file", "file_url": "http://127.0.0.1/x"},
    ],
)
async def test_nothing_else_can_be_loaded(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await rendered(part)


async def test_an_error_survives_the_conversion_to_messages() -> None:
    async def converter(frames: Any) -> Any:
        async for frame in frames:
            yield frame.upper()

    async def frames() -> Any:
        yield "data: one\n\n"
        yield 'data: {"error": {"code": 500, "message": "x"}}\n\n'
        yield "data: [DONE]\n\n"

    serving = SimpleNamespace(message_stream_converter=converter)
    keep_errors(serving)
    events = [event async for event in serving.message_stream_converter(frames())]
    assert events == ["DATA: ONE\n\n", 'data: {"error": {"code": 500, "message": "x"}}\n\n']


def test_items_of_each_stream() -> None:
    assert read_item('data: {"a": 1}\n\n') == '{"a": 1}'
    assert read_item('event: ping\ndata: {"type": "ping"}\n\n') == '{"type": "ping"}'
    assert read_item("data: [DONE]\n\n") is None
