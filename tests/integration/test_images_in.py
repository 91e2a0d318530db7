"""Images into the real graph: hostile ones cost it nothing, and one that was seen is not decoded again."""

from __future__ import annotations

import base64
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from PIL import Image

from serve_app.graph.pictures import FILE_BYTES
from tests.engines.hostile import RED, file, hostile, noise
from tests.engines.test_fetch import ATTACKS
from tests.integration.conftest import Graph

pytestmark = pytest.mark.real


def ask(client: httpx.Client, url: str) -> tuple[int, float]:
    """Status and seconds."""
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
    began = time.monotonic()
    return client.post("/v1/chat/completions", json=body).status_code, time.monotonic() - began


def ask_all(graph: Graph, urls: list[str]) -> list[tuple[int, float]]:
    with httpx.Client(base_url=graph.url, timeout=60) as client, ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda url: ask(client, url), urls))


def data_url(data: bytes) -> str:
    return "data:;base64," + base64.b64encode(data).decode()


def replica(graph: Graph) -> psutil.Process:
    (found,) = graph.processes("ServeReplica", "Preprocessing")
    return found


def test_hostile_images_and_urls_cost_the_graph_nothing(graph: Graph) -> None:
    images = [data_url(data) for data in random.Random(0).sample(hostile(1000), 100)]
    good = [data_url(file(noise(400, 300, i), kind)) for i, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    assert {status for status, _ in ask_all(graph, good)} == {200}
    preprocessing = replica(graph)
    before = preprocessing.memory_info().rss
    answers = ask_all(graph, images + random.Random(0).sample(ATTACKS, 30))
    assert set(Counter(status for status, _ in answers)) == {200, 400}
    assert max(seconds for _, seconds in answers) < 10
    assert preprocessing.is_running()
    assert preprocessing.memory_info().rss < 1.05 * before
    assert {status for status, _ in ask_all(graph, good)} == {200}


def test_files_of_any_size_travel(graph: Graph) -> None:
    """As large as goes by value, one byte larger, and spelt in a way that stays text."""
    picture = file(noise(64, 64, 7), "PNG")
    urls = [data_url(picture + bytes(size - len(picture))) for size in (FILE_BYTES, FILE_BYTES + 1)]
    urls += [urls[0][:1000] + "\n" + urls[0][1000:]]
    assert {status for status, _ in ask_all(graph, urls)} == {200}


def test_an_image_that_was_seen_is_not_decoded_again(graph: Graph) -> None:
    url = data_url(file(Image.new("RGB", (3000, 2500), RED)))

    def decoding_seconds() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in replica(graph).children())

    started = decoding_seconds()
    ask_all(graph, [url])
    first = decoding_seconds()
    assert first > started
    assert {status for status, _ in ask_all(graph, [url] * 8)} == {200}
    assert decoding_seconds() == first
