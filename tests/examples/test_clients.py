"""The example clients against the whole ingress on the fake engines."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.examples.clients import CLIENTS, run_client


def test_every_service_has_a_client_in_every_language() -> None:
    names = {
        f"{service}{suffix}"
        for service in ("image_service", "vlm_service", "vlm_rest", "openai_chat")
        for suffix in (".py", ".sh", ".mjs")
    }
    assert set(CLIENTS) == names | {"anthropic_messages.py"}


@pytest.mark.parametrize("name", CLIENTS)
async def test_client(url: str, tmp_path: Path, name: str) -> None:
    run = await run_client(url, tmp_path, name)
    assert run.code == 0, run.err
    if name.startswith("image_service"):
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.size == (64, 48)
    else:
        assert "You said: " in run.out


@pytest.mark.parametrize("name", ["image_service.py", "image_service.sh", "image_service.mjs"])
async def test_client_waits_for_a_model_that_is_loading(start, tmp_path: Path, name: str) -> None:
    url, application = await start(paint={"load_seconds": 1}, states={"fake-image": "loading"})
    client = asyncio.create_task(run_client(url, tmp_path, name))
    async with httpx.AsyncClient(base_url=url) as http:
        while not client.done():
            if await _counts(http):
                application.states["ImageGenerator-fake-image"] = "ready"
                break
            await asyncio.sleep(0.05)
        run = await client
        assert run.code == 0, run.err
        counts = await _counts(http)
    assert counts["0"] == 1
    assert counts["3001"] >= 1


@pytest.mark.parametrize("name", ["image_service.py", "image_service.mjs"])
async def test_client_never_repeats_a_wrong_parameter(url: str, tmp_path: Path, name: str) -> None:
    run = await run_client(url, tmp_path, name, " ")
    assert run.code == 1
    assert "1001: 'prompt' is empty" in run.err
    async with httpx.AsyncClient(base_url=url) as http:
        assert await _counts(http) == {"1001": 1}


async def _counts(http: httpx.AsyncClient) -> dict[str, int]:
    return (await http.get("/api/metrics")).json()["counts_by_code"]
