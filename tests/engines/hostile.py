"""Hostile and odd image files, made by hand and by seeded mutation: nothing here is read from anywhere."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

RED = (226, 32, 38)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image that does not compress."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(name: bytes, body: bytes, size: int | None = None, crc: int | None = None) -> bytes:
    """A PNG chunk, whose size and checksum may lie."""
    checked = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body) if size is None else size) + name + body + struct.pack(">I", checked)


def png(
    width: int,
    height: int,
    data: bytes = b"",
    *,
    depth: int = 8,
    color: int = 2,
    interlace: int = 0,
    before: bytes = b"",
) -> bytes:
    """A PNG by hand, whose header may lie."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def slow_jpeg(side: int = 4000, scans: int = 1000) -> bytes:
    """A progressive JPEG that repeats its last scan: a few hundred kilobytes that decode for many seconds."""
    data = file(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def bombs() -> Iterator[bytes]:
    """Little to send, much to decode."""
    zeros = zlib.compress(bytes(1_000_000), 9)
    for width, height in ((65_500, 65_500), (2**31 - 1, 2**31 - 1), (65_500, 980), (8001, 8001)):
        yield png(width, height, zeros)
    for color, size in ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)):  # all within the limits of pixels
        plte = chunk(b"PLTE", bytes(768)) if color == 3 else b""
        yield png(5000, 5000, zlib.compress(bytes(5000 * (5000 * size + 1))), color=color, before=plte)
    yield png(3000, 3000, zlib.compress(bytes(3000 * 3000 * 9)), depth=16, color=6, interlace=1)
    packed = zlib.compress(bytes(64_000_000))
    for text in (b"zTXt", b"iTXt", b"iCCP"):
        body = b"a\x00\x00" + packed if text != b"iTXt" else b"a\x00\x01\x00\x00\x00" + packed
        yield png(64, 64, zeros, before=chunk(text, body))
    yield file(Image.new("RGB", (8000, 7900)), "JPEG", quality=5)
    yield file(Image.new("RGB", (16_000, 3900)), "WEBP", lossless=True, quality=0, method=0)
    for kind in (b"VP8X", b"VP8L", b"VP8 "):
        yield b"RIFF\x64\x00\x00\x00WEBP" + kind + b"\x0a\x00\x00\x00" + b"\x2f" + b"\xff" * 90
    yield b"GIF89a" + struct.pack("<HH", 65_500, 65_500) + b"\xf0\x00\x00" + bytes(6) + b";"
    yield many_frames(200_000)
    yield slow_jpeg()


def many_frames(count: int) -> bytes:
    """A GIF of that many frames of one pixel."""
    data = file(Image.new("P", (64, 64)), "GIF")
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return data[:-1] + frame * count + b";"


