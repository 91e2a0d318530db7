"""Runs the example clients, as a reader would: each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = {".py": sys.executable, ".sh": "bash", ".mjs": "node"}
CLIENTS = sorted(
    path.name for path in EXAMPLES.iterdir() if path.suffix in PROGRAMS and not path.name.startswith("retry.")
)


@dataclass(frozen=True)
class Run:
    """How a client ended."""

    code: int
    out: str
    err: str


def program(suffix: str) -> str:
    """What runs files with this ending; skips the test where it is not installed."""
    found = shutil.which(PROGRAMS[suffix])
    if found is None or (suffix == ".sh" and shutil.which("curl") is None):
        pytest.skip(f"no {PROGRAMS[suffix]} or curl on this machine")
    return found


async def run(url: str, folder: Path, *command: str) -> Run:
    """Run a command in `folder` with the server at `url`, for a minute at most."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "ATELIER_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    return Run(process.returncode or 0, out.decode(), err.decode())


async def run_client(url: str, folder: Path, name: str, *args: str) -> Run:
    """Run one of CLIENTS."""
    return await run(url, folder, program(Path(name).suffix), str(EXAMPLES / name), *args)
