"""The full-size Qwen-Image transformer with random weights, uint4 + SVD 32: memory and seconds per step.

Needs no checkpoint: blocks are made one by one on the device, quantized there, and put together. Steps are
the engine's own (`Denoiser`), guided, so that a batch of B is 2B rows. Prints a table and, last, one line of
JSON.

    python -m benchmarks.images_gpu [--sizes 512 1024] [--batches 1 2 4 8] [--modes plain compile matmul]
    python -m benchmarks.images_gpu --tiny     # the same path in seconds, without a GPU
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from typing import Any

TINY = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}
TEXT_TOKENS = (120, 8)
"""Of the prompt and the negative prompt."""
CELL = 16
MODES = ("plain", "compile", "matmul", "matmul-compile")
"""As the engine runs by default; with `compile`; with SDNQ's int8 matrix products; with both. In this order:
the products stay once they are in."""


def build(device: str, config: dict[str, Any]) -> Any:
    """The transformer, quantized block by block so that bfloat16 never lies in memory as a whole."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    from deployments.engines.quantization import QuantizeArgs, import_sdnq

    import_sdnq(device)
    from sdnq import sdnq_post_load_quant

    options = QuantizeArgs().model_dump(exclude={"components"}) | {"torch_dtype": torch.bfloat16}
    if device != "cpu":
        options |= {"quantization_device": device, "return_device": device}
    layers = config.pop("num_layers", 60)
    torch.manual_seed(0)
    with torch.device(device):
        model = QwenImageTransformer2DModel(num_layers=0, **config).to(torch.bfloat16).eval()
        for _ in range(layers):
            one = QwenImageTransformer2DModel(num_layers=1, **config).to(torch.bfloat16).eval()
            one = sdnq_post_load_quant(one, **options)
            model.transformer_blocks.append(one.transformer_blocks[0])
            model.quantization_config = one.quantization_config
    gc.collect()
    return model


def latents(model: Any, size: int, number: int) -> Any:
    """One picture in the middle of its schedule."""
    import torch

    from deployments.engines.diffusers_denoise import Latents
    from deployments.engines.diffusers_texts import Text

    device, side, width = model.device, size // CELL, model.config.joint_attention_dim
    texts = [Text(torch.randn(1, n, width, device=device, dtype=torch.bfloat16)) for n in TEXT_TOKENS]
    noise = torch.Generator("cpu").manual_seed(number)
    x = torch.randn(1, side * side, model.config.in_channels, generator=noise)
    sigmas = [1 - step / 200 for step in range(200)]
    return Latents(x.to(device, torch.bfloat16), [*sigmas, 0.0], number, texts, 4.0, ((1, side, side),))


def seconds_per_step(model: Any, size: int, batch: int, steps: int) -> float:
    """The median of some steps after two to warm up, each waited for."""
    from deployments.engines.diffusers_denoise import Denoiser

    denoiser = Denoiser(model, batch * (size // CELL) ** 2)
    pictures = [latents(model, size, number) for number in range(batch)]
    taken = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        if not all(denoiser.step(pictures)):  # reads the result back, so it waits for the device
            raise RuntimeError("a step came out as NaN")
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def gib(device: str, peak: bool = False) -> float:
    import torch

    if device == "cpu":
        return 0.0
    return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30


def prepare(model: Any, mode: str) -> Any:
    """The same weights, to be run as `mode` says; modes come in the order of MODES."""
    from deployments.engines.diffusers_pipeline import compile_blocks

    if mode.startswith("matmul"):
        from sdnq.loader import apply_sdnq_options_to_model

        model = apply_sdnq_options_to_model(model, use_quantized_matmul=True)
    if mode.endswith("compile"):
        compile_blocks(model)
    else:  # not as the mode before may have left them
        for block in model.transformer_blocks:
            block._compiled_call_impl = None
    return model


def measure(model: Any, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step and memory at each size and batch; prints a line of each."""
    import torch

    device, figures = model.device, {}
    for size in options.sizes:
        for batch in options.batches:
            if device.type != "cpu":
                torch.cuda.reset_peak_memory_stats()
            seconds = seconds_per_step(model, size, batch, options.steps)
            peak = round(gib(device.type, peak=True), 2)
            figures[f"{size}x{batch}"] = {"s_per_step": round(seconds, 4), "peak_gib": peak}
            each = f"{seconds:8.4f} s/step, {seconds / batch:8.4f} each, {peak} GiB"
            print(f"{mode:>8} {size:>5} batch {batch}: {each}", flush=True)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["plain"])
    parser.add_argument("--tiny", action="store_true", help="a tiny transformer on the CPU")
    options = parser.parse_args()
    import torch

    device = "cpu" if options.tiny else "cuda"
    if options.tiny:
        options.sizes = [64, 128]
        torch.set_num_threads(1)  # two on two busy cores are 20 times slower
    began = time.perf_counter()
    model = build(device, dict(TINY) if options.tiny else {})
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    figures: dict[str, Any] = {"weights_gib": round(weights / 2**30, 2), "held_gib": round(gib(device), 2)}
    took = time.perf_counter() - began
    sizes = f"{figures['weights_gib']} GiB of weights, {figures['held_gib']} GiB held"
    print(f"transformer on {device} after {took:.0f} s: {sizes}", flush=True)
    for mode in (mode for mode in MODES if mode in options.modes):
        model = prepare(model, mode)
        figures[mode] = measure(model, mode, options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
