"""The pictures that the image model is trained on: latents of many, a few of them new at each step."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo_models.training import common, vae
from demo_models.training import data as world
from demo_models.training import t2i_models as models
from demo_models.training.t2i_labels import Cells, cells

LOOSENESS = 0.15
"""Of places and sizes, see `world.place`."""
SHARES = [0.22, 0.25, 0.25, 0.14, 0.14]
"""How often each of `world.SIZES` is trained on."""
HARD = {"circle", "hexagon", "star"}
"""Shapes that come out as one another for longest."""


def sample(rng: random.Random) -> world.Spec:
    """A spec to train on: one in four shows something small, and one in four a hard shape."""
    spec, chance = world.sample_train(rng), rng.random()
    while (chance < 0.25 and spec.get("size") != "small") or (
        0.25 <= chance < 0.5 and not HARD & set(shapes(spec))
    ):
        spec = world.sample_train(rng)
    return spec


def shapes(spec: world.Spec) -> list[str]:
    """The names of the shapes in a spec."""
    return [spec["a"][1], spec["b"][1]] if spec["kind"] == "pair" else [spec["shape"]]


class Pool:
    """Latents of many pictures, a few of them replaced by new ones at each step.

    Args:
        autoencoder: makes the latents.
        count: pictures, all sizes together.
    """

    def __init__(self, autoencoder: Any, count: int, seed: int) -> None:
        self._vae = autoencoder
        self._rng = random.Random(seed)
        self._specs: dict[tuple[int, int], list[world.Spec]] = {}
        self._latents: dict[tuple[int, int], Tensor] = {}
        self._labels: dict[tuple[int, int], Cells] = {}
        for size, share in zip(world.SIZES, SHARES, strict=True):
            made = [self._new(size, 32) for _ in range(max(1, round(count * share / 32)))]
            self._specs[size] = [spec for specs, _, _ in made for spec in specs]
            self._latents[size] = torch.cat([latents for _, latents, _ in made])
            parts = [(one.ground, one.color, one.shape, one.covered) for _, _, one in made]
            self._labels[size] = Cells(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def _new(self, size: tuple[int, int], count: int) -> tuple[list[world.Spec], Tensor, Cells]:
        specs = [sample(self._rng) for _ in range(count)]
        drawn = [world.render(spec, *size, self._rng, 3, LOOSENESS) for spec in specs]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in drawn])).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 127.5 - 1).to(common.device(), memory_format=torch.channels_last)
        with common.autocast(), vae.single_frame():
            latents = models.pack(vae.encode(self._vae, pixels).contiguous())
        labels = cells(specs, [placed for _, placed in drawn], *size)
        return specs, latents.to(torch.bfloat16), labels.to(common.device())

    def refresh(self, size: tuple[int, int], count: int) -> None:
        """Replace some pictures of a size."""
        specs, latents, labels = self._new(size, count)
        index = self._rng.sample(range(len(self._specs[size])), count)
        for place, spec in zip(index, specs, strict=True):
            self._specs[size][place] = spec
        self._latents[size][index] = latents
        mine = self._labels[size]
        for name in ("ground", "color", "shape", "covered"):
            getattr(mine, name)[index] = getattr(labels, name)

    def draw(self, size: tuple[int, int], count: int) -> tuple[list[world.Spec], Tensor, Cells]:
        """Some pictures of a size."""
        index = self._rng.choices(range(len(self._specs[size])), k=count)
        place = torch.tensor(index, device=common.device())
        return (
            [self._specs[size][i] for i in index],
            self._latents[size][place].float(),
            self._labels[size].take(place),
        )
