"""The other APIs of the real graph, through the unmodified OpenAI and Anthropic clients."""

from __future__ import annotations

import base64
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import Anthropic

from tests.integration.conftest import Graph
from tests.integration.test_graph import circle, data_url

pytestmark = pytest.mark.real

MODEL = "atelier-vlm-demo"
QUESTION = "Describe the picture."
RED, GREEN = circle("#e22026", "#224ad6"), circle("#1ca03e", "#ffffff")
GREEDY = {"temperature": 0}
"""Anthropic's SDK no longer has the field of its own."""
PROMPT = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


def claude(graph: Graph) -> Anthropic:
    return Anthropic(base_url=graph.url, api_key="none")


def block(png: bytes) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
    return {"type": "image", "source": source}


def test_completions_whole_and_streamed(graph: Graph) -> None:
    ask = graph.client().completions.create
    body: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    whole = ask(**body)
    assert whole.choices[0].text
    chunks = list(ask(**body, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_completions_of_several_prompts(graph: Graph) -> None:
    answer = graph.client().completions.create(
        model=MODEL, prompt=[PROMPT, PROMPT, "One two"], n=2, max_tokens=2, logprobs=1, seed=3
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.choices[0].logprobs.token_logprobs
    tokens = graph.client().completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=1)
    assert tokens.usage.prompt_tokens == 3


def test_responses_whole_and_streamed(graph: Graph) -> None:
    ask = graph.client().responses.create
    body: dict[str, Any] = {"model": MODEL, "input": "Hello!", "temperature": 0, "max_output_tokens": 24}
    whole = ask(**body)
    assert whole.output_text
    assert whole.id.startswith("resp_")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(ask(**body, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    with graph.client().responses.stream(**body) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_responses_with_instructions_and_history(graph: Graph) -> None:
    first = graph.client().responses.create(model=MODEL, input="Hello!", max_output_tokens=16, temperature=0)
    history = [{"role": "user", "content": "Hello!"}, *first.output, {"role": "user", "content": "And now?"}]
    second = graph.client().responses.create(
        model=MODEL, instructions="Be brief.", input=history, max_output_tokens=16
    )
    assert second.usage.input_tokens > first.usage.input_tokens


def test_responses_see_a_picture(graph: Graph) -> None:
    for png, word in ((RED, "red"), (GREEN, "green")):
        parts = [
            {"type": "input_image", "image_url": data_url(png)},
            {"type": "input_text", "text": QUESTION},
        ]
        answer = graph.client().responses.create(
            model=MODEL, input=[{"role": "user", "content": parts}], temperature=0
        )
        assert word in answer.output_text


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "round": {"type": "boolean"}},
    "required": ["colour", "round"],
    "additionalProperties": False,
}


def test_responses_in_a_schema(graph: Graph) -> None:
    form = {"type": "json_schema", "name": "thing", "schema": SCHEMA}
    answer = graph.client().responses.create(
        model=MODEL, input="A thing?", text={"format": form}, temperature=0, max_output_tokens=64
    )
    assert set(json.loads(answer.output_text)) == {"colour", "round"}


def test_responses_refuse_what_needs_a_memory(graph: Graph) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        graph.client().responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as long:
        graph.client().responses.create(model=MODEL, input="word " * 5000, stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")


def test_messages_whole_and_streamed(graph: Graph) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 24,
        "extra_body": GREEDY,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hello!"}],
    }
    api = claude(graph).messages
    whole = api.create(**body)
    assert whole.content[0].text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    counted = {key: body[key] for key in ("model", "system", "messages")}
    assert api.count_tokens(**counted).input_tokens == whole.usage.input_tokens
    with api.stream(**body) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason
    kinds = [event.type for event in api.create(**body, stream=True)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


def test_messages_see_a_picture(graph: Graph) -> None:
    for png, word in ((RED, "red"), (GREEN, "green")):
        answer = claude(graph).messages.create(
            model=MODEL,
            max_tokens=60,
            extra_body=GREEDY,
            messages=[{"role": "user", "content": [block(png), {"type": "text", "text": QUESTION}]}],
        )
        assert word in answer.content[0].text


def test_messages_use_a_tool(graph: Graph) -> None:
    colour = {"colour": SCHEMA["properties"]["colour"]}
    schema = {"type": "object", "properties": colour, "required": ["colour"], "additionalProperties": False}
    tool = {"name": "paint", "input_schema": schema, "strict": True}
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 200,
        "extra_body": GREEDY,
        "messages": [{"role": "user", "content": "Paint!"}],
        "tools": [tool],
        "tool_choice": {"type": "tool", "name": "paint"},
    }
    use = next(b for b in claude(graph).messages.create(**asked).content if b.type == "tool_use")
    assert (use.name, set(use.input)) == ("paint", {"colour"})
    with claude(graph).messages.stream(**asked) as stream:
        streamed = next(b for b in stream.get_final_message().content if b.type == "tool_use")
    assert streamed.input == use.input


def test_messages_errors(graph: Graph) -> None:
    api = claude(graph).messages
    hello = [{"role": "user", "content": "Hello!"}]
    with pytest.raises(anthropic.NotFoundError) as missing:
        api.create(model="nobody", max_tokens=5, messages=hello)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as long:
        api.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "word " * 5000}])
    assert "2048" in long.value.body["error"]["message"]
    bad = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with (
        pytest.raises(anthropic.BadRequestError),
        api.stream(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": [bad]}]),
    ):
        pass


def test_tokenize_and_back(graph: Graph) -> None:
    def post(path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(graph.url + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    tokens = post("/tokenize", prompt="a red circle", return_token_strs=True)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 2048
    assert post("/detokenize", tokens=tokens["tokens"])["prompt"] == "a red circle"
    parts = [{"type": "image_url", "image_url": {"url": data_url(RED)}}, {"type": "text", "text": QUESTION}]
    chat = post("/tokenize", messages=[{"role": "user", "content": parts}])
    said = graph.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=1
    )
    assert chat["count"] == said.usage.prompt_tokens
