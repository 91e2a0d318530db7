"""Trains the tiny Qwen3-VL on conversations about shapes world; goes on where it stopped.

    python -m demo_models.training.vlm --out FOLDER --logs FOLDER --tokenizer FOLDER

From nothing, the vision tower first learns what each image token covers (shape, colour, place) with linear
heads that are dropped in the end: from answers alone it takes very long until shapes are told apart. The
heads stay on while the answers are learnt. Matrices are trained with Muon, the rest with AdamW, and what is
exported are averaged weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from demo_models.training import batches, common, scenes, vlm_model, vlm_progress
from demo_models.training.batches import Batch, Encoder
from demo_models.training.vlm_heads import CellHeads

ROWS, TEXT_ROWS, LOOKS = 16, 8, 48
"""Rows per step: pictures with questions, conversations without, pictures for the vision tower alone."""
MIX = {"see": 1, "ask": 3, "talk": 1}
"""Steps for the vision tower, about pictures, and without pictures. Seeing is cheap, and slow to learn."""
HEADS_SHARE = 0.3
"""Weight of the heads' loss beside the answers'."""
HEADS_ALONE = 100
"""Steps before the heads' loss reaches a vision tower that is trained already."""
DECAY = 0.998
"""Of the averaged weights."""


def optimizers(model: nn.Module, heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms, biases and heads."""
    matrices, rest, plain = [], [], []
    for name, parameter in model.named_parameters():
        inner = not any(part in name for part in ("embed", "lm_head", "merger"))
        if parameter.dim() == 2 and inner:
            matrices.append(parameter)
        else:
            (rest if parameter.dim() > 1 else plain).append(parameter)
    groups = [
        {"params": [*rest, *heads.parameters()], "weight_decay": 0.05},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            [{"params": matrices, "factor": 1.5}], lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)),
    ]


class Trainer:
    """A model in training, with all that has to be kept to go on later."""

    def __init__(self, model: Any, tokenizer: Any, logs: Path, rate: float) -> None:
        self.device = common.device()
        self.model = vlm_model.prepare(model.to(self.device))
        self.heads = CellHeads(model.config.text_config.hidden_size).to(self.device)
        self.mean = copy.deepcopy(self.model)
        vlm_model.prepare(self.mean)
        self.optimizers = optimizers(self.model, self.heads, rate)
        self.tokenizer, self.encode = tokenizer, Encoder(tokenizer)
        self.checkpoint = logs / "vlm.pt"
        self.log, self.threads, self.figures = common.Log(logs, "vlm"), common.Threads(), common.Mean()
        self.rng, self.steps = random.Random(0), 0
        self.log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {self.device}")

    def see(self, schedule: common.Schedule) -> None:
        """One step for the vision tower alone."""
        size = self.rng.choice(batches.SIZES)
        shown = [scenes.sample(self.rng) for _ in range(LOOKS)]
        pixels = [scenes.picture(scene, size, self.rng) for scene in shown]
        patches, grid = batches.patchify(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        nothing = torch.zeros(0)
        batch = Batch(nothing, nothing, nothing, nothing, patches, grid, shown).to(self.device)
        with common.autocast():
            grids = torch.tensor([[1, *grid]] * len(shown), device=self.device)
            cells = self.model.model.visual(batch.patches, grids).pooler_output
            loss, right = self.heads(cells, batch)
        self.figures.add(seeing=loss.item(), **right)
        self._update(loss, schedule)

    def ask(self, schedule: common.Schedule) -> None:
        """One step on questions about pictures."""
        self._answer(batches.picture_batch(self.encode, self.rng, ROWS), "ask", schedule)

    def talk(self, schedule: common.Schedule) -> None:
        """One step on conversations without pictures."""
        self._answer(batches.text_batch(self.encode, self.rng, TEXT_ROWS), "talk", schedule)

    def _answer(self, batch: Batch, name: str, schedule: common.Schedule) -> None:
        batch = batch.to(self.device)
        with common.autocast():
            hidden, cells = vlm_model.forward(self.model, batch)
            loss = vlm_model.answer_loss(self.model, hidden, batch)
            self.figures.add(**{name: loss.item()})
            if cells is not None:
                known = self.steps >= HEADS_ALONE  # what untrained heads ask for would only disturb
                seeing, _ = self.heads(cells if known else cells.detach(), batch)
                loss = loss + HEADS_SHARE * seeing
        self._update(loss, schedule)

    def _update(self, loss: Tensor, schedule: common.Schedule) -> None:
        rate = schedule.step()
        for optimizer in self.optimizers:
            common.set_rate(optimizer, rate)
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        common.average(self.mean, self.model, self.steps, DECAY)
        self.threads.step()

    def run(self, stage: str, schedule: common.Schedule, mix: dict[str, float], every: int) -> None:
        """Steps until the schedule ends; every so often the figures, a checkpoint and an export.

        Args:
            mix: how often there is a step of each kind: "see", "ask", "talk".
        """
        kinds = {"see": self.see, "ask": self.ask, "talk": self.talk}
        while schedule.done < 1:
            kinds[self.rng.choices(list(mix), list(mix.values()))[0]](schedule)
            if self.steps % 50 == 0:
                self.log(f"{stage} {self.steps} {schedule.done:.1%} {self.figures.take()}")
            if self.steps % every == 0 or schedule.done >= 1:
                if stage == "answer":
                    self.log("right: " + vlm_progress.report(vlm_progress.evaluate(self.mean, self.encode)))
                self.keep(stage, schedule)

    def keep(self, stage: str, schedule: common.Schedule) -> None:
        """Write the checkpoint, and the averaged model so far beside it."""
        state = {
            "stage": stage,
            "schedule": schedule.state_dict(),
            "steps": self.steps,
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        common.save(self.checkpoint, state)
        vlm_model.export(self.mean, self.tokenizer, self.checkpoint.with_name("vlm-so-far"))

    def resume(self) -> tuple[str, dict[str, float]] | None:
        """Load the checkpoint; the stage it was written in and the state of its schedule."""
        if (state := common.load(self.checkpoint)) is None:
            return None
        for module, key in ((self.model, "model"), (self.mean, "mean"), (self.heads, "heads")):
            module.load_state_dict(state[key])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]
        self.rng.seed(self.steps)
        return state["stage"], state["schedule"]


def train(options: argparse.Namespace) -> None:
    """From nothing or from a folder's weights to a folder."""
    torch.manual_seed(0)
    source = options.init or options.tokenizer
    tokenizer = Qwen2Tokenizer.from_pretrained(source)
    if options.init:
        model = Qwen3VLForConditionalGeneration.from_pretrained(options.init, dtype=torch.float32)
    else:
        model = vlm_model.new_model(tokenizer)
    trainer = Trainer(model, tokenizer, options.logs, options.rate)
    stages = {
        "see": common.Schedule(options.rate, minutes=options.vision_minutes, decay=0.5),
        "answer": common.Schedule(options.rate, minutes=options.minutes, decay=options.decay),
    }
    first = "answer" if options.init else "see"
    if found := trainer.resume():
        first = found[0]
        stages[first].load_state_dict(found[1])
    if first == "see":
        trainer.run("see", stages["see"], {"see": 1}, options.every)
    trainer.run("answer", stages["answer"], options.mix, options.every)
    vlm_model.export(trainer.mean, tokenizer, options.out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--logs", type=Path, required=True, help="for the log and the checkpoint to resume from"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, to train from nothing")
    parser.add_argument("--init", type=Path, help="folder of a trained model to go on from instead")
    parser.add_argument("--vision-minutes", type=float, default=10, help="from nothing only")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument(
        "--decay", type=float, default=0.35, help="share of the minutes in which the rate falls"
    )
    parser.add_argument("--mix", type=json.loads, default=MIX, help="how often each kind of step, as JSON")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    options = parser.parse_args()
    if not options.init and not options.tokenizer:
        parser.error("give --tokenizer to train from nothing, or --init to go on from a model")
    train(options)


if __name__ == "__main__":
    main()
