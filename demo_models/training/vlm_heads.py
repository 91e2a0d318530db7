"""Throwaway heads that teach the vision tower what each image token covers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from demo_models.training import data as world
from demo_models.training import scenes
from demo_models.training.batches import CELL, MERGE, Batch


class CellHeads(nn.Module):
    """What an image token covers: shape or none, its colour, the background, its own column and row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._parts = [len(world.SHAPES) + 1, len(world.COLORS), len(world.COLORS), 8, 8]
        self._read = nn.Linear(width, sum(self._parts))

    def forward(self, cells: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the shares of cells on objects whose shape and colour are right."""
        shape, color, bg, column, row = self._read(cells).float().split(self._parts, 1)
        wanted = [part.to(cells.device) for part in cell_targets(batch.scenes, batch.grid)]
        loss = cross_entropy(shape, wanted[0]) + 0.5 * cross_entropy(color, wanted[1])
        for logits, target in zip((bg, column, row), wanted[2:], strict=True):
            loss = loss + 0.25 * cross_entropy(logits, target)
        on = wanted[1] >= 0
        return loss, {
            "shape": (shape.argmax(1) == wanted[0])[on].float().mean().item(),
            "color": (color.argmax(1) == wanted[1])[on].float().mean().item(),
        }


def cell_targets(shown: list[scenes.Scene], grid: tuple[int, int]) -> list[Tensor]:
    """Classes of each cell of each picture: shape, colour (-100 off objects), background, column, row."""
    rows, columns = grid[0] // MERGE, grid[1] // MERGE
    width, height, half = columns * CELL, rows * CELL, CELL / 2
    y, x = np.mgrid[0:rows, 0:columns] * float(CELL) + half
    shapes, colors = list(world.SHAPES), list(world.COLORS)
    of_shape = np.full((len(shown), rows, columns), len(shapes))
    of_color = np.full((len(shown), rows, columns), -100)
    for i, scene in enumerate(shown):
        nearest = np.zeros((rows, columns))
        for thing in scene.things:  # how far the cell's nearest point is inside the object
            aside = (
                np.maximum(abs(x - thing.x * width) - half, 0),
                np.maximum(abs(y - thing.y * height) - half, 0),
            )
            depth = np.hypot(*aside) - 0.8 * thing.radius * min(width, height)
            here = depth < nearest
            of_shape[i][here], of_color[i][here] = shapes.index(thing.shape), colors.index(thing.color)
            nearest = np.minimum(nearest, depth)
    of_bg = np.repeat([colors.index(scene.bg) for scene in shown], rows * columns)
    eighths = [
        np.tile((at * 8 // side).astype(np.int64).ravel(), len(shown))
        for at, side in ((x, width), (y, height))
    ]
    return [torch.from_numpy(part.reshape(-1)) for part in (of_shape, of_color, of_bg, *eighths)]
