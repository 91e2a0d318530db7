"""Packs questions and answers into rows of tokens for training and quick evaluation.

A row starts with what its branches share (a system block, a picture), and each branch is a conversation of
its own that sees the shared part and itself, never its neighbours. So a picture is looked at once for many
questions, and each answer is learnt as the first one of a conversation. Positions are those that a branch
has when it follows the shared part alone.
"""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo_models.training import chat, questions, scenes
from demo_models.training.phrases import ANSWERS, PHRASES, SYSTEMS

PATCH, MERGE = 16, 2
CELL = PATCH * MERGE
"""Pixels per side of what one image token covers."""
SIZES = [(128, 128)] * 20 + [(192, 192)] * 3 + [(192, 96), (96, 192)] * 2 + [*scenes.SOURCES]
SHARES = {
    "describe": 3.5,
    "detail": 3.0,
    "color": 1.5,
    "background": 0.15,
    "shape": 0.4,
    "shape_of": 0.8,
    "count": 0.8,
    "count_of": 1.2,
    "where": 3.0,
    "yesno": 1.6,
}
"""How often each task is asked about a picture."""
UNLIKE = 0.75
"""Share of pictures of alike objects that training skips: to tell different ones apart takes the longest."""
START, ANSWER, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
Piece = tuple[str, bool]
"""A stretch of text, and whether the model is to say it."""


@dataclasses.dataclass
class Batch:
    """Rows of equal length.

    Attributes:
        ids: (rows, length).
        positions: (3, rows, length), the rotary positions in time, height and width.
        groups: (rows, length), 0 for the shared part, from 1 for branches, -1 for padding.
        weights: (rows, length), how much the prediction of each token counts; 0 where it is given.
        patches: (all patches, patch values) of the pictures, or None.
        grid: rows and columns of patches in each picture.
        scenes: what the pictures show.
    """

    ids: Tensor
    positions: Tensor
    groups: Tensor
    weights: Tensor
    patches: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    scenes: list[scenes.Scene] = dataclasses.field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