def animations() -> Iterator[bytes]:
    """Only whose first frames count; some declare more than they have."""
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(20)]
    for kind in ("GIF", "PNG", "WEBP"):
        whole = file(frames[0], kind, save_all=True, append_images=frames[1:])
        yield whole
        yield whole[: len(whole) // 2]
        yield whole[:-7]
    apng = file(frames[0], "PNG", save_all=True, append_images=frames[1:])
    at = apng.index(b"acTL")
    for declared in (0, 1, 1001, 2**31 - 1, 2**32 - 1):
        lie = chunk(b"acTL", struct.pack(">II", declared, 0))
        yield apng[: at - 4] + lie + apng[at + 16 :]
    yield apng.replace(b"fdAT", b"fdAX")
    small, large = Image.new("P", (64, 64)), bytearray(file(Image.new("P", (64, 64)), "GIF"))
    at = large.index(b"\x2c\x00\x00\x00\x00")
    large[at + 5 : at + 9] = struct.pack("<HH", 65_000, 65_000)
    yield bytes(large)
    yield file(small, "GIF")[:-1] + b"\x21\xff\x0bNETSCAPE2.0" + b"\xff" * 4000  # a block without end


def odd_shapes() -> Iterator[bytes]:
    """From one pixel to the longest edges."""
    for size in ((1, 1), (1, 2), (1, 200), (201, 1), (65_500, 1), (1, 65_500), (65_500, 327), (400, 65_500)):
        yield file(Image.new("L", size, 200), "PNG")
    for size in ((65_500, 400), (65_500, 1), (1, 1), (65_500, 328)):
        yield file(Image.new("L", size, 200), "JPEG", quality=30)
    for size in ((16_383, 1), (16_383, 100), (1, 1)):
        yield file(Image.new("RGB", size, RED), "WEBP", lossless=True, quality=0, method=0)
    for width, height in ((0, 0), (0, 5), (5, 0), (2**32 - 1, 1), (1, 2**32 - 1)):
        yield png(width, height, zlib.compress(bytes(100)))


def odd_colours() -> Iterator[bytes]:
    """Modes, depths, palettes, profiles and orientations."""
    base = noise(64, 48)
    for mode in ("1", "L", "LA", "P", "RGBA", "I", "I;16", "PA"):
        image = Image.new(mode, (64, 48)) if mode in ("I;16", "PA") else base.convert(mode)
        try:
            yield file(image)
        except OSError:
            yield file(image.convert("RGBA"))
    for depth in (1, 2, 3, 4, 8, 16, 32):
        for color in range(8):
            yield png(40, 40, zlib.compress(bytes(40 * 400)), depth=depth, color=color)
    yield png(64, 64, zlib.compress(b"\xff" * 65 * 64), color=3)  # indices into no palette
    yield png(64, 64, zlib.compress(b"\xff" * 65 * 64), color=3, before=chunk(b"PLTE", bytes(5)))
    yield png(64, 64, zlib.compress(bytes(65 * 64)), color=3, before=chunk(b"tRNS", b"\x00" * 900))
    yield file(base.convert("CMYK"), "JPEG")
    yield file(base.convert("CMYK"), "JPEG").replace(b"Adobe", b"Adobo")
    for orientation in (0, 1, 6, 8, 9, 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield file(base, "JPEG", exif=exif)
    for broken in (b"MM\x00*\xff\xff\xff\xff", b"", b"II*\x00" + b"\x01" * 5000):
        yield file(base, "JPEG", exif=b"Exif\x00\x00" + broken)
    yield file(base, "JPEG", icc_profile=b"x" * 70_000)
    yield file(base, "PNG", icc_profile=b"not a profile")


def broken_parts() -> Iterator[bytes]:
    """Sizes, checksums, orders and streams that lie."""
    good = zlib.compress(bytes(64 * 193))
    for size in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        yield png(64, 64, good, before=chunk(b"tEXt", b"a\x00b", size=size))
        yield png(64, 64, good, before=chunk(b"gAMA", b"\x00" * 4, size=size))
    yield png(64, 64, good, before=chunk(b"tEXt", b"a\x00b", crc=0))
    yield png(64, 64, good, before=chunk(b"IHDR", bytes(13)))
    yield png(64, 64, good, before=chunk(b"IEND", b""))
    yield png(64, 64, b"")
    yield png(64, 64, b"this is not deflate")
    yield png(64, 64, good[:-6])
    yield png(64, 64, zlib.compress(b"\x09" * 64 * 193))  # filters that do not exist
    yield png(64, 64, good, interlace=7)
    yield b"\x89PNG\r\n\x1a\n"
    jpeg = file(noise(64, 64), "JPEG")
    for marker in (b"\xff\xdb", b"\xff\xc4", b"\xff\xc0", b"\xff\xda"):
        at = jpeg.index(marker)
        for length in (0, 1, 2, 65_535):
            yield jpeg[: at + 2] + struct.pack(">H", length) + jpeg[at + 4 :]
        yield jpeg[:at] + jpeg[at:].replace(marker, b"", 1)
    yield b"\xff\xd8\xff" + b"\xff" * 5000
    yield b"\xff\xd8" + b"\xff\xfe\xff\xff" + bytes(65_533)
    webp = file(noise(64, 64), "WEBP")
    for size in (0, 1, 2**31, 2**32 - 1):
        yield webp[:4] + struct.pack("<I", size) + webp[8:]
        yield webp[:16] + struct.pack("<I", size) + webp[20:]


def impostors() -> Iterator[bytes]:
    """No images, or more than an image."""
    image = file(noise(64, 64))
    yield from (b"", b"\x00", b"GIF", b"GIF89a", b"GIF88a" + bytes(100), b"BM" + bytes(100))
    yield b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>"
    yield b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>"
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file"
    yield b"push graphic-context\nfill 'url(https://example.com/\"|id\")'"
    yield b"<html><script>alert(1)</script></html>"
    yield b"PK\x03\x04" + image
    yield image + b"PK\x03\x04<script>alert(1)</script>" * 1000
    yield b"GIF89a/*" + file(noise(64, 64), "GIF")[8:] + b"*/=1;alert(1)"
    yield b"\xff\xd8\xff<?php system('id'); ?>"
    yield b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(30)
    yield b"\x00\x00\x00\x20ftypavif" + bytes(100)
    for kind in ("BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "PDF", "ICNS", "DDS", "EPS"):
        yield file(Image.new("RGB", (64, 64), RED), kind)


def mutations(count: int, seed: int = 1) -> Iterator[bytes]:
    """Good files with bytes flipped, cut, doubled or replaced."""
    frames = [noise(48, 40, i) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    good = [
        file(frames[0]),
        file(frames[0].convert("P")),
        file(frames[0].convert("RGBA"), "WEBP"),
        file(frames[0], "WEBP", lossless=True),
        file(frames[0], "JPEG", exif=exif),
        file(frames[0], "JPEG", progressive=True),
        file(frames[0].convert("CMYK"), "JPEG"),
        file(frames[0], "GIF"),
        *(file(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("GIF", "PNG", "WEBP")),
    ]
    chance = random.Random(seed)
    for i in range(count):
        data = bytearray(good[i % len(good)])
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            _mutate(data, chance)
        yield bytes(data)


def _mutate(data: bytearray, chance: random.Random) -> None:
    # Headers are where the damage is worst: half of it goes there.
    start = 12 if chance.random() < 0.9 and len(data) > 40 else 0  # rarely in what says the format
    at = chance.randrange(start, min(len(data), 80) if chance.random() < 0.5 else len(data))
    match chance.randrange(5):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        case 2:
            data[at : at + 4] = struct.pack(">I", chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
        case 3:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
        case _:
            if len(data) > 100:
                del data[at : at + chance.randrange(1, 40)]


def hostile(count: int) -> list[bytes]:
    """All that were made by hand, and as many mutations as are missing to `count`."""
    by_hand = [
        data
        for make in (bombs, animations, odd_shapes, odd_colours, broken_parts, impostors)
        for data in make()
    ]
    return by_hand + list(mutations(count - len(by_hand)))
