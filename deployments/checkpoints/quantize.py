"""Quantize a checkpoint folder into a new one, layer by layer: 40 GB pass through a few GB of memory.

The result is bit for bit what quantizing at load gives (deployments/engines/quantization.py): layers come in
the same order from the same seed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.checkpoints.plan import Plan, component_classes, plan, weight_tensors
from deployments.checkpoints.report import ComponentReport, LayerReport, QuantizeReport
from deployments.checkpoints.weights import INDEX, SUFFIX, ShardWriter, Weights
from deployments.engines.quantization import (
    QuantizeArgs,
    import_sdnq,
    quantized_components,
    reproducible,
    sdnq_options,
)

SHARD_BYTES = 2 * 2**30

Progress = Callable[[str, str, int], None]
"""Called after each tensor with the component, the layer or tensor, and its bytes in the source."""


class NoRoom(OSError):
    """The disk cannot hold the result."""


@dataclass(frozen=True)
class Job:
    """Everything known before the first weight is read."""

    source: Path
    dest: Path
    args: QuantizeArgs
    plans: dict[str, Plan]
    weights: dict[str, Weights]
    """Of every component that has some."""

    @property
    def bytes_before(self) -> int:
        return sum(weights.total_bytes for weights in self.weights.values())

    @property
    def bytes_after(self) -> int:
        """What the result will take; right to the byte for tensors."""
        return sum(
            self.plans[name].bytes_after(weights) if name in self.plans else weights.total_bytes
            for name, weights in self.weights.items()
        )


def prepare(source: Path, dest: Path, args: QuantizeArgs) -> Job:
    """Check all that can be checked beforehand.

    Raises:
        ValueError: source is no Qwen-Image checkpoint, is quantized already, or is incomplete.
        FileExistsError: dest exists.
        NoRoom: the disk that dest is on has too little room.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise FileExistsError(f"{dest} exists already: name another folder, or remove it")
    classes = component_classes(source)
    if done := quantized_components(source):
        raise ValueError(
            f"{source} is quantized already ({', '.join(sorted(done))}): start from the original"
        )
    if missing := sorted(set(args.components) - classes.keys()):
        raise ValueError(f"{source} has no {missing[0]}; it has {', '.join(sorted(classes))}")
    weights = {name: Weights(source / name) for name in classes if _has_weights(source / name, name, args)}
    plans = {str(name): plan(source / name, *classes[name], weights[name], args) for name in args.components}
    job = Job(source, dest, args, plans, weights)
    free = shutil.disk_usage(_existing(dest)).free
    if job.bytes_after > free:
        raise NoRoom(f"{dest} will take {job.bytes_after / 2**30:.1f} GB; {free / 2**30:.1f} GB are free")
    return job


def quantize_folder(
    job: Job,
    *,
    device: str = "cpu",
    threads: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda component, name, size: None,
) -> QuantizeReport:
    """Do it. DEST appears when all of it is written, report included; nothing is left behind on failure.

    Args:
        device: where layers are quantized. Another one gives other bits, of the same quality.
        threads: of torch. More than one is faster and gives other bits than quantizing at load.

    Raises:
        ValueError: a weight is not finite, or a file is damaged.
    """
    began = time.monotonic()
    with _workplace(job.dest) as folder:
        _copy_rest(job, folder)
        components = []
        for name, weights in job.weights.items():
            if name in job.plans:
                with reproducible(threads):
                    components.append(_quantize(job, name, folder / name, device, shard_bytes, progress))
            else:
                components.append(ComponentReport(name, weights.total_bytes, weights.total_bytes))
                progress(name, "copied", weights.total_bytes)
        settings = job.args.model_dump(mode="json") | {"threads": threads}
        seconds = time.monotonic() - began
        report = QuantizeReport(job.source.name, settings, device, seconds, tuple(components))
        report.write(folder)
    return report


