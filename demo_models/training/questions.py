"""Questions about a scene with their one right answer, in English and Chinese."""

from __future__ import annotations

import random
from collections.abc import Callable

from demo_models.training import data as world
from demo_models.training.descriptions import (
    color_word,
    describe,
    detail,
    place_word,
    relation,
    shape_word,
)
from demo_models.training.phrases import ASKED
from demo_models.training.scenes import Scene

Turn = tuple[str, str]
"""A question and its answer."""


def ask(scene: Scene, task: str, lang: str, rng: random.Random) -> Turn | None:
    """A question of a task about a scene, and its answer; None if the scene is not one to ask that about."""
    answer = _ANSWERS[task]
    return answer(scene, lang, rng.choice(ASKED[lang][task]), rng)


# ---------------------------------------------------------------- short answers
def _describe(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    return asked, describe(scene, lang)


def _ask_color(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    color, shape = rng.choice(scene.kinds)
    many = scene.kind == "many"
    name = shape_word(shape, lang, many)
    if lang == "zh":
        return asked.format(name), f"{name}是{color_word(color, lang)}的。"
    asked = asked.replace(" is the {}", " are the {}") if many else asked
    return asked.format(name), f"The {name} {'are' if many else 'is'} {color}."


def _ask_background(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    color = color_word(scene.bg, lang)
    return asked, f"背景是{color}的。" if lang == "zh" else f"The background is {color}."


def _is_shape(scene: Scene, shape: str, lang: str) -> str:
    if lang == "zh":
        return f"这是{shape_word(shape, lang)}。"
    many = scene.kind == "many"
    return f"They are {shape_word(shape, lang, True)}." if many else f"It is {world.article(shape)}."


def _ask_shape(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn | None:
    if len(scene.kinds) > 1:
        return None
    return asked, _is_shape(scene, scene.kinds[0][1], lang)


def _ask_shape_of(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn | None:
    colors = [color for color, _ in scene.kinds]
    single = [kind for kind in scene.kinds if colors.count(kind[0]) == 1]
    if not single:
        return None
    color, shape = rng.choice(single)
    if scene.kind == "many" and lang == "en":
        asked = "What shape are the {} objects?"
    return asked.format(color_word(color, lang)), _is_shape(scene, shape, lang)


def _ask_count(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    n = len(scene.things)
    if lang == "zh":
        return asked, f"有{world.NUM_ZH[n]}个图形。"
    return asked, "There is one shape." if n == 1 else f"There are {world.NUM_EN[n]} shapes."


def _ask_count_of(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    shapes = [thing.shape for thing in scene.things]
    others = [shape for shape in world.SHAPES if shape not in shapes]
    shape = rng.choice(others if rng.random() < 0.25 else shapes)
    n = shapes.count(shape)
    question = asked.format(shape_word(shape, lang, True))
    if lang == "zh":
        number = f"有{world.NUM_ZH[n]}{world.SHAPES[shape][2]}" if n else "没有"
        return question, f"{number}{shape_word(shape, lang)}。"
    return question, (
        f"There is one {shape}."
        if n == 1
        else f"There are {world.NUM_EN[n]} {shape_word(shape, lang, True)}."
    )


def _ask_where(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn | None:
    if scene.kind == "many":
        return None
    thing = rng.choice(scene.things)
    name = shape_word(thing.shape, lang)
    if scene.kind == "pair":
        return asked.format(name), relation(scene, thing, lang)
    place = place_word(thing, lang)
    return asked.format(name), f"{name}在{place}。" if lang == "zh" else f"The {name} is {place}."


# ---------------------------------------------------------------- yes and no
def _ask_yesno(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    color, shape = rng.choice(scene.kinds)
    yes, form = rng.random() < 0.5, rng.random()
    if form < 0.1 and scene.kind != "many":
        color = color if yes else _other(color, [*scene.kinds, (scene.bg, "")], 0, rng)
        if lang == "zh":
            return (
                f"{shape_word(shape, lang)}是{color_word(color, lang)}的吗？",
                "是的。" if yes else "不是。",
            )
        return f"Is the {shape} {color}?", "Yes, it is." if yes else "No, it is not."
    if form < 0.2:
        shape = shape if yes else _absent([kind[1] for kind in scene.kinds], list(world.SHAPES), rng)
        words = shape_word(shape, lang) if lang == "zh" else world.article(shape)
    elif form < 0.3:
        color = color if yes else _absent([kind[0] for kind in scene.kinds], list(world.COLORS), rng)
        words = f"{color_word(color, lang)}的图形" if lang == "zh" else f"anything {color}"
        if color == scene.bg and not yes:
            return _ask_yesno(scene, lang, asked, rng)
    else:
        color, shape = (color, shape) if yes else _near_miss(scene, color, shape, rng)
        words = (
            world.chinese(color, shape, measure=False) if lang == "zh" else world.article(f"{color} {shape}")
        )
    if lang == "zh":
        return asked.format(words), "有。" if yes else "没有。"
    return asked.format(words), "Yes, there is." if yes else "No, there is not."


def _absent(present: list[str], options: list[str], rng: random.Random) -> str:
    return rng.choice([option for option in options if option not in present])


def _other(value: str, kinds: list[tuple[str, str]], part: int, rng: random.Random) -> str:
    """Another colour (part 0) or shape (part 1), often one that is in the picture too."""
    near = [kind[part] for kind in kinds if kind[part] != value]
    options = list(world.COLORS) if part == 0 else list(world.SHAPES)
    return rng.choice(near) if near and rng.random() < 0.5 else _absent([value], options, rng)


def _near_miss(scene: Scene, color: str, shape: str, rng: random.Random) -> tuple[str, str]:
    """A colour and a shape that are not together in the picture; mostly one of them is right."""
    missed = color, shape
    while missed in scene.kinds:
        chance = rng.random()
        missed = (
            color if 0.45 <= chance < 0.9 else _other(color, [*scene.kinds, (scene.bg, "")], 0, rng),
            shape if chance < 0.45 else _other(shape, scene.kinds, 1, rng),
        )
    return missed


def _ask_detail(scene: Scene, lang: str, asked: str, rng: random.Random) -> Turn:
    return asked, ("" if lang == "zh" else " ").join(detail(scene, lang))


_ANSWERS: dict[str, Callable[[Scene, str, str, random.Random], Turn | None]] = {
    "describe": _describe,
    "detail": _ask_detail,
    "color": _ask_color,
    "background": _ask_background,
    "shape": _ask_shape,
    "shape_of": _ask_shape_of,
    "count": _ask_count,
    "count_of": _ask_count_of,
    "where": _ask_where,
    "yesno": _ask_yesno,
}
