"""The words for a scene: its parts, the one-sentence description, and the description in detail."""

from __future__ import annotations

from demo_models.training import data as world
from demo_models.training.scenes import LARGER, Scene, Thing

PLACES_EN = [
    ["at the top left", "at the top", "at the top right"],
    ["on the left", "in the centre", "on the right"],
    ["at the bottom left", "at the bottom", "at the bottom right"],
]
PLACES_ZH = [["左上方", "上方", "右上方"], ["左边", "中间", "右边"], ["左下方", "下方", "右下方"]]


def shape_word(shape: str, lang: str, plural: bool = False) -> str:
    return world.SHAPES[shape][1] if lang == "zh" else world.SHAPES[shape][0] if plural else shape


def color_word(color: str, lang: str) -> str:
    return world.COLORS[color][1] if lang == "zh" else color


def place_word(thing: Thing, lang: str) -> str:
    column, row = thing.cell
    return (PLACES_ZH if lang == "zh" else PLACES_EN)[row][column]


def named(thing: Thing, lang: str, size: str | None = None) -> str:
    if lang == "zh":
        return world.chinese(thing.color, thing.shape, size=size)
    return world.article(" ".join(word for word in (size, thing.color, thing.shape) if word))


def listed(words: list[str], lang: str) -> str:
    """ "a, b and c"."""
    if len(words) == 1:
        return words[0]
    comma, last = ("、", "和") if lang == "zh" else (", ", " and ")
    return comma.join(words[:-1]) + last + words[-1]


def describe(scene: Scene, lang: str) -> str:
    """The canonical answer to "Describe the picture."; of a painted scene it names all that its spec says."""
    words = _objects_zh(scene) if lang == "zh" else _objects_en(scene)
    if lang == "zh":
        return f"{color_word(scene.bg, lang)}背景，{words}。"
    text = f"{words} on {world.article(scene.bg)} background."
    return text[0].upper() + text[1:]


def _objects_en(scene: Scene) -> str:
    first, last = scene.things[0], scene.things[-1]
    if scene.kind == "one":
        words = named(first, "en", first.size)
        return words if first.cell == (1, 1) else f"{words} {place_word(first, 'en')}"
    if scene.kind == "many":
        return f"{world.NUM_EN[len(scene.things)]} {first.color} {shape_word(first.shape, 'en', True)}"
    if scene.kind == "pair":
        return f"{named(first, 'en')} {'to the left of' if scene.across else 'above'} {named(last, 'en')}"
    names = [named(thing, "en") for thing in scene.things]
    if len(names) == 2:
        names = [f"{named(thing, 'en')} {place_word(thing, 'en')}" for thing in scene.things]
    return listed(names, "en")


def _objects_zh(scene: Scene) -> str:
    first, last = scene.things[0], scene.things[-1]
    if scene.kind == "one":
        words = named(first, "zh", first.size)
        return words if first.cell == (1, 1) else f"{place_word(first, 'zh')}有{words}"
    if scene.kind == "many":
        return world.chinese(first.color, first.shape, len(scene.things))
    if scene.kind == "pair":
        return f"{named(first, 'zh')}在{named(last, 'zh')}的{'左边' if scene.across else '上方'}"
    if len(scene.things) == 2:
        return "，".join(f"{place_word(thing, 'zh')}有{named(thing, 'zh')}" for thing in scene.things)
    return listed([named(thing, "zh") for thing in scene.things], "zh")


def relation(scene: Scene, thing: Thing, lang: str) -> str:
    """Where one of a pair stands as seen from the other."""
    second = thing is scene.things[1]
    name, other = shape_word(thing.shape, lang), shape_word(scene.things[not second].shape, lang)
    if lang == "zh":
        side = ["左边", "右边"][second] if scene.across else ["上方", "下方"][second]
        return f"{name}在{other}的{side}。"
    if scene.across:
        return f"The {name} is to the {['left', 'right'][second]} of the {other}."
    return f"The {name} is {['above', 'below'][second]} the {other}."


# ---------------------------------------------------------------- in detail
def detail(scene: Scene, lang: str) -> list[str]:
    """The sentences of the canonical answer to "Describe the picture in detail."."""
    return _detail_zh(scene) if lang == "zh" else _detail_en(scene)


