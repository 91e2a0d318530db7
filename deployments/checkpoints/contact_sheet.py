"""One picture of many: a row a prompt, with A, B, and their difference made visible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments.checkpoints.compare import Comparison, Painted, Pair

GAIN = 4
"""The difference is shown this many times as strong."""
_SIDE, _GAP, _LINE = 256, 8, 16


def write_contact_sheet(path: Path, comparison: Comparison, a: Painted, b: Painted) -> None:
    """A PNG. Pictures are reduced to fit 256 pixels a side, never enlarged."""
    from PIL import Image, ImageDraw

    height, width = a.pictures[0].shape[:2]
    scale = min(1.0, _SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    row = size[1] + 3 * _LINE + _GAP
    sheet = Image.new(
        "RGB", (max(480, 3 * size[0] + 4 * _GAP), 2 * _LINE + row * len(comparison.pairs)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate((f"A: {a.name}", f"B: {b.name}", f"difference x {GAIN}")):
        draw.text((_GAP + column * (size[0] + _GAP), _GAP // 2), title, fill="black")
    for number, pair in enumerate(comparison.pairs):
        top = 2 * _LINE + number * row
        first, second = a.pictures[number], b.pictures[number]
        for column, pixels in enumerate((first, second, _difference(first, second))):
            picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (_GAP + column * (size[0] + _GAP), top))
        for line, text in enumerate(_caption(pair)):
            _write(draw, (_GAP, top + size[1] + 2 + line * _LINE), text)
    sheet.save(path)


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.clip(np.abs(first.astype(int) - second.astype(int)) * GAIN, 0, 255).astype(np.uint8)


def _caption(pair: Pair) -> Sequence[str]:
    how = "identical" if pair.psnr is None else f"PSNR {pair.psnr:.1f} dB, SSIM {pair.ssim:.3f}"
    lines = [f"{pair.prompt}  ({how})"]
    if pair.description_a is not None:
        lines += [f"A: {pair.description_a}", f"B: {pair.description_b}"]
    return lines


def _write(draw: Any, at: tuple[int, int], text: str) -> None:
    """Pillow's own font has no Chinese: those characters show as boxes, and the JSON has them."""
    draw.text(at, text[:160], fill="black")
