"""An engine's own core: claimed by one engine at a time, and only where cores are few."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from deployments.engines import own_core
from deployments.engines.own_core import OwnCore

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has affinities")

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Of claims that no server on this machine knows."""
    monkeypatch.setattr(own_core, "FEW", max(own_core.FEW, len(CORES)))
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes of two threads that do nothing, one more than cores."""
    code = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(flush=True)
time.sleep(60)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(len(CORES) + 1)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    yield [process.pid for process in started]
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_each_gets_another_core_until_none_is_left(name: str, pids: list[int]) -> None:
    claims = [OwnCore(name) for _ in pids]
    kept = [claim.keep(pid) for claim, pid in zip(claims, pids, strict=True)]
    assert sorted(core for core in kept if core is not None) == CORES
    assert kept[-1] is None
    for pid, core in zip(pids, kept, strict=True):
        threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
        assert len(threads) == 2
        for thread in threads:
            assert os.sched_getaffinity(thread) == ({core} if core is not None else set(CORES))
    claims[0].release()
    assert claims[-1].keep(pids[-1]) == kept[0]


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_a_claim_ends_with_its_process(name: str, pids: list[int]) -> None:
    code = """
import sys
from deployments.engines import own_core
own_core.FEW = 10_000
claims = [own_core.OwnCore(sys.argv[1]) for _ in sys.argv[2:]]
print(*[claim.keep(int(pid)) for claim, pid in zip(claims, sys.argv[2:], strict=True)])
"""
    command = [sys.executable, "-c", code, name, *map(str, pids[:-1])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(map(int, said.split())) == CORES
    assert OwnCore(name).keep(pids[-1]) in CORES


@pytest.mark.parametrize("few", [0, 1])
def test_many_cores_or_one_are_left_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, pids: list[int], few: int
) -> None:
    monkeypatch.setattr(own_core, "FEW", few)
    assert OwnCore(f"test-{uuid.uuid4().hex}").keep(pids[0]) is None
    assert os.sched_getaffinity(pids[0]) == set(CORES)


def test_a_process_that_is_gone(name: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    core = OwnCore(name)
    assert core.keep(gone.pid) is None
    core.release()