def compared(scene: Scene, lang: str) -> str:
    """Which of two objects is larger."""
    a, b = scene.things
    if max(a.radius, b.radius) < LARGER * min(a.radius, b.radius):
        return "两个图形差不多大。" if lang == "zh" else "Both shapes are about the same size."
    large, small = (a, b) if a.radius > b.radius else (b, a)
    if lang == "zh":
        return f"{shape_word(large.shape, lang)}比{shape_word(small.shape, lang)}大。"
    return f"The {large.shape} is larger than the {small.shape}."


def _detail_en(scene: Scene) -> list[str]:
    things, first = scene.things, scene.things[0]
    start, end = f"The picture has a plain {scene.bg} background.", "There is nothing else in the picture."
    if scene.kind == "one":
        size = {
            "small": "It is small, with a lot of empty space around it.",
            "large": "It is large and easy to see.",
            None: "It is neither small nor large.",
        }[first.size]
        return [
            start,
            f"There is one shape in it, {named(first, 'en', first.size)}.",
            f"The {first.shape} is {place_word(first, 'en')} of the picture.",
            f"All of it is {first.color}.",
            size,
            f"There are no other shapes and no other colours than {first.color} and {scene.bg}.",
            end,
        ]
    n = world.NUM_EN[len(things)]
    if scene.kind == "many":
        places = listed([f"one is {place_word(thing, 'en')}" for thing in things], "en")
        return [
            start,
            f"There are {n} shapes in it.",
            f"All of them are {first.color} {shape_word(first.shape, 'en', True)} of about the same size.",
            places[0].upper() + places[1:] + ".",
            f"There are no other shapes and no other colours than {first.color} and {scene.bg}.",
            end,
        ]
    names = listed([named(thing, "en") for thing in things], "en")
    places_of = [
        f"The {thing.color} {thing.shape} is {place_word(thing, 'en')} of the picture." for thing in things
    ]
    middle = [f"There are {n} shapes in it, {names}.", *places_of]
    if scene.kind == "pair":
        middle += [relation(scene, thing, "en") for thing in things]
    if len(things) == 2:
        middle.append(compared(scene, "en"))
    return [start, *middle, end]


def _detail_zh(scene: Scene) -> list[str]:
    things, first = scene.things, scene.things[0]
    start, end = f"图片的背景是{color_word(scene.bg, 'zh')}的。", "图片里没有别的图形。"
    if scene.kind == "one":
        size = {"small": "它很小。", "large": "它很大。", None: "它不大也不小。"}[first.size]
        return [
            start,
            f"图片里有一个图形，是{named(first, 'zh', first.size)}。",
            f"{shape_word(first.shape, 'zh')}在图片的{place_word(first, 'zh')}。",
            f"它是{color_word(first.color, 'zh')}的。",
            size,
            end,
            f"图片里没有别的颜色，只有{color_word(first.color, 'zh')}和{color_word(scene.bg, 'zh')}。",
        ]
    n = world.NUM_ZH[len(things)]
    if scene.kind == "many":
        measure = world.SHAPES[first.shape][2]
        return [
            start,
            f"图片里有{n}个图形，是{world.chinese(first.color, first.shape, len(things))}。",
            "它们差不多大。",
            "，".join(f"一{measure}在{place_word(thing, 'zh')}" for thing in things) + "。",
            end,
            f"图片里没有别的颜色，只有{color_word(first.color, 'zh')}和{color_word(scene.bg, 'zh')}。",
        ]
    names = listed([named(thing, "zh") for thing in things], "zh")
    middle = [f"图片里有{n}个图形，是{names}。"]
    middle += [
        f"{color_word(thing.color, 'zh')}{shape_word(thing.shape, 'zh')}在图片的{place_word(thing, 'zh')}。"
        for thing in things
    ]
    if scene.kind == "pair":
        middle += [relation(scene, thing, "zh") for thing in things]
    if len(things) == 2:
        middle.append(compared(scene, "zh"))
    if scene.kind == "mix":
        middle.append(f"这些图形都在{color_word(scene.bg, 'zh')}的背景上。")
    return [start, *middle, end]