def quantize_layer(name: str, weight: Any, args: QuantizeArgs, device: str = "cpu") -> tuple[Any, float]:
    """One linear layer as SDNQ quantizes it, and its relative error.

    Args:
        weight: floating, (out, in).

    Returns:
        The layer without its bias, and |quantized - original| / |original| in the Frobenius norm.

    Raises:
        ValueError: the weight, which `name` stands for, holds NaN or infinite numbers.
    """
    import torch
    from sdnq import SDNQConfig, sdnq_quantize_layer

    weight = weight.to(torch.bfloat16)
    norm = torch.linalg.vector_norm(weight.float())
    if not bool(torch.isfinite(norm)):
        raise ValueError(f"the weight of {name} holds NaN or infinite numbers")
    layer = torch.nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    options = sdnq_options(args, device)
    dtype = options.pop("torch_dtype")
    layer, _ = sdnq_quantize_layer(
        layer, SDNQConfig(**options), torch_dtype=dtype, param_name=f"{name}.weight"
    )
    restored = layer.sdnq_dequantizer(**weight_tensors(layer)).to(weight.device).float()
    error = torch.linalg.vector_norm(restored.sub_(weight.float())) / norm.clamp_min(1e-30)
    return layer, float(error)


# ---------------------------------------------------------------------- one component
def _quantize(
    job: Job, component: str, folder: Path, device: str, shard_bytes: int, progress: Progress
) -> ComponentReport:
    import_sdnq(device)
    plan, weights = job.plans[component], job.weights[component]
    writer = ShardWriter(folder, weights.stem, shard_bytes)
    layers = []
    for name, key in plan.layers.items():
        layers.append(_quantize_one(name, key, weights, writer, job.args, device))
        progress(component, name, weights.bytes(key))
    taken = set(plan.layers.values())
    for key in weights:
        if key not in taken:
            writer.add(key, _as_stored(weights[key]))
            progress(component, key, weights.bytes(key))
    writer.finish()
    _write_config(folder, plan.config.to_dict())
    return ComponentReport(component, weights.total_bytes, writer.total_bytes, tuple(layers))


def _quantize_one(
    name: str, key: str, weights: Weights, writer: ShardWriter, args: QuantizeArgs, device: str
) -> LayerReport:
    weight = weights[key]
    layer, error = quantize_layer(name, weight, args, device)
    before = writer.total_bytes
    tensors = weight_tensors(layer)
    for part, tensor in tensors.items():
        writer.add(key.removesuffix("weight") + part, tensor)
    rank = tensors["svd_up"].shape[1] if "svd_up" in tensors else 0
    size = writer.total_bytes - before
    return LayerReport(name, tuple(weight.shape), weights.bytes(key), size, rank, error)


def _as_stored(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _write_config(folder: Path, quantization: dict[str, Any]) -> None:
    """The source's config.json with SDNQ's settings in it, and those once more where SDNQ looks first."""
    for key in ("modules_to_not_convert", "modules_to_not_use_matmul"):
        quantization[key] = sorted(quantization[key])  # they come in the order of a set
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"quantization_config": quantization}
    for key in {"dtype", "torch_dtype"} & config.keys():
        config[key] = "bfloat16"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / "quantization_config.json").write_text(
        json.dumps(quantization, indent=2, sort_keys=True) + "\n", "utf-8"
    )


# ---------------------------------------------------------------------- folders
def _has_weights(folder: Path, name: str, args: QuantizeArgs) -> bool:
    return name in args.components or any(folder.glob(f"*{SUFFIX}"))


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def _workplace(dest: Path) -> Iterator[Path]:
    """A folder beside dest that becomes dest if all goes well, and vanishes if not."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if dest.exists():
            dest.rmdir()
        folder.rename(dest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_rest(job: Job, folder: Path) -> None:
    """Everything but the weights of what is quantized."""

    def weights_of_quantized(place: str, names: list[str]) -> set[str]:
        where = Path(place)
        if where == job.source:
            return {name for name in names if name.startswith(".")}
        if where.parent != job.source or where.name not in job.plans:
            return set()
        return {name for name in names if name.endswith((SUFFIX, INDEX))}

    shutil.copytree(job.source, folder, ignore=weights_of_quantized, dirs_exist_ok=True)
