"""Quantizing a folder layer by layer, on the demo checkpoint: the same bits as at load, true figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from deployments.checkpoints.quantize import NoRoom, prepare, quantize_folder
from deployments.checkpoints.report import FILE, QuantizeReport
from deployments.checkpoints.weights import ShardWriter, Weights
from deployments.contracts.messages import ImageDone, ImageRequest
from deployments.contracts.settings import GenerationDefaults, ModelSettings
from deployments.engines.factory import make_image_engine
from deployments.engines.quantization import (
    QuantizeArgs,
    load_pipeline,
    quantized_components,
    resolve_source,
    save_pipeline,
)

SOURCE = resolve_source("demo_models/image")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
REQUEST = ImageRequest("req", "a red circle on a blue background", " ", 128, 128, 3, 3.0, seed=5)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeReport]:
    dest = tmp_path_factory.mktemp("quantize") / "deeper" / "quantized"
    return dest, quantize_folder(prepare(SOURCE, dest, QuantizeArgs()))


@pytest.fixture(scope="module")
def at_load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What quantizing at load gives, saved."""
    folder = tmp_path_factory.mktemp("at-load")
    save_pipeline(load_pipeline(SOURCE, torch.bfloat16, QuantizeArgs()), folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(SOURCE, tmp_path / "source"))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def assert_same(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []


# ---------------------------------------------------------------------- the weights
@pytest.mark.real
@pytest.mark.parametrize("file", [TRANSFORMER, TEXT_ENCODER])
def test_the_weights_are_those_of_quantizing_at_load(
    done: tuple[Path, QuantizeReport], at_load: Path, file: str
) -> None:
    assert_same(done[0] / file, at_load / file)


@pytest.mark.real
def test_sdnqs_settings_are_those_of_quantizing_at_load(
    done: tuple[Path, QuantizeReport], at_load: Path
) -> None:
    for component in ("transformer", "text_encoder"):
        ours = json.loads((done[0] / component / "quantization_config.json").read_text())
        theirs = json.loads((at_load / component / "quantization_config.json").read_text())
        theirs["modules_to_not_convert"].sort()
        assert ours == theirs
        assert json.loads((done[0] / component / "config.json").read_text())["quantization_config"] == ours
    assert quantized_components(done[0]) == {"transformer", "text_encoder"}


@pytest.mark.real
def test_many_files_and_newer_names_give_the_same_weights(
    source: Path, at_load: Path, tmp_path: Path
) -> None:
    def newer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The names that the model's own code uses: `model.language_model.layers`, `model.visual`."""
        turned = {}
        for name, tensor in tensors.items():
            if name.startswith("visual."):
                turned[f"model.{name}"] = tensor
            else:
                turned[name.replace("model.", "model.language_model.", 1)] = tensor
        return turned

    rewrite(source / TEXT_ENCODER, newer)
    writer = ShardWriter(source / "transformer", "diffusion_pytorch_model", 3_000_000)
    for name, tensor in load_file(source / TRANSFORMER).items():
        writer.add(name, tensor)
    (source / TRANSFORMER).unlink()
    writer.finish()

    dest = tmp_path / "dest"
    quantize_folder(prepare(source, dest, QuantizeArgs()), shard_bytes=2_000_000)

    index = json.loads((dest / f"{TRANSFORMER}.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 4
    sizes = [path.stat().st_size for path in dest.glob("transformer/*.safetensors")]
    assert max(sizes) < 2_000_000 + 100_000
    merged: dict[str, torch.Tensor] = {}
    for path in dest.glob("transformer/*.safetensors"):
        merged |= load_file(path)
    expected = load_file(at_load / TRANSFORMER)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    pipe, other = (load_pipeline(folder, torch.bfloat16) for folder in (dest, at_load))
    for component in ("transformer", "text_encoder"):
        loaded, wanted = getattr(pipe, component).state_dict(), getattr(other, component).state_dict()
        assert loaded.keys() == wanted.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())


@pytest.mark.real
async def test_the_engine_paints_the_same_bytes_as_with_quantize_at_load(
    done: tuple[Path, QuantizeReport],
) -> None:
    async def picture(source: Path, quantize: dict[str, Any] | None) -> bytes:
        settings = ModelSettings(
            id="painter",
            task="image_generation",
            engine="diffusers",
            source=str(source),
            engine_args={"threads": 1, "quantize": quantize},
            generation=GenerationDefaults(size="128x128", max_pixels=16384, steps=3, cfg_scale=3),
        )
        engine = make_image_engine(settings)
        await engine.start()
        try:
            events = [event async for event in engine.generate(REQUEST)]
            return next(event.data for event in events if isinstance(event, ImageDone))
        finally:
            await engine.close()

    plain = await picture(SOURCE, None)
    at_load = await picture(SOURCE, {"weights_dtype": "uint4", "svd_rank": 32})
    from_folder = await picture(done[0], None)
    assert from_folder == at_load
    assert from_folder != plain


# ---------------------------------------------------------------------- the folder
@pytest.mark.real
def test_everything_else_is_copied(done: tuple[Path, QuantizeReport]) -> None:
    files = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()}
    written = {path.relative_to(done[0]) for path in done[0].rglob("*") if path.is_file()}
    added = {Path(FILE), *(Path(c, "quantization_config.json") for c in ("transformer", "text_encoder"))}
    assert written == files | added
    changed = {
        Path(TRANSFORMER),
        Path(TEXT_ENCODER),
        *(Path(c, "config.json") for c in ("transformer", "text_encoder")),
    }
    for path in files - changed:
        assert (done[0] / path).read_bytes() == (SOURCE / path).read_bytes()
    assert list(done[0].parent.iterdir()) == [done[0]]
    assert done[0].stat().st_mode & 0o755 == 0o755


@pytest.mark.real
def test_the_folder_names_no_path_of_this_machine(done: tuple[Path, QuantizeReport]) -> None:
    for path in done[0].rglob("*.json"):
        assert str(SOURCE.parent) not in path.read_text("utf-8")


@pytest.mark.real
def test_only_what_is_asked_for_is_quantized(tmp_path: Path) -> None:
    args = QuantizeArgs(weights_dtype="int8", use_svd=False, components=("transformer",))
    report = quantize_folder(prepare(SOURCE, tmp_path / "dest", args))
    assert quantized_components(tmp_path / "dest") == {"transformer"}
    assert (tmp_path / "dest" / TEXT_ENCODER).read_bytes() == (SOURCE / TEXT_ENCODER).read_bytes()
    layers = {part.name: part.layers for part in report.components}
    assert layers["text_encoder"] == ()
    assert {layer.svd_rank for layer in layers["transformer"]} == {0}
    assert max(layer.error for layer in layers["transformer"]) < 0.02  # 8 bits
    pipe = load_pipeline(tmp_path / "dest", torch.bfloat16)
    assert type(pipe.transformer.transformer_blocks[1].attn.to_q).__name__ == "SDNQLinear"


# ---------------------------------------------------------------------- the report
@pytest.mark.real
def test_sizes_are_those_of_the_files_and_were_known_beforehand(
    done: tuple[Path, QuantizeReport], tmp_path: Path
) -> None:
    dest, report = done
    assert [part.name for part in report.components] == ["text_encoder", "transformer", "vae"]
    for part in report.components:
        for folder, size in ((SOURCE, part.bytes_before), (dest, part.bytes_after)):
            file = next((folder / part.name).glob("*.safetensors"))
            assert size == sum(tensor.nbytes for tensor in load_file(file).values())
    job = prepare(SOURCE, tmp_path / "another", QuantizeArgs())
    assert (job.bytes_before, job.bytes_after) == (report.bytes_before, report.bytes_after)
    assert report.bytes_after < 0.6 * report.bytes_before
    assert not (tmp_path / "another").exists()


@pytest.mark.real
def test_errors_are_those_of_the_weights_that_the_loaded_layers_use(
    done: tuple[Path, QuantizeReport],
) -> None:
    dest, report = done
    pipe, original = load_pipeline(dest, torch.bfloat16), load_file(SOURCE / TRANSFORMER)
    part = next(part for part in report.components if part.name == "transformer")
    layers = {
        name: layer for name, layer in pipe.transformer.named_modules() if hasattr(layer, "sdnq_dequantizer")
    }
    assert {layer.name for layer in part.layers} == layers.keys()
    for entry in part.layers:
        weight = original[f"{entry.name}.weight"].float()
        # What a layer without its bias answers to the unit vectors is its weight.
        layer = layers[entry.name]
        layer.bias = None
        used = layer(torch.eye(weight.shape[1], dtype=torch.bfloat16)).T.float()
        error = float((used - weight).norm() / weight.norm())
        assert entry.error == pytest.approx(error, rel=1e-3)
        assert 0.02 < entry.error < 0.12
        assert entry.shape == tuple(weight.shape)
        assert entry.svd_rank == 32


@pytest.mark.real
def test_the_report_lies_beside_the_weights_worst_layers_first(done: tuple[Path, QuantizeReport]) -> None:
    dest, report = done
    content = json.loads((dest / FILE).read_text())
    assert content == json.loads(json.dumps(report.as_dict()))
    assert content["settings"]["weights_dtype"] == "uint4"
    for part in content["components"]:
        errors = [layer["error"] for layer in part["layers"]]
        assert errors == sorted(errors, reverse=True)
    transformer = content["components"][1]
    assert (
        min(errors := [layer["error"] for layer in transformer["layers"]])
        < transformer["error"]
        < max(errors)
    )


@pytest.mark.real
def test_progress_adds_up_to_the_source(tmp_path: Path) -> None:
    steps: list[tuple[str, str, int]] = []
    job = prepare(SOURCE, tmp_path / "dest", QuantizeArgs(components=("text_encoder",)))
    quantize_folder(job, progress=lambda *step: steps.append(step))
    assert sum(size for _, _, size in steps) == job.bytes_before
    assert len(steps) == len(job.weights["text_encoder"]) + 2  # the others in one step each
    assert ("vae", "copied", job.weights["vae"].total_bytes) in steps


@pytest.mark.real
def test_one_weight_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checkpoint's size: when a tensor is read, those before the last are gone."""
    read: list[StorageWeakRef] = []
    alive: list[int] = []
    plain = Weights.__getitem__

    def watched(self: Weights, name: str) -> Any:
        alive.append(sum(not storage.expired() for storage in read))
        tensor = plain(self, name).clone()  # in memory, not a view of the file
        read.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    monkeypatch.setattr(Weights, "__getitem__", watched)
    quantize_folder(prepare(SOURCE, tmp_path / "dest", QuantizeArgs()), shard_bytes=1)
    assert len(alive) > 200
    # Those that are copied wait in the writer until the next one comes.
    assert max(alive) <= 1


# ---------------------------------------------------------------------- refused
@pytest.mark.real
def test_weights_that_are_not_numbers_are_refused_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["transformer_blocks.2.attn.to_q.weight"][3, 4] = float("nan")
        return tensors

    rewrite(source / TRANSFORMER, spoil)
    job = prepare(source, tmp_path / "out" / "dest", QuantizeArgs(components=("transformer",)))
    with pytest.raises(ValueError, match=r"transformer_blocks\.2\.attn\.to_q holds NaN"):
        quantize_folder(job)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.real
def test_a_missing_weight_is_named(source: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["transformer_blocks.2.attn.to_q.weight"]
        return tensors

    rewrite(source / TRANSFORMER, drop)
    with pytest.raises(ValueError, match=r"lacks the weight of transformer_blocks\.2\.attn\.to_q"):
        prepare(source, tmp_path / "dest", QuantizeArgs())


@pytest.mark.real
def test_a_full_disk_is_noticed_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(NoRoom, match="are free"):
        prepare(SOURCE, tmp_path / "not" / "yet" / "dest", QuantizeArgs())


@pytest.mark.real
def test_a_quantized_folder_is_refused(done: tuple[Path, QuantizeReport], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quantized already \(text_encoder, transformer\)"):
        prepare(done[0], tmp_path / "dest", QuantizeArgs())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="name another folder"):
        prepare(SOURCE, tmp_path, QuantizeArgs())
    with pytest.raises(FileExistsError, match="name another folder"):
        prepare(SOURCE, tmp_path / "precious", QuantizeArgs())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "no model_index.json"),
        ({"_class_name": "FluxPipeline"}, "FluxPipeline: only Qwen-Image"),
        (
            {"_class_name": "QwenImagePipeline", "vae": ["diffusers", "AutoencoderKLQwenImage"]},
            "has no text_encoder",
        ),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, index: dict[str, Any] | None, message: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if index is not None:
        (source / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "dest", QuantizeArgs())


@pytest.mark.real
def test_an_edit_checkpoint_is_quantized_too(source: Path, tmp_path: Path) -> None:
    path = source / "model_index.json"
    index = json.loads(path.read_text()) | {"_class_name": "QwenImageEditPlusPipeline"}
    path.write_text(json.dumps(index))
    job = prepare(source, tmp_path / "dest", QuantizeArgs(components=("transformer",)))
    assert len(job.plans["transformer"].layers) == 69
    assert np.isclose(job.bytes_after / Weights(source / "transformer").total_bytes, 0.86, atol=0.05)
