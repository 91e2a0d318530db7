"""Edits through the whole ingress on the fake engine, mostly as the unmodified SDK sends them."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.ingress.test_images import client, opened

RED, GREEN = (226, 32, 38), (28, 160, 62)


def png(width: int = 64, height: int = 64, color: tuple[int, ...] = RED) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int = 64, height: int = 64) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def mask(width: int = 64, height: int = 64) -> bytes:
    """The left half may be repainted."""
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def array(picture: Any) -> np.ndarray:
    return np.asarray(opened(picture).convert("RGB"))


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


async def test_unmasked_pixels_come_back_unchanged(url: str) -> None:
    source = noise()
    answer = await client(url).images.edit(
        image=("cat.png", source, "image/png"), mask=mask(), prompt="a green circle on a green background"
    )
    result = array(answer.data[0])
    assert np.array_equal(result[:, 32:], read(source)[:, 32:])
    assert np.all(result[:, :32] == GREEN)
    assert answer.size == "64x64"


async def test_an_edit_keeps_the_size_of_its_picture(url: str) -> None:
    for size, expected in (((128, 96), "128x96"), ((100, 70), "96x64"), ((400, 300), "288x224")):
        answer = await client(url).images.edit(image=png(*size), prompt="x")
        assert answer.size == expected
        assert "{}x{}".format(*opened(answer.data[0]).size) == expected
    answer = await client(url).images.edit(image=png(128, 96), prompt="x", size="64x64")
    assert (answer.size, opened(answer.data[0]).size) == ("64x64", (64, 64))


async def test_strength_and_fidelity_say_how_much_is_left(url: str) -> None:
    async def distance(**fields: Any) -> float:
        answer = await client(url).images.edit(
            image=png(), prompt="a green circle on a green background", **fields
        )
        return float(np.abs(array(answer.data[0]).astype(float) - RED).mean())

    left = [
        await distance(extra_body={"strength": 0.1}),
        await distance(input_fidelity="high"),
        await distance(),
        await distance(extra_body={"strength": 1.0}),
    ]
    assert left == sorted(left)
    assert len(set(left)) == 4
    assert await distance(input_fidelity="low") == left[2]


async def test_outpainting_places_the_picture_on_a_larger_canvas(url: str) -> None:
    source = noise(32, 48)
    answer = await client(url).images.edit(
        image=source,
        prompt="a green circle on a green background",
        size="96x64",
        extra_body={"placement": "16,8"},
    )
    result = array(answer.data[0])
    assert result.shape == (64, 96, 3)
    assert np.array_equal(result[8:56, 16:48], read(source))
    result = result.copy()
    result[8:56, 16:48] = GREEN
    assert np.all(result == GREEN)


async def test_several_images_and_true_usage(url: str) -> None:
    answer = await client(url).images.edit(
        image=[png(), png(64, 32), noise()], mask=mask(), prompt="three things", n=2
    )
    assert len(answer.data) == 2
    usage = answer.usage
    assert usage.input_tokens_details.text_tokens == 2
    assert usage.input_tokens_details.image_tokens == 3 * 16
    assert (usage.input_tokens, usage.output_tokens) == (50, 32)
    assert usage.total_tokens == 82


async def test_every_field_of_the_sdk_arrives(url: str) -> None:
    answer = await client(url).images.edit(
        image=[png()],
        prompt="ein Kreis, 圆 ✓",
        model="fake-image",
        n=2,
        quality="high",
        background="opaque",
        output_format="jpeg",
        output_compression=30,
        response_format="b64_json",
        size="32x32",
        stream=False,
        user="me",
        safety_identifier="me",
        input_fidelity="high",
        extra_body={"seed": 11, "guidance": 2.5, "negative_prompt": "", "strength": 0.5, "priority": 1},
    )
    assert [picture.seed for picture in answer.data] == [11, 12]
    assert {opened(picture).format for picture in answer.data} == {"JPEG"}
    assert (answer.output_format, answer.size, answer.quality) == ("jpeg", "32x32", "high")
    assert answer.data[0].steps == 3


async def test_streams_in_the_events_of_edits(url: str) -> None:
    stream = await client(url).images.edit(
        image=png(128, 64), prompt="a cat", stream=True, partial_images=2, output_format="webp"
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [*["image_edit.partial_image"] * 2, "image_edit.completed"]
    assert {event.size for event in events} == {"128x64"}
    assert events[-1].usage.input_tokens_details.image_tokens == 32


async def test_json_with_urls(url: str) -> None:
    def data_url(data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    body = {
        "prompt": "a green circle on a green background",
        "images": [{"image_url": data_url(noise())}],
        "output_format": "png",
        "seed": 4,
    }
    async with httpx.AsyncClient() as http:
        by_json = await http.post(f"{url}/v1/images/edits", json=body)
    assert by_json.status_code == 200, by_json.text
    by_form = await client(url).images.edit(image=noise(), prompt=body["prompt"], extra_body={"seed": 4})
    assert by_json.json()["data"][0]["b64_json"] == by_form.data[0].b64_json


@pytest.mark.parametrize(
    ("fields", "files", "param", "says"),
    [
        ({}, {"image": png()}, "prompt", "prompt"),
        ({"prompt": " "}, {"image": png()}, "prompt", "empty"),
        ({"prompt": "x"}, {"mask": png()}, "image", "missing"),
        ({"prompt": "x", "image": "https://example.org/a.png"}, {"mask": png()}, "image", "file"),
        ({"prompt": "x", "n": "eleven"}, {"image": png()}, "n", "n"),
        ({"prompt": "x", "n": "11"}, {"image": png()}, "n", "n"),
        ({"prompt": "x", "strength": "0"}, {"image": png()}, "strength", "strength"),
        ({"prompt": "x", "strength": "1.5"}, {"image": png()}, "strength", "strength"),
        ({"prompt": "x", "streem": "true"}, {"image": png()}, "streem", "streem"),
        ({"prompt": "x", "svg[model]": "y"}, {"image": png()}, "svg[model]", "svg"),
        ({"prompt": "x", "input_fidelity": "mid"}, {"image": png()}, "input_fidelity", "fidelity"),
        ({"prompt": "x", "placement": "here", "size": "64x64"}, {"image": png()}, "placement", "LEFT,TOP"),
        ({"prompt": "x", "placement": "0,0"}, {"image": png()}, "size", "canvas"),
        ({"prompt": "x", "placement": "16,0", "size": "64x64"}, {"image": png()}, "placement", "canvas"),
        ({"prompt": "x", "background": "transparent"}, {"image": png()}, "background", "opaque"),
        ({"prompt": "x", "response_format": "url"}, {"image": png()}, "response_format", "b64_json"),
        ({"prompt": "x"}, {"image": png(), "mask": mask(64, 32)}, "mask", "same size"),
        ({"prompt": "x"}, {"image": b"not a picture"}, "image", "format"),
        ({"prompt": "x"}, {"image": b""}, "image", "empty"),
        ({"prompt": "x"}, {"image": png(400, 100)}, "image", "3:1"),
        ({"prompt": "x"}, {"image": png(), "markup": png()}, "markup", "mask"),
    ],
)
async def test_bad_form_field_is_named(url: str, fields: dict, files: dict, param: str, says: str) -> None:
    async with httpx.AsyncClient() as http:
        sent = {name: ("a.png", data, "image/png") for name, data in files.items()}
        answer = await http.post(f"{url}/v1/images/edits", data=fields, files=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert says in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x"}, "images"),
        ({"prompt": "x", "images": []}, "images"),
        ({"prompt": "x", "images": "data:image/png;base64,AAAA"}, "images"),
        ({"prompt": "x", "images": [{"file_id": "file-1"}]}, "images"),
        ({"prompt": "x", "images": [{"image_url": "ftp://x/y.png"}]}, "images.0.image_url"),
        ({"prompt": "x", "images": [{"image_url": "data:image/png;base64,AAAA"}]}, "images.0.image_url"),
        ({"prompt": "x", "images": [{"image_url": "data:,"}] * 17}, "images"),
        ({"prompt": "x", "images": [{"image_url": "data:,"}], "mask": "data:,"}, "mask"),
    ],
)
async def test_bad_json_field_is_named(url: str, body: dict, param: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/images/edits", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error


async def test_one_of_several_bad_images_is_named(url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client(url).images.edit(image=[png(), b"no picture"], prompt="x")
    assert caught.value.param == "image[1]"


async def test_too_many_images(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="16") as caught:
        await client(url).images.edit(image=[png(32, 32)] * 17, prompt="x")
    assert caught.value.code == "too_many_images"
    with pytest.raises(openai.BadRequestError, match="17"):
        await client(url).images.edit(image=[png(32, 32)] * 18, prompt="x")


async def test_a_large_upload_is_refused_while_it_comes_in(start) -> None:
    url, _ = await start(ingress={"max_body_bytes": 10_000})
    with pytest.raises(openai.APIStatusError, match="10000 bytes") as caught:
        await client(url).images.edit(image=bytes(20_000), prompt="x")
    assert caught.value.status_code == 413

    async def undeclared():
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 1000

    async with httpx.AsyncClient() as http:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await http.post(f"{url}/v1/images/edits", content=undeclared(), headers=headers)
    assert answer.status_code == 413


async def test_another_content_type_is_refused(url: str) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/images/edits", data={"prompt": "x"})
    assert answer.status_code == 415
