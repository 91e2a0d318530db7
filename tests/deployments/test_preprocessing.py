"""The preprocessing shell: sources in, pictures out, every refusal names its parameter."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage, PayloadTooLarge
from deployments.contracts.messages import ImageSource, Picture
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.decoders import Decoders
from deployments.engines.image_files import Wanted
from deployments.preprocessing import Preprocessing

RED = (226, 32, 38)
PARAM = "messages.0.content.1.image_url"


def png(size: tuple[int, int] = (64, 48), mode: str = "RGB", colour: Any = RED) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class Urls:
    """A fetcher that knows two addresses."""

    async def fetch(self, url: str, param: str | None = None) -> bytes:
        if url == "https://example.com/red.png":
            return png()
        raise InvalidImage("no", param=param, code="image_fetch_failed")


class Counting(Decoders):
    """Counts what is really decoded."""

    decoded = 0
    bug: Exception | None = None

    async def decode(self, data: bytes, wanted: Wanted) -> Picture:
        if self.bug:
            raise self.bug
        self.decoded += 1
        return await super().decode(data, wanted)

    def close(self) -> None:
        """Not with a replica: all tests share its processes."""


SHARED = Counting(PreprocessingSettings())


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    Decoders.close(SHARED)


async def shell(**limits: Any) -> Preprocessing:
    replica = Preprocessing.__new__(Preprocessing)
    await Preprocessing.__init__(replica, PreprocessingSettings(**limits), Urls(), SHARED)  # type: ignore[arg-type]
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
    monkeypatch.setattr(SHARED, "bug", KeyError("secret"))
    with caplog.at_level(logging.ERROR):
        error = await refusal(data=png())
    assert isinstance(error, EngineFailed)
    assert "secret" not in error.message
    assert "secret" in caplog.text


# ---------------------------------------------------------------------- purposes and details
@pytest.mark.parametrize(
    ("detail", "limits", "pixels"),
    [
        ("low", {}, 262_144),
        ("auto", {}, 1_048_576),
        ("high", {}, 1_048_576),
        ("high", {"high_detail_pixels": 2_000_000}, 2_000_000),
        ("auto", {"high_detail_pixels": 2_000_000}, 1_048_576),
        ("low", {"max_pixels": 10_000}, 10_000),
        ("high", {"max_pixels": 2_000_000, "high_detail_pixels": 10_000}, 2_000_000),
    ],
)
async def test_detail_is_a_budget(detail: Any, limits: dict[str, int], pixels: int) -> None:
    picture = await prepare(ImageSource(data=png((2000, 2000)), detail=detail), **limits)
    assert 0.99 * pixels < picture.pixels.shape[0] * picture.pixels.shape[1] <= pixels


async def test_a_picture_to_repaint_keeps_its_size_and_has_its_own_limit() -> None:
    source = ImageSource(data=png((800, 600)), purpose="paint", param=PARAM)
    assert (await prepare(source, max_pixels=1000)).pixels.shape == (600, 800, 3)
    small = ImageSource(data=png((8, 6)), purpose="paint")
    assert (await prepare(small)).pixels.shape == (6, 8, 3)
    with pytest.raises(InvalidImage, match="at most 470,000"):
        await prepare(source, max_paint_pixels=470_000)


async def test_a_mask_is_where_nothing_is_opaque() -> None:
    image = Image.new("RGBA", (64, 48), (9, 9, 9, 255))
    image.paste((9, 9, 9, 0), (0, 0, 32, 48))
    image.paste((9, 9, 9, 1), (0, 0, 32, 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    mask = (await prepare(ImageSource(data=buffer.getvalue(), purpose="mask"))).pixels
    assert mask.shape == (48, 64)
    assert (mask[10:, :32] == 255).all()
    assert (mask[:10] == 0).all()
    assert (mask[:, 32:] == 0).all()


async def test_a_mask_needs_alpha() -> None:
    with pytest.raises(InvalidImage, match="no alpha channel") as caught:
        await prepare(ImageSource(data=png(), purpose="mask", param="mask"))
    assert caught.value.param == "mask"


# ---------------------------------------------------------------------- what is remembered
async def test_the_same_image_is_decoded_once() -> None:
    replica, before = await shell(), SHARED.decoded
    source = ImageSource(url="data:;base64," + base64.b64encode(png((90, 70))).decode(), param=PARAM)
    first = await asyncio.gather(*(replica.prepare(source) for _ in range(5)))
    again = await replica.prepare(source)
    assert SHARED.decoded == before + 1
    assert {picture.digest for picture in first} == {again.digest}
    assert (again.pixels == RED).all()


async def test_a_file_that_comes_with_its_hash_is_the_same_file() -> None:
    replica, before = await shell(), SHARED.decoded
    data = png((91, 71))
    for sha256 in ("", hashlib.sha256(data).hexdigest()):
        await replica.prepare(ImageSource(data=data, sha256=sha256))
    assert SHARED.decoded == before + 1


async def test_another_budget_purpose_or_scope_is_another_picture() -> None:
    replica, before = await shell(), SHARED.decoded
    data = png((600, 600), "RGBA")
    sources = [
        ImageSource(data=data),
        ImageSource(data=data, detail="low"),
        ImageSource(data=data, purpose="mask"),
        ImageSource(data=data, scope="a"),
        ImageSource(data=data, scope="b"),
    ]
    found = [await replica.prepare(source) for source in sources]
    assert SHARED.decoded == before + 5
    assert len({picture.digest for picture in found}) == 5
    assert np.array_equal(found[0].pixels, found[3].pixels)
    assert (await replica.prepare(sources[3])).digest == found[3].digest


async def test_without_a_cache_nothing_is_remembered() -> None:
    replica, before = await shell(cache_mb=0), SHARED.decoded
    for _ in range(2):
        await replica.prepare(ImageSource(data=png()))
    assert SHARED.decoded == before + 2


async def test_one_client_that_leaves_does_not_take_the_others_with_it() -> None:
    replica = await shell()
    source = ImageSource(data=png((1500, 1500)), param=PARAM)
    leaving, staying = (asyncio.create_task(replica.prepare(source)) for _ in range(2))
    await asyncio.sleep(0.005)
    leaving.cancel()
    assert (await staying).pixels.shape == (1024, 1024, 3)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    alone = asyncio.create_task(replica.prepare(ImageSource(data=png((1400, 1400)))))
    await asyncio.sleep(0.005)
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert replica._flights == {}


async def test_each_place_of_a_bad_image_is_named() -> None:
    replica = await shell()
    sources = [ImageSource(data=b"nothing", param=name) for name in ("a", "b")]
    errors = await asyncio.gather(*(replica.prepare(s) for s in sources), return_exceptions=True)
    assert [error.param for error in errors if isinstance(error, InvalidImage)] == ["a", "b"]
