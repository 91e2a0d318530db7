"""What the full-size Qwen-Image transformer weighs once it is quantized, and what quantizing takes.

Makes a folder with a few blocks of the full width and random weights, quantizes it as `atelier quantize`
does, and counts bytes in the files: the second block stands for all but the first, of which SDNQ leaves one
layer as it is, and what is outside of the blocks counts once.

    python -m benchmarks.quantized_size [--blocks 2] [--dtype uint4] [--svd-rank 32] [--threads 1]

A block takes 0.7 GB of disk. Errors per layer are those of Gaussian noise, in which there is nothing for the
SVD to find: trained weights do better.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.checkpoints.plan import empty_model
from deployments.checkpoints.quantize import prepare, quantize_folder
from deployments.checkpoints.report import QuantizeReport
from deployments.checkpoints.weights import ShardWriter, Weights
from deployments.engines.quantization import QuantizeArgs

BLOCKS = 60
CONFIG: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": BLOCKS,
    "out_channels": 16,
    "patch_size": 2,
}
"""Of Qwen-Image and Qwen-Image-2512: 20.4 billion weights."""
_PREFIX = "transformer_blocks."


def by_block(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes of each block by its number, and of the `rest`."""
    total: dict[str, int] = {}
    for name, size in tensors:
        part = name.split(".")[1] if name.startswith(_PREFIX) else "rest"
        total[part] = total.get(part, 0) + size
    return total


def whole(part_bytes: dict[str, int], blocks: int = BLOCKS) -> int:
    """Bytes of a model of `blocks` blocks, from one with at least two."""
    return part_bytes["rest"] + part_bytes["0"] + (blocks - 1) * part_bytes["1"]


def write_random(folder: Path, config: dict[str, Any]) -> None:
    """A checkpoint folder whose only component is a transformer with weights of N(0, 0.02)."""
    import torch

    part = folder / "transformer"
    part.mkdir(parents=True)
    index = {"_class_name": "QwenImagePipeline", "transformer": ["diffusers", config["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    (part / "config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(0)
    writer = ShardWriter(part, "diffusion_pytorch_model", 2**30)
    for name, empty in empty_model(part, "diffusers", config["_class_name"]).state_dict().items():
        writer.add(name, torch.randn(empty.shape, dtype=torch.bfloat16).mul_(0.02))
    writer.finish()


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Fills its list with GB: what this process held before, and the most it held. Pages of files, which the
    system takes back when it needs them, are not counted."""
    done, seen = threading.Event(), [_held(), 0.0]

    def watch() -> None:
        while not done.wait(0.02):
            seen[1] = max(seen[1], _held())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _held() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=2, help="at least 2")
    parser.add_argument("--dtype", default="uint4")
    parser.add_argument("--svd-rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the folders go for a while; by default /tmp")
    options = parser.parse_args()
    args = QuantizeArgs(weights_dtype=options.dtype, svd_rank=options.svd_rank, components=("transformer",))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, dest = Path(name) / "original", Path(name) / "quantized"
        write_random(source, CONFIG | {"num_layers": max(2, options.blocks)})
        began = time.monotonic()
        with peak_memory() as memory:
            job = prepare(source, dest, args)
            report = quantize_folder(job, threads=options.threads)
        seconds = time.monotonic() - began
        sizes = []
        for folder in (source, dest):
            weights = Weights(folder / "transformer")
            sizes.append(by_block((name, weights.bytes(name)) for name in weights))
    show(sizes[0], sizes[1], report, seconds, memory)


def show(
    before: dict[str, int],
    after: dict[str, int],
    report: QuantizeReport,
    seconds: float,
    memory: list[float],
) -> None:
    """The table and the line of JSON."""
    print(f"{'':>24} {'bf16 MB':>10} {'now MB':>10} {'ratio':>7}")
    rows = {f"block {key}" if key != "rest" else key: (before[key], after[key]) for key in ("0", "1", "rest")}
    rows[f"{BLOCKS} blocks and the rest"] = (whole(before), whole(after))
    for title, (first, second) in rows.items():
        print(f"{title:>24} {first / 1e6:10.1f} {second / 1e6:10.1f} {second / first:7.4f}")
    layers = report.components[0].layers
    print(
        json.dumps(
            {
                "ratio": round(whole(after) / whole(before), 4),
                "gigabytes": round(whole(after) / 1e9, 2),
                "seconds_per_block": round(seconds / (len(before) - 1), 1),
                "error": [round(pick(layer.error for layer in layers), 4) for pick in (min, max)],
                "memory_before_gb": round(memory[0], 2),
                "memory_peak_gb": round(memory[1], 2),
                "source_gb": round(sum(before.values()) / 2**30, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
