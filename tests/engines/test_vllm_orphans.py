"""No process outlives the one that owns it, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.engines.orphans import OrphanGuard, descendants

PROJECT = Path(__file__).parents[2]

SLEEPERS = """
import subprocess, sys, time
from deployments.engines.orphans import OrphanGuard

guard = OrphanGuard()
guard.start()
# A child that starts a child of its own, in a session of its own, and then ends: nobody's grandchild.
child = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep({})"
children = [subprocess.Popen([sys.executable, "-c", child.format(s)]) for s in (600, 1.5)]
children.append(subprocess.Popen(["sleep", "600"]))
time.sleep(3)
{last}
print("ready", flush=True)
time.sleep(600)
"""

ENGINE = """
import asyncio
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine

async def main():
    small = {"max-model-len": 256, "enforce-eager": True, "kv-cache-memory-bytes": 67108864}
    settings = ModelSettings(
        id="m", task="vision_language", engine="vllm", source="demo_models/vlm", engine_args=small
    )
    engine = make_chat_engine(settings)
    {before}
    await engine.start()
    print("ready", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def started(script: Path, text: str) -> subprocess.Popen[str]:
    script.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()).strip() != "ready":
        assert line, "it ended before it was ready"
    return process


def gone_within(pids: set[int], seconds: float) -> set[int]:
    """Those still alive after that time."""
    deadline = time.monotonic() + seconds
    while alive := {pid for pid in pids if is_alive(pid)}:
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.1)
    return set()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sleepers() -> set[int]:
    found = subprocess.run(["pgrep", "-fx", "sleep 600"], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


@pytest.mark.parametrize("late", [False, True])
def test_descendants_end_with_a_killed_owner(tmp_path: Path, late: bool) -> None:
    before = sleepers()
    # One that starts in the last moment is known by its environment alone.
    last = 'children.append(subprocess.Popen(["sleep", "600"]))' if late else ""
    owner = started(tmp_path / "owner.py", SLEEPERS.replace("{last}", last))
    pids = {pid for pid, _ in descendants({owner.pid})} | (sleepers() - before)
    assert len(pids) == 5 + late  # guard, lasting child, three or four sleeps; the short child is gone
    owner.kill()
    owner.wait()
    assert gone_within(pids, 10) == set()


def test_a_stopped_child_ends_too(tmp_path: Path) -> None:
    owner = started(tmp_path / "owner.py", SLEEPERS.replace("{last}", ""))
    pids = {pid for pid, _ in descendants({owner.pid})}
    victim = next(pid for pid in pids if "sleep" in Path(f"/proc/{pid}/comm").read_text())
    os.kill(victim, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert gone_within(pids, 10) == set()


def test_a_closed_guard_kills_nothing() -> None:
    guard = OrphanGuard()
    guard.close()
    guard.start()
    child = subprocess.Popen(["sleep", "60"])
    pid = guard.pid
    assert pid is not None
    guard.close()
    guard.close()
    assert not is_alive(pid)
    assert is_alive(child.pid)
    child.kill()
    child.wait()


@pytest.mark.real
@pytest.mark.parametrize("loading", [False, True])
def test_vllm_ends_with_a_killed_replica(tmp_path: Path, loading: bool) -> None:
    before = "print('ready', flush=True)" if loading else ""
    owner = started(tmp_path / "owner.py", ENGINE.replace("{before}", before))
    if loading:  # wait for the EngineCore, which is then still importing
        while len(descendants({owner.pid})) < 3:
            time.sleep(0.05)
    pids = {pid for pid, _ in descendants({owner.pid})}
    assert len(pids) >= 3
    owner.kill()
    owner.wait()
    assert gone_within(pids, 10) == set()
