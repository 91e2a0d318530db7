"""What the fake image engine paints: a disc on a ground, in the colours of the prompt; and how it edits."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np

from deployments.contracts.messages import ImageEdit

COLORS = {
    ("red", "红"): (226, 32, 38),
    ("orange", "橙"): (255, 140, 0),
    ("yellow", "黄"): (255, 222, 20),
    ("green", "绿"): (28, 160, 62),
    ("cyan", "青"): (40, 205, 220),
    ("blue", "蓝"): (34, 74, 214),
    ("purple", "紫"): (126, 44, 176),
    ("pink", "粉"): (255, 150, 190),
    ("black", "黑"): (18, 18, 18),
    ("white", "白"): (255, 255, 255),
}
_BY_WORD = {word: color for words, color in COLORS.items() for word in words}
_WORDS = re.compile("|".join(rf"\b{en}\b|{zh}" for en, zh in COLORS), re.IGNORECASE)
_GROUND = re.compile(r"\s*(background\b|色?背景)", re.IGNORECASE)


def paint(prompt: str, width: int, height: int, seed: int) -> np.ndarray:
    """A disc on a ground, in the prompt's colours; the seed decides where and how large."""
    from PIL import Image, ImageDraw

    ground, disc = _colors(prompt)
    chance = random.Random(f"{seed}:{prompt}".encode("utf-8", "replace"))
    radius = min(width, height) * chance.uniform(0.2, 0.35)
    x = width / 2 + chance.uniform(-0.1, 0.1) * width
    y = height / 2 + chance.uniform(-0.1, 0.1) * height
    image = Image.new("RGB", (width, height), ground)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=disc)
    return np.array(image)


def _colors(prompt: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ground: the colour before "background", else white. Disc: the first other colour, else a hash."""
    ground, disc = (255, 255, 255), None
    for match in _WORDS.finditer(prompt):
        color = _BY_WORD[match.group().lower()]
        if _GROUND.match(prompt, match.end()):
            ground = color
        elif disc is None:
            disc = color
    if disc is None:
        red, green, blue = hashlib.sha256(prompt.encode("utf-8", "replace")).digest()[:3]
        disc = (red, green, blue)
    return ground, disc


def edit(painted: np.ndarray, source: np.ndarray, mask: np.ndarray | None, how: ImageEdit) -> np.ndarray:
    """The source with `painted` blended over it by strength.

    Args:
        painted: uint8 (height, width, 3): the canvas.
        source: uint8 (h, w, 3): scaled to the canvas, or placed on it.
        mask: uint8 (h, w), as large as the source: 255 where it is repainted. Elsewhere it stays as it is.
        how: strength and placement.
    """
    height, width = painted.shape[:2]
    repaint = np.full(source.shape[:2], 255, np.uint8) if mask is None else mask
    if how.placement is None:
        below, where = _scaled(source, width, height), _scaled(repaint, width, height)
    else:
        left, top = how.placement
        area = np.s_[top : top + source.shape[0], left : left + source.shape[1]]
        below, where = painted.copy(), np.full((height, width), 255, np.uint8)
        below[area], where[area] = source, 0 if mask is None else mask
    blend = below + (painted.astype(np.float32) - below) * how.strength
    return np.where(where[..., None] > 127, np.rint(blend).astype(np.uint8), below)


def preview(picture: np.ndarray, share: float) -> np.ndarray:
    """A picture on its way: grey that clears up."""
    return np.rint(128 + (picture.astype(np.float32) - 128) * share).astype(np.uint8)


def _scaled(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
