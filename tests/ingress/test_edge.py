"""What holds for every route: ids, bodies, unknown paths, models."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import AsyncOpenAI


@pytest.fixture
async def http(url: str):
    async with httpx.AsyncClient(base_url=url) as client:
        yield client


async def test_models_and_one_model(url: str) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert [model.id async for model in client.models.list()] == ["fake-vlm", "fake-image"]
    assert (await client.models.retrieve("vlm")).id == "fake-vlm"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("nobody/has-this")
    assert caught.value.code == "model_not_found"


async def test_ready_and_health(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    ready = await http.get("/ready")
    assert ready.json() == {"status": "ready", "models": {"fake-vlm": "ready", "fake-image": "ready"}}


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models", "/v1/chat/completions"])
async def test_every_response_has_one_id(http: httpx.AsyncClient, path: str) -> None:
    minted = [(await http.get(path)).headers.get_list("x-request-id") for _ in range(2)]
    assert [len(ids) for ids in minted] == [1, 1]
    assert minted[0] != minted[1]
    echoed = await http.get(path, headers={"x-request-id": "theirs"})
    assert echoed.headers.get_list("x-request-id") == ["theirs"]


async def test_engine_never_meets_an_id_twice(http: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    headers = {"x-request-id": "same"}
    answers = [await http.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 2


async def test_unknown_path_and_wrong_method(http: httpx.AsyncClient) -> None:
    nowhere = await http.get("/v1/nothing")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    wrong = await http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a":' * 5000])
async def test_body_that_is_no_json_object(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/chat/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_wrong_content_type_says_which_is_right(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", data={"model": "x"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit(start, chunked: bool) -> None:
    url, _ = await start(ingress={"max_body_bytes": 1000})

    async def parts():
        for _ in range(20):
            yield b" " * 100

    body = parts() if chunked else b" " * 2000
    async with httpx.AsyncClient() as http:
        headers = {"content-type": "application/json"}
        answer = await http.post(f"{url}/v1/chat/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
