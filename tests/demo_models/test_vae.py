"""Training the autoencoder: what it looks at, and what small shapes come back as."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_models.training import data as world
from demo_models.training import judge, vae

IMAGE = Path(__file__).resolve().parents[2] / "demo_models" / "image"


def test_objects_weigh_as_much_as_all_the_rest() -> None:
    pixels = torch.zeros(2, 3, 96, 176)
    pixels[0, 0, 40:50, 80:90] = 1
    pixels[1, :, 20:70, 30:140] = -0.5
    weight = vae.near_objects(pixels)
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(2))
    assert weight[0, 0, 45, 85] == weight[0, 0, 36, 76] > weight[0, 0, 10, 10]
    near = weight[0] == weight[0, 0, 45, 85]
    assert weight[0][near].sum() == pytest.approx(weight[0].sum() / 2)


def test_small_objects_can_be_asked_for() -> None:
    pictures = vae.pictures(random.Random(2), 40, 128, 128, small=1)
    share = ((pictures - pictures[..., :1, :1]).abs().amax(1) > 0.2).float().mean((1, 2))
    assert 0.005 < share.min() < share.max() < 0.1


@pytest.mark.real
def test_small_shapes_come_back_as_they_were_in_long_formats() -> None:
    model = vae.AutoencoderKLQwenImage.from_pretrained(IMAGE / "vae", torch_dtype=torch.float32)
    rng, right = random.Random(5), []
    for width, height in world.SIZES[1:3]:
        specs: list[world.Spec] = []
        while len(specs) < 40:
            if (spec := world.sample_test(rng)).get("size") == "small":
                specs.append(spec)
        drawn = [np.asarray(world.render(spec, width, height, rng, looseness=0.15)[0]) for spec in specs]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), vae.single_frame():
            back = vae.decode(model, vae.encode(model, pixels)).clamp(-1, 1)
        images = ((back + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        right += [
            judge.judge(Image.fromarray(image), spec).right for image, spec in zip(images, specs, strict=True)
        ]
    assert sum(right) >= 0.9 * len(right)
