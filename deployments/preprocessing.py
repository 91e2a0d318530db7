"""Replica shell: every image of a request passes here before a GPU replica sees it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, replace

from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage
from deployments.contracts.messages import SMALL_BYTES, ImageSource, Picture
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.data_urls import is_data_url, payload
from deployments.engines.decoders import Decoders
from deployments.engines.fetch import Fetcher
from deployments.engines.image_files import Wanted, check_bytes
from deployments.engines.picture_cache import PictureCache, file_hash

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """An image's bytes, or its base64, and what is to become of it. `key` says both in short."""

    data: bytes
    wanted: Wanted
    key: str


@dataclass
class _Flight:
    """A decoding that is under way, and how many wait for it."""

    task: asyncio.Task[Picture | AtelierError]
    waiting: int = 0


class Preprocessing:
    """Fetches, checks and normalises images; remembers the last ones.

    Args:
        settings: limits and budgets.
        fetcher: of URLs; one after the settings if None.
        decoders: None starts a pool and waits for it, so that no request does.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: PreprocessingSettings,
        fetcher: Fetcher | None = None,
        decoders: Decoders | None = None,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher or Fetcher(settings)
        self._cache = PictureCache(settings.cache_mb * 2**20)
        self._flights: dict[str, _Flight] = {}
        self._decoders = decoders or Decoders(settings)
        if decoders is None:
            await self._decoders.start()

    async def prepare(self, source: ImageSource) -> Picture:
        """The picture behind a source. Raises InvalidImage or PayloadTooLarge that name `source.param`."""
        try:
            data = await self._read(source)
            file = await _file(data, source, self._settings)
            result = self._cache.get(file.key) or await self._decoded(file)
        except AtelierError as error:
            result = error
        except Exception:
            logger.exception("preparing the image at %s failed", source.param)
            result = EngineFailed("Preparing an image failed.")
        if isinstance(result, AtelierError):
            # A new one: the same image may stand at two places of a request.
            raise type(result)(result.message, param=source.param, code=result.code)
        return _scoped(result, source.scope)

    async def prepare_small(self, source: ImageSource) -> Picture | None:
        """The same by value; None if the picture is too large for that. Asked for again, it is remembered."""
        picture = await self.prepare(source)
        return picture if picture.pixels.nbytes <= SMALL_BYTES else None

    async def _read(self, source: ImageSource) -> bytes | str:
        """Raw bytes, or a data URL as it came."""
        if (source.url is None) == (source.data is None):
            raise InvalidImage("Give an image either as a URL or as a file.")
        if source.url is None:
            return source.data or b""
        if is_data_url(source.url):
            return source.url
        return await self._fetcher.fetch(source.url, source.param)

    async def _decoded(self, file: _File) -> Picture | AtelierError:
        """Decodes a file once, however many ask for it at the same time."""
        flight = self._flights.get(file.key)
        if flight is None:
            flight = self._flights[file.key] = _Flight(asyncio.create_task(self._decode(file)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[file.key]
                flight.task.cancel()  # if it is not done: all clients went away

    async def _decode(self, file: _File) -> Picture | AtelierError:
        try:
            picture = await self._decoders.decode(file.data, file.wanted)
        except AtelierError as error:
            return error
        self._cache.put(file.key, picture)
        return picture

    async def check_health(self) -> None:
        """A replica that can answer can work: a decoding process that is gone is started anew."""

    def __del__(self) -> None:
        """Serve calls this when the replica stops."""
        decoders = getattr(self, "_decoders", None)
        if decoders is not None:
            decoders.close()


async def _file(data: bytes | str, source: ImageSource, settings: PreprocessingSettings) -> _File:
    """Raises InvalidImage or PayloadTooLarge."""
    paints = source.purpose != "look"
    wanted = Wanted(
        max_bytes=settings.max_bytes,
        max_source_pixels=settings.max_paint_pixels if paints else settings.max_source_pixels,
        max_frames=settings.max_frames,
        max_pixels=settings.budget(source.detail),
        purpose=source.purpose,
        base64=isinstance(data, str),
        max_side=source.max_side,
    )
    if isinstance(data, str):
        data = payload(data, settings.max_bytes).encode("ascii")
    else:
        check_bytes(data, settings.max_bytes)
    sha256 = source.sha256 or await file_hash(data)
    key = hashlib.sha256(repr((sha256, source.scope, wanted)).encode()).hexdigest()
    return _File(data, wanted, key)


def _scoped(picture: Picture, scope: str) -> Picture:
    """The picture under a digest that no other scope can arrive at."""
    if not scope:
        return picture
    return replace(picture, digest=hashlib.sha256(f"{scope}/{picture.digest}".encode()).hexdigest())
