"""How long steps take, from those measured, and from that when everything in a queue should be done."""

from __future__ import annotations

import math
from collections.abc import Hashable

from deployments.engines.scheduler import StepScheduler

RECENT = 0.2
"""Weight of the newest measurement in an average."""
LOOKAHEAD = 160
"""Steps that a forecast plays through at most: longer queues are played in larger strides."""


class StepTimes:
    """Seconds per step and per finished picture, for each group and batch width."""

    def __init__(self) -> None:
        self._steps: dict[tuple[Hashable, int], float] = {}
        self._ends: dict[Hashable, float] = {}
        self._bias = 0.0  # logarithm of (real / forecast): what forecasts do not see, arrivals above all
        self.average_seconds: float | None = None
        self._line = _Line()

    # ------------------------------------------------------------------ measuring
    def step(self, group: Hashable, width: int, pixels: int, seconds: float) -> None:
        """A step of `width` pictures of `pixels` each took so long."""
        key = (group, width)
        self._steps[key] = _blend(self._steps.get(key), seconds)
        self._line.add(width * pixels, seconds)

    def end(self, group: Hashable, seconds: float) -> None:
        """What comes once per picture, beginning and decoding, took so long."""
        self._ends[group] = _blend(self._ends.get(group), seconds)

    def request(self, seconds: float, forecast: float | None) -> None:
        """A request took so long from arrival to end, and so long had been forecast."""
        self.average_seconds = _blend(self.average_seconds, seconds)
        if forecast and seconds > 0:
            ratio = math.log(seconds / forecast) + self._bias
            self._bias += RECENT * (min(1.5, max(-1.0, ratio)) - self._bias)

    # ------------------------------------------------------------------ foretelling
    def step_seconds(self, group: Hashable, width: int, pixels: int) -> float | None:
        """Of a step like this one; None before anything was measured."""
        measured = self._steps.get((group, width))
        return measured if measured is not None else self._line.at(width * pixels)

    def forecast(self, queue: StepScheduler) -> dict[Hashable, float] | None:
        """Seconds until each request is done if nothing arrives; None before anything was measured.

        Plays the queue's own policy forward, so `queue` must be a clone.
        """
        if self._line.at(1) is None:
            return None
        longest = sum(ticket.left for ticket in queue.tickets())
        stride, clock, done = max(1, longest // LOOKAHEAD), 0.0, {}
        while batch := queue.next():
            steps = min(stride, min(slot.left for slot in batch))
            ticket = batch[0].ticket
            seconds = self.step_seconds(ticket.group, len(batch), ticket.pixels) or 0.0
            clock += steps * seconds
            for slot in batch:
                queue.advance(slot, steps)
                if slot.left:
                    continue
                clock += self._ends.get(slot.ticket.group, 0.0)
                if queue.finish(slot):
                    done[slot.ticket.key] = clock * math.exp(self._bias)
        return done


class _Line:
    """Seconds over pixels as a straight line, fitted to what was measured, the newest counting most."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5

    def add(self, x: float, y: float) -> None:
        self._sums = [
            (1 - RECENT / 4) * old + new
            for old, new in zip(self._sums, (1.0, x, y, x * x, x * y), strict=True)
        ]

    def at(self, x: float) -> float | None:
        n, sx, sy, sxx, sxy = self._sums
        if not n:
            return None
        spread = n * sxx - sx * sx
        slope = (n * sxy - sx * sy) / spread if spread > 1e-9 * n * sxx else 0.0
        if slope <= 0:  # one size only, or noise: in proportion to the pixels
            return x * sy / sx
        # Steps of no pixels take some time, not a negative one.
        return max(x * slope, sy / n + slope * (x - sx / n))


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + RECENT * (new - old)
