"""The training of the image model: its parts agree with the pipeline's, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer

from demo_models.training import common, t2i, vae
from demo_models.training import data as world
from demo_models.training import t2i_labels as labels
from demo_models.training import t2i_models as models
from demo_models.training.tokenizer import check

IMAGE = Path(__file__).resolve().parents[2] / "demo_models" / "image"


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(IMAGE / "tokenizer")


def test_the_committed_tokenizer_keeps_the_prefix(tokenizer: Qwen2Tokenizer) -> None:
    check(tokenizer)


def test_packing_comes_back() -> None:
    latents = torch.randn(2, 16, 12, 22)
    assert torch.equal(models.unpack(models.pack(latents), 176, 96), latents)


def test_cells_say_where_things_are() -> None:
    spec = {"kind": "one", "color": "red", "shape": "square", "size": None, "pos": "left", "bg": "blue"}
    made = labels.cells([spec], [[("square", "red", 0.25, 0.5, 0.2)]], 128, 128)
    shape = made.shape.view(8, 8)
    assert shape[4, 2] == 1 + labels.SHAPES.index("square")
    assert (shape[:, 5:] == 0).all()
    assert (made.color.view(8, 8)[:, 5:] == labels.SKIP).all()
    assert made.covered.view(8, 8, 16)[4, 2].any()
    assert made.ground.tolist() == [labels.COLORS.index("blue")]


def test_a_thing_over_the_edge_is_cut_off() -> None:
    spec = {"kind": "one", "color": "red", "shape": "circle", "size": None, "pos": None, "bg": "blue"}
    made = labels.cells([spec], [[("circle", "red", 0.0, 0.0, 0.3)]], 128, 128)
    assert made.covered.view(8, 8, 16)[0, 0].all()


def test_prompt_labels_fit_their_classes() -> None:
    rng = random.Random(1)
    for _ in range(200):
        found = labels.prompt_labels(world.sample_spec(rng))
        pairs = zip(found, labels.PROMPT_CLASSES, strict=True)
        assert all(label == labels.SKIP or 0 <= label < count for label, count in pairs)


def test_the_cheap_forward_pass_is_the_transformers_own(tokenizer: Qwen2Tokenizer) -> None:
    torch.manual_seed(0)
    model = models.transformer(16).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    tokens, level = torch.randn(2, 66, 64), torch.tensor([0.3, 0.9])
    states, mask = torch.randn(2, 9, 192), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        own = model(tokens, states, mask, level, [[(1, 6, 11)]] * 2, return_dict=False)[0]
        with models.cheap_rotary(), common.plain_attention():
            cheap, after = models.Denoiser(model)(tokens, level, states, mask, 176, 96)
    assert len(after) == models.LAYERS
    torch.testing.assert_close(cheap, own, atol=2e-2, rtol=2e-2)  # phases are kept in bfloat16


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        logs=tmp_path,
        vae=IMAGE / "vae",
        minutes=1.0,
        decay=0.3,
        rate=1e-3,
        batch=4,
        pool=40,
        fresh=2,
        seed=0,
        init=None,
        compile=False,
    )


@pytest.mark.real
def test_training_goes_on_where_it_stopped(tokenizer: Qwen2Tokenizer, options: argparse.Namespace) -> None:
    encoder = models.text_encoder(tokenizer)
    trainer = t2i.Trainer(encoder, tokenizer, options)
    pool = t2i.Pool(trainer.vae, options.pool, 0)
    before = trainer.model.proj_out.weight.clone()
    with common.plain_attention(), models.cheap_rotary():
        for _ in range(3):
            trainer.step(pool)
    assert not torch.equal(trainer.model.proj_out.weight, before)
    trainer.save()
    again = t2i.Trainer(encoder, tokenizer, options)
    assert again.schedule.step_number == 3
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    images, specs = again.look(3)
    assert [image.size for image in images] == [(128, 128)] * 3
    assert "background" in t2i.score(images, specs)


@pytest.mark.real
def test_single_frames_encode_as_the_whole_autoencoder_does() -> None:
    model = t2i.AutoencoderKLQwenImage.from_pretrained(IMAGE / "vae", torch_dtype=torch.float32)
    pixels = vae.pictures(random.Random(1), 2, 64, 64)
    with torch.no_grad():
        whole = model.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0]
        drawn = model.decode(whole.unsqueeze(2)).sample[:, :, 0]
        with vae.single_frame():
            torch.testing.assert_close(vae.encode(model, pixels), whole, atol=1e-3, rtol=1e-3)
            back = vae.decode(model, whole).clamp(-1, 1)
    np.testing.assert_allclose(back.numpy(), drawn.clamp(-1, 1).numpy(), atol=2e-3)
