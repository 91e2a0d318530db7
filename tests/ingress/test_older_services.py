"""What golden pairs cannot say of the older services: queues, counts, logs, limits over several requests."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from tests.ingress.golden import check, in_base64, pairs, play
from tests.ingress.test_chat import _until

SLOW = {"engine_args": {"step_seconds": 0.05}}
PROMPT = {"prompt": "a red circle", "num_steps": 20}


@pytest.fixture
async def http(url: str):
    async with httpx.AsyncClient(base_url=url) as client:
        yield client


async def test_a_busy_queue_says_how_long_it_will_take(start) -> None:
    url, _ = await start(paint=SLOW)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/api/generate", json=PROMPT)  # measures the time of a step
        painting = [asyncio.create_task(http.post("/api/generate", json=PROMPT)) for _ in range(3)]
        busy = await _until_json(http, "/api/queue/status", lambda status: status["queued"] == 2)
        assert (busy["status"], busy["processing"]) == ("busy", 1)
        # 60 steps of 0.05 s, and what the machine needs besides.
        assert 2 <= busy["estimated_wait_seconds"] <= 30
        assert (await http.get("/api/metrics")).json()["queue_length"] == 3
        assert [(await answer).status_code for answer in painting] == [200] * 3
        idle = (await http.get("/api/queue/status")).json()
        assert idle == {"status": "idle", "queued": 0, "processing": 0, "estimated_wait_seconds": 0}


async def test_a_full_queue_names_the_time_that_it_takes(start) -> None:
    url, _ = await start(paint={**SLOW, "max_ongoing_requests": 1, "max_queued_requests": 1})
    pair = pairs("full_queue")[0]
    assert (await play(url, pair["ask"])).status_code == 200  # measures the time of a step
    answers = await asyncio.gather(*[play(url, pair["ask"]) for _ in range(8)])
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 6
    for answer in refused:
        check(answer, pair["answer"])
        # Two pictures of 20 steps of 0.05 s, and what the machine needs besides.
        assert 2 <= answer.json()["retry_after"] <= 30


async def test_the_wait_is_a_number_before_anything_was_measured(start) -> None:
    url, _ = await start(paint={"engine_args": {"step_seconds": 30}})
    async with httpx.AsyncClient(base_url=url) as http:
        painting = asyncio.create_task(http.post("/api/generate", json=PROMPT))
        busy = await _until_json(http, "/api/queue/status", lambda status: status["status"] == "busy")
        painting.cancel()
    assert busy == {"status": "busy", "queued": 0, "processing": 1, "estimated_wait_seconds": 2}


async def _until_json(http: httpx.AsyncClient, path: str, is_so) -> dict:
    for _ in range(200):
        answer = (await http.get(path)).json()
        if is_so(answer):
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"{path} never said so: {answer}")


async def test_metrics_count_every_end_by_its_code(start) -> None:
    url, application = await start(paint={"load_seconds": 30, **SLOW})
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for body in ({"prompt": ""}, {"prompt": " "}, {"prompt": "x", "num_steps": 1}, PROMPT):
            await http.post("/api/generate", json=body)
        with pytest.raises(httpx.ReadTimeout):  # a client that leaves
            await http.post("/api/generate", json=PROMPT, timeout=0.2)
        measured = (await http.get("/api/metrics")).json()
        application.states["ImageGenerator-fake-image"] = "loading"
        await _until(503, lambda: http.get("/ready"))
        await http.post("/api/generate", json=PROMPT)
        metrics = await _until_json(http, "/api/metrics", lambda m: "4004" in m["counts_by_code"])
    assert metrics["counts_by_code"] == {"0": 1, "1001": 2, "2001": 1, "3001": 1, "4004": 1}
    assert measured["average_generation_seconds"] >= 1
    assert measured["uptime_seconds"] >= 1
    # Nothing is held by a model that is not there.
    assert metrics["average_generation_seconds"] is None
    assert metrics["memory_mb"] == 0


async def test_a_picture_that_somebody_cancelled(start) -> None:
    url, _ = await start(paint={"engine_args": {"step_seconds": 0.2}})
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        headers = {"x-request-id": "mine"}
        painting = asyncio.create_task(http.post("/api/generate", json=PROMPT, headers=headers))
        await _until_json(http, "/api/queue/status", lambda status: status["processing"] == 1)
        assert (await http.delete("/v1/images/requests/mine")).status_code == 200
        answer = await painting
    assert answer.status_code == 499
    assert (answer.json()["code"], answer.json()["request_id"]) == (4004, "mine")


async def test_an_exception_that_nobody_foresaw_is_counted_and_hidden(start, monkeypatch) -> None:
    url, application = await start()

    def broken(*args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(application.operations, "generate", broken)
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/api/generate", json=PROMPT)
        assert answer.status_code == 500
        body = answer.json()
        assert (body["code"], body["request_id"]) == (5000, answer.headers["x-request-id"])
        assert "secret" not in answer.text
        assert (await http.get("/api/metrics")).json()["counts_by_code"] == {"5000": 1}


@pytest.mark.parametrize(
    ("fails", "path", "body"),
    [
        ("paint", "/api/generate", {"prompt": "a red circle", "seed": 7}),
        ("chat", "/v1/chat", {"input_type": "text_only", "text": "a red circle"}),
        ("chat", "/api/v1/chat", {"prompt": "a red circle", "image": "data:image/png;base64,"}),
    ],
)
async def test_a_failure_is_in_the_log_with_id_parameters_and_stack(
    start, caplog, fails: str, path: str, body: dict
) -> None:
    url, _ = await start(**{fails: {"engine_args": {"fail": "request"}}})
    picture = in_base64("png")
    if "image" in body:
        body = {**body, "image": body["image"] + picture}
    caplog.set_level(logging.INFO, "ray.serve")
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post(path, json=body, headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    asked, failed = (
        next(r for r in caplog.records if word in r.getMessage() and "find-me-" in r.getMessage())
        for word in ("asked", "failed")
    )
    assert "a red circle" in asked.getMessage()
    assert "a red circle" in failed.getMessage()
    assert failed.atelier_request_id.startswith("find-me-")
    assert failed.levelno == logging.ERROR
    assert "EngineFailed" in caplog.handler.format(failed)
    assert "Traceback" in caplog.handler.format(failed)
    assert picture not in caplog.text


async def test_a_mistake_of_the_client_is_in_the_log_without_a_stack(http: httpx.AsyncClient, caplog) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    await http.post("/api/generate", json={"prompt": "x", "num_steps": 3}, headers={"x-request-id": "mine"})
    failed = next(r for r in caplog.records if "failed" in r.getMessage())
    assert "'num_steps': 3" in failed.getMessage()
    assert failed.levelno == logging.INFO
    assert "from 20 to 100" in failed.getMessage()
    assert not failed.exc_info


async def test_ocr_that_was_cut_off_keeps_its_complete_lines(http: httpx.AsyncClient) -> None:
    body = {
        "image": f"data:image/png;base64,{in_base64('png')}",
        "prompt": "word " * 200,
        "output": "ocr",
        "max_tokens": 64,
    }
    data = (await http.post("/api/v1/chat", json=body)).json()["data"]
    assert data["truncated"] is True
    assert data["lines"] == []
    assert data["token_usage"]["completion_tokens"] == 64


async def test_ocr_streamed_ends_with_the_lines(http: httpx.AsyncClient) -> None:
    body = {"image": f"data:image/png;base64,{in_base64('png')}", "output": "ocr", "stream": True}
    answer = await http.post("/api/v1/chat", json=body)
    events = [json.loads(frame.removeprefix("data: ")) for frame in answer.text.split("\n\n")[:-1]]
    text = "".join(event["data"]["delta"] for event in events)
    assert events[-1]["data"]["lines"] == json.loads(text)["lines"]
    assert [event["data"]["done"] for event in events] == [False] * (len(events) - 1) + [True]


async def test_a_client_that_leaves_a_stream_frees_the_engine(start) -> None:
    url, application = await start(chat={"engine_args": {"token_seconds": 0.05}})
    body = {"input_type": "text_only", "text": "word " * 300}
    async with httpx.AsyncClient(base_url=url) as http:
        async with http.stream("POST", "/v1/chat/stream", json=body) as answer:
            await anext(answer.aiter_lines())
            assert application.shells["fake-vlm"]._engine.unfinished() == 1
        for _ in range(40):
            if not application.shells["fake-vlm"]._engine.unfinished():
                return
            await asyncio.sleep(0.05)
    raise AssertionError("the engine still works for nobody")


def test_every_row_has_a_golden_pair() -> None:
    named = {
        "image_service": "1001 1002 1003 2001 2002 3001 4001 4002",  # 3002: full_queue
        "vlm_rest": "4000 4001 4002 4003 4004 5000 5001 5002",
    }
    for name, codes in named.items():
        seen = {str(pair["answer"].get("json", {}).get("code")) for pair in pairs(name)}
        assert set(codes.split()) <= seen
