"""What is known of each prompt and of each token of its picture, as classes to predict while training.

The denoising loss alone takes very long until words and places matter at all. Linear heads on the text
encoder, and on the transformer's image states, learn these labels beside it, and are dropped afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from demo_models.training import data as world
from demo_models.training.t2i_models import HEAD_WIDTH, HEADS, TEXT_WIDTH

COLORS, SHAPES = list(world.COLORS), list(world.SHAPES)
CELL = 16
"""Pixels along a token's side."""
FINE = 4
"""A token's cell is FINE x FINE squares, each covered by an object or not."""
MOST_ROWS = 11
SKIP = -100

PROMPT_CLASSES = [10, 5, 10, 9, 10, 9, 3, 3, 5]
"""Background; one, 2, 3, 4 or a pair; colour and shape, twice; relation; size; place."""


def prompt_labels(spec: world.Spec) -> list[int]:
    """A spec as PROMPT_CLASSES; SKIP where one does not apply."""
    pair = spec["kind"] == "pair"
    a, b = (spec["a"], spec["b"]) if pair else ((spec["color"], spec["shape"]), None)
    one = spec["kind"] == "one"
    return [
        COLORS.index(spec["bg"]),
        {"one": 0, "many": spec.get("n", 1) - 1, "pair": 4}[spec["kind"]],
        COLORS.index(a[0]),
        SHAPES.index(a[1]),
        COLORS.index(b[0]) if b else SKIP,
        SHAPES.index(b[1]) if b else SKIP,
        ["left", "above", None].index(spec["rel"]) if pair else SKIP,
        [None, "small", "large"].index(spec["size"]) if one else SKIP,
        [None, "left", "right", "top", "bottom"].index(spec["pos"]) if one else SKIP,
    ]


class PromptHeads(nn.Module):
    """Reads PROMPT_CLASSES off the text encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(TEXT_WIDTH, sum(PROMPT_CLASSES))

    def forward(self, states: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and which prompts (n,) are wholly understood at their last token.

        Every token is asked: most answers are known only at the end, but words teach their neighbours sooner.
        """
        place = mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1], device=mask.device)
        weight = (mask * (0.2 + (place < 4))).flatten()
        last = mask.sum(1) - 1
        rows = torch.arange(len(labels), device=mask.device)
        loss, right = states.new_zeros(()), torch.ones(len(labels), dtype=torch.bool, device=mask.device)
        for number, scores in enumerate(self.linear(states).float().split(PROMPT_CLASSES, -1)):
            label = labels[:, number]
            spread = label[:, None].expand(mask.shape).flatten()
            each = cross_entropy(scores.flatten(0, 1), spread, reduction="none", ignore_index=SKIP)
            loss = loss + (each * weight).sum() / weight[spread >= 0].sum().clamp(min=1)
            right &= (scores[rows, last].argmax(-1) == label) | (label < 0)
        return loss, right


@dataclass(frozen=True)
class Cells:
    """Labels of every token of pictures of one size; n pictures, t tokens."""

    ground: Tensor
    """(n,) background colour."""
    color: Tensor
    """(n, t) colour of the object in the cell; SKIP if none."""
    shape: Tensor
    """(n, t) 0 for none, else 1 + shape."""
    covered: Tensor
    """(n, t, FINE * FINE) boolean."""

    def to(self, device: torch.device) -> Cells:
        return Cells(*(part.to(device) for part in (self.ground, self.color, self.shape, self.covered)))

    def take(self, index: Tensor) -> Cells:
        return Cells(*(part[index] for part in (self.ground, self.color, self.shape, self.covered)))


def cells(specs: list[world.Spec], placed: list[list[world.Placed]], width: int, height: int) -> Cells:
    """The labels of pictures of one size."""
    made = [_cells(objects, width, height) for objects in placed]
    color, shape, covered = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return Cells(torch.tensor([COLORS.index(spec["bg"]) for spec in specs]), color, shape, covered)


def _cells(placed: list[world.Placed], width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = height // CELL, width // CELL
    color = np.full(rows * columns, SKIP)
    shape = np.zeros(rows * columns, np.int64)
    most = np.zeros(rows * columns)
    covered = np.zeros((rows * columns, FINE * FINE), bool)
    for name, tint, fx, fy, radius in placed:
        side = max(6, round(2 * radius * min(width, height)))
        x, y = round(fx * width - side / 2), round(fy * height - side / 2)
        canvas = np.zeros((height, width), bool)
        stamp = np.asarray(world.mask(name, side)) > 127
        top, left, bottom, right = max(0, y), max(0, x), min(height, y + side), min(width, x + side)
        canvas[top:bottom, left:right] = stamp[top - y : bottom - y, left - x : right - x]
        step = CELL // FINE
        fine = canvas.reshape(rows, FINE, step, columns, FINE, step).mean((2, 5)) > 0.5
        covered |= fine.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
        share = canvas.reshape(rows, CELL, columns, CELL).mean((1, 3)).flatten()
        wins = (share > 0.02) & (share > most)
        color[wins], shape[wins], most[wins] = COLORS.index(tint), 1 + SHAPES.index(name), share[wins]
    return color, shape, covered


class CellHeads(nn.Module):
    """Reads each token's place off early image states, and what is to be painted there off middle ones."""

    def __init__(self) -> None:
        super().__init__()
        width = HEADS * HEAD_WIDTH
        self.place = nn.Linear(width, 2 * MOST_ROWS)
        self.what = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10 + 10 + 10 + FINE * FINE))

    def forward(self, after: list[Tensor], labels: Cells, width: int, height: int) -> dict[str, Tensor]:
        """Named losses."""
        early, middle = after[0], after[len(after) // 2]
        rows, columns = height // CELL, width // CELL
        row = torch.arange(rows, device=early.device).repeat_interleave(columns).expand(len(early), -1)
        column = torch.arange(columns, device=early.device).repeat(rows).expand(len(early), -1)
        at = self.place(early).float().split(MOST_ROWS, -1)
        ground, color, shape, covered = self.what(middle).float().split([10, 10, 10, FINE * FINE], -1)
        bg = labels.ground[:, None].expand(row.shape)
        return {
            "place": cross_entropy(at[0].flatten(0, 1), row.flatten())
            + cross_entropy(at[1].flatten(0, 1), column.flatten()),
            "ground": cross_entropy(ground.flatten(0, 1), bg.flatten()),
            "color": cross_entropy(color.flatten(0, 1), labels.color.flatten(), ignore_index=SKIP),
            "shape": cross_entropy(shape.flatten(0, 1), labels.shape.flatten()),
            "covered": binary_cross_entropy_with_logits(covered, labels.covered.float()),
        }
