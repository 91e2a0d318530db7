"""Tensors come out of a folder, and go into one, as they are, in one file or in many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.checkpoints.weights import ShardWriter, Weights


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(8, 4, dtype=torch.bfloat16),
        "b.weight": torch.randn(100),
        "c.index": torch.arange(6).reshape(2, 3),
        "d.packed": torch.arange(50, dtype=torch.uint8),
        "e.turned": torch.randn(5, 7).t(),  # not contiguous
    }


def write(folder: Path, limit: int) -> ShardWriter:
    writer = ShardWriter(folder, "model", limit)
    for name, tensor in tensors().items():
        writer.add(name, tensor)
    writer.finish()
    return writer


@pytest.mark.parametrize(("limit", "files"), [(10**6, 1), (500, 2), (1, 5)])
def test_what_is_written_is_read_again(tmp_path: Path, limit: int, files: int) -> None:
    writer = write(tmp_path, limit)
    weights = Weights(tmp_path)

    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert sorted(weights) == sorted(tensors())
    assert weights.total_bytes == writer.total_bytes == sum(t.nbytes for t in tensors().values())
    for name, tensor in tensors().items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
        assert weights.bytes(name) == tensor.nbytes
        assert weights.count(name) == tensor.numel()
        assert weights.is_floating(name) == tensor.is_floating_point()
    assert weights.stem == "model"


def test_several_files_have_the_names_and_the_index_that_loaders_look_for(tmp_path: Path) -> None:
    write(tmp_path, 500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors()[name])
    assert not list(tmp_path.glob("*.part-*"))


def test_one_file_has_no_number_and_no_index(tmp_path: Path) -> None:
    write(tmp_path, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_anybody_may_read_what_is_written(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.glob("*.safetensors"))


def test_the_writer_never_holds_more_than_a_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "model", 1000)
    for number in range(20):
        writer.add(str(number), torch.zeros(100))
        assert sum(tensor.nbytes for tensor in writer._held.values()) <= 1000


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, 500)
    lost = tmp_path / "model-00002-of-00002.safetensors"
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        Weights(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10**6)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        Weights(tmp_path)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 500)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["phantom"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="phantom is not in model-00001"):
        Weights(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors"):
        Weights(tmp_path)


def test_two_variants_without_an_index_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file({"x": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(ValueError, match="without an index"):
        Weights(tmp_path)
