"""Replica shell: every image of a request passes here before a GPU replica sees it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage, PayloadTooLarge
from deployments.contracts.messages import ImageSource, Picture
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.fetch import Fetcher
from deployments.engines.image_ops import decode

logger = logging.getLogger(__name__)

_DATA_URL = re.compile(r"\s*data:", re.IGNORECASE)
_WHITESPACE = bytes(range(33)) + b"\x7f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Preprocessing:
    """Fetches, checks and normalises images; keeps no state between them."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: PreprocessingSettings, fetcher: Fetcher | None = None
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher or Fetcher(settings)
        # Its size bounds how many pictures are decoded, hence in memory, at once.
        self._decoders = ThreadPoolExecutor(max(2, math.ceil(settings.num_cpus)), "decode")

    async def prepare(self, source: ImageSource) -> Picture:
        """The picture behind a source. Raises InvalidImage or PayloadTooLarge that name `source.param`."""
        data = await self._read(source)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._decode, data, source
            )
        except AtelierError:
            raise
        except Exception:
            logger.exception("preparing the image at %s failed", source.param)
        raise EngineFailed("Preparing an image failed.", param=source.param)

    async def _read(self, source: ImageSource) -> bytes | str:
        """Raw bytes, or a data URL to be decoded in the thread."""
        if (source.url is None) == (source.data is None):
            raise InvalidImage("Give an image either as a URL or as a file.", param=source.param)
        if source.url is None:
            return source.data or b""
        if _DATA_URL.match(source.url):
            return source.url
        return await self._fetcher.fetch(source.url, source.param)

    def _decode(self, data: bytes | str, source: ImageSource) -> Picture:
        settings = self._settings
        if isinstance(data, str):
            data = read_data_url(data, settings.max_bytes, source.param)
        if not data:
            raise InvalidImage("The image is empty: it has no bytes.", param=source.param)
        if len(data) > settings.max_bytes:
            raise _too_large(settings.max_bytes, source.param)
        return decode(
            data,
            max_source_pixels=settings.max_source_pixels,
            max_pixels=settings.max_pixels,
            param=source.param,
        )

    async def check_health(self) -> None:
        """A replica that can answer can work: there is nothing to lose."""


def read_data_url(url: str, max_bytes: int, param: str | None) -> bytes:
    """The bytes of a base64 data URL: padding, blanks and alphabet forgiven, the declared type ignored."""
    header, comma, payload = url.partition(",")
    if not comma or not header.strip().lower().endswith(";base64"):
        raise InvalidImage(
            "A data URL must read data:image/png;base64,DATA (or jpeg, webp, gif).", param=param
        )
    # Before anything copies it; a third is base64's overhead, the rest line breaks or %XX.
    if len(payload) > 4 * max_bytes + 1024:
        raise _too_large(max_bytes, param)
    try:
        raw = payload.encode("ascii")
        raw = unquote_to_bytes(raw) if b"%" in raw else raw
        raw = raw.translate(_URL_SAFE, _WHITESPACE).rstrip(b"=")
        if len(raw) * 3 // 4 > max_bytes:
            raise _too_large(max_bytes, param)
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        pass
    raise InvalidImage("The data URL is not valid base64.", param=param)


def _too_large(max_bytes: int, param: str | None) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The image is larger than {max_bytes:,} bytes. Reduce or compress it.", param=param
    )
