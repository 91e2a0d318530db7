"""Prompts to compare checkpoints with when the caller brings none: small enough for the demo model."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

COLORS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "black", "white"]
SHAPES = ["circle", "square", "triangle", "star", "heart", "hexagon", "diamond", "ring", "cross"]


def default_prompts(count: int) -> list[str]:
    """`count` of them, the same each time. Raises ValueError: more than there are."""
    every = [
        f"{_article(color)} {shape} on {_article(ground)} background"
        for color, shape, ground in product(COLORS, SHAPES, COLORS)
        if color != ground
    ]
    if not 1 <= count <= len(every):
        raise ValueError(f"{count} prompts: ask for 1 to {len(every)}, or bring a file of your own")
    return random.Random(0).sample(every, count)


def read_prompts(path: Path) -> list[str]:
    """One a line; empty lines and those that begin with # are left out. Raises ValueError: none are left."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return prompts


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
