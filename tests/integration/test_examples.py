"""The example clients, and what the older services need of real models, on the demo graph."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from tests.examples.clients import CLIENTS, EXAMPLES, run_client
from tests.ingress.golden import play
from tests.integration.conftest import Graph

pytestmark = pytest.mark.real


async def test_ocr_follows_its_schema(graph: Graph) -> None:
    image = "data:image/png;base64," + base64.b64encode((EXAMPLES / "picture.png").read_bytes()).decode()
    body = {"image": image, "output": "ocr", "max_tokens": 96, "temperature": 0}
    async with httpx.AsyncClient(timeout=120) as http:
        answer = await http.post(f"{graph.url}/api/v1/chat", json=body)
    data = answer.json()["data"]
    assert answer.status_code == 200, answer.text
    assert data["response"].startswith('{"lines":')
    for line in data["lines"]:
        assert isinstance(line["text"], str)
        assert all(0 <= side <= 1000 for side in line["box"])


@pytest.mark.parametrize("name", CLIENTS)
async def test_example(graph: Graph, tmp_path: Path, name: str) -> None:
    run = await run_client(graph.url, tmp_path, name)
    assert run.code == 0, run.err
    assert run.out.strip()
    if name.startswith("image_service"):
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


async def test_ids_in_bodies_are_those_in_headers(graph: Graph) -> None:
    for headers in ({}, {"x-request-id": "mine"}):
        answer = await play(graph.url, {"post": "/api/generate", "headers": headers, "json": {}})
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
