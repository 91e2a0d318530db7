"""Shapes world: unlimited pictures of simple shapes, free of any licence, with English and Chinese words.

A *spec* is a small dict that says what is in a picture (see `sample_spec`). `render` draws it, `prompt` asks
an image model for it, `describe` answers as a vision-language model should. `held_out` marks about 5% of all
specs, which no training ever sees.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from typing import Any

from PIL import Image, ImageDraw

Spec = dict[str, Any]
"""kind "one": color, shape, size, pos, bg; "many": n, color, shape, bg; "pair": a, b, rel, bg."""
Placed = tuple[str, str, float, float, float]
"""shape, colour, centre x and y as shares of width and height, radius as a share of the shorter side."""

COLORS = {  # name: (RGB, Chinese)
    "red": ((226, 32, 38), "红色"),
    "orange": ((255, 140, 0), "橙色"),
    "yellow": ((255, 222, 20), "黄色"),
    "green": ((28, 160, 62), "绿色"),
    "cyan": ((40, 205, 220), "青色"),
    "blue": ((34, 74, 214), "蓝色"),
    "purple": ((126, 44, 176), "紫色"),
    "pink": ((255, 150, 190), "粉色"),
    "black": ((18, 18, 18), "黑色"),
    "white": ((255, 255, 255), "白色"),
}
SHAPES = {  # name: (plural, Chinese, Chinese measure word)
    "circle": ("circles", "圆形", "个"),
    "square": ("squares", "方形", "个"),
    "triangle": ("triangles", "三角形", "个"),
    "star": ("stars", "星星", "颗"),
    "heart": ("hearts", "心形", "个"),
    "hexagon": ("hexagons", "六边形", "个"),
    "diamond": ("diamonds", "菱形", "个"),
    "ring": ("rings", "圆环", "个"),
    "cross": ("crosses", "十字", "个"),
}
POS = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}
POS_EN = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
POS_ZH = {"left": "左边", "right": "右边", "top": "上方", "bottom": "下方", None: "中间"}
NUM_EN = {0: "no", 1: "one", 2: "two", 3: "three", 4: "four"}
NUM_ZH = {0: "没有", 1: "一", 2: "两", 3: "三", 4: "四"}
SIZES = [(128, 128), (176, 96), (96, 176), (144, 112), (112, 144)]
"""Picture sizes of the image model, all of about 64 tokens of 16x16 pixels: 1:1, 16:9, 9:16, 4:3, 3:4."""
GRIDS = {
    2: [(0.28, 0.5), (0.72, 0.5)],
    3: [(0.5, 0.28), (0.27, 0.71), (0.73, 0.71)],
    4: [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
}


# ---------------------------------------------------------------- drawing
def _star(i: int) -> tuple[float, float]:
    radius = 0.52 if i % 2 == 0 else 0.21
    return 0.5 + radius * math.sin(i * math.pi / 5), 0.53 - radius * math.cos(i * math.pi / 5)


def _heart(i: int) -> tuple[float, float]:
    t = i / 80 * 2 * math.pi
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 0.5 + x / 33, 0.46 - y / 33


def _hexagon(i: int) -> tuple[float, float]:
    return 0.5 + 0.5 * math.cos(i * math.pi / 3), 0.5 + 0.5 * math.sin(i * math.pi / 3)


POLYGONS = {
    "triangle": [(0.5, 0.04), (1, 0.94), (0, 0.94)],
    "star": [_star(i) for i in range(10)],
    "heart": [_heart(i) for i in range(80)],
    "hexagon": [_hexagon(i) for i in range(6)],
    "diamond": [(0.5, 0), (0.88, 0.5), (0.5, 1), (0.12, 0.5)],
}


@functools.lru_cache(maxsize=4096)
def mask(shape: str, side: int) -> Image.Image:
    """Antialiased mask of a shape, side x side, drawn at four times the size and shrunk."""
    n = side * 4
    image = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(image)
    if shape in POLYGONS:
        draw.polygon([(x * n, y * n) for x, y in POLYGONS[shape]], fill=255)
    elif shape == "square":
        draw.rectangle((n * 0.07, n * 0.07, n * 0.93, n * 0.93), fill=255)
    elif shape == "cross":
        draw.rectangle((n * 0.34, 0, n * 0.66, n), fill=255)
        draw.rectangle((0, n * 0.34, n, n * 0.66), fill=255)
    else:
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
        if shape == "ring":
            draw.ellipse((n * 0.27, n * 0.27, n * 0.73, n * 0.73), fill=0)
    return image.resize((side, side), Image.Resampling.BOX)


def place(spec: Spec, rng: random.Random, looseness: float = 1.0) -> list[Placed]:
    """Where each object of a spec goes.

    Args:
        looseness: how far places and radii stray from the middle of what the words allow. The image model
            is trained with little, so that a prompt nearly decides its picture; the other one with 1.
    """

    def stray(middle: float, most: float) -> float:
        return middle + looseness * rng.uniform(-most, most)

    kind = spec["kind"]
    if kind == "one":
        fx, fy = POS.get(spec["pos"], (0.5, 0.5))
        middle, most = {"small": (0.145, 0.01), "large": (0.39, 0.03), None: (0.25, 0.03)}[spec["size"]]
        if spec["pos"] and spec["size"] != "small":
            middle, most = 0.2, 0.02
        return [(spec["shape"], spec["color"], stray(fx, 0.035), stray(fy, 0.035), stray(middle, most))]
    if kind == "many":
        radius = stray(0.172, 0.017)
        return [
            (spec["shape"], spec["color"], stray(x, 0.025), stray(y, 0.025), radius)
            for x, y in GRIDS[spec["n"]]
        ]
    across = (spec["rel"] or "left") == "left"
    points = [(0.27, 0.5), (0.73, 0.5)] if across else [(0.5, 0.27), (0.5, 0.73)]
    return [
        (shape, color, stray(x, 0.03), stray(y, 0.03), stray(0.19, 0.02))
        for (color, shape), (x, y) in zip((spec["a"], spec["b"]), points, strict=True)
    ]


def color_rgb(name: str, rng: random.Random, jitter: int = 0) -> tuple[int, int, int]:
    """A colour, each channel off by at most `jitter`."""
    red, green, blue = (
        max(0, min(255, channel + (rng.randint(-jitter, jitter) if jitter else 0)))
        for channel in COLORS[name][0]
    )
    return red, green, blue


def draw(
    placed: list[Placed], bg: str, width: int, height: int, rng: random.Random, jitter: int = 0
) -> Image.Image:
    """The picture of placed objects, the first at the bottom."""
    image = Image.new("RGB", (width, height), color_rgb(bg, rng, jitter))
    for shape, color, fx, fy, radius in placed:
        side = max(6, round(2 * radius * min(width, height)))
        corner = round(fx * width - side / 2), round(fy * height - side / 2)
        image.paste(color_rgb(color, rng, jitter), corner, mask(shape, side))
    return image


def render(
    spec: Spec, width: int, height: int, rng: random.Random, jitter: int = 0, looseness: float = 1.0
) -> tuple[Image.Image, list[Placed]]:
    """A picture of a spec, and what is where in it."""
    placed = place(spec, rng, looseness)
    return draw(placed, spec["bg"], width, height, rng, jitter), placed


# ---------------------------------------------------------------- specs
def sample_spec(rng: random.Random) -> Spec:
    """Half single objects, a quarter two to four alike, a quarter pairs."""
    colors, shapes = list(COLORS), list(SHAPES)
    bg = "white" if rng.random() < 0.4 else rng.choice(colors)
    front = [color for color in colors if color != bg]
    chance = rng.random()
    if chance < 0.5:
        pos = rng.choice(list(POS)) if rng.random() < 0.35 else None
        size = rng.choice([None, None, "small", "large"] if pos is None else [None, None, None, "small"])
        color, shape = rng.choice(front), rng.choice(shapes)
        return {"kind": "one", "color": color, "shape": shape, "size": size, "pos": pos, "bg": bg}
    if chance < 0.75:
        n, color, shape = rng.randint(2, 4), rng.choice(front), rng.choice(shapes)
        return {"kind": "many", "n": n, "color": color, "shape": shape, "bg": bg}
    a = (rng.choice(front), rng.choice(shapes))
    b = (rng.choice(front), rng.choice([shape for shape in shapes if shape != a[1]]))
    return {"kind": "pair", "a": a, "b": b, "rel": rng.choice(["left", "above", None]), "bg": bg}


def held_out(spec: Spec) -> bool:
    """Whether a spec is for evaluation only: about 5% of them, by a hash."""
    key = repr(sorted(spec.items()))
    return hashlib.md5(key.encode()).digest()[0] < 13


def sample_train(rng: random.Random) -> Spec:
    """A spec that is not held out."""
    while held_out(spec := sample_spec(rng)):
        pass
    return spec


def sample_test(rng: random.Random) -> Spec:
    """A spec that is held out."""
    while not held_out(spec := sample_spec(rng)):
        pass
    return spec


# ---------------------------------------------------------------- words
def article(words: str) -> str:
    """With "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def chinese(color: str, shape: str, n: int = 1, size: str | None = None, measure: bool = True) -> str:
    """Number and measure word, size, colour, shape."""
    number = f"{NUM_ZH[n]}{SHAPES[shape][2]}" if measure else ""
    return (
        f"{number}{ {'small': '小的', 'large': '大的', None: ''}[size] }{COLORS[color][1]}{SHAPES[shape][1]}"
    )


