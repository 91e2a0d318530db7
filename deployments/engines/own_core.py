"""A processor core for an engine that computes in one thread, on machines of few cores.

Its threads (the loop that computes, those that receive and send) hand Python's lock to each other for every
step. Where there are as many busy processes as cores, Linux spreads them, and each hand-over may have to wake
another core. With all on one core, the demo model answers a sixth more requests a second on two cores
(benchmarks/README.md); with the computing thread alone there, no more than before.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

FEW = 4
"""Cores; where there are more, one is free wherever the thread goes, and cores may not be alike."""


class OwnCore:
    """At most one core, claimed until `release` or the end of this process."""

    def __init__(self, name: str = "atelier-core") -> None:
        """Args: `name` is common to all who must not claim the same core."""
        self._name = name
        self._claim: socket.socket | None = None

    def keep(self, pid: int) -> int | None:
        """Keep all threads of a process on one core: where its main thread last ran, or an unclaimed one.

        Threads that they start from then on stay there, too. Returns the core, or None where nothing was
        done: one core or many, all claimed, not Linux, or not allowed.
        """
        if self._claim is not None or not hasattr(os, "sched_setaffinity"):
            return None
        try:
            cores = os.sched_getaffinity(pid)
            if not 2 <= len(cores) <= FEW:
                return None
            at = _last_core(pid)
            for core in sorted(cores, key=lambda core: (core != at, core)):
                if self._claimed(core):
                    _bind(pid, core)
                    return core
        except OSError:
            self.release()
        return None

    def release(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close()

    def _claimed(self, core: int) -> bool:
        # An abstract socket's name belongs to one process, and is free again when that is gone.
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0{self._name}-{core}")
        except OSError:
            claim.close()
            return False
        self._claim = claim
        return True


def _bind(pid: int, core: int) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(int(thread), {core})


def _last_core(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[36])
