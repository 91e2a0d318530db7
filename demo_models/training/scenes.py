"""Scenes for the vision-language model: what stands where in a picture, and pictures of it, clean or worn.

Half of the scenes are those that the image model paints (`data.sample_spec`). The others are free: one to
four objects of any size in any cell of a three by three grid, so that pictures from elsewhere are understood
too. Cells, sizes and distances keep clear of the borders between two words: each question has one answer.
"""

from __future__ import annotations

import dataclasses
import io
import random
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from demo_models.training import data as world

SMALL, LARGE = 0.16, 0.32
"""Radii, as shares of the shorter side, below which a single object is called small, above which large."""
LARGER = 1.3
"""From this ratio of two radii on, one object is called larger than the other."""
BANDS = ((0.15, 0.33), (0.42, 0.58), (0.67, 0.85))
SOURCES = {  # size after the image processor: sizes as sent
    (128, 128): [(128, 128)] * 4 + [(144, 112), (112, 144), (96, 96), (120, 120)],
    (192, 96): [(176, 96), (176, 96), (192, 96)],
    (96, 192): [(96, 176), (96, 176), (96, 192)],
    (192, 192): [(192, 192)] * 3 + [(256, 256)] * 3 + [(384, 384), (512, 512)],
    (192, 160): [(320, 240), (400, 300), (192, 160)],
    (160, 192): [(240, 320), (300, 400), (160, 192)],
    (160, 128): [(160, 128)],
    (128, 160): [(128, 160)],
    (160, 160): [(160, 160)],
    (256, 128): [(320, 180), (512, 288), (256, 128)],
    (128, 256): [(180, 320), (288, 512), (128, 256)],
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object: centre as shares of width and height, radius as a share of the shorter side."""

    shape: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row, 0 to 2 each."""
        return tuple(0 if share < 0.375 else 1 if share < 0.625 else 2 for share in (self.x, self.y))  # type: ignore[return-value]

    @property
    def size(self) -> str | None:
        return "small" if self.radius < SMALL else "large" if self.radius > LARGE else None


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order (of a pair: the left or upper one first) on a background.

    Attributes:
        kind: "one"; "many" alike; "pair" beside or above each other; "mix", different shapes anywhere.
        spec: what decides whether the scene is held out.
    """

    kind: str
    bg: str
    things: tuple[Thing, ...]
    spec: world.Spec

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Colour and shape of each different object."""
        return list(dict.fromkeys((thing.color, thing.shape) for thing in self.things))

    @property
    def across(self) -> bool:
        """Whether a pair stands side by side."""
        return self.things[0].cell[1] == self.things[1].cell[1]


def sample(rng: random.Random, test: bool = False) -> Scene:
    """A scene; `test` decides whether a held-out one or one of the others."""
    if rng.random() < 0.5:
        return of_spec((world.sample_test if test else world.sample_train)(rng), rng)
    while world.held_out((scene := _free(rng)).spec) != test:
        pass
    return scene


def of_spec(spec: world.Spec, rng: random.Random, looseness: float | None = None) -> Scene:
    """A scene that an image model would be right to paint for a spec."""
    placed = world.place(spec, rng, rng.uniform(0.3, 1.0) if looseness is None else looseness)
    return Scene(spec["kind"], spec["bg"], tuple(Thing(*one) for one in placed), spec)


def _free(rng: random.Random) -> Scene:
    bg = rng.choice([*world.COLORS, *["white"] * 5])
    colors = [color for color in world.COLORS if color != bg]
    count, alike = rng.choice([1, 1, 2, 2, 2, 3, 3, 4, 4]), rng.random() < 0.3
    shapes = [rng.choice(list(world.SHAPES))] * count if alike else rng.sample(list(world.SHAPES), count)
    paints = [rng.choice(colors)] * count if alike else rng.choices(colors, k=count)
    while (spots := _spots(count, rng, alike)) is None:
        pass
    ordered = sorted(zip(paints, shapes, spots, strict=True), key=lambda one: one[2][:2])
    things = tuple(Thing(shape, paint, *spot[2:]) for paint, shape, spot in ordered)
    cells = [thing.cell for thing in things]
    aligned = count == 2 and any(a == b for a, b in zip(*cells, strict=True))
    kind = "one" if count == 1 else "many" if alike else "pair" if aligned else "mix"
    spec: dict[str, Any] = {"kind": "free", "things": sorted(zip(paints, shapes, strict=True)), "bg": bg}
    return Scene(kind, bg, things, spec)


def _spots(count: int, rng: random.Random, alike: bool) -> list[tuple[int, int, float, float, float]] | None:
    """Row, column, centre and radius for each of some objects; None if they came too close to each other."""
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], count)
    if count == 1:
        radius = rng.choice([rng.uniform(0.095, 0.145), rng.uniform(0.175, 0.29), rng.uniform(0.345, 0.45)])
        cells = [(1, 1)] if radius > LARGE else cells
        radii = [radius]
    else:
        most = 0.19 if count < 4 else 0.16
        radii = [rng.uniform(0.1, most)] * count if alike else [rng.uniform(0.1, most) for _ in cells]
        if count == 2 and 1.2 < max(radii) / min(radii) < 1.45:
            return None
    spots = [
        (row, column, _within(rng, column, radius), _within(rng, row, radius), radius)
        for (row, column), radius in zip(cells, radii, strict=True)
    ]
    if count == 2:  # neighbours are well aligned, so that "left of" and "above" are never both true
        (row, column, x, y, _), (row2, column2, x2, y2, radius2) = spots
        y2 = y + rng.uniform(-0.02, 0.02) if row == row2 else y2
        x2 = x + rng.uniform(-0.02, 0.02) if column == column2 else x2
        spots[1] = (row2, column2, x2, y2, radius2)
    for i, (_, _, x, y, radius) in enumerate(spots):
        if any((x - a) ** 2 + (y - b) ** 2 < (1.15 * (radius + r)) ** 2 for _, _, a, b, r in spots[:i]):
            return None
    return spots


