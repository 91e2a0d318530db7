"""Ends the processes an engine started when the process that owns the engine dies.

vLLM's EngineCore and Worker processes outlive a replica that gets SIGKILL and keep its memory. A guard is
a small process of its own, in its own session, that knows every descendant of its owner and kills them
once the owner is gone. It runs this very file as a script, with the standard library alone.

Why not PR_SET_PDEATHSIG or a watchdog thread in each child: the first is tied to the thread that started
the child, the second needs code inside vLLM's processes and fails in one that is stopped or hung.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

MARK = "ATELIER_ENGINE_OWNER"
"""Environment variable that marks what an owner starts, for children too young to have been seen."""
INTERVAL_S = 2
"""Between two looks at what the owner has started. That it is gone is known at once."""

Process = tuple[int, int]
"""Process id and start time: an id alone may come to mean another process."""


class OrphanGuard:
    """Watches over the processes that this process starts from now on."""

    def __init__(self) -> None:
        self._mark = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        os.environ[MARK] = self._mark
        # Its own session: a signal to the owner's process group must not take the guard first.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), self._mark],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in (MARK, "LD_PRELOAD")},
        )

    def close(self) -> None:
        """Let go. What still runs by then keeps running. Safe to call twice and before `start`."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
        if os.environ.get(MARK) == self._mark:
            del os.environ[MARK]

    @property
    def pid(self) -> int | None:
        return self._guard.pid if self._guard else None


def descendants(roots: set[int]) -> set[Process]:
    """Every living process below `roots`, themselves not included."""
    children: dict[int, list[Process]] = {}
    for pid, parent, started in _processes():
        children.setdefault(parent, []).append((pid, started))
    found: set[Process] = set()
    queue = list(roots)
    while queue:
        for process in children.get(queue.pop(), ()):
            if process not in found:
                found.add(process)
                queue.append(process[0])
    return found


def kill_all(processes: set[Process]) -> None:
    for pid, _ in _living(processes):
        with contextlib.suppress(OSError):  # gone in between
            os.kill(pid, signal.SIGKILL)


def _living(processes: set[Process]) -> set[Process]:
    """Those that still are the processes they were."""
    return {(pid, started) for pid, started in processes if (stat := _stat(pid)) and stat[1] == started}


def _processes() -> Iterator[tuple[int, int, int]]:
    """(pid, parent's pid, start time) of every process but zombies."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(int(entry))
            if stat is not None:
                yield int(entry), *stat


def _stat(pid: int) -> tuple[int, int] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may itself hold spaces and brackets.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else (int(fields[1]), int(fields[19]))


def _marked(mark: str) -> set[Process]:
    needle = f"{MARK}={mark}".encode()
    found = set()
    for pid, _, started in _processes():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if needle in file.read().split(b"\0"):
                    found.add((pid, started))
        except OSError:
            pass  # another user's process
    return found


def _end_of(owner: int) -> Callable[[], object]:
    """A function that returns when the owner ends, or after INTERVAL_S."""
    try:
        ended = os.pidfd_open(owner)
    except OSError:  # gone, or a sandbox that does not have this
        return lambda: time.sleep(0.5)
    return lambda: select.select([ended], [], [], INTERVAL_S)


def _watch(owner: int, mark: str) -> None:
    me = os.getpid()
    known: set[Process] = set()
    wait = _end_of(owner)
    while os.getppid() == owner:
        # A process whose parent died before it keeps its place in `known`.
        known = _living(known | descendants({owner}))
        wait()
    for _ in range(5):  # again, for what was being started meanwhile
        known = _living(known | _marked(mark))
        known |= descendants({pid for pid, _ in known})
        kill_all({process for process in known if process[0] != me})
        time.sleep(0.2)


if __name__ == "__main__":
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # ends with its owner, not before
    _watch(int(sys.argv[1]), sys.argv[2])
