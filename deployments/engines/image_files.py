"""Pixels from untrusted bytes, with Pillow alone: what a decoding process runs. All of it blocks.

A client never reads Pillow's own words: they can carry memory addresses (CVE-2026-22778). Errors leave here
without a `param`, since a decoding process does not know where its image stood.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any

from deployments.contracts.errors import InvalidImage, PayloadTooLarge
from deployments.contracts.messages import Purpose
from deployments.engines.image_headers import gif_frames, sniff, webp_canvas

MIN_SIDE = 32
"""Qwen3-VL's patch of 16 times its merge of 2: a smaller side has no token."""
MAX_ASPECT = 200
"""Qwen3-VL refuses longer strips."""

ALLOWED = "Send a PNG, JPEG, WebP or GIF image."
DRAFT_GAPS = (1.5, 1.19)
"""How much larger than its target a JPEG leaves the decoder, which halves it, or quarters it, and so on. The
second is for where the first would not even halve it. Text of 9 pixels keeps 32 dB of what reducing the whole
picture gives; with a gap of 1 it would be 26."""
STRIP = 2**20
"""Pixels that are converted at a time."""
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to PIL's Transpose: mirror, 180, flip, transpose, 270, transverse, 90."""
_WHITESPACE = bytes(range(33)) + b"\x7f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ESCAPED = {
    **{b"%2B": b"+", b"%2b": b"+", b"%2F": b"/", b"%2f": b"/", b"%3D": b"=", b"%3d": b"="},
    **{b"%0A": b"", b"%0a": b"", b"%0D": b"", b"%0d": b"", b"%20": b""},
}
"""All that base64 in a URL may need: unquoting any character takes seconds where each one is escaped."""


@dataclass(frozen=True)
class Wanted:
    """What is to become of a file."""

    max_bytes: int
    max_source_pixels: int
    max_frames: int
    max_pixels: int
    """For purpose "look": larger pictures are reduced to this many."""
    purpose: Purpose = "look"
    base64: bool = False
    """The file comes as base64."""
    max_side: int | None = None
    """Pixels of the longer side."""


