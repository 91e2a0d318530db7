"""SDNQ on the demo checkpoint: what is quantized, and that saving changes no bit of a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from deployments.engines.quantization import (
    QuantizeArgs,
    is_quantized,
    load_pipeline,
    quantize_pipeline,
    quantized_components,
    resolve_source,
    save_pipeline,
)

SOURCE = resolve_source("demo_models/image")


def paint(pipe: Any) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    image = pipe(
        "a red circle on a blue background",
        negative_prompt=" ",
        true_cfg_scale=3.0,
        width=128,
        height=128,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    return np.asarray(image).astype(int)


def quantized_layers(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "sdnq_dequantizer")]


@pytest.fixture(scope="module")
def pipe() -> Any:
    import torch

    return load_pipeline(SOURCE, torch.bfloat16, QuantizeArgs())


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    save_pipeline(pipe, folder)
    return folder


@pytest.mark.real
def test_quantizing_at_load_gives_uint4_with_svd(pipe: Any) -> None:
    for name, fewest in (("transformer", 60), ("text_encoder", 20)):
        layers = quantized_layers(getattr(pipe, name))
        assert len(layers) >= fewest
        for layer in layers:
            assert layer.sdnq_dequantizer.weights_dtype == "uint4"
            assert layer.svd_up.shape[1] == layer.svd_down.shape[0] == 32
    assert quantized_layers(pipe.vae) == []


@pytest.mark.real
def test_a_saved_pipeline_paints_the_same_bits(pipe: Any, folder: Path) -> None:
    import torch

    loaded = load_pipeline(folder, torch.bfloat16)
    assert np.array_equal(paint(loaded), paint(pipe))


@pytest.mark.real
def test_quantizing_again_paints_the_same_bits(pipe: Any) -> None:
    import torch

    torch.manual_seed(123)  # another state of the global generator must not matter
    before = torch.get_rng_state()
    again = load_pipeline(SOURCE, torch.bfloat16)
    full = paint(again)
    quantize_pipeline(again, QuantizeArgs(), torch.bfloat16)
    assert np.array_equal(paint(again), paint(pipe))
    assert torch.equal(torch.get_rng_state(), before)
    # And it is close to what it was before: 4 bits cost little.
    assert np.abs(paint(again) - full).mean() < 3


@pytest.mark.real
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_thread_count_changes_no_weight(pipe: Any, threads: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = load_pipeline(SOURCE, torch.bfloat16, QuantizeArgs())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in ("transformer", "text_encoder"):
        expected, got = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert expected.keys() == got.keys()
        assert [key for key in expected if not torch.equal(expected[key], got[key])] == []


@pytest.mark.real
def test_a_quantized_folder_is_recognised_and_not_quantized_twice(folder: Path) -> None:
    import torch

    assert quantized_components(folder) == {"transformer", "text_encoder"}
    pipe = load_pipeline(folder, torch.bfloat16, QuantizeArgs(weights_dtype="int8"))
    assert {layer.sdnq_dequantizer.weights_dtype for layer in quantized_layers(pipe.transformer)} == {"uint4"}


@pytest.mark.real
def test_what_is_saved_is_smaller_and_readable(folder: Path) -> None:
    def size(root: Path) -> int:
        return sum(path.stat().st_size for path in root.glob("transformer/*.safetensors"))

    assert size(folder) < 0.55 * size(SOURCE)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.glob("*/*.safetensors"))


def test_an_original_checkpoint_is_not_quantized() -> None:
    assert not is_quantized(SOURCE)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", {"quantization_config": {"quant_method": "sdnq"}}, True),
        ("quantization_config.json", {"quant_method": "sdnq"}, True),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, False),
        ("config.json", {"_class_name": "sdnq", "quantization_config": None}, False),
    ],
)
def test_the_json_decides(tmp_path: Path, file: str, content: dict[str, Any], expected: bool) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / file).write_text(json.dumps(content))
    assert is_quantized(tmp_path) is expected


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no diffusers checkpoint"):
        load_pipeline(tmp_path, None)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="FluxPipeline"):
        load_pipeline(tmp_path, None)


@pytest.mark.parametrize("wrong", [{"weights_dtype": "uint99"}, {"svd_rank": 0}, {"rank": 1}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeArgs(**wrong)
