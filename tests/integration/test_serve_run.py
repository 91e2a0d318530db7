"""`serve run` with a config file, as on a cluster, and what remains of `atelier serve` when it is killed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from serve_app.launch import free_port, own_environment
from serve_app.settings import PROJECT
from tests.integration.conftest import eventually, running, serving

pytestmark = pytest.mark.real

PROFILE = """
models:
  - {id: fake-vlm, task: vision_language, engine: fake, num_cpus: 0.1}
  - id: fake-image
    task: image_generation
    engine: fake
    num_cpus: 0.1
    generation: {size: 64x64, max_pixels: 65536, steps: 4, cfg_scale: 3}
preprocessing: {num_cpus: 0.1}
ingress: {num_cpus: 0.1}
"""


def chats(url: str) -> bool:
    try:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atelier-", dir="/tmp") as name:
        yield Path(name)


def test_serve_run_takes_the_config(tmp_path: Path, folder: Path) -> None:
    profile = tmp_path / "fake.yaml"
    profile.write_text(PROFILE)
    port = free_port()
    yaml = YAML()
    config = yaml.load((PROJECT / "serve_config.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] = {"profile": str(profile)}
    yaml.dump(config, tmp_path / "config.yaml")
    environment = {**os.environ, **own_environment(folder), "RAY_ADDRESS": "local"}
    command = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "config.yaml")]
    with running(command, tmp_path / "log", environment):
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: chats(url), 90, log=tmp_path / "log")
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "fake-vlm"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_remains_of_a_server_that_ends(tmp_path: Path, how: signal.Signals) -> None:
    with serving(tmp_path, PROFILE) as (_, server):
        children = server.children(recursive=True)
        assert any("haproxy" in child.name() for child in children)
        server.send_signal(how)
        _, alive = psutil.wait_procs(children, timeout=40)
    assert not alive


def test_two_servers_on_one_machine_keep_to_themselves(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = {}
        for name in ("one", "two"):
            profile = PROFILE.replace("fake-vlm", name)
            urls[name], _ = stack.enter_context(serving(tmp_path, profile, name))
        for name, url in urls.items():
            seen = {httpx.get(f"{url}/v1/models").json()["data"][0]["id"] for _ in range(20)}
            assert seen == {name}
