"""Pictures on their way from preprocessing to a model's replica.

A small one travels by value over Serve's gRPC transport, through the ingress: for a hundred kilobytes, Ray's
object store costs several times what the copies do. A large one stays in the object store, and only a
reference passes here. The last small ones are remembered: in the next turn of a conversation they come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.contracts.messages import SMALL_BYTES, ImageSource, Picture, holds_at_most
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.data_urls import plain_bytes
from deployments.engines.picture_cache import PictureCache, file_hash
from serve_app.graph.line import Line, call

LONG = 2**18
"""Characters and list items of a body from which on it goes by reference: up to a megabyte."""
FILE_BYTES = 7 * 2**19
"""Files up to this travel by value, 3.5 MiB: the transport takes 4 MiB a message."""
TOGETHER_BYTES = 2 * SMALL_BYTES
"""Pictures of one request that travel by value, beside its body."""


class PreprocessingHandle:
    """Calls the `Preprocessing` deployment.

    Args:
        handle: of the deployment.
        settings: its settings, which bound what comes out of it.
        remember_bytes: for small pictures, in this process.
    """

    def __init__(
        self, handle: DeploymentHandle, settings: PreprocessingSettings, remember_bytes: int
    ) -> None:
        self._settings = settings
        self.by_value = handle.options(request_serialization="pickle", response_serialization="pickle")
        self.by_reference = handle.options(_by_reference=True)
        self.line = Line(on_lost=lambda: None)
        self.known = PictureCache(remember_bytes)

    def prepare(self, source: ImageSource) -> PreparedPicture:
        # A quarter less to hash and to copy on the way.
        if source.url and (data := plain_bytes(source.url, self._settings.max_bytes)) is not None:
            source = replace(source, url=None, data=data)
        return PreparedPicture(source, self)

    def surely_small(self, source: ImageSource) -> bool:
        """Whether file and picture fit into a message, as far as can be told without decoding."""
        size = len(source.data or b"") + 4 * len(source.url or "")  # UTF-8 at its worst
        return size <= FILE_BYTES and 3 * self._settings.budget(source.detail) <= SMALL_BYTES


class PreparedPicture:
    """One picture; preprocessing is asked for it when a replica wants it."""

    def __init__(self, source: ImageSource, handle: PreprocessingHandle) -> None:
        self._source = source
        self._handle = handle
        self._response: DeploymentResponse[Picture] | None = None

    def remote(self) -> DeploymentResponse[Picture]:
        """Ask preprocessing for it, by reference."""
        self._response = self._handle.by_reference.prepare.remote(self._source)
        return self._response

    def reference(self) -> DeploymentResponse[Picture]:
        """For a call by reference: Ray brings the picture to whoever is called."""
        return self.remote() if self._response is None else self._response

    async def value(self) -> Picture | DeploymentResponse[Picture]:
        """The picture itself if it is small, else its reference.

        Raises:
            AtelierError: the image is refused, or preprocessing is not there.
        """
        if (data := self._source.data) is not None:
            self._source = replace(self._source, sha256=await file_hash(data))
        key = _key(self._source)
        picture = self._handle.known.get(key) if key else None
        if picture is not None:
            return picture
        small = self._handle.surely_small(self._source)
        picture = await (self._small() if small else self._large())
        if picture is None:
            return self.reference()
        if key:
            self._handle.known.put(key, picture)
        return picture

    async def _small(self) -> Picture | None:
        """What a small file turns into; None if a narrow picture was enlarged beyond what is small."""
        handle = self._handle
        picture: Picture | None = await call(handle.by_value.prepare_small, (self._source,), handle.line)
        return picture

    async def _large(self) -> Picture | None:
        """What may be large; None if it is, and it stays where it is."""
        picture: Picture = await call(self, (), self._handle.line)
        if picture.pixels.nbytes > SMALL_BYTES:
            return None
        return replace(picture, pixels=picture.pixels.copy())  # out of Ray's memory, which a view would hold


def _key(source: ImageSource) -> str:
    """Names a file, what is wanted of it and whose it is; empty for a URL, behind which anything may be."""
    return repr(replace(source, data=None, param=None)) if source.sha256 else ""


async def values(pictures: Sequence[PreparedPicture]) -> list[Any]:
    """`value` of all, side by side."""
    if len(pictures) == 1:
        return [await pictures[0].value()]
    asked = [asyncio.ensure_future(picture.value()) for picture in pictures]
    try:
        return await asyncio.gather(*asked)
    finally:
        for each in asked:
            each.cancel()


def go_by_value(body: dict[str, Any], pictures: Sequence[Any] = ()) -> bool:
    """Whether a request's body and what `values` gave fit into one message of the transport."""
    if not holds_at_most(body, LONG):
        return False
    sizes = [picture.pixels.nbytes if isinstance(picture, Picture) else None for picture in pictures]
    return None not in sizes and sum(size or 0 for size in sizes) <= TOGETHER_BYTES
