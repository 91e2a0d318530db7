"""Chat's options on the real graph, through the unmodified OpenAI client: tools, structure, sampling."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from tests.integration.conftest import Graph

pytestmark = pytest.mark.real

HELLO = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": CITY, "strict": True},
}
"""Without `strict`, vLLM holds a named call to its name but not to its schema, as OpenAI does."""
OTHER = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
NAMED = {"type": "function", "function": {"name": "weather"}}


def chat(graph: Graph, **body: Any) -> Any:
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 96, **body}
    return graph.client().chat.completions.create(model="atelier-vlm-demo", **body)


def said(answer: Any) -> str:
    return answer.choices[0].message.content


def streamed(answer: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


def streamed_call(chunks: Any) -> tuple[str, str]:
    calls = [call for c in chunks for call in (c.choices[0].delta.tool_calls or []) if call.index == 0]
    name = "".join(call.function.name or "" for call in calls)
    return name, "".join(call.function.arguments or "" for call in calls)


def test_a_named_tool_is_called_in_its_schema(graph: Graph) -> None:
    answer = chat(graph, tools=[OTHER, WEATHER], tool_choice=NAMED)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    name, arguments = streamed_call(list(chat(graph, tools=[OTHER, WEATHER], tool_choice=NAMED, stream=True)))
    assert (name, json.loads(arguments)) == ("weather", json.loads(call.function.arguments))


def test_a_required_tool_is_called(graph: Graph) -> None:
    answer = chat(graph, tools=[WEATHER], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    chunks = list(chat(graph, tools=[WEATHER], tool_choice="required", stream=True))
    name, arguments = streamed_call(chunks)
    assert (name, json.loads(arguments)) == ("weather", json.loads(call.function.arguments))


def test_a_tool_by_choice_of_the_model(graph: Graph) -> None:
    """Whether this small model calls is its own choice; what it calls must have the right form."""
    answer = chat(graph, tools=[WEATHER], tool_choice="auto")
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    for call in message.tool_calls or []:
        assert isinstance(json.loads(call.function.arguments), dict)
    chunks = list(chat(graph, tools=[WEATHER], tool_choice="auto", stream=True))
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_the_result_of_a_tool_is_read(graph: Graph) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = chat(graph, messages=messages, tools=[WEATHER])
    assert answer.usage.prompt_tokens > chat(graph, tools=[WEATHER]).usage.prompt_tokens


def test_an_unknown_tool_is_refused(graph: Graph) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(graph, tools=[OTHER], tool_choice=NAMED)


def test_a_json_schema_holds(graph: Graph) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    whole = said(chat(graph, response_format=form))
    assert set(json.loads(whole)) == {"city", "days"}
    assert streamed(chat(graph, response_format=form, stream=True)) == whole


@pytest.mark.parametrize("stream", [False, True])
def test_a_regex_and_a_choice_hold(graph: Graph, stream: bool) -> None:
    read = streamed if stream else said
    regex = read(chat(graph, extra_body={"structured_outputs": {"regex": r"[a-c]{3}-\d{2}"}}, stream=stream))
    assert re.fullmatch(r"[a-c]{3}-\d{2}", regex)
    choice = read(chat(graph, extra_body={"structured_outputs": {"choice": ["tea", "milk"]}}, stream=stream))
    assert choice in ("tea", "milk")


def test_logprobs(graph: Graph) -> None:
    whole = chat(graph, logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in whole)
    assert whole[0].token == whole[0].top_logprobs[0].token
    chunks = chat(graph, logprobs=True, top_logprobs=3, max_tokens=5, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert [t.token for part in parts if part for t in part.content] == [token.token for token in whole]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(graph: Graph, stream: bool) -> None:
    answer = chat(graph, n=3, temperature=1, seed=1, max_tokens=6, stream=stream)
    choices = [c for chunk in answer for c in chunk.choices] if stream else answer.choices
    assert {choice.index for choice in choices} == {0, 1, 2}


def test_too_many_answers(graph: Graph) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(graph, n=17)
    assert caught.value.param == "n"


def test_stop_ends_before_the_word(graph: Graph) -> None:
    text = said(chat(graph))
    word = text.split()[1]
    stopped = chat(graph, stop=[word])
    assert said(stopped) == text[: text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    assert streamed(chat(graph, stop=word, stream=True)) == said(stopped)


def test_a_seed_repeats(graph: Graph) -> None:
    def draw(seed: int) -> str:
        body = {"ignore_eos": True, "top_k": 50}
        return said(chat(graph, temperature=2, seed=seed, max_tokens=24, extra_body=body))

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_logit_bias_forbids_a_token(graph: Graph) -> None:
    first = chat(graph, max_tokens=1, extra_body={"return_token_ids": True})
    token = first.choices[0].token_ids[0]
    biased = chat(graph, max_tokens=1, logit_bias={str(token): -100}, extra_body={"return_token_ids": True})
    assert biased.choices[0].token_ids[0] != token