def _within(rng: random.Random, band: int, radius: float) -> float:
    low, high = BANDS[band]
    return min(max(rng.uniform(low, high), min(0.95 * radius, 0.33)), max(1 - 0.95 * radius, 0.67))


# ---------------------------------------------------------------- pictures
def draw(scene: Scene, size: tuple[int, int], rng: random.Random, jitter: int = 0) -> Image.Image:
    """A clean picture of width x height pixels."""
    placed = [dataclasses.astuple(thing) for thing in scene.things]
    return world.draw(placed, scene.bg, *size, rng, jitter)  # type: ignore[arg-type]


def picture(scene: Scene, size: tuple[int, int], rng: random.Random) -> np.ndarray[Any, Any]:
    """A picture as training sees it: drawn at some size, worn, brought to `size`; (h, w, 3) in [-1, 1]."""
    image = draw(scene, rng.choice(SOURCES[size]), rng, rng.choice([0, 8, 16, 24]))
    image = wear(image, rng)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, np.float32)
        pixels = np.clip(pixels + noise * rng.uniform(0.01, 0.08), -1, 1)
    return pixels


def wear(image: Image.Image, rng: random.Random) -> Image.Image:
    """What may happen to a picture on its way here: bent edges, uneven light, blur, JPEG."""
    if rng.random() < 0.25:
        image = _bend(image, rng)
    if rng.random() < 0.2:
        image = _shade(image, rng)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(30, 92))
        image = Image.open(buffer).convert("RGB")
    return image


def _bend(image: Image.Image, rng: random.Random) -> Image.Image:
    """Each corner of a coarse grid a little off, as in shapes from an unsure painter."""
    (width, height), n = image.size, 6
    most = 0.018 * min(width, height)
    shift = {
        (i, j): (rng.uniform(-most, most), rng.uniform(-most, most))
        for i in range(n + 1)
        for j in range(n + 1)
    }

    def corner(i: int, j: int) -> tuple[float, float]:
        return width * i / n + shift[i, j][0], height * j / n + shift[i, j][1]

    mesh = []
    for i in range(n):
        for j in range(n):
            box = (width * i // n, height * j // n, width * (i + 1) // n, height * (j + 1) // n)
            quad = (*corner(i, j), *corner(i, j + 1), *corner(i + 1, j + 1), *corner(i + 1, j))
            mesh.append((box, quad))
    fill = image.getpixel((0, 0))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR, fillcolor=fill)


def _shade(image: Image.Image, rng: random.Random) -> Image.Image:
    """Darker towards some side."""
    coarse = Image.new("L", (2, 2))
    coarse.putdata([rng.randint(215, 255) for _ in range(4)])
    light = coarse.resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, Image.new("RGB", image.size), light)
