"""Trains the tiny QwenImagePipeline over a finished VAE: first its text encoder, then its transformer.

Rectified flow as FlowMatchEulerDiscreteScheduler samples it: x_s = (1 - s) x0 + s noise, the target is
noise - x0, and the transformer is given s itself. One prompt in ten is an empty or "bad quality" one, so that
guidance with a negative prompt works. Labels of every prompt and token (`t2i_labels`) are learnt beside it.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from demo_models.training import common, judge, vae
from demo_models.training import data as world
from demo_models.training import t2i_models as models
from demo_models.training.t2i_labels import CellHeads, PromptHeads, prompt_labels
from demo_models.training.t2i_pool import SHARES, Pool
from demo_models.training.tokenizer import check

NEGATIVE = [
    "",
    " ",
    " ",
    "",
    " ",
    "blurry",
    "low quality",
    "bad quality, blurry, ugly",
    "模糊",
    "低质量，模糊",
]
OBJECTS = 5.0
"""Weight of a token with some of an object in it in the denoising loss; a token of background has 1."""
WEIGHTS = {"place": 0.05, "ground": 0.1, "color": 0.1, "shape": 0.2, "covered": 0.4}
STEPS, GUIDANCE = 8, 3.0
"""Of the pictures that are judged on the way."""


# ---------------------------------------------------------------- text encoder
def train_text(encoder: Any, tokenizer: Any, minutes: float, log: common.Log, rate: float = 1e-3) -> None:
    """Teach the text encoder to say, in the tokens after a prompt, what is asked for."""
    device, rng, threads, figures = common.device(), random.Random(11), common.Threads(), common.Mean()
    heads = PromptHeads().to(device)
    trained = [p for name, p in encoder.named_parameters() if "visual" not in name]
    optimizer = torch.optim.AdamW(
        [*trained, *heads.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = common.Schedule(rate, minutes=minutes, warmup=50, decay=0.6)
    while schedule.done < 1:
        threads.step()
        common.set_rate(optimizer, schedule.step())
        specs = [world.sample_train(rng) for _ in range(64)]
        labels = torch.tensor([prompt_labels(spec) for spec in specs], device=device)
        with common.autocast():
            states, mask = models.embed(encoder, tokenizer, [world.prompt(spec, rng) for spec in specs])
        loss, right = heads(states.float(), mask, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        figures.add(loss=loss.item(), understood=right.float().mean().item())
        if schedule.step_number % 50 == 0:
            log(f"text {schedule.step_number} {schedule.done:.0%} {figures.take()} threads {threads.now}")


# ---------------------------------------------------------------- transformer
class Trainer:
    """Everything that a step of the transformer's training needs.

    Args:
        options: see `main`.
    """

    def __init__(self, encoder: Any, tokenizer: Any, options: argparse.Namespace) -> None:
        device = common.device()
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer
        self.vae = AutoencoderKLQwenImage.from_pretrained(options.vae, torch_dtype=torch.float32).to(device)
        if options.init:
            folder = options.init / "transformer"
            self.model = models.QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
        else:
            self.model = models.transformer(self.vae.config.z_dim)
        self.model.to(device)
        self.mean = copy.deepcopy(self.model).requires_grad_(False)
        self.heads = CellHeads().to(device)
        self.denoiser = models.Denoiser(self.model, compiled=options.compile)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() < 2] + list(self.heads.parameters())
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=True)
        self.schedule = common.Schedule(
            options.rate, minutes=options.minutes, warmup=200, decay=options.decay
        )
        self.figures, self.threads = common.Mean(), common.Threads()
        self.rng, self.options, self.checkpoint = (
            random.Random(options.seed),
            options,
            options.logs / "t2i.pt",
        )
        self._resume()

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "mean": self.mean, "heads": self.heads}
        return {**parts, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self) -> None:
        """Write the checkpoint that training goes on from."""
        common.save(self.checkpoint, common.states(self._parts()))

    def _resume(self) -> None:
        if state := common.load(self.checkpoint):
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.rng.seed(self.schedule.step_number)

    def pipeline(self) -> Any:
        """The pipeline with the averaged weights."""
        return models.pipeline(self.options.vae, self.tokenizer, self.encoder, self.mean)

    def step(self, pool: Pool) -> None:
        """One batch of one picture size."""
        self.threads.step()
        common.set_rate(self.optimizer, self.schedule.step())
        size = self.rng.choices(world.SIZES, SHARES)[0]
        pool.refresh(size, self.options.fresh)
        specs, latents, labels = pool.draw(size, self.options.batch)
        prompts = [
            self.rng.choice(NEGATIVE) if self.rng.random() < 0.1 else world.prompt(spec, self.rng)
            for spec in specs
        ]
        noise = torch.randn_like(latents)
        level = models.levels(len(latents), latents.device)
        mixed = torch.lerp(latents, noise, level[:, None, None])
        with common.autocast():
            with torch.no_grad():
                states, mask = models.embed(self.encoder, self.tokenizer, prompts)
            velocity, after = self.denoiser(mixed, level, states, mask, *size)
            named = self.heads(after, labels, *size)
        weight = 1 + (OBJECTS - 1) * (labels.shape > 0).float()
        off = (velocity.float() - (noise - latents)).square().mean(-1)
        flow = (off * weight).sum() / weight.sum()
        loss = flow + sum(WEIGHTS[name] * value for name, value in named.items())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        common.average(self.mean, self.model, self.schedule.step_number, 0.998)
        self.figures.add(flow=flow.item(), **{name: value.item() for name, value in named.items()})

    @torch.no_grad()
    def look(self, count: int) -> tuple[list[Any], list[world.Spec]]:
        """Pictures of held-out prompts by the averaged weights, and their specs."""
        rng = random.Random(77)
        specs = [world.sample_test(rng) for _ in range(count)]
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        images = []
        with vae.single_frame():
            for start in range(0, count, 24):
                prompts = [world.prompt(spec, rng) for spec in specs[start : start + 24]]
                made = pipe(
                    prompts,
                    negative_prompt=[" "] * len(prompts),
                    true_cfg_scale=GUIDANCE,
                    num_inference_steps=STEPS,
                    width=128,
                    height=128,
                    generator=torch.Generator().manual_seed(start),
                    output_type="latent",
                ).images
                pixels = vae.decode(self.vae, models.unpack(made, 128, 128).float().to(self.vae.device))
                pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                images += [Image.fromarray(one) for one in pixels]
        return images, specs


def score(images: list[Any], specs: list[world.Spec]) -> str:
    """How many pictures are right, by the pixel judge, for each kind of spec."""
    verdicts: dict[str, list[judge.Verdict]] = {}
    for image, spec in zip(images, specs, strict=True):
        verdicts.setdefault(spec["kind"], []).append(judge.judge(image, spec))
    parts = []
    for kind, found in sorted(verdicts.items()):
        rates = [
            f"{name} {sum(getattr(one, name) for one in found) / len(found):.2f}"
            for name in (*judge.PARTS, "right")
        ]
        parts.append(f"{kind} ({len(found)}) " + " ".join(rates))
    return "; ".join(parts)


def ready_encoder(options: argparse.Namespace, tokenizer: Any, log: common.Log) -> Any:
    """The trained text encoder; trains it first if `options.logs` does not hold it yet."""
    written = options.logs / "text_encoder"
    source = written if written.exists() else options.init and options.init / "text_encoder"
    if source:
        encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    else:
        encoder = models.text_encoder(tokenizer)
    encoder.to(common.device())
    if not written.exists():
        train_text(encoder, tokenizer, options.text_minutes, log)
        encoder.save_pretrained(written)
    return encoder


def train(options: argparse.Namespace) -> None:
    """Train what is not there yet and write the pipeline to `options.out`."""
    log = common.Log(options.logs, "t2i")
    torch.manual_seed(options.seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(options.tokenizer)
    check(tokenizer)
    with common.plain_attention():
        encoder = ready_encoder(options, tokenizer, log)
        trainer = Trainer(encoder, tokenizer, options)
        pool = Pool(trainer.vae, options.pool, options.seed + trainer.schedule.step_number)
        size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        log(f"{size:.2f} M parameters in the transformer, {options.pool} pictures in the pool")
        while trainer.schedule.done < 1:
            with models.cheap_rotary():
                trainer.step(pool)
            number = trainer.schedule.step_number
            if number % 50 == 0:
                log(f"step {number} {trainer.schedule.done:.0%} {trainer.figures.take()}")
            if number % 500 == 0:
                trainer.save()
            if number % 1000 == 0:
                log(score(*trainer.look(72)))
    trainer.save()
    models.export(trainer.pipeline(), options.out)
    log(score(*trainer.look(240)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a pipeline whose weights to start from")
    parser.add_argument("--text-minutes", type=float, default=6)
    parser.add_argument("--minutes", type=float, default=120, help="for the transformer")
    parser.add_argument(
        "--decay", type=float, default=0.3, help="share of the minutes in which the rate falls"
    )
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pool", type=int, default=6000)
    parser.add_argument("--fresh", type=int, default=4, help="new pictures a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="worth it from about 2,000 steps on")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
