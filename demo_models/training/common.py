"""What every training loop shares: threads, schedules, averaged weights, logs and checkpoints that resume."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Threads:
    """Two OpenMP threads while the machine is free, one while others compute.

    With two static threads on two cores a single busy foreign process stalls both; at low priority one
    thread is then several times faster. `OMP_NUM_THREADS` in the environment fixes the number.
    """

    def __init__(self, most: int | None = None) -> None:
        fixed = os.environ.get("OMP_NUM_THREADS")
        self._most = int(fixed) if fixed else most or min(os.cpu_count() or 1, 8)
        self._adapts = not fixed and Path("/proc/stat").exists() and not torch.cuda.is_available()
        self._busy = 0.0
        self.now = 0

    def step(self) -> None:
        """Call once a training step."""
        if self._adapts:
            with open("/proc/stat") as stat:
                running = next(int(line.split()[1]) for line in stat if line.startswith("procs_running"))
            self._busy = 0.9 * self._busy + 0.1 * (running > 1)
        want = 1 if self._busy > (0.35 if self.now == 1 else 0.5) else self._most
        if want != self.now:
            torch.set_num_threads(want)
            self.now = want


class Schedule:
    """Learning rate over a budget of steps or of minutes: warm-up, constant, then linear to nearly zero.

    Args:
        peak: the constant part.
        steps: the budget; or
        minutes: of running, in which gaps of over 20 s (a stopped process) do not count.
        warmup: steps.
        decay: the share of the budget over which the rate falls.
    """

    def __init__(
        self, peak: float, *, steps: int = 0, minutes: float = 0, warmup: int = 100, decay: float = 0.4
    ) -> None:
        self._peak, self._steps, self._seconds = peak, steps, minutes * 60
        self._warmup, self._decay = warmup, decay
        self.step_number, self.used, self._last = 0, 0.0, time.monotonic()

    @property
    def done(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        return self.step_number / self._steps if self._steps else self.used / self._seconds

    def step(self) -> float:
        """Count a step; its learning rate."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        self.used += gap if gap < 20 else 0
        self.step_number += 1
        rise = min(1.0, self.step_number / self._warmup)
        return self._peak * rise * max(0.02, min(1.0, (1 - self.done) / self._decay))

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step_number, "used": self.used}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.step_number, self.used = int(state["step"]), state["used"]
        self._last = time.monotonic()


class Log:
    """Lines into a file of the given folder, with the seconds since the start; echoed to the terminal."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{name}.log").open("a", buffering=1)
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"{time.monotonic() - self._start:7.0f}s {text}"
        self._file.write(line + "\n")
        print(line, flush=True)


class Mean:
    """Running means of named figures between two log lines."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, **figures: float) -> None:
        for name, value in figures.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += 1

    def take(self) -> str:
        """`name value` pairs; starts anew."""
        text = " ".join(f"{name} {total / count:.4f}" for name, (total, count) in self._sums.items())
        self._sums = {}
        return text


def states(parts: dict[str, Any]) -> dict[str, Any]:
    """The state of each part of a training, by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def save(path: Path, state: dict[str, Any]) -> None:
    """Atomically: a killed training finds either the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None."""
    return torch.load(path, weights_only=True) if path.exists() else None


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """All groups to `rate` times their own `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


@torch.no_grad()
def average(mean: torch.nn.Module, model: torch.nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the current ones; faster while training is young."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), rate)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where it helps: on GPUs and on CPUs with bfloat16 units."""
    return torch.autocast(device().type, torch.bfloat16)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention from plain products: at tiny sizes several times faster to train on a CPU."""
    usual = torch.nn.functional.scaled_dot_product_attention
    if device().type == "cpu":
        torch.nn.functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Tensor:
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = (query * (scale or 1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -1e4) if boolean else scores + attn_mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype) @ value