def body(spec: Spec, rng: random.Random | None, lang: str) -> str:
    """The words that name the objects; without a random generator the one canonical wording."""
    return _body_en(spec, rng) if lang == "en" else _body_zh(spec, rng)


def _pick(rng: random.Random | None, *options: str) -> str:
    return options[0] if rng is None else rng.choice(options)


def _body_en(spec: Spec, rng: random.Random | None) -> str:
    if spec["kind"] == "one":
        size = {
            "small": _pick(rng, "small", "small", "tiny", "little"),
            "large": _pick(rng, "large", "large", "big"),
            None: "",
        }[spec["size"]]
        words = article(f"{size} {spec['color']} {spec['shape']}".strip())
        return f"{words} {POS_EN[spec['pos']]}" if spec["pos"] else words
    if spec["kind"] == "many":
        number = _pick(rng, NUM_EN[spec["n"]], NUM_EN[spec["n"]], str(spec["n"]))
        return f"{number} {spec['color']} {SHAPES[spec['shape']][0]}"
    a, b = (article(" ".join(one)) for one in (spec["a"], spec["b"]))
    if spec["rel"] is None:  # in the order in which they stand from left to right
        return f"{a} and {b}"
    if spec["rel"] == "left":
        return _pick(
            rng,
            f"{a} to the left of {b}",
            f"{a} left of {b}",
            f"{b} to the right of {a}",
            f"{b} right of {a}",
        )
    return _pick(rng, f"{a} above {b}", f"{b} below {a}", f"{a} on top of {b}", f"{b} under {a}")


