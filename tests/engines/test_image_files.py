"""Hostile and odd pictures in, right pixels out."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.errors import InvalidImage
from deployments.contracts.messages import Picture
from deployments.engines import image_files
from deployments.engines.image_files import MAX_ASPECT, MIN_SIDE, Wanted, decode_file
from deployments.engines.image_headers import gif_frames
from deployments.engines.image_ops import digest
from tests.engines.hostile import many_frames, noise

RED = (226, 32, 38)


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


LIMITS = Wanted(max_bytes=2**20, max_source_pixels=4_000_000, max_frames=10, max_pixels=1_048_576)


def read(data: bytes, **wanted: Any) -> Picture:
    decoded = decode_file(data, replace(LIMITS, **wanted))
    pixels = np.frombuffer(decoded.data, np.uint8).reshape(decoded.shape)
    assert pixels.ndim == 2 if wanted.get("purpose") == "mask" else pixels.shape[2] == 3
    return Picture(pixels, decoded.digest)


def refused(data: bytes, **wanted: Any) -> str:
    with pytest.raises(InvalidImage) as caught:
        read(data, **wanted)
    error = caught.value
    assert error.__context__ is None
    assert " at 0x" not in error.message
    assert "PIL" not in error.message
    return error.message


def png(width: int, height: int, *, color: int = 2, data: bytes = b"") -> bytes:
    """A PNG by hand, whose header may lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_allowed_formats(kind: str) -> None:
    pixels = read(file(Image.new("RGB", (64, 48), RED), kind)).pixels
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 4


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "PDF"])
def test_other_formats_are_refused_by_content(kind: str) -> None:
    assert "PNG, JPEG, WebP or GIF" in refused(file(Image.new("RGB", (64, 64)), kind))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF",
        b"\x00\x00\x00 ftypavif",
        b"<html>",
        b"GIF88a" + bytes(100),
        b"RIFF\x00\x00\x00\x00WAVE",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\xff\xff\xff\x7fWEBPVP8X" + bytes(10),
        b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(30),
    ],
)
def test_garbage_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file(Image.fromarray(noise), kind)
    for part in (0.2, 0.5, 0.9):
        assert "damaged or cut off" in refused(data[: int(len(data) * part)])


def test_corrupt_data_is_refused() -> None:
    refused(png(64, 64, data=b"this is not deflate"))
    refused(png(64, 64, data=zlib.compress(b"too short")))
    refused(png(0, 0))


@pytest.mark.parametrize("size", [(65_500, 65_500), (2**31 - 1, 2**31 - 1), (2001, 2000), (10_000, 10_000)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    assert "pixels" in refused(png(*size, data=zlib.compress(bytes(1000))))


def test_a_webp_bomb_is_refused_before_its_canvas_is_made() -> None:
    canvas = (16_382).to_bytes(3, "little")
    data = b"RIFF\x64\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00" + canvas + canvas + bytes(70)
    assert "16383x16383" in refused(data)


def test_a_gif_whose_frame_outgrows_its_screen_is_refused() -> None:
    data = bytearray(file(Image.new("P", (64, 64)), "GIF"))
    at = data.index(b"\x2c\x00\x00\x00\x00")
    data[at + 5 : at + 9] = struct.pack("<HH", 65_000, 65_000)
    assert "pixels" in refused(bytes(data))


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (9000, 44)])
def test_strips_are_refused(size: tuple[int, int]) -> None:
    assert "200:1" in refused(file(Image.new("RGB", size)))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 3), (31, 31), (31, 900), (4096, 33)])
def test_small_sides_are_scaled_up(size: tuple[int, int]) -> None:
    height, width, _ = read(file(Image.new("RGB", size, RED))).pixels.shape
    assert min(width, height) >= MIN_SIDE
    assert max(width, height) <= MAX_ASPECT * min(width, height)
    assert (read(file(Image.new("RGB", size, RED))).pixels == RED).all()


@pytest.mark.parametrize(
    "size", [(2000, 1000), (1000, 2000), (1999, 1999), (20_000, 101), (9001, 46), (300, 300)]
)
def test_large_pictures_are_reduced_and_keep_their_aspect(size: tuple[int, int]) -> None:
    height, width, _ = read(file(Image.new("RGB", size)), max_pixels=65_536).pixels.shape
    assert max(width, height) <= MAX_ASPECT * min(width, height)
    if max(size) / min(size) < 10:
        assert 0.97 * 65_536 < width * height <= 1.01 * 65_536
        assert abs(width / height - size[0] / size[1]) < 0.02 * size[0] / size[1]
    else:
        assert min(width, height) >= MIN_SIDE


def test_pictures_within_the_limits_keep_every_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert (read(file(Image.fromarray(noise))).pixels == noise).all()


