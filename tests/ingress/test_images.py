"""Image generations through the whole ingress on the fake engine."""

from __future__ import annotations

import base64
import io

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def opened(picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.b64_json)))


async def test_picture_with_true_size_format_seed_and_usage(url: str) -> None:
    answer = await client(url).images.generate(
        model="fake-image",
        prompt="a red circle",
        size="128x64",
        n=2,
        output_format="webp",
        extra_body={"seed": 7},
    )
    assert [opened(picture).size for picture in answer.data] == [(128, 64)] * 2
    assert {opened(picture).format for picture in answer.data} == {"WEBP"}
    assert [picture.seed for picture in answer.data] == [7, 8]
    assert (answer.size, answer.output_format) == ("128x64", "webp")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


async def test_same_seed_same_picture_and_no_seed_differs(url: str) -> None:
    async def paint(**extra) -> str:
        answer = await client(url).images.generate(prompt="a thing of no colour", extra_body=extra)
        return answer.data[0].b64_json

    assert await paint(seed=3) == await paint(seed=3)
    seeds = {
        (await client(url).images.generate(prompt="x", model="fake-image")).data[0].seed for _ in range(3)
    }
    assert len(seeds) == 3


async def test_defaults_come_from_the_model(url: str) -> None:
    answer = await client(url).images.generate(prompt="a cat", size="auto", quality="auto")
    assert (answer.size, opened(answer.data[0]).format) == ("64x64", "PNG")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "   "}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "size": "100x100"}, "size"),
        ({"prompt": "x", "size": "64"}, "size"),
        ({"prompt": "x", "size": "0x0"}, "size"),
        ({"prompt": "x", "size": "٦٤x٦٤"}, "size"),
        ({"prompt": "x", "size": "16x256"}, "size"),
        ({"prompt": "x", "size": "2048x2048"}, "size"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": 1000}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_step": 10}, "num_inference_step"),
        ({"prompt": "x", "guidance": 0.5}, "guidance"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"prompt": "x", "background": "transparent"}, "background"),
        ({"prompt": "x", "size": "4:1"}, "size"),
        ({"prompt": "x", "size": "0:1"}, "size"),
        ({"prompt": "x", "size": "16:9:3"}, "size"),
        ({"prompt": "x", "partial_images": 2}, "partial_images"),
        ({"prompt": "x", "partial_images": 4, "stream": True}, "partial_images"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "output_compression": 50}, "output_compression"),
        ({"prompt": "x", "output_compression": 0, "output_format": "png"}, "output_compression"),
        ({"prompt": "x", "priority": 11}, "priority"),
        ({"prompt": "x", "strength": 0.5}, "strength"),
        ({"prompt": "x", "stream": True, "n": 0}, "n"),
    ],
)
async def test_bad_field_is_named(url: str, body: dict, param: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert param in error["message"]


async def test_chat_model_does_not_paint(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="fake-image"):
        await client(url).images.generate(model="vlm", prompt="x")


@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [
        ("request", 500, "engine_failed"),
        ("not_finite", 500, "image_not_finite"),
        ("encode", 500, "encoding_failed"),
        ("oom", 503, "out_of_memory"),
    ],
)
async def test_engine_failure(start, fail: str, status: int, code: str) -> None:
    url, _ = await start(paint={"engine_args": {"fail": fail}})
    with pytest.raises(openai.InternalServerError) as caught:
        await client(url).images.generate(prompt="x")
    assert (caught.value.status_code, caught.value.code) == (status, code)
    if fail != "request":
        assert caught.value.body["suggested_fix"]


async def test_a_healed_picture_says_so(start) -> None:
    url, _ = await start(paint={"engine_args": {"fail": "heal"}})
    answer = await client(url).images.generate(prompt="x", extra_body={"seed": 1, "num_inference_steps": 10})
    (picture,) = answer.data
    assert (picture.seed, picture.steps) == (1001, 8)
    assert "not finite" in picture.healed
    healthy = (await client((await start())[0]).images.generate(prompt="x")).data[0]
    assert not hasattr(healthy, "healed")


@pytest.mark.parametrize(
    ("quality", "steps", "said"),
    [
        (None, 4, "medium"),
        ("auto", 4, "medium"),
        ("standard", 4, "medium"),
        ("low", 2, "low"),
        ("high", 6, "high"),
        ("hd", 6, "high"),
        ("xhigh", 6, "xhigh"),
        ("max", 8, "max"),
    ],
)
async def test_quality_decides_the_steps(url: str, quality, steps: int, said: str) -> None:
    answer = await client(url).images.generate(prompt="a cat", quality=quality)
    assert (answer.data[0].steps, answer.quality) == (steps, said)


async def test_usage_is_the_engine_s(url: str) -> None:
    answer = await client(url).images.generate(prompt="a red circle", n=3, size="64x32")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 3 * 8, 27)
    assert (usage.input_tokens_details.text_tokens, usage.input_tokens_details.image_tokens) == (3, 0)
    assert usage.output_tokens_details.image_tokens == 24


async def test_nothing_rewrites_prompts(url: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/images/generations", json={"prompt": "a cat"})
    assert answer.json()["data"][0]["revised_prompt"] is None


async def test_an_aspect_is_a_size(start) -> None:
    url, _ = await start()
    answer = await client(url).images.generate(prompt="x", size="2:1")
    width, height = map(int, answer.size.split("x"))
    assert opened(answer.data[0]).size == (width, height)
    assert 1.8 < width / height < 2.2


async def test_refused_output_urls_say_the_way_out(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="b64_json") as caught:
        await client(url).images.generate(prompt="x", response_format="url")
    assert caught.value.code == "unsupported_value"
