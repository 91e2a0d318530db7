"""Where offline work runs."""

from __future__ import annotations


def choose_device(name: str) -> str:
    """`auto` is the GPU where torch sees one.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use cpu, or install the CUDA build of torch")
    return name
