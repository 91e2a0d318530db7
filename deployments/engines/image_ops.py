"""Pixels from untrusted bytes, and encoded pictures from pixels. Pillow only; all of it blocks.

A client never reads Pillow's own words: they can carry memory addresses (CVE-2026-22778).
"""

from __future__ import annotations

import hashlib
import io
import math
from typing import Any

import numpy as np

from deployments.contracts.errors import InvalidImage
from deployments.contracts.messages import OutputFormat, Picture

MIN_SIDE = 32
"""Qwen3-VL's patch of 16 times its merge of 2: a smaller side has no token."""
MAX_ASPECT = 200
"""Qwen3-VL refuses longer strips."""

ALLOWED = "Send a PNG, JPEG, WebP or GIF image."
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to PIL's Transpose: mirror, 180, flip, transpose, 270, transverse, 90."""


# ---------------------------------------------------------------------- in
def decode(data: bytes, *, max_source_pixels: int, max_pixels: int, param: str | None = None) -> Picture:
    """Check, decode, turn upright, flatten on white and bring to size. Raises InvalidImage."""
    try:
        image = _open(data, max_source_pixels, param)
        pixels = np.ascontiguousarray(np.asarray(_normalise(image, max_pixels), dtype=np.uint8))
    except InvalidImage:
        raise
    except Exception as error:
        failure = _undecodable(error, max_source_pixels, param)
    else:
        return Picture(pixels, digest(pixels))
    raise failure  # outside of the except block: without Pillow's error in its context


def digest(pixels: np.ndarray) -> str:
    """SHA-256 over shape and pixels: bytes alone would confuse 2x8 with 4x4 (CVE-2025-46722)."""
    state = hashlib.sha256(repr(pixels.shape).encode())
    state.update(pixels.data.cast("B"))
    return state.hexdigest()


def sniff(data: bytes) -> str | None:
    """The format by content, never by name or declared type."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _open(data: bytes, max_source_pixels: int, param: str | None) -> Any:
    """The undecoded image, once its header has passed the limits."""
    from PIL import Image

    kind = sniff(data)
    if kind is None:
        raise InvalidImage(
            f"This is not an allowed image format, judged by its content. {ALLOWED}", param=param
        )
    if kind == "WEBP" and (size := _webp_canvas(data)):
        _check_size(*size, max_source_pixels, param)  # opening one allocates its canvas
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, max_source_pixels, param)
    return image


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"VP8X" or len(data) < 30:
        return None
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _check_size(width: int, height: int, max_source_pixels: int, param: str | None) -> None:
    if width < 1 or height < 1:
        raise InvalidImage(f"The image is empty. {ALLOWED}", param=param)
    if width * height > max_source_pixels:
        raise InvalidImage(
            f"The image has {width}x{height} pixels; at most {max_source_pixels:,} are allowed. "
            "Send a smaller one.",
            param=param,
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(
            f"The image is {width}x{height}: longer than {MAX_ASPECT}:1. Crop or split it.", param=param
        )


def _undecodable(error: Exception, max_source_pixels: int, param: str | None) -> InvalidImage:
    from PIL import Image

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return InvalidImage(
            f"The image has too many pixels; at most {max_source_pixels:,} are allowed. Send a smaller one.",
            param=param,
        )
    return InvalidImage(f"The image is damaged or cut off and cannot be decoded. {ALLOWED}", param=param)


def _normalise(image: Any, max_pixels: int) -> Any:
    """An upright RGB image without metadata, of a size that the model can take."""
    from PIL import Image

    width, height = image.size
    target = _target_size(width, height, max_pixels)
    shrinks = target[0] < width
    if shrinks and image.format == "JPEG":
        image.draft(None, (math.ceil(target[0] * 1.5), math.ceil(target[1] * 1.5)))
    image.load()  # before EXIF: a PNG decodes to find it, and a decoding error must not pass for broken EXIF
    orientation = _orientation(image)
    image = _to_rgb(image)
    if image.size != target:
        method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        image = image.resize(target, method, reducing_gap=1.5 if shrinks else None)
    if orientation in _TURNS:
        image = image.transpose(Image.Transpose(_TURNS[orientation]))
    return image


def _target_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Within max_pixels, but no side under MIN_SIDE; rounded so that the aspect stays allowed."""
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    scale = max(scale, MIN_SIDE / min(width, height))
    if scale == 1.0:
        return width, height
    long, short = max(width, height), min(width, height)
    short_to = max(MIN_SIDE, math.ceil(round(short * scale, 6)) if scale > 1 else round(short * scale))
    long_to = max(short_to, min(round(long * scale), MAX_ASPECT * short_to))
    return (long_to, short_to) if width >= height else (short_to, long_to)


def _to_rgb(image: Any) -> Any:
    """16 bits to 8, palettes and CMYK to RGB, transparency onto white."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip at 255 instead of scaling
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)  # half the memory of alpha_composite
        return white
    return image.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF is no reason to refuse the picture
        return 1


# ---------------------------------------------------------------------- out
def encode(pixels: np.ndarray, output_format: OutputFormat, compression: int | None = None) -> bytes:
    """Encode RGB pixels. `compression` is the quality of webp and jpeg, 0 to 100."""
    from PIL import Image

    options: dict[str, Any]
    if output_format == "png":
        options = {"compress_level": 1}  # 80 ms instead of 275 ms a megapixel, 5 to 10% larger
    else:
        # Pillow takes 0 for "default" in JPEG, so the worst quality is 1.
        options = {"quality": 90 if compression is None else max(1, compression)}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, output_format.upper(), **options)
    return buffer.getvalue()
