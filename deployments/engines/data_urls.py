"""Images in data URLs."""

from __future__ import annotations

import binascii
import re

import pybase64

from deployments.contracts.errors import AtelierError, InvalidImage
from deployments.engines.image_files import too_large

_SCHEME = re.compile(r"\s*data:", re.IGNORECASE)


def is_data_url(url: str) -> bool:
    return _SCHEME.match(url) is not None


def payload(url: str, max_bytes: int) -> str:
    """The base64 of a data URL, whose declared type is ignored.

    Raises:
        InvalidImage: it has none.
        PayloadTooLarge: it is far longer than `max_bytes` take.
    """
    header, comma, text = url.partition(",")
    if not comma or not header.strip().lower().endswith(";base64"):
        raise InvalidImage("A data URL must read data:image/png;base64,DATA (or jpeg, webp, gif).")
    # Before anything copies it; a third is base64's overhead, the rest line breaks or %XX.
    if len(text) > 4 * max_bytes + 1024:
        raise too_large(max_bytes)
    if not text.isascii():
        raise InvalidImage("The image is not valid base64.")
    return text


def plain_bytes(url: str, max_bytes: int) -> bytes | None:
    """The bytes in a data URL that is spelt as the standard has it, 0.1 ms a megabyte.

    None for any other, and for one that will be refused: preprocessing forgives or tells what is wrong.
    """
    if not is_data_url(url):
        return None
    try:
        return pybase64.b64decode(payload(url, max_bytes), validate=True)
    except (AtelierError, binascii.Error):
        return None
