"""The count for the full-size model, without its weights, and that the way it is counted is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quantized_size import BLOCKS, CONFIG, by_block, whole, write_random
from deployments.checkpoints.plan import empty_model, quantize_empty
from deployments.checkpoints.quantize import prepare, quantize_folder
from deployments.checkpoints.weights import Weights
from deployments.engines.quantization import QuantizeArgs

ARGS = QuantizeArgs(components=("transformer",))
NARROW = CONFIG | {"num_attention_heads": 2, "joint_attention_dim": 256}


def counted(folder: Path, config: dict[str, object], *, quantized: bool) -> dict[str, int]:
    """Bytes by block of an empty model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model = empty_model(folder, "diffusers", str(config["_class_name"]))
    if quantized:
        model = quantize_empty(model, ARGS)
    return by_block((name, t.numel() * t.element_size()) for name, t in model.state_dict().items())


def test_blocks_are_told_apart() -> None:
    sizes = {"img_in.weight": 5, "transformer_blocks.0.a": 1, "transformer_blocks.1.a": 2}
    parts = by_block([*sizes.items(), ("transformer_blocks.1.b", 3), ("proj_out.bias", 7)])
    assert parts == {"rest": 12, "0": 1, "1": 5}
    assert whole(parts, blocks=2) == 18
    assert whole(parts, blocks=60) == 12 + 1 + 59 * 5


@pytest.mark.real
def test_the_full_size_transformer_takes_at_most_32_percent(tmp_path: Path) -> None:
    two = CONFIG | {"num_layers": 2}
    before, after = (counted(tmp_path, two, quantized=quantized) for quantized in (False, True))
    assert whole(before) == 2 * 20_430_401_088  # all of Qwen-Image's weights, in bf16
    assert whole(after) / whole(before) <= 0.32
    assert after["rest"] == before["rest"]


@pytest.mark.real
def test_two_blocks_stand_for_all(tmp_path: Path) -> None:
    two, many = (counted(tmp_path, NARROW | {"num_layers": layers}, quantized=True) for layers in (2, BLOCKS))
    assert whole(two) == sum(many.values())
    assert set(many) == {"rest", *map(str, range(BLOCKS))}


@pytest.mark.real
def test_what_is_really_quantized_weighs_what_was_counted(tmp_path: Path) -> None:
    config = NARROW | {"num_layers": 2}
    source, dest = tmp_path / "source", tmp_path / "dest"
    write_random(source, config)
    quantize_folder(prepare(source, dest, ARGS))
    weights = Weights(dest / "transformer")
    written = by_block((name, weights.bytes(name)) for name in weights)
    assert written == counted(tmp_path / "empty", config, quantized=True)