def _body_zh(spec: Spec, rng: random.Random | None) -> str:
    measure = rng is None or rng.random() < 0.5
    if spec["kind"] == "one":
        words = chinese(spec["color"], spec["shape"], size=spec["size"], measure=measure)
        place = POS_ZH[spec["pos"]]
        return _pick(rng, f"{place}有{words}", f"{words}在{place}") if spec["pos"] else words
    if spec["kind"] == "many":
        return chinese(spec["color"], spec["shape"], spec["n"])
    a, b = chinese(*spec["a"], measure=measure), chinese(*spec["b"], measure=measure)
    if spec["rel"] is None:
        return f"{a}和{b}"
    if spec["rel"] == "left":
        return _pick(rng, f"{a}在{b}的左边", f"{b}在{a}的右边")
    return _pick(rng, f"{a}在{b}的上方", f"{b}在{a}的下方")


_BEFORE = [""] * 6 + ["draw ", "please draw ", "Draw ", "paint "]
_BEFORE += ["a picture of ", "an image of ", "A picture of "]
_BEFORE_ZH = [""] * 5 + ["画", "请画", "一张图片，", "画一张图片："]


def prompt(spec: Spec, rng: random.Random, lang: str | None = None) -> str:
    """A request for this picture in one of several phrasings; a white background may go unsaid."""
    lang = lang or ("zh" if rng.random() < 0.4 else "en")
    words, bg = body(spec, rng, lang), spec["bg"]
    says_bg = bg != "white" or rng.random() < 0.3
    if lang == "zh":
        if says_bg:
            front = f"{COLORS[bg][1]}背景，{words}" if spec.get("pos") else f"{COLORS[bg][1]}背景上的{words}"
            words = rng.choice([front, f"{words}，{COLORS[bg][1]}背景", f"{COLORS[bg][1]}背景，{words}"])
        return rng.choice(_BEFORE_ZH) + words + rng.choice(["", "", "。"])
    if says_bg:
        on = f"{words} on {article(bg)} background"
        words = rng.choice([on, on, f"{words}, {bg} background", f"{words} with {article(bg)} background"])
    words = rng.choice(_BEFORE) + words + rng.choice(["", "", "", "."])
    return words[0].upper() + words[1:] if rng.random() < 0.3 else words


def describe(spec: Spec, lang: str) -> str:
    """The canonical answer to "Describe the picture."."""
    words, bg = body(spec, None, lang), spec["bg"]
    if lang == "zh":
        return f"{COLORS[bg][1]}背景，{words}。"
    text = f"{words} on {article(bg)} background."
    return text[0].upper() + text[1:]