class Encoder:
    """Token ids of texts, remembered where they recur."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._known = tokenizer, {}  # type: tuple[Any, dict[str, list[int]]]
        self.image: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.end: int = tokenizer.convert_tokens_to_ids(END)

    def __call__(self, text: str) -> list[int]:
        if (found := self._known.get(text)) is None:
            found = self._tokenizer(text).input_ids
            if len(self._known) < 50_000:
                self._known[text] = found
        return found


class Row:
    """One row while it is filled."""

    def __init__(self, encode: Encoder, length: int) -> None:
        self._encode, self._length = encode, length
        self.ids: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.groups: list[int] = []
        self.weights: list[float] = []
        self._next = self._branches = 0

    def share(self, text: str) -> None:
        """Add text to the shared part; before any branch."""
        ids = self._encode(text)
        self._add(ids, [(self._next + i,) * 3 for i in range(len(ids))], 0, [0.0] * len(ids))
        self._next += len(ids)

    def share_picture(self, rows: int, columns: int) -> None:
        """Add the tokens of a picture of so many merged cells."""
        places = [(self._next, self._next + r, self._next + c) for r in range(rows) for c in range(columns)]
        self._add([self._encode.image] * len(places), places, 0, [0.0] * len(places))
        self._next += max(rows, columns)

    def branch(self, pieces: list[Piece], weight: float = 1.0) -> bool:
        """Add a conversation that follows the shared part; False if there is no room for it.

        An answer's weight grows with the root of its length, so that long ones do not drown short ones.
        """
        ids: list[int] = []
        weights: list[float] = []
        for text, said in pieces:
            tokens = self._encode(text) + ([self._encode.end] if said else [])
            ids += tokens
            weights += [weight / math.sqrt(len(tokens)) if said else 0.0] * len(tokens)
        if len(self.ids) + len(ids) > self._length:
            return False
        self._branches += 1
        self._add(ids, [(self._next + i,) * 3 for i in range(len(ids))], self._branches, weights)
        return True

    def _add(
        self, ids: list[int], positions: list[tuple[int, int, int]], group: int, weights: list[float]
    ) -> None:
        self.ids += ids
        self.positions += positions
        self.groups += [group] * len(ids)
        self.weights += weights


def stack(rows: list[Row]) -> Batch:
    """Rows, padded to the longest."""
    length = max(len(row.ids) for row in rows)

    def padded(values: list[Any], filler: Any) -> list[Any]:
        return values + [filler] * (length - len(values))

    positions = torch.tensor([padded(row.positions, (0, 0, 0)) for row in rows])
    return Batch(
        ids=torch.tensor([padded(row.ids, 0) for row in rows]),
        positions=positions.permute(2, 0, 1).contiguous(),
        groups=torch.tensor([padded(row.groups, -1) for row in rows]),
        weights=torch.tensor([padded(row.weights, 0.0) for row in rows]),
    )


def patchify(pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Flat patches of pictures (n, 3, h, w) in [-1, 1], in the order of Qwen's processor; their grid."""
    count, channels, height, width = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    x = pixels.reshape(count, channels, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return x.reshape(count * rows * columns, channels * 2 * PATCH * PATCH), (rows, columns)


def with_pictures(batch: Batch, shown: list[scenes.Scene], pixels: list[Any]) -> Batch:
    """A batch with one picture (h, w, 3) per row."""
    patches, grid = patchify(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    return dataclasses.replace(batch, patches=patches, grid=grid, scenes=shown)


# ---------------------------------------------------------------- what is in a row
def turn(asked: str, answer: str) -> list[Piece]:
    """What follows the head of a user's message."""
    return [(asked + ANSWER, False), (answer, True)]


def _ask(scene: scenes.Scene, rng: random.Random) -> tuple[list[Piece], float]:
    """A branch about a picture, and its weight."""
    lang = rng.choice(["en", "zh"])
    if rng.random() < 0.03:
        topic = rng.choice(PHRASES[lang]["talk"])
        said = rng.choice([wording for wording in topic["said"] if not chat.held_out(wording)])
        return turn(chat.vary(said, rng), topic["answer"]), 0.5
    while True:
        task = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if asked := questions.ask(scene, task, lang, rng):
            return turn(chat.vary(asked[0], rng), asked[1]), 2.0 if task == "yesno" else 1.0


def picture_row(
    encode: Encoder, scene: scenes.Scene, cells: tuple[int, int], rng: random.Random, length: int
) -> Row:
    """A picture with as many questions as fit, or (one row in eight) one conversation of several turns."""
    row = Row(encode, length)
    row.share(chat.system(rng.choice(SYSTEMS)))
    if rng.random() < 0.125:
        _converse(row, scene, cells, rng)
        return row
    row.share(START + "<|vision_start|>")
    row.share_picture(*cells)
    row.share("<|vision_end|>")
    misses = 0
    while misses < 3:
        misses += not row.branch(*_ask(scene, rng))
    return row


def _converse(row: Row, scene: scenes.Scene, cells: tuple[int, int], rng: random.Random) -> None:
    """Turn after turn; in half of them the picture comes after the first question."""
    first, _ = _ask(scene, rng)
    last = rng.random() < 0.5
    row.share(START + (first[0][0].removesuffix(ANSWER) if last else "") + "<|vision_start|>")
    row.share_picture(*cells)
    row.share("<|vision_end|>")
    pieces = [(ANSWER if last else first[0][0], False), first[1]]
    for _ in range(rng.randint(0, 3)):
        (asked, answer), _ = _ask(scene, rng)
        pieces += [("\n" + START + asked[0], False), answer]
    while not row.branch(pieces) and len(pieces) > 2:
        del pieces[-2:]


def _scene(rng: random.Random) -> scenes.Scene:
    while (scene := scenes.sample(rng)).kind in ("one", "many") and rng.random() < UNLIKE:
        pass
    return scene


def picture_batch(encode: Encoder, rng: random.Random, count: int, length: int = 176) -> Batch:
    """Pictures of training scenes, all of one size, with questions; `length` tokens beside the picture's."""
    size = rng.choice(SIZES)
    cells = size[1] // CELL, size[0] // CELL
    shown = [_scene(rng) for _ in range(count)]
    rows = [picture_row(encode, scene, cells, rng, length + cells[0] * cells[1]) for scene in shown]
    return with_pictures(stack(rows), shown, [scenes.picture(scene, size, rng) for scene in shown])


def text_batch(encode: Encoder, rng: random.Random, count: int, length: int = 384) -> Batch:
    """Conversations without pictures: half of the rows with an image tool."""
    rows = [(tool_row if rng.random() < 0.55 else talk_row)(encode, rng, length) for _ in range(count)]
    return stack(rows)


def tool_row(encode: Encoder, rng: random.Random, length: int) -> Row:
    """One set of tools, and as many requests as fit."""
    row = Row(encode, length)
    tools, name = chat.tools_on_offer(rng)
    row.share(chat.system(rng.choice(SYSTEMS), tools))
    misses = 0
    while misses < 2:
        misses += not row.branch(_tool_talk(rng, name))
    return row


def _tool_talk(rng: random.Random, name: str) -> list[Piece]:
    lang = rng.choice(["en", "zh"])
    if rng.random() < 0.12:
        while (said := chat.small_talk(rng, lang))[1] == ANSWERS[lang]["no_tool"]:
            pass
        return turn(START + said[0], said[1])
    asked, prompt = chat.drawing(rng, lang)
    pieces = turn(START + asked, chat.tool_call(name, prompt))
    if rng.random() < 0.15:
        result = rng.choice(PHRASES["tools"]["results"])
        back = f"\n{START}<tool_response>\n{result}\n</tool_response>"
        pieces += turn(back, ANSWERS[lang]["done"])
    if rng.random() < 0.15:
        asked, prompt = chat.drawing(rng, lang)
        pieces += turn("\n" + START + asked, chat.tool_call(name, prompt))
    return pieces


def talk_row(encode: Encoder, rng: random.Random, length: int) -> Row:
    """Small talk and repeating, under one system message or none."""
    row = Row(encode, length)
    row.share(chat.system(rng.choice(SYSTEMS)))
    misses = 0
    while misses < 2:
        lang, pieces = rng.choice(["en", "zh"]), []
        ask = chat.repeating if rng.random() < 0.3 else chat.small_talk
        for i in range(rng.choice([1, 1, 1, 2])):
            asked, answer = ask(rng, lang)
            pieces += turn(("\n" if i else "") + START + asked, answer)
        misses += not row.branch(pieces)
    return row
