"""The preprocessing shell: sources in, pictures out, every refusal names its parameter."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from deployments import preprocessing
from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage, PayloadTooLarge
from deployments.contracts.messages import ImageSource, Picture
from deployments.contracts.settings import PreprocessingSettings
from deployments.preprocessing import Preprocessing

RED = (226, 32, 38)
PARAM = "messages.0.content.1.image_url"


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, RED).save(buffer, "PNG")
    return buffer.getvalue()


class Urls:
    """A fetcher that knows two addresses."""

    async def fetch(self, url: str, param: str | None = None) -> bytes:
        if url == "https://example.com/red.png":
            return png()
        raise InvalidImage("no", param=param, code="image_fetch_failed")


async def shell(**limits: Any) -> Preprocessing:
    replica = Preprocessing.__new__(Preprocessing)
    await Preprocessing.__init__(replica, PreprocessingSettings(**limits), Urls())  # type: ignore[arg-type]
    return replica


async def prepare(source: ImageSource, **limits: Any) -> Picture:
    return await (await shell(**limits)).prepare(source)


async def refusal(url: str | None = None, data: bytes | None = None, **limits: Any) -> AtelierError:
    with pytest.raises(AtelierError) as caught:
        await prepare(ImageSource(url=url, data=data, param=PARAM), **limits)
    assert caught.value.param == PARAM
    return caught.value


def data_urls() -> list[str]:
    plain = base64.b64encode(png()).decode()
    assert "=" in plain or len(png()) % 3 == 0
    broken = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    return [
        f"data:image/png;base64,{plain}",
        f"data:image/png;base64,{plain.rstrip('=')}",
        f"data:image/png;base64,{broken}\r\n ",
        f"data:image/jpeg;base64,{plain}",
        f"data:application/octet-stream;base64,{plain}",
        f"data:;base64,{plain}",
        f"data:image/png;charset=utf-8;base64,{plain}",
        f"  DATA:image/PNG;BASE64,{plain}",
        f"data:image/png;base64,{quote(plain)}",
        f"data:image/png;base64,{plain.replace('+', '-').replace('/', '_')}",
    ]


@pytest.mark.parametrize("index", range(10))
async def test_data_urls(index: int) -> None:
    picture = await prepare(ImageSource(url=data_urls()[index], param=PARAM))
    assert picture.pixels.shape == (48, 64, 3)
    assert (picture.pixels == RED).all()


async def test_bytes_and_urls_give_the_same_picture() -> None:
    by_bytes = await prepare(ImageSource(data=png()))
    by_url = await prepare(ImageSource(url="https://example.com/red.png"))
    assert by_bytes.digest == by_url.digest
    assert np.array_equal(by_bytes.pixels, by_url.pixels)


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png,abc",
        "data:image/png;base64,",
        "data:image/png;base64,=====",
        "data:image/png;base64,A",
        "data:image/png;base64,a*b!",
        "data:image/png;base64,äöü",
        "data:image/png;base64," + "A" * 4001,
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "data:text/html;base64," + base64.b64encode(b"<html></html>").decode(),
        "data:image/png;base64," + base64.b64encode(png()[:40]).decode(),
    ],
)
async def test_bad_data_urls_are_refused(url: str) -> None:
    assert isinstance(await refusal(url), InvalidImage)


@pytest.mark.parametrize("data", [b"", b"hello", png()[:-60]])
async def test_bad_bytes_are_refused(data: bytes) -> None:
    assert isinstance(await refusal(data=data), InvalidImage)


async def test_a_source_has_exactly_one_origin() -> None:
    await refusal()
    await refusal("https://example.com/red.png", b"x")


async def test_what_the_fetcher_says_passes_through() -> None:
    assert (await refusal("https://example.com/other.png")).code == "image_fetch_failed"


async def test_the_byte_limit() -> None:
    size = len(png())
    url = "data:;base64," + base64.b64encode(png()).decode()
    await prepare(ImageSource(data=png()), max_bytes=size)
    await prepare(ImageSource(url=url), max_bytes=size)
    assert isinstance(await refusal(data=png(), max_bytes=size - 1), PayloadTooLarge)
    assert isinstance(await refusal(url, max_bytes=size - 1), PayloadTooLarge)
    assert isinstance(await refusal("data:;base64," + "A" * 10_000, max_bytes=100), PayloadTooLarge)
    assert isinstance(await refusal("data:;base64," + "%41" * 400, max_bytes=200), PayloadTooLarge)


async def test_the_pixel_limits() -> None:
    assert "at most 3,000" in (await refusal(data=png(), max_source_pixels=3000)).message
    picture = await prepare(ImageSource(data=png((400, 300))), max_pixels=30_000)
    assert picture.pixels.shape == (150, 200, 3)


async def test_many_at_once() -> None:
    replica = await shell()
    sources = [ImageSource(data=png((32 + i, 40))) for i in range(20)]
    found = await asyncio.gather(*(replica.prepare(source) for source in sources))
    assert [picture.pixels.shape[1] for picture in found] == [32 + i for i in range(20)]


async def test_a_bug_is_logged_and_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(preprocessing, "decode", fail)
    with caplog.at_level(logging.ERROR):
        error = await refusal(data=png())
    assert isinstance(error, EngineFailed)
    assert "secret" not in error.message
    assert "secret" in caplog.text
