"""How pictures travel from preprocessing to a replica; the deployment is a double."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from deployments.contracts.errors import InvalidImage, Unavailable
from deployments.contracts.messages import SMALL_BYTES, ImageSource, Picture
from deployments.contracts.settings import PreprocessingSettings
from serve_app.graph.pictures import FILE_BYTES, PreparedPicture, PreprocessingHandle, go_by_value, values

SMALL = Picture(np.zeros((8, 8, 3), np.uint8), "small")
LARGE = Picture(np.zeros((700, 700, 3), np.uint8), "large")
URL = "data:image/png;base64,AAAA"
LONG_URL = "data:image/png;base64," + "A" * (FILE_BYTES // 3 * 4 + 4)


class Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, source: ImageSource) -> asyncio.Future[Any]:
        self._handle.calls.append(self._name)
        self._handle.sources.append(source)
        return asyncio.ensure_future(self._handle.answer(self._name))


class Handle:
    """Preprocessing that makes `picture` of everything, after as many failures as it is given."""

    def __init__(self, picture: Picture = SMALL, *failures: Exception) -> None:
        self.calls: list[str] = []
        self.sources: list[ImageSource] = []
        self._picture, self._failures = picture, list(failures)
        self.prepare, self.prepare_small = Method(self, "prepare"), Method(self, "prepare_small")

    def options(self, **_: Any) -> Handle:
        return self

    async def answer(self, name: str) -> Picture | None:
        if self._failures:
            raise self._failures.pop(0)
        fits = name == "prepare" or self._picture.pixels.nbytes <= SMALL_BYTES
        return self._picture if fits else None


def preparing(handle: Handle, max_pixels: int = 65_536) -> PreprocessingHandle:
    settings = PreprocessingSettings(max_pixels=max_pixels)
    return PreprocessingHandle(handle, settings, 2**20)  # type: ignore[arg-type]


def one(handle: Handle, source: ImageSource) -> PreparedPicture:
    return preparing(handle).prepare(source)


async def test_a_small_picture_comes_by_value_and_is_remembered() -> None:
    handle = Handle()
    to_prepare = preparing(handle)
    for _ in range(3):
        assert await to_prepare.prepare(ImageSource(url=URL, param="anywhere")).value() is SMALL
    assert handle.calls == ["prepare_small"]


@pytest.mark.parametrize(
    "other", [{"scope": "b"}, {"detail": "low"}, {"purpose": "paint"}, {"url": URL + "B"}]
)
async def test_what_is_remembered_is_no_other_picture(other: dict[str, Any]) -> None:
    handle = Handle()
    to_prepare = preparing(handle)
    await to_prepare.prepare(ImageSource(url=URL, scope="a")).value()
    await to_prepare.prepare(ImageSource(**{"url": URL, "scope": "a", **other})).value()
    assert handle.calls == ["prepare_small"] * 2


@pytest.mark.parametrize("text", ["QUJD", "QUJ D"])
async def test_plain_base64_travels_as_bytes_and_other_spellings_as_they_came(text: str) -> None:
    handle, url = Handle(), f"data:image/png;base64,{text}"
    await one(handle, ImageSource(url=url, param="here")).value()
    plain = text == "QUJD"
    as_bytes = ImageSource(data=b"ABC", param="here", sha256=hashlib.sha256(b"ABC").hexdigest())
    assert handle.sources == [as_bytes if plain else ImageSource(url=url, param="here")]


@pytest.mark.parametrize(
    ("content", "by_value"),
    [
        ({"data": bytes(FILE_BYTES)}, True),
        ({"data": bytes(FILE_BYTES + 1)}, False),
        ({"url": "https://example.com/" + "a" * (FILE_BYTES // 4)}, False),  # as if of four bytes each
    ],
)
async def test_no_message_grows_beyond_what_the_transport_takes(
    content: dict[str, Any], by_value: bool
) -> None:
    handle = Handle()
    await one(handle, ImageSource(**content)).value()
    assert handle.calls == ["prepare_small" if by_value else "prepare"]


async def test_what_is_behind_a_url_may_have_changed() -> None:
    handle = Handle()
    to_prepare = preparing(handle)
    for _ in range(2):
        await to_prepare.prepare(ImageSource(url="https://example.com/a.png")).value()
    assert len(handle.calls) == 2


async def test_a_large_picture_goes_by_reference() -> None:
    handle = Handle(LARGE)
    picture = one(handle, ImageSource(url=URL))
    given = await picture.value()
    assert given is picture.reference()
    assert handle.calls == ["prepare_small", "prepare"]
    assert not go_by_value({}, [given])


async def test_where_pictures_may_be_large_none_is_prepared_twice() -> None:
    handle = Handle(LARGE)
    picture = preparing(handle, max_pixels=1_048_576).prepare(ImageSource(url=URL))
    assert await picture.value() is picture.reference()
    small = preparing(Handle(), max_pixels=1_048_576).prepare(ImageSource(url=URL))
    assert isinstance(await small.value(), Picture)
    assert handle.calls == ["prepare"]


async def test_a_large_file_goes_by_reference_and_its_small_picture_comes_by_value() -> None:
    handle = Handle()
    to_prepare = preparing(handle)
    for _ in range(2):
        given = await to_prepare.prepare(ImageSource(url=LONG_URL)).value()
        assert isinstance(given, Picture)
        assert given.digest == "small"
    assert handle.calls == ["prepare"]


@pytest.mark.parametrize("url", [URL, LONG_URL])
async def test_a_lost_replica_costs_one_more_try(url: str) -> None:
    assert isinstance(await one(Handle(SMALL, RayActorError()), ImageSource(url=url)).value(), Picture)
    with pytest.raises(Unavailable):
        await one(Handle(SMALL, RayActorError(), RayActorError()), ImageSource(url=url)).value()


@pytest.mark.parametrize("url", [URL, LONG_URL])
async def test_a_refused_image_is_refused_here_and_not_remembered(url: str) -> None:
    handle = Handle(SMALL, InvalidImage("damaged", param="messages.0"))
    to_prepare = preparing(handle)
    with pytest.raises(InvalidImage, match="damaged"):
        await values([to_prepare.prepare(ImageSource(url=url)), to_prepare.prepare(ImageSource(url=url))])
    assert isinstance(await to_prepare.prepare(ImageSource(url=url)).value(), Picture)


def test_many_small_pictures_are_too_much_for_one_message() -> None:
    half = Picture(np.zeros((SMALL_BYTES // 2 // 3, 3), np.uint8), "half")
    assert go_by_value({}, [half] * 4)
    assert not go_by_value({}, [half] * 5)


def test_a_long_text_is_too_much_for_one_message() -> None:
    def body(content: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}]}

    assert go_by_value(body("a" * 200_000))
    assert not go_by_value(body("a" * 300_000))
    assert not go_by_value(body([{"type": "text", "text": "a" * 1000}] * 300))
    assert not go_by_value({"prompt": [1] * 300_000})
    assert go_by_value({"prompt": [1] * 200_000})
