"""Counts what the older image service answered, over all replicas of the ingress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Counted:
    """What one replica counted since it started."""

    uptime: float
    """Seconds."""
    codes: dict[int, int]
    """Code → answers."""


class Tally:
    """The counts of this replica, and the sum of all.

    Args:
        everyone: asks every replica, this one too; None where there is only this one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        everyone: Callable[[], Awaitable[Sequence[Counted]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._everyone = everyone
        self._clock = clock
        self._started = clock()
        self._codes: Counter[int] = Counter()

    def count(self, code: int) -> None:
        """One more answer with this code."""
        self._codes[code] += 1

    def own(self) -> Counted:
        """What this replica counted."""
        return Counted(self._clock() - self._started, dict(self._codes))

    async def total(self) -> Counted:
        """What all counted, and the uptime of the oldest. A replica that ended took its counts with it."""
        counted = (await self._everyone() if self._everyone else None) or [self.own()]
        codes = sum((Counter(each.codes) for each in counted), Counter[int]())
        return Counted(max(each.uptime for each in counted), dict(codes))
