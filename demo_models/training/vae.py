"""Trains the tiny AutoencoderKLQwenImage: 8x smaller, 16 channels, on pictures of shapes world.

Its latents are made easy to generate: they are normalised, and noise is mixed into them while it trains
(x -> (1 - t) x + t noise, t up to 0.5), so that the decoder draws clean edges from latents that are not quite
right. Reconstruction is judged by L1, MSE and the error of the gradients.

For one frame a causal 3D convolution sees only the last slice of its kernel: while training it runs as a 2D
one, and the other slices, which only ever meet zero padding, end as zeros.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.models.autoencoders.autoencoder_kl_qwenimage as qwen
import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from demo_models.training import common
from demo_models.training import data as world

CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
MOST_NOISE = 0.5


@contextlib.contextmanager
def single_frame() -> Iterator[None]:
    """Cheap modules for one frame: 2D convolutions, a plain RMS norm, nearest upsampling without a cast."""

    def convolve(self: Any, x: Tensor, cache_x: Any = None) -> Tensor:
        kernel = self.weight[:, :, -1]
        return torch.nn.functional.conv2d(
            x[:, :, 0], kernel, self.bias, self.stride[1:], self._padding[0]
        ).unsqueeze(2)

    def norm(self: Any, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-8)
        return x * scale.to(x.dtype) * self.gamma.to(x.dtype)

    def upsample(self: Any, x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")

    patched = {
        qwen.QwenImageCausalConv3d: convolve,
        qwen.QwenImageRMS_norm: norm,
        qwen.QwenImageUpsample: upsample,
    }
    usual = {cls: cls.forward for cls in patched}
    for cls, forward in patched.items():
        cls.forward = forward
    try:
        yield
    finally:
        for cls, forward in usual.items():
            cls.forward = forward


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latent means, (n, z, h/8, w/8), of pictures (n, 3, h, w) in [-1, 1]."""
    return vae.quant_conv(vae.encoder(pixels.unsqueeze(2)))[:, : vae.config.z_dim, 0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `encode`."""
    return vae.decoder(vae.post_quant_conv(latents.unsqueeze(2)))[:, :, 0]


def pictures(
    rng: random.Random, count: int, width: int, height: int, jitter: int = 10, small: float = 0.0
) -> Tensor:
    """Random pictures, (n, 3, h, w) in [-1, 1], of every place and size that shapes world knows.

    Args:
        small: the share of them that show one small object.
    """
    drawn = []
    for _ in range(count):
        spec, wanted = world.sample_train(rng), rng.random() < small
        while wanted and spec.get("size") != "small":
            spec = world.sample_train(rng)
        drawn.append(world.render(spec, width, height, rng, jitter, looseness=rng.choice([0.3, 1, 1.5])))
    stack = np.stack([np.asarray(image) for image, _ in drawn])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def new_model() -> Any:
    """Fresh weights, scaled up: the usual ones assume 27 inputs per kernel where one frame feeds 9."""
    vae = AutoencoderKLQwenImage(**CONFIG)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) and module.kernel_size[-1] == 3:
                module.weight.mul_(2.4 if module.weight.dim() == 5 else 1.5)
    return vae


class Spread(torch.nn.Module):
    """Running mean and spread of each latent channel: those of one batch stray too far here."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Any, fixed: bool) -> None:
        super().__init__()
        self._fixed = fixed
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(config.latents_std).view(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Normalised latents."""
        if self._fixed:
            return (latents - self.mean) / self.deviation
        with torch.no_grad():
            self.mean.lerp_(latents.mean((0, 2, 3), keepdim=True), 0.01)
            self.deviation.lerp_((latents - self.mean).pow(2).mean((0, 2, 3), keepdim=True).sqrt(), 0.01)
        return (latents - self.mean) / self.deviation


def near_objects(pixels: Tensor) -> Tensor:
    """Weights, (n, 1, h, w): objects and what is within five pixels of them weigh as much as all the rest."""
    differs = (pixels - pixels[..., :1, :1]).abs().amax(1, keepdim=True) > 0.1
    near = torch.nn.functional.max_pool2d(differs.float(), 11, 1, 5)
    share = near.mean((1, 2, 3), keepdim=True).clamp(0.02, 0.98)
    return torch.where(near > 0, 0.5 / share, 0.5 / (1 - share))


def loss_of(vae: Any, spread: Spread, pixels: Tensor, figures: common.Mean) -> Tensor:
    """How badly pictures come back through noisy latents."""
    with common.autocast():
        latents = spread(encode(vae, pixels).float())
        share = MOST_NOISE * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
        share = share * (torch.rand_like(share) < 0.75)
        noisy = torch.lerp(latents, torch.randn_like(latents), share)
        back = decode(vae, noisy * spread.deviation + spread.mean).float()
    error = back - pixels
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    clean = error.detach()[share.flatten() == 0]
    if len(clean):
        figures.add(clean=clean.pow(2).mean().item())
    figures.add(mse=error.detach().pow(2).mean().item(), size=latents.detach().pow(2).mean().item())
    weight = near_objects(pixels)
    edges = (across.abs() * weight[..., 1:]).mean() + (down.abs() * weight[..., 1:, :]).mean()
    off = ((error.abs() + error.pow(2)) * weight).mean()
    # The last term keeps latents from growing, which would be a way around the noise.
    return off + 0.25 * edges + 0.01 * latents.pow(2).mean()


def finish(vae: Any, rng: random.Random) -> None:
    """Zero what one frame never uses, and write each latent channel's mean and spread into the config."""
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, qwen.QwenImageCausalConv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :-1] = 0
        found = torch.cat([encode(vae, pictures(rng, 32, 128, 128, 6).to(vae.device)) for _ in range(16)])
    mean, spread = found.mean((0, 2, 3)), found.std((0, 2, 3))
    rounded = {"latents_mean": mean, "latents_std": spread}
    vae.register_to_config(
        **{name: [round(v, 5) for v in values.tolist()] for name, values in rounded.items()}
    )


def train(options: argparse.Namespace) -> None:
    """Train and write the model to `options.out`; goes on from the checkpoint in `options.logs`, if any."""
    log, threads, figures = common.Log(options.logs, "vae"), common.Threads(), common.Mean()
    torch.manual_seed(0)
    rng, device = random.Random(0), common.device()
    if options.init:
        vae = AutoencoderKLQwenImage.from_pretrained(options.init, torch_dtype=torch.float32).to(device)
    else:
        vae = new_model().to(device)
    spread = Spread(vae.config, fixed=options.decoder_only).to(device)
    trained = [vae.decoder, vae.post_quant_conv] + (
        [] if options.decoder_only else [vae.encoder, vae.quant_conv]
    )
    parameters = [p for part in trained for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, betas=(0.9, 0.95), weight_decay=0)
    schedule = common.Schedule(options.rate, minutes=options.minutes, warmup=100, decay=0.5)
    parts = {"model": vae, "spread": spread, "optimizer": optimizer, "schedule": schedule}
    if state := common.load(options.logs / "vae.pt"):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        rng.seed(schedule.step_number)
    with single_frame():
        while schedule.done < 1:
            threads.step()
            common.set_rate(optimizer, schedule.step())
            small = schedule.done < 0.6 and not options.init
            width, height = rng.choice([(64, 64), (64, 64), (96, 96)] if small else world.SIZES)
            pixels = pictures(rng, 16 if width == 64 else 8, width, height, small=0.7 if options.init else 0)
            loss = loss_of(vae, spread, pixels.to(device, memory_format=torch.channels_last), figures)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if schedule.step_number % 50 == 0:
                log(f"step {schedule.step_number} {schedule.done:.0%} {figures.take()}")
            if schedule.step_number % 500 == 0:
                common.save(options.logs / "vae.pt", common.states(parts))
        if not options.decoder_only:
            finish(vae, random.Random(99))
        log(f"PSNR {quality(vae):.1f} dB")
    vae.to(torch.bfloat16).save_pretrained(options.out)


def quality(vae: Any) -> float:
    """PSNR in dB over fresh pictures."""
    with torch.no_grad():
        pixels = pictures(random.Random(5), 32, 128, 128, 0).to(vae.device)
        error = decode(vae, encode(vae, pixels)).clamp(-1, 1) - pixels
    return 10 * math.log10(4 / error.pow(2).mean().item())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15, help="of training, waits not counted")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--init", type=Path, help="a VAE to start from")
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents of --init as they are")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
