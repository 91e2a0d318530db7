"""What the first bytes of an image say, read without Pillow and without decoding anything."""

from __future__ import annotations


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


def webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file declares; None if it is none."""
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def gif_frames(data: bytes, most: int) -> int:
    """How many frames a GIF holds, counted without decoding any and not beyond `most` + 1."""
    at, frames = 13 + _gif_table(data, 10), 0
    while at < len(data) and frames <= most:
        if data[at] == 0x2C:
            frames += 1
            at += 11 + _gif_table(data, at + 9)
        elif data[at] == 0x21:
            at += 2
        else:
            break  # the trailer, or damage that the decoder meets too
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return frames


def _gif_table(data: bytes, at: int) -> int:
    """Bytes of the colour table that the flags at `at` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
