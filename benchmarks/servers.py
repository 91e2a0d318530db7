"""Starts what is to be compared, each in a process of its own, and ends it by its id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.contracts.settings import ModelSettings
from serve_app.launch import free_port

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextmanager
def running(
    command: list[str], ready: str, log: Path, env: dict[str, str], seconds: float = 240
) -> Iterator[None]:
    """The command, from when `ready` answers 200 until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        _wait(process, ready, log, seconds)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(ready, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.2)
    raise RuntimeError(f"{ready} did not answer. The end of its log:\n{log.read_text()[-3000:]}")


@contextmanager
def graph(profile: str, folder: Path) -> Iterator[str]:
    """`atelier serve`; yields its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-m",
        "serve_app.cli",
        "serve",
        "--profile",
        profile,
        "--port",
        url.split(":")[-1],
    ]
    with running(command, f"{url}/ready", folder / "graph.log", ENVIRONMENT):
        yield url


@contextmanager
def ray_serve_llm(profile: str, folder: Path, collect_ms: int) -> Iterator[str]:
    """`ray.serve.llm` with the profile's language model, collecting tokens for so long; yields its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "benchmarks.ray_serve_llm", profile, url.split(":")[-1], str(collect_ms)]
    with running(command, f"{url}/v1/models", folder / "ray_llm.log", ENVIRONMENT):
        yield url


@contextmanager
def vllm_serve(model: ModelSettings, folder: Path) -> Iterator[str]:
    """Plain `vllm serve` of the same checkpoint with the same engine arguments; yields its URL.

    By module: the `vllm` command asks for a package that is not named so on CPUs.
    """
    from deployments.engines.vllm_arguments import command_line

    url = f"http://127.0.0.1:{free_port()}"
    words = [*command_line(model), "--host", "127.0.0.1", "--port", url.split(":")[-1]]
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *words]
    with running(command, f"{url}/health", folder / "vllm.log", {**ENVIRONMENT, **model.env}):
        yield url
