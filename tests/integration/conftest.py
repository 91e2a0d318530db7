"""The real graph, started the way a user starts it: the `atelier serve` command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from serve_app.launch import free_port
from tests.devices import GPU_SHARE

STARTUP_S = 240


@dataclass
class Graph:
    """A running server."""

    url: str
    process: psutil.Process
    log: Path
    first_answer: Any
    """What a client heard that called as soon as the port answered, while the models were loading."""

    def client(self, **kwargs: Any) -> OpenAI:
        """The unmodified SDK."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", **kwargs)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Descendants whose command line holds all the words."""
        found = []
        for child in self.process.children(recursive=True):
            try:
                line = " ".join(child.cmdline()) or child.name()
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(child)
        return found


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """The demo models on real Ray Serve, HAProxy and engines; one for the whole session."""
    port, log = free_port(), tmp_path_factory.mktemp("graph") / "log.txt"
    profile = "demo-gpu" if GPU_SHARE else "demo"
    command = [sys.executable, "-m", "serve_app.cli", "serve", "--profile", profile, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, log, {**os.environ, "HF_HUB_OFFLINE": "1"}) as server:
        eventually(lambda: _ok(f"{url}/health"), STARTUP_S, server, log)
        first = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
            model="qwen3-vl", messages=[{"role": "user", "content": "Hello!"}]
        )
        eventually(lambda: "Atelier is ready" in log.read_text(), STARTUP_S, server, log)
        yield Graph(url, server, log, first)


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[psutil.Process]:
    """A server in a process of its own, ended with all its descendants."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    family = psutil.Process(process.pid)
    try:
        yield family
    finally:
        children = family.children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(children, timeout=10)[1]:
            child.kill()


@contextmanager
def serving(
    folder: Path, profile: str, name: str = "fake", seconds: float = STARTUP_S
) -> Iterator[tuple[str, psutil.Process]]:
    """`atelier serve` of a profile given as text; yields its URL and process once it is ready."""
    own, log, port = folder / f"{name}.yaml", folder / f"{name}.log", free_port()
    own.write_text(profile)
    command = [sys.executable, "-m", "serve_app.cli", "serve", "--profile", str(own), "--port", str(port)]
    with running(command, log, dict(os.environ)) as process:
        eventually(lambda: "Atelier is ready" in log.read_text(), seconds, process, log)
        yield f"http://127.0.0.1:{port}", process


def eventually(
    check: Callable[[], Any], seconds: float, process: psutil.Process | None = None, log: Path | None = None
) -> Any:
    """The first true value of `check`, asked until the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        if process is not None and not process.is_running():
            break
        time.sleep(0.1)
    tail = log.read_text()[-3000:] if log else ""
    raise AssertionError(f"not within {seconds} s\n{tail}")


def _ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