@dataclass(frozen=True)
class Decoded:
    """uint8 pixels: (height, width, 3), or (height, width) of a mask."""

    shape: tuple[int, ...]
    data: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 over shape and pixels: bytes alone would confuse 2x8 with 4x4 (CVE-2025-46722)."""
        return content_digest(self.shape, self.data)


def content_digest(shape: tuple[int, ...], data: bytes | memoryview) -> str:
    """Hex SHA-256 over shape and pixels."""
    state = hashlib.sha256(repr(shape).encode())
    state.update(data)
    return state.hexdigest()


def decode_file(data: bytes, wanted: Wanted) -> Decoded:
    """Check, decode, turn upright, and bring to the form that the purpose asks for.

    Raises:
        InvalidImage, PayloadTooLarge: not an allowed image, or over a limit.
        MemoryError: it takes more than this process may have.
    """
    if wanted.base64:
        data = from_base64(data, wanted.max_bytes)
    check_bytes(data, wanted.max_bytes)
    try:
        image = _open(data, wanted)
        image = _mask(image) if wanted.purpose == "mask" else _picture(image, wanted)
        shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
        return Decoded(shape, image.tobytes())
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:
        failure = _undecodable(error, wanted)
    raise failure  # outside of the except block: without Pillow's error in its context


# ---------------------------------------------------------------------- bytes
def from_base64(text: bytes, max_bytes: int) -> bytes:
    """Base64 with its padding, blanks and alphabet forgiven.

    Raises:
        InvalidImage: it is no base64.
        PayloadTooLarge: it comes to more than `max_bytes`.
    """
    try:
        if len(text) * 3 // 4 <= max_bytes:
            return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        pass  # or it is spelt in one of the other ways
    for escaped, plain in _ESCAPED.items() if b"%" in text else ():
        text = text.replace(escaped, plain)
    text = text.translate(_URL_SAFE, _WHITESPACE).rstrip(b"=")
    if len(text) * 3 // 4 > max_bytes:
        raise too_large(max_bytes)
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        pass
    raise InvalidImage("The image is not valid base64.")


def check_bytes(data: bytes, max_bytes: int) -> None:
    """Raises InvalidImage for none, PayloadTooLarge for too many."""
    if not data:
        raise InvalidImage("The image is empty: it has no bytes.")
    if len(data) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The image is larger than {max_bytes:,} bytes. Reduce or compress it.")


# ---------------------------------------------------------------------- the header
def _open(data: bytes, wanted: Wanted) -> Any:
    """The undecoded image, once its header has passed the limits."""
    from PIL import Image

    kind = sniff(data)
    if kind is None:
        raise InvalidImage(f"This is not an allowed image format, judged by its content. {ALLOWED}")
    if kind == "WEBP" and (size := webp_canvas(data)):
        _check_size(*size, wanted)  # opening one allocates its canvas
    if kind == "GIF":
        _check_frames(gif_frames(data, wanted.max_frames), wanted)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, wanted)
    if kind != "GIF":
        _check_frames(getattr(image, "n_frames", 1), wanted)  # declared in the header, not counted
    return image


def _check_frames(frames: int, wanted: Wanted) -> None:
    if frames > wanted.max_frames:
        raise InvalidImage(
            f"The animation has more than {wanted.max_frames:,} frames. Send the first alone.",
            code="too_many_frames",
        )


def _check_size(width: int, height: int, wanted: Wanted) -> None:
    most = wanted.max_source_pixels
    if width < 1 or height < 1:
        raise InvalidImage(f"The image is empty. {ALLOWED}")
    if width * height > most:
        raise InvalidImage(
            f"The image has {width}x{height} pixels; at most {most:,} are allowed. Send a smaller one.",
            code="image_too_large",
        )
    if wanted.max_side is not None and max(width, height) > wanted.max_side:
        raise InvalidImage(
            f"The image is {width}x{height}: its longer side may have {wanted.max_side} pixels. "
            "Send a smaller one.",
            code="image_too_large",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidImage(f"The image is {width}x{height}: longer than {MAX_ASPECT}:1. Crop or split it.")


def _undecodable(error: Exception, wanted: Wanted) -> InvalidImage:
    from PIL import Image

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        most = wanted.max_source_pixels
        return InvalidImage(
            f"The image has too many pixels; at most {most:,} are allowed. Send a smaller one.",
            code="image_too_large",
        )
    return InvalidImage(f"The image is damaged or cut off and cannot be decoded. {ALLOWED}")


# ---------------------------------------------------------------------- the pixels
def _picture(image: Any, wanted: Wanted) -> Any:
    """An upright RGB image without metadata; for a language model, of a size that it can take."""
    from PIL import Image

    width, height = image.size
    target = (width, height) if wanted.purpose == "paint" else _target_size(width, height, wanted.max_pixels)
    shrinks = target[0] < width
    if shrinks and image.format == "JPEG":
        gap = DRAFT_GAPS[2 * target[0] * DRAFT_GAPS[0] > width]
        image.draft(None, (math.ceil(target[0] * gap), math.ceil(target[1] * gap)))
    orientation = _loaded(image)
    image = _to_rgb(image)
    if image.size != target:
        # The filter that Qwen3-VL's own processor uses.
        image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=1.5 if shrinks else None)
    return _upright(image, orientation)


def _mask(image: Any) -> Any:
    """An upright image of one channel: 255 where the alpha is 0, else 0."""
    orientation = _loaded(image)
    if not image.has_transparency_data:
        raise InvalidImage("The mask has no alpha channel. Send a PNG that is transparent where to repaint.")
    alpha = image.convert("RGBA").getchannel("A")
    return _upright(alpha.point([255, *[0] * 255]), orientation)


def _loaded(image: Any) -> int:
    """Decodes; the EXIF orientation."""
    image.load()  # before EXIF: a PNG decodes to find it, and a decoding error must not pass for broken EXIF
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF is no reason to refuse the picture
        return 1


def _upright(image: Any, orientation: int) -> Any:
    from PIL import Image

    return image.transpose(Image.Transpose(_TURNS[orientation])) if orientation in _TURNS else image


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

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    width, height = image.size
    rgb = Image.new("RGB", image.size, (255, 255, 255))
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):  # in strips, or the forms on the way would hold the picture twice more
        strip = image.crop((0, top, width, min(top + rows, height)))
        if image.has_transparency_data:
            strip = strip.convert("RGBA")
            rgb.paste(strip, (0, top), strip)
        elif image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
            rgb.paste(strip.point(lambda value: value * (1 / 256)).convert("L").convert("RGB"), (0, top))
        else:
            rgb.paste(strip.convert("RGB"), (0, top))
    return rgb
