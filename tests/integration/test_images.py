"""Streams, edits, the queue and cancellation on the real graph and the demo checkpoint."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.integration.conftest import Graph, eventually

pytestmark = pytest.mark.real

PROMPT = "a red circle on a blue background"


def array(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")).astype(int)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def half_mask(width: int, height: int) -> bytes:
    """The left half may be repainted."""
    alpha = np.full((height, width), 255)
    alpha[:, : width // 2] = 0
    return png(np.dstack([np.zeros((height, width, 3)), alpha]))


@pytest.fixture(scope="module")
def painted(graph: Graph) -> np.ndarray:
    answer = graph.client().images.generate(prompt=PROMPT, extra_body={"seed": 3, "num_inference_steps": 16})
    return array(answer.data[0].b64_json)


def test_previews_lead_to_the_picture_that_is_painted_without_them(graph: Graph) -> None:
    stream = graph.client().images.generate(
        prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 3, "num_inference_steps": 16}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * 3,
        "image_generation.completed",
    ]
    pictures = [array(event.b64_json) for event in events]
    whole = graph.client().images.generate(prompt=PROMPT, extra_body={"seed": 3, "num_inference_steps": 16})
    assert np.array_equal(pictures[-1], array(whole.data[0].b64_json))
    distances = [np.abs(picture - pictures[-1]).mean() for picture in pictures]
    assert distances[2] < distances[0], "the last preview is nearer to the picture than the first"
    assert events[-1].usage.total_tokens == whole.usage.total_tokens > 0


def test_each_of_several_pictures_is_streamed(graph: Graph) -> None:
    stream = graph.client().images.generate(
        prompt=PROMPT, n=2, stream=True, extra_body={"seed": 3, "num_inference_steps": 4}
    )
    events = {event.index: event for event in stream}
    assert {event.type for event in events.values()} == {"image_generation.completed"}
    assert [events[k].seed for k in (0, 1)] == [3, 4]


def test_unmasked_pixels_come_back_unchanged(graph: Graph, painted: np.ndarray) -> None:
    height, width = painted.shape[:2]
    answer = graph.client().images.edit(
        image=("picture.png", png(painted), "image/png"),
        mask=("mask.png", half_mask(width, height), "image/png"),
        prompt="a green square on a yellow background",
        extra_body={"seed": 5},
    )
    result = array(answer.data[0].b64_json)
    assert result.shape == painted.shape
    assert np.array_equal(result[:, width // 2 :], painted[:, width // 2 :])
    assert not np.array_equal(result[:, : width // 2], painted[:, : width // 2])
    assert answer.usage.input_tokens_details.image_tokens == width * height // 256


def test_strength_says_how_much_of_the_picture_is_left(graph: Graph, painted: np.ndarray) -> None:
    def distance(strength: float) -> float:
        answer = graph.client().images.edit(
            image=png(painted),
            prompt="a green square on a yellow background",
            extra_body={"seed": 5, "strength": strength},
        )
        return float(np.abs(array(answer.data[0].b64_json) - painted).mean())

    assert distance(0.2) < distance(1.0)


def test_outpainting_keeps_what_it_starts_from(graph: Graph, painted: np.ndarray) -> None:
    small = painted[32:96, 32:96]
    answer = graph.client().images.edit(
        image=png(small),
        prompt=PROMPT,
        size="128x128",
        extra_body={"placement": "32,32", "seed": 5},
    )
    result = array(answer.data[0].b64_json)
    assert result.shape == (128, 128, 3)
    assert np.array_equal(result[32:96, 32:96], small)


def test_an_edit_is_streamed(graph: Graph, painted: np.ndarray) -> None:
    stream = graph.client().images.edit(
        image=png(painted), prompt=PROMPT, stream=True, partial_images=1, extra_body={"strength": 1.0}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert array(events[-1].b64_json).shape == painted.shape


def test_a_mask_of_another_size_is_refused(graph: Graph, painted: np.ndarray) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        graph.client().images.edit(image=png(painted), mask=half_mask(64, 64), prompt=PROMPT)
    assert caught.value.param == "mask"


# ---------------------------------------------------------------------- waiting
def entry(graph: Graph, name: str) -> dict[str, Any] | None:
    answer = httpx.get(f"{graph.url}/v1/images/queue/{name}")
    return answer.json() if answer.status_code == 200 else None


def in_background(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_cancelled_request_stops_and_its_client_hears_of_it(graph: Graph) -> None:
    told: list[Any] = []

    def paint() -> None:
        body = {"prompt": PROMPT, "n": 10, "num_inference_steps": 100}
        headers = {"x-request-id": "to-be-cancelled"}
        told.append(httpx.post(f"{graph.url}/v1/images/generations", json=body, headers=headers, timeout=120))

    thread = in_background(paint)
    found = eventually(lambda: entry(graph, "to-be-cancelled"), 20)
    assert (found["steps"], found["n"]) == (1000, 10)
    assert httpx.delete(f"{graph.url}/v1/images/requests/to-be-cancelled").json()["cancelled"]
    thread.join(20)
    assert (told[0].status_code, told[0].json()["error"]["code"]) == (499, "request_cancelled")
    eventually(lambda: entry(graph, "to-be-cancelled") is None, 10)


def test_time_limits_stop_the_work(graph: Graph) -> None:
    begun = time.monotonic()
    answer = httpx.post(
        f"{graph.url}/v1/images/generations",
        json={"prompt": PROMPT, "n": 10, "num_inference_steps": 100},
        headers={"x-request-timeout-seconds": "2", "x-request-id": "limited"},
        timeout=60,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert time.monotonic() - begun < 10
    eventually(lambda: entry(graph, "limited") is None, 10)


def test_cancelling_one_of_several_never_changes_the_others(graph: Graph, painted: np.ndarray) -> None:
    def paint(k: int) -> tuple[int, np.ndarray | None]:
        body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 16 if k else 100}
        headers = {"x-request-id": f"company-{k}"}
        answer = httpx.post(f"{graph.url}/v1/images/generations", json=body, headers=headers, timeout=120)
        picture = array(answer.json()["data"][0]["b64_json"]) if answer.status_code == 200 else None
        return answer.status_code, picture

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(paint, k) for k in range(4)]
        eventually(lambda: entry(graph, "company-0"), 20)
        httpx.delete(f"{graph.url}/v1/images/requests/company-0")
        ends = [answer.result() for answer in answers]
    assert ends[0][0] == 499
    for status, picture in ends[1:]:
        assert status == 200
        assert picture is not None
        assert np.abs(picture - painted).max() <= 2
