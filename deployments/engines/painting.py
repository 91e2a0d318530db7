"""What the step loop and an executor say to each other about a request and its pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from deployments.contracts.errors import AtelierError, EngineFailed, OutOfMemory
from deployments.contracts.messages import ImageQueued, ImageRequest, ImageStep, ImageUsage, Picture
from deployments.engines.scheduler import Slot


@dataclass(frozen=True)
class Plan:
    """A checked request."""

    group: Hashable
    """Pictures of one group can take a step together."""
    pixels: int
    """Of one picture: what a step of it costs."""
    usage: ImageUsage
    strength: float = 1.0

    def steps(self, schedule: int) -> int:
        """Steps that are really taken of a schedule, as diffusers counts them."""
        return schedule - int(max(schedule - min(schedule * self.strength, schedule), 0))


@dataclass(eq=False)
class Painting:
    """One picture on its way: the payload of a slot."""

    job: Job
    index: int
    seed: int
    steps: int
    """Of its schedule; an edit of less than full strength takes only the last of them."""
    healed: str | None = None
    state: Any = None
    """The executor's; None until it has begun."""
    seconds: float = 0.0
    """Spent on beginning it."""
    shown: int = 0
    """Previews shown so far."""


@dataclass(eq=False)
class Job:
    """A request in the loop. `inbox` belongs to whoever submitted it."""

    request: ImageRequest
    pictures: Sequence[Picture]
    plan: Plan
    inbox: Any = None
    arrived: float = field(default_factory=time.monotonic)
    forecast: float | None = None
    ahead: int = 0
    slots: list[Slot] = field(default_factory=list)
    gone: bool = False
    """Nobody waits for it any more, whether it has been submitted or not."""
    shared: Any = None
    """The executor's, common to all pictures of the request."""


@dataclass(frozen=True)
class Painted:
    """Pixels to encode: a preview if `partial` is set, else a finished picture. Shape (height, width, 3)."""

    index: int
    pixels: np.ndarray
    seed: int
    steps: int
    partial: int | None = None
    healed: str | None = None


Event = ImageQueued | ImageStep | Painted | ImageUsage | AtelierError | None
"""What a job hears. An error or None is the last."""


@dataclass(frozen=True)
class Fault:
    """Why a step failed."""

    error: AtelierError
    heals: bool
    """Whether fewer steps and another seed may help."""


class Executor(Protocol):
    """What paints. The loop's thread calls everything but `plan`."""

    @property
    def broken(self) -> str | None:
        """Why this process cannot paint any more, if so."""

    def load(self) -> None: ...

    def free(self) -> None: ...

    def plan(self, request: ImageRequest, pictures: Sequence[Picture]) -> Plan:
        """Check a request, in any thread. Raises InvalidRequest or ContextTooLong."""

    def begin(self, painting: Painting) -> None:
        """Fill in `state`: the noise, the texts, the source."""

    def step(self, paintings: Sequence[Painting]) -> list[bool]:
        """One step of each; whether the result is finite. If it raises, nobody has taken a step."""

    def preview(self, painting: Painting) -> np.ndarray:
        """What it is about to become, (height, width, 3) uint8."""

    def end(self, painting: Painting) -> np.ndarray:
        """The finished picture, (height, width, 3) uint8. Raises EngineFailed if it is not finite."""

    def fault(self, error: Exception, request_ids: Sequence[str]) -> Fault:
        """Log an error and put it in words for a client."""

    def recover(self) -> None:
        """After a failure, when the failed call's tensors are gone."""

    def memory_mb(self) -> float: ...


def preview_steps(partials: int, steps: int) -> list[int]:
    """The steps after which previews are shown, evenly spread; fewer than asked for if steps are fewer."""
    wanted = {round(steps * (k + 1) / (partials + 1)) for k in range(partials)}
    return sorted(step for step in wanted if 0 < step < steps)


def fewer_steps(steps: int) -> int:
    return max(1, math.floor(steps * 0.8))


def another_seed(seed: int) -> int:
    """The seed of the second try: the same one each time, so that it can be looked into."""
    return (seed * 6364136223846793005 + 1442695040888963407) % 2**63


def not_finite() -> EngineFailed:
    return EngineFailed(
        "The picture came out as NaN or infinite numbers: lower cfg_scale or change the steps; if it "
        "persists, the model's dtype does not suit this device (bfloat16 or float32 do).",
        code="image_not_finite",
    )


def with_ways_out(error: AtelierError, request: ImageRequest) -> AtelierError:
    """A failure that did not heal, with what the client can change."""
    if isinstance(error, OutOfMemory):
        fixes = ["use a smaller size", "try again later"]
        if request.n > 1:
            fixes.insert(1, "ask for fewer pictures at a time")
    elif error.code == "image_not_finite":
        fixes = ["try a different seed"]
        if request.steps > 1:
            fixes.insert(0, f"reduce num_steps to {fewer_steps(request.steps)}")
        if request.cfg_scale > 1:
            fixes.append(f"lower true_cfg_scale to {max(1.0, request.cfg_scale / 2):g}")
    else:
        return error
    error.suggested_fix = tuple(fixes)
    return error
