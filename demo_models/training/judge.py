"""Judges painted pictures by their pixels alone: segments by colour, and shapes by the templates.

A picture is right if its border has the background's colour, and if what stands out from it is, segment by
segment, of the colours and shapes that were asked for, where they were asked for. No model is involved.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from demo_models.training import data as world

NAMES = list(world.COLORS)
_PALETTE = np.array([rgb for rgb, _ in world.COLORS.values()], float)
AREA = 1300
"""Pixels of a segment when it is compared with the templates."""
FRAME = 96
LEAST_AREA = 0.002
"""Share of the picture under which a segment is noise."""
LEAST_OVERLAP = 0.75
"""Intersection over union with its best template under which a segment is no shape at all."""
STANDS_OUT = 60.0
"""RGB distance from the background from which a pixel belongs to an object."""


@dataclass(frozen=True)
class Segment:
    """One connected thing in a picture."""

    color: str
    shape: str | None
    x: float
    """Centre of its box, as a share of the width."""
    y: float
    radius: float
    """Half of its box's longer side, as a share of the picture's shorter side."""


PARTS = ("background", "colors", "shapes", "places")


@dataclass(frozen=True)
class Verdict:
    """What is right about a picture."""

    background: bool
    colors: bool
    shapes: bool
    """Shapes and their number, each with its colour."""
    places: bool
    """Positions, sizes and relations, where the words name any."""

    @property
    def right(self) -> bool:
        return self.background and self.colors and self.shapes


def nearest_color(rgb: np.ndarray) -> str:
    """The name of the closest of the ten colours."""
    return NAMES[int(((_PALETTE - rgb) ** 2).sum(1).argmin())]


@functools.cache
def _templates() -> tuple[list[str], np.ndarray]:
    """Names, and (n, FRAME * FRAME) booleans: every shape."""
    made = [_framed(np.asarray(world.mask(shape, 96)) > 127).ravel() for shape in world.SHAPES]
    return list(world.SHAPES), np.stack(made)


def _framed(segment: np.ndarray) -> np.ndarray:
    """A boolean segment, brought to an area of AREA, its centre of mass to the frame's."""
    rows, columns = np.flatnonzero(segment.any(1)), np.flatnonzero(segment.any(0))
    box = segment[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    zoom = math.sqrt(AREA / box.sum())
    size = max(1, round(box.shape[1] * zoom)), max(1, round(box.shape[0] * zoom))
    image = Image.fromarray(box.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    y, x = np.nonzero(np.asarray(image) > 127)
    frame = np.zeros((FRAME, FRAME), bool)
    down, across = y + round(FRAME / 2 - y.mean()), x + round(FRAME / 2 - x.mean())
    inside = (down >= 0) & (down < FRAME) & (across >= 0) & (across < FRAME)
    frame[down[inside], across[inside]] = True
    return frame


def match_shape(segment: np.ndarray) -> str | None:
    """The shape whose template overlaps a boolean segment best, if any does well enough.

    Both are brought to one area, not to boxes of one size: rounded tips and bumps change the box most. By its
    box, every fifth circle with a slightly uneven outline passed for a hexagon.
    """
    names, templates = _templates()
    framed = _framed(segment).ravel()
    overlap = (templates & framed).sum(1) / (templates | framed).sum(1)
    best = int(overlap.argmax())
    return names[best] if overlap[best] >= LEAST_OVERLAP else None


def segments(image: Image.Image) -> tuple[str, list[Segment]]:
    """The background's colour and what stands out from it, largest first."""
    pixels = np.asarray(image.convert("RGB")).astype(float)
    height, width = pixels.shape[:2]
    edge = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    edge = np.concatenate([edge, pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)])
    ground = np.median(edge, axis=0)
    front = (np.linalg.norm(pixels - ground, axis=2) > STANDS_OUT).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(front, connectivity=4)
    found = []
    for label in range(1, count):
        left, top, box_width, box_height, area = stats[label]
        if area < LEAST_AREA * width * height:
            continue
        segment = labels == label
        inner = cv2.erode(segment.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        tint = np.median(pixels[inner if inner.any() else segment], axis=0)
        # An edge runs where the colours are half and half, wherever the first threshold lay.
        core = segment & (np.linalg.norm(pixels - tint, axis=2) < np.linalg.norm(pixels - ground, axis=2))
        x, y = (left + box_width / 2) / width, (top + box_height / 2) / height
        radius = max(box_width, box_height) / 2 / min(width, height)
        found.append((area, Segment(nearest_color(tint), match_shape(core), x, y, radius)))
    return nearest_color(ground), [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def judge(image: Image.Image, spec: world.Spec) -> Verdict:
    """A picture against what was asked for."""
    ground, found = segments(image)
    if spec["kind"] == "pair":
        wanted = [spec["a"], spec["b"]]
    else:
        wanted = [(spec["color"], spec["shape"])] * spec.get("n", 1)
    shapes = Counter((one.color, one.shape) for one in found) == Counter(wanted)
    return Verdict(
        background=ground == spec["bg"],
        colors={one.color for one in found} == {color for color, _ in wanted},
        shapes=shapes,
        places=shapes and _placed(found, spec),
    )


def _placed(found: list[Segment], spec: world.Spec) -> bool:
    """Whether right shapes are where, and as large as, the words say."""
    if spec["kind"] == "pair":
        a = next(one for one in found if (one.color, one.shape) == spec["a"])
        b = next(one for one in found if (one.color, one.shape) == spec["b"])
        return spec["rel"] is None or (a.x < b.x - 0.1 if spec["rel"] == "left" else a.y < b.y - 0.1)
    if spec["kind"] == "many":
        return True
    x, y = world.POS.get(spec["pos"], (0.5, 0.5))
    one = found[0]
    least, most = {"small": (0, 0.18), "large": (0.3, 1), None: (0.13, 0.34)}[spec["size"]]
    return abs(one.x - x) < 0.12 and abs(one.y - y) < 0.12 and least < one.radius < most
