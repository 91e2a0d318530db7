"""Reasoning and LoRA adapters on the real graph, through the unmodified OpenAI and Anthropic clients.

The demo checkpoint does not reason, so a grammar makes it: what it writes between the marks is its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from tests.integration.conftest import serving

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

PROFILE = """
models:
  - id: thinker
    task: vision_language
    engine: vllm
    source: demo_models/vlm
    num_cpus: 0.5
    adapters: {{thinker-changed: {adapter}}}
    env: {{VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"}}
    engine_args:
      max-model-len: 512
      enforce-eager: true
      distributed-executor-backend: uni
      kv-cache-memory-bytes: 67108864
      limit-mm-per-prompt: {{image: 1, video: 0}}
      max-lora-rank: 8
      reasoning-parser: qwen3
      structured-outputs-config: {{backend: xgrammar, enable_in_reasoning: true}}
preprocessing: {{num_cpus: 0.1}}
ingress: {{num_cpus: 0.1}}
"""
HELLO = [{"role": "user", "content": "Hello!"}]
TOKENIZER = Tokenizer.from_file("demo_models/vlm/tokenizer.json")
MARKS = ["<think>", "</think>", "<|im_end|>", *"abcyesno"]
SPELT = {"structured_outputs": {"regex": "<think>[a-c]{5}</think>(yes|no)"}}
THOUGHT = {**SPELT, "allowed_token_ids": sorted({TOKENIZER.token_to_id(mark) for mark in MARKS})}
"""vLLM finds the marks in a stream by their token ids: left alone, the grammar lets a model spell them."""
PLAIN = {"structured_outputs": {"regex": "(yes|no)"}, "chat_template_kwargs": {"enable_thinking": False}}


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter of random weights, strong enough to be heard."""
    config = json.loads(Path("demo_models/vlm/config.json").read_text())["text_config"]
    width, heads, size = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    random = np.random.default_rng(1)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.language_model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = random.normal(0, 0.5, (8, width)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = random.normal(0, 0.5, (heads * size, 8)).astype(np.float32)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**described, "task_type": "CAUSAL_LM"}))
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("reasoning")
    profile = PROFILE.format(adapter=write_adapter(folder / "adapter"))
    with serving(folder, profile, "thinker", seconds=300) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none")


def chat(client: OpenAI, **body: Any) -> Any:
    body = {"model": "thinker", "messages": HELLO, "temperature": 0, "max_tokens": 64, **body}
    return client.chat.completions.create(**body)


def field(part: Any) -> str:
    return getattr(part, "reasoning", None) or ""


def test_reasoning_is_apart_from_the_answer(client: OpenAI) -> None:
    message = chat(client, extra_body=THOUGHT).choices[0].message
    assert message.content in ("yes", "no")
    assert len(field(message).strip()) == 5
    assert set(field(message).strip()) <= set("abc")


def test_reasoning_is_streamed_apart_from_the_answer(client: OpenAI) -> None:
    whole = chat(client, extra_body=THOUGHT).choices[0].message
    deltas = [c.choices[0].delta for c in chat(client, extra_body=THOUGHT, stream=True) if c.choices]
    assert "".join(map(field, deltas)) == field(whole)
    assert "".join(delta.content or "" for delta in deltas) == whole.content


def test_reasoning_in_many_streams_at_once(client: OpenAI) -> None:
    """Under load chunks carry several tokens: the border between reasoning and answer must hold."""
    whole = chat(client, extra_body=THOUGHT).choices[0].message
    streams = [chat(client, extra_body=THOUGHT, stream=True) for _ in range(12)]
    for stream in streams:
        deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
        assert "".join(map(field, deltas)) == field(whole)
        assert "".join(delta.content or "" for delta in deltas) == whole.content


@pytest.mark.parametrize("stream", [False, True])
def test_no_reasoning_where_it_is_switched_off(client: OpenAI, stream: bool) -> None:
    answer = chat(client, extra_body=PLAIN, stream=stream)
    parts = [c.choices[0].delta for c in answer if c.choices] if stream else [answer.choices[0].message]
    assert "".join(part.content or "" for part in parts) in ("yes", "no")
    assert not any(map(field, parts))


def test_reasoning_in_responses(client: OpenAI) -> None:
    body = {"model": "thinker", "input": "Hello!", "temperature": 0, "max_output_tokens": 64}
    whole = client.responses.create(**body, extra_body=SPELT)
    kinds = [item.type for item in whole.output]
    assert kinds == ["reasoning", "message"]
    assert whole.output_text in ("yes", "no")
    events = list(client.responses.create(**body, extra_body=SPELT, stream=True))
    assert "response.reasoning_text.delta" in {event.type for event in events}
    assert events[-1].type == "response.completed"


def test_reasoning_in_messages(url: str, client: OpenAI) -> None:
    """Of the fields that make the demo model close a thought, this API has none: all it says is one."""
    thought = field(chat(client).choices[0].message)
    claude = Anthropic(base_url=url, api_key="none")
    body: dict[str, Any] = {"model": "thinker", "max_tokens": 64, "messages": HELLO}
    body["extra_body"] = {"temperature": 0}
    blocks = claude.messages.create(**body).content
    assert [(block.type, getattr(block, "thinking", "")) for block in blocks] == [("thinking", thought)]
    events = list(claude.messages.create(**body, stream=True))
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    said = [delta.thinking for delta in deltas if delta.type == "thinking_delta"]
    assert "".join(said) == thought
    assert len(said) > 1
    assert not any(delta.type == "text_delta" for delta in deltas)


def test_an_adapter_is_a_model(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"thinker", "thinker-changed"}
    assert listed["thinker-changed"].parent == "thinker"
    assert client.models.retrieve("thinker-changed").id == "thinker-changed"
    body: dict[str, Any] = {"max_tokens": 12, "extra_body": {"ignore_eos": True}}
    plain, changed = chat(client, **body), chat(client, model="thinker-changed", **body)
    assert (plain.model, changed.model) == ("thinker", "thinker-changed")
    assert plain.choices[0].message != changed.choices[0].message
    again = chat(client, model="thinker-changed", **body, stream=True)
    assert {chunk.model for chunk in again} == {"thinker-changed"}


def test_an_unknown_adapter_is_named_with_those_there_are(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="thinker-unchanged")
    assert "thinker-changed" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_says_both_numbers(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "word " * 900}], stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == "messages"
    numbers = [int(word) for word in caught.value.message.replace(".", " ").split() if word.isdigit()]
    assert 512 in numbers
    assert max(numbers) > 512  # vLLM stops counting where it is sure
