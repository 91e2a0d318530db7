"""The pictures that were asked for last, up to a number of bytes, and what names the files they come from."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from deployments.contracts.messages import Picture

INLINE = 2**20
"""Bytes up to which hashing a file costs less than a thread, 0.5 ms: 20 MB take 10 ms."""


async def file_hash(data: bytes) -> str:
    """Hex SHA-256 of a file."""
    return _sha256(data) if len(data) < INLINE else await asyncio.to_thread(_sha256, data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class PictureCache:
    """Least recently used goes first. Not for several threads.

    Args:
        max_bytes: of pixels; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> Picture | None:
        """The picture, which is now the most recently used, if it is here."""
        if key not in self._pictures:
            return None
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def put(self, key: str, picture: Picture) -> None:
        """Keep a picture for as long as there is room; one larger than all the room is not kept."""
        if key in self._pictures or picture.pixels.nbytes > self._max_bytes:
            return
        self._pictures[key] = picture
        self.bytes += picture.pixels.nbytes
        while self.bytes > self._max_bytes:
            _, oldest = self._pictures.popitem(last=False)
            self.bytes -= oldest.pixels.nbytes
