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
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "partial_images": 2}, "partial_images"),
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


async def test_engine_failure(start) -> None:
    url, _ = await start(paint={"engine_args": {"fail": "request"}})
    with pytest.raises(openai.InternalServerError):
        await client(url).images.generate(prompt="x")
