"""How far the training of the vision-language model is: whole answers right on held-out data, in seconds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from demo_models.training import batches, chat, common, questions, scenes, vlm_model
from demo_models.training.batches import Batch, Encoder
from demo_models.training.phrases import TASKS


@torch.no_grad()
def evaluate(model: Any, encode: Encoder, pictures: int = 48, seed: int = 7) -> dict[str, list[bool]]:
    """Whole answers right, per task and language, on held-out scenes; `evaluate_vlm` asks the real engine.

    With the right answer so far as input this equals greedy decoding.
    """
    rng, right = random.Random(seed), {}  # type: tuple[random.Random, dict[str, list[bool]]]
    device = next(model.parameters()).device
    for _ in range(pictures // 16):
        shown = [scenes.sample(rng, test=True) for _ in range(16)]
        rows, names = [], []
        for scene in shown:
            row = batches.Row(encode, 10_000)
            row.share(batches.START + "<|vision_start|>")
            row.share_picture(4, 4)
            row.share("<|vision_end|>")
            asked = []
            for name in [f"{task}-{lang}" for task in TASKS for lang in ("en", "zh")]:
                if turn := questions.ask(scene, *name.split("-"), rng):  # type: ignore[misc]
                    row.branch(batches.turn(*turn))
                    asked.append(name)
            rows.append(row)
            names.append(asked)
        pixels = [np.asarray(scenes.draw(scene, (128, 128), rng), np.float32) / 127.5 - 1 for scene in shown]
        batch = batches.with_pictures(batches.stack(rows), shown, pixels).to(device)
        _judge(model, batch, names, right)
    _judge_texts(model, encode, rng, right)
    return right


def _judge_texts(model: Any, encode: Encoder, rng: random.Random, right: dict[str, list[bool]]) -> None:
    rows, names = [], []
    for i in range(32):
        row, asked = batches.Row(encode, 10_000), []
        tools, name = chat.tools_on_offer(rng)
        row.share(chat.system(None, tools) if i % 2 else "")
        for lang in ("en", "zh") * 3:
            said, answer = (
                chat.drawing(rng, lang, test=True) if i % 2 else chat.small_talk(rng, lang, test=True)
            )
            answer = chat.tool_call(name, answer) if i % 2 else answer
            row.branch(batches.turn(batches.START + said, answer))
            asked.append(f"{'tool' if i % 2 else 'talk'}-{lang}")
        rows.append(row)
        names.append(asked)
    _judge(model, batches.stack(rows).to(next(model.parameters()).device), names, right)


def _judge(model: Any, batch: Batch, names: list[list[str]], right: dict[str, list[bool]]) -> None:
    """Add for each branch whether each of its tokens is the likeliest one."""
    with common.autocast():
        hidden, _ = vlm_model.forward(model, batch)
        logits, wanted, _ = vlm_model.predictions(model, hidden, batch)
    counts = batch.weights[:, 1:] > 0
    wrong = torch.zeros_like(counts)
    wrong[counts] = logits.argmax(-1) != wanted
    for row, asked in enumerate(names):
        for group, name in enumerate(asked, 1):
            here = batch.groups[row, 1:] == group
            right.setdefault(name, []).append(not wrong[row][here].any().item())


def report(right: dict[str, list[bool]]) -> str:
    """Shares in percent, and their mean."""
    shares = {name: 100 * sum(results) / len(results) for name, results in sorted(right.items())}
    listed = " ".join(f"{name} {share:.0f}" for name, share in shares.items())
    return f"mean {sum(shares.values()) / len(shares):.1f} | {listed}"
