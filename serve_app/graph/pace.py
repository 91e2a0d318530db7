"""How fast a deployment works off its requests, as one ingress replica sees it: when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIN_S, UNKNOWN_S, MAX_S = 1.0, 2.0, 120.0
"""Bounds of the estimate. openai-python does not retry at all where Retry-After is above 120 s."""

WINDOW = 64
"""Requests that the rate is taken from."""


class Pace:
    """Counts requests under way and when they end.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._ends: deque[float] = deque(maxlen=WINDOW)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request. One that fails says nothing about the rate."""
        self._under_way += 1
        try:
            yield
            self._ends.append(self._clock())
        finally:
            self._under_way -= 1

    def drain_seconds(self) -> float:
        """Seconds until what is under way should be done."""
        if len(self._ends) < 2:
            return UNKNOWN_S
        # Up to now, not to the last end: a deployment that hangs gets slower by the second.
        seconds = self._clock() - self._ends[0]
        return min(max(self._under_way * seconds / len(self._ends), MIN_S), MAX_S)
