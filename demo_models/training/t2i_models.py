"""The parts of the tiny QwenImagePipeline, their cheap forms for training, and their export."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.models.transformers.transformer_qwenimage as qwen
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from demo_models.training import common
from demo_models.training.tokenizer import PREFIX, PREFIX_TOKENS, SUFFIX, text_ids, vision_ids

TEXT_WIDTH = 192
LAYERS, HEADS, HEAD_WIDTH = 5, 4, 64
SHIFT = 4.0
"""Noise levels are drawn and sampled with this shift: s = SHIFT u / (1 + (SHIFT - 1) u). Flat pictures are
so redundant that up to s = 0.9 their colours can be read off the noise: only above does the prompt matter."""
TEXT_LENGTH = 32
"""Prompts are padded to multiples of this, so that few shapes are compiled."""


def text_encoder(tokenizer: Any) -> Any:
    """A fresh text encoder; its vision tower is never used and as small as can be."""
    text = {
        **text_ids(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        **vision_ids(tokenizer),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def transformer(latent_channels: int) -> Any:
    """A fresh diffusion transformer in which every block starts as the identity (adaLN-zero).

    A token knows its place only by rotary phases relative to others. Heads of 64 give each axis 14 of them,
    of which six turn fast enough to matter on grids this small; heads of 32 would give two.
    """
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * latent_channels,
        out_channels=latent_channels,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 28, 28),
    )
    with torch.no_grad():
        zeroed = [model.norm_out.linear, model.proj_out]
        for block in model.transformer_blocks:
            zeroed += [block.img_mod[1], block.txt_mod[1]]
        for linear in zeroed:
            linear.weight.zero_()
            linear.bias.zero_()
    return model


def scheduler() -> Any:
    """Qwen-Image's scheduler with one shift for every size."""
    mu = round(math.log(SHIFT), 4)
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        base_shift=mu,
        max_image_seq_len=8192,
        max_shift=mu,
        num_train_timesteps=1000,
        shift=1.0,
        shift_terminal=0.02,
        time_shift_type="exponential",
        use_dynamic_shifting=True,
    )


def pipeline(folder: Path, tokenizer: Any, encoder: Any, denoiser: Any) -> Any:
    """The whole pipeline in bfloat16, with the VAE of a folder."""
    vae = AutoencoderKLQwenImage.from_pretrained(folder, torch_dtype=torch.bfloat16)
    parts = [copy.deepcopy(part).to("cpu", torch.bfloat16) for part in (encoder, denoiser)]
    return QwenImagePipeline(scheduler(), vae, parts[0], tokenizer, parts[1])


def export(pipe: Any, out: Path) -> None:
    """Write a pipeline as a checkpoint folder that anyone may read, and that says nothing of this machine."""
    pipe.save_pretrained(out)
    for file in out.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) to tokens of 2x2: (n, h w / 4, 4 c), as QwenImagePipeline packs them."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def unpack(tokens: Tensor, width: int, height: int) -> Tensor:
    """The inverse of `pack`, for a picture of width x height pixels."""
    n, _, c = tokens.shape
    h, w = height // 16, width // 16
    return tokens.view(n, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, 2 * h, 2 * w)


def embed(encoder: Any, tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """What the pipeline makes of prompts: states (n, length, width) and a boolean mask (n, length)."""
    texts = [PREFIX + prompt + SUFFIX for prompt in prompts]
    tokens = tokenizer(
        texts, padding=True, pad_to_multiple_of=PREFIX_TOKENS + TEXT_LENGTH, return_tensors="pt"
    ).to(encoder.device)
    states = encoder.model(tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
    mask = tokens.attention_mask[:, PREFIX_TOKENS:].bool()
    return states.last_hidden_state[:, PREFIX_TOKENS:], mask


def _real_rotary(x: Tensor, frequencies: Any, use_real: bool = False) -> Tensor:
    cos, sin = frequencies
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(3)


@contextlib.contextmanager
def cheap_rotary() -> Iterator[None]:
    """Rotary phases in real arithmetic: complex numbers are slow on a CPU and do not compile."""
    usual = qwen.apply_rotary_emb_qwen
    qwen.apply_rotary_emb_qwen = _real_rotary
    try:
        yield
    finally:
        qwen.apply_rotary_emb_qwen = usual


class Denoiser(torch.nn.Module):
    """The transformer's forward pass, under `cheap_rotary`, with the image states after each block."""

    def __init__(self, model: Any, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self._phases: dict[tuple[int, int, int], Any] = {}
        if compiled:
            for block in model.transformer_blocks:
                block.compile(dynamic=False)

    def phases(self, width: int, height: int, length: int) -> Any:
        """Cosines and sines (tokens, 1, head / 2) of image and text, in bfloat16."""
        key = width, height, length
        if key not in self._phases:
            found = self.model.pos_embed((1, height // 16, width // 16), common.device(), length)
            self._phases[key] = [
                tuple(part[:, None].to(torch.bfloat16) for part in (one.real, one.imag)) for one in found
            ]
        return self._phases[key]

    def forward(
        self, noisy: Tensor, level: Tensor, states: Tensor, mask: Tensor, width: int, height: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Velocity (n, tokens, channels), and states (n, tokens, width) after each block."""
        model, after = self.model, []
        image = model.img_in(noisy)
        text = model.txt_in(model.txt_norm(states))
        time = model.time_text_embed(level.to(image.dtype), image)
        phases = self.phases(width, height, states.shape[1])
        for block in model.transformer_blocks:
            text, image = block(image, text, mask, time, phases)
            after.append(image)
        return model.proj_out(model.norm_out(image, time)), after


def levels(count: int, device: Any) -> Tensor:
    """Noise levels to train at."""
    u = torch.rand(count, device=device)
    return SHIFT * u / (1 + (SHIFT - 1) * u)