def test_reducing_a_jpeg_by_draft_is_close_to_reducing_it_plainly() -> None:
    grid = np.indices((1600, 1200)).sum(0) % 256
    image = Image.fromarray(np.stack([grid, grid[::-1], grid // 2], -1).astype(np.uint8))
    data = file(image, "JPEG", quality=95)
    got = read(data, max_pixels=300 * 400).pixels
    plain = np.asarray(Image.open(io.BytesIO(data)).resize((300, 400), Image.Resampling.LANCZOS))
    assert got.shape == plain.shape
    assert np.abs(got.astype(int) - plain).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_dropped(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    quarters = np.zeros((64, 96, 3), np.uint8)
    quarters[:32, :48], quarters[:32, 48:], quarters[32:, :48] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(quarters), kind, exif=exif, **({} if kind == "PNG" else {"quality": 95}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    got = read(data).pixels
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 1


def test_broken_exif_is_ignored() -> None:
    data = file(Image.new("RGB", (64, 64), RED), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read(data).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("mode", "kind"), [(m, k) for m in ("RGBA", "LA") for k in ("PNG", "WEBP")] + [("RGBA", "GIF")]
)
def test_transparency_becomes_white(mode: str, kind: str) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (32, 0, 64, 64))
    pixels = read(file(image.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))).pixels
    assert (pixels[:, :32] == 255).all()
    assert (pixels[:, 32:] == 0).all()


def test_half_transparency_mixes() -> None:
    pixels = read(file(Image.new("RGBA", (64, 64), (0, 0, 0, 128)))).pixels
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


def test_a_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    assert (read(file(Image.new("RGB", (64, 64), RED), transparency=RED)).pixels == 255).all()
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert (read(file(palette, transparency=1)).pixels == 255).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (64, 1))
    pixels = read(file(Image.fromarray(ramp))).pixels
    assert (pixels[0, :, 0] == ramp[0] >> 8).all()


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("L", "JPEG")]
)
def test_grey_and_palette_become_rgb(mode: str, kind: str) -> None:
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 32, 64))
    pixels = read(file(image.convert(mode), kind)).pixels
    assert (pixels[:, :28] < 8).all()
    assert (pixels[:, 36:] > 247).all()


def test_cmyk_becomes_rgb() -> None:
    pixels = read(file(Image.new("RGB", (64, 64), RED).convert("CMYK"), "JPEG", quality=95)).pixels
    assert np.abs(pixels.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in (RED, (0, 0, 255), (0, 255, 0))]
    data = file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(read(data).pixels.astype(int) - RED).max() <= 4


def test_bytes_after_the_picture_do_no_harm() -> None:
    assert read(file(Image.new("RGB", (64, 64), RED)) + b"<script>PK\x03\x04").pixels.shape == (64, 64, 3)


def test_the_digest_covers_shape_and_pixels() -> None:
    flat = np.zeros((64, 36, 3), np.uint8)
    assert digest(flat) != digest(flat.reshape(36, 64, 3))
    assert digest(flat) != digest(flat + 1)
    assert digest(flat) == hashlib.sha256(b"(64, 36, 3)" + flat.tobytes()).hexdigest()
    assert read(file(Image.fromarray(flat))).digest == digest(flat)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_are_counted_and_capped(kind: str) -> None:
    frames = [noise(64, 64, i) for i in range(11)]
    data = file(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "more than 10 frames" in refused(data)
    read(data, max_frames=11)


def test_a_gif_s_frames_are_counted_without_decoding_them() -> None:
    assert gif_frames(many_frames(200_000), 10) == 11
    assert gif_frames(many_frames(5), 1000) == 6
    assert gif_frames(file(noise(300, 200), "GIF"), 1000) == 1
    for broken in (b"GIF89a", b"GIF89a" + b"\xff" * 20, many_frames(5)[:-20]):
        assert gif_frames(broken, 1000) <= 6


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 10}])
def test_every_kind_of_webp_is_measured_before_it_is_opened(options: dict[str, Any]) -> None:
    data = file(Image.new("RGB", (3000, 1500)), "WEBP", **options)
    assert "3000x1500" in refused(data)
    assert read(data, max_source_pixels=4_500_000).pixels.shape[1] > 1000


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "CMYK", "L"])
def test_strips_join_without_a_seam(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(70, 90)
    image = Image.new(mode, (70, 90), 40_000) if mode == "I;16" else source.convert(mode)
    data = file(image, "JPEG" if mode == "CMYK" else "PNG")
    whole = read(data).pixels
    monkeypatch.setattr(image_files, "STRIP", 500)
    assert np.array_equal(read(data).pixels, whole)
