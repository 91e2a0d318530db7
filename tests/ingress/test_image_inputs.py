"""How images may be written in the text APIs, and what becomes of what is said about them."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.engines.hostile import RED, file, many_frames, noise

PNG = base64.b64encode(file(Image.new("RGB", (600, 600), RED))).decode()
IMAGE = "messages.0.content.0.image_url"


def chat(url: Any, **more: Any) -> dict[str, Any]:
    image = {"url": url, **more}
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}


def response(url: str, **more: Any) -> dict[str, Any]:
    part = {"type": "input_image", "image_url": url, **more}
    return {"input": [{"role": "user", "content": [part]}]}


async def post(base: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=base, timeout=30) as client:
        return await client.post(path, json=body, headers=headers)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_plain_base64_is_an_image(url: str, kind: str) -> None:
    plain = base64.b64encode(file(Image.new("RGB", (64, 48), RED), kind)).decode()
    for spelling in (plain, f"\n{plain}", plain.replace("+", "-").replace("/", "_"), plain.rstrip("=")):
        answer = await post(url, "/v1/chat/completions", chat(spelling))
        assert "[64x48 #e" in answer.text, answer.text
        assert "[64x48" in (await post(url, "/v1/responses", response(spelling))).text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (base64.b64encode(b"BM" + bytes(1000)).decode(), "not of an image"),
        ("A" * 500, "not of an image"),
        ("cats/and/dogs.png", "plain base64"),
        (PNG[:40], "plain base64"),
        (PNG[:100] + "*" + PNG[100:], "not valid base64"),
        (PNG[: len(PNG) // 2], "damaged or cut off"),
        (None, "http(s) URL"),
        (7, "http(s) URL"),
    ],
)
async def test_what_is_no_image_is_told_apart(url: str, given: Any, says: str) -> None:
    answer = await post(url, "/v1/chat/completions", chat(given))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, IMAGE, "invalid_image")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("detail", "size"),
    [(None, 400), ("auto", 400), ("low", 100), ("high", 500), ("original", 500)],
)
async def test_detail_is_a_pixel_budget(start, detail: str | None, size: int) -> None:
    base, _ = await start(
        prep={"max_pixels": 160_000, "low_detail_pixels": 10_000, "high_detail_pixels": 250_000}
    )
    more = {} if detail is None else {"detail": detail}
    url = f"data:image/png;base64,{PNG}"
    assert f"[{size}x{size} #" in (await post(base, "/v1/chat/completions", chat(url, **more))).text
    assert f"[{size}x{size} #" in (await post(base, "/v1/responses", response(url, **more))).text


@pytest.mark.parametrize("detail", ["ultra", 3, ["low"]])
async def test_an_unknown_detail_is_named(url: str, detail: Any) -> None:
    image = f"data:image/png;base64,{PNG}"
    for path, body, param in (
        ("/v1/chat/completions", chat(image, detail=detail), f"{IMAGE}.detail"),
        ("/v1/responses", response(image, detail=detail), "input.0.content.0.detail"),
    ):
        answer = await post(url, path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert "low, auto, high" in answer.json()["error"]["message"]


async def test_each_limit_has_its_own_error(start) -> None:
    base, _ = await start(prep={"max_bytes": 90_000, "max_source_pixels": 350_000, "max_frames": 5})
    frames = [noise(64, 64, i) for i in range(6)]
    animated = [file(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("PNG", "WEBP")]
    expected = [
        (bytes(99_000), 413, "payload_too_large", "larger than 90,000 bytes"),
        (file(Image.new("RGB", (600, 600))), 400, "image_too_large", "at most 350,000"),
        *((data, 400, "too_many_frames", "more than 5 frames") for data in (*animated, many_frames(5))),
    ]
    for data, status, code, says in expected:
        encoded = base64.b64encode(data).decode()
        answer = await post(base, "/v1/chat/completions", chat(f"data:;base64,{encoded}"))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, IMAGE), error
        assert says in error["message"]


@pytest.mark.parametrize(
    "header", [("authorization", "Bearer one", "Bearer two"), ("x-api-key", "one", "two")]
)
async def test_who_sends_an_image_learns_nothing_of_others(start, header: tuple[str, str, str]) -> None:
    base, application = await start()
    name, one, two = header
    cache = application.shells["preprocessing"]._cache
    sizes = []
    for token in (one, one, two, two, one):
        await post(base, "/v1/chat/completions", chat(f"data:;base64,{PNG}"), **{name: token})
        sizes.append(cache.bytes // (600 * 600 * 3))
    assert sizes == [1, 1, 2, 2, 2]
    assert one not in json.dumps(list(cache._pictures))
