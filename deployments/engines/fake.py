"""A chat engine without a model: deterministic answers in the shapes of every API, for tests and laptops.

It repeats the last user message, as JSON where a schema is asked for, and describes pictures by size and mean
colour. A token is a word.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from deployments.contracts.errors import (
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
)
from deployments.contracts.messages import ChatRequest, Picture
from deployments.contracts.settings import ModelSettings
from deployments.engines.chat_bodies import rendered_messages
from deployments.engines.fake_surfaces import SHAPES, Answer, count


@dataclass(frozen=True)
class FakeArgs:
    """`engine_args` of the fake chat engine."""

    load_seconds: float = 0
    token_seconds: float = 0
    """Delay before each token."""
    fail: Literal["start", "request", "oom", "mid_stream"] | None = None
    """start: loading fails. request, oom: each request fails. mid_stream: each fails after two tokens."""
    context: int = 4096
    """Tokens of prompt and answer together."""


class FakeChatEngine:
    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._args = FakeArgs(**settings.engine_args)
        self._started = False
        self._unfinished = 0

    async def start(self) -> None:
        await asyncio.sleep(self._args.load_seconds)
        if self._args.fail == "start":
            raise RuntimeError("the fake engine was told to fail at start")
        self._started = True

    async def check_health(self) -> None:
        if not self._started:
            raise EngineFailed(f"{self._settings.id} is not loaded.")

    async def close(self) -> None:
        self._started = False

    def unfinished(self) -> int:
        """Requests that hold a slot of the engine."""
        return self._unfinished

    async def chat(self, request: ChatRequest, pictures: Sequence[Picture]) -> bytes:
        if request.surface not in SHAPES:
            self._check(request.body)
            context = self._args.context
            return _json(count(request.surface, request.body, pictures, context, _text, _describe))
        answer = self._answer(request, pictures)
        async for _ in self._generate(answer):
            pass
        return _json(SHAPES[request.surface].whole(answer))

    async def stream_chat(
        self, request: ChatRequest, pictures: Sequence[Picture]
    ) -> AsyncGenerator[bytes, None]:
        if request.surface not in SHAPES:
            raise InvalidRequest(f"{request.surface} does not stream.", param="stream")
        answer = self._answer(request, pictures)
        async with aclosing(self._generate(answer)) as tokens:
            async for chunk in SHAPES[request.surface].stream(answer, tokens, request.body):
                yield _json(chunk)

    async def _generate(self, answer: Answer) -> AsyncGenerator[str, None]:
        self._unfinished += 1
        try:
            for i, token in enumerate(answer.tokens):
                if self._args.fail == "mid_stream" and i == min(2, len(answer.tokens) - 1):
                    raise EngineFailed("The fake engine was told to fail in the middle.")
                await asyncio.sleep(self._args.token_seconds)
                yield token
        finally:
            self._unfinished -= 1

    def _answer(self, request: ChatRequest, pictures: Sequence[Picture]) -> Answer:
        body = SHAPES[request.surface].chat(request.body)
        messages = rendered_messages(body, pictures, _describe)
        self._check(body)
        limit = _limit(body)
        prompt = sum(len(_text(message).split()) for message in messages)
        if limit is not None and limit > self._args.context:
            raise ContextTooLong(
                f"This model's context holds {self._args.context} tokens, but max_tokens asks for {limit}.",
                param="max_tokens",
            )
        room = self._args.context - prompt
        if room < 0:
            raise ContextTooLong(
                f"This model's context holds {self._args.context} tokens, but the messages come to"
                f" {prompt} tokens. Shorten them.",
                param="messages",
            )
        words = _words(messages, schema=_schema(body), endless=bool(body.get("ignore_eos")))
        most = room if limit is None else min(limit, room)
        tokens = list(itertools.islice(words, most))
        return Answer(
            request_id=request.request_id,
            model=self._settings.id,
            prompt_tokens=prompt,
            tokens=tokens,
            finish_reason="stop" if next(words, None) is None else "length",
        )

    def _check(self, body: dict[str, Any]) -> None:
        if body.get("model") not in (None, self._settings.id, *self._settings.aliases):
            raise ModelNotFound(f"The model `{body['model']}` does not exist.", param="model")
        if self._args.fail == "request":
            raise EngineFailed("The fake engine was told to fail on every request.")
        if self._args.fail == "oom":
            raise OutOfMemory("The request does not fit into memory beside what is running.", retry_after=2)


def _limit(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequest(f"{name}: must be an integer of at least 1.", param=name)
            return value
    return None


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that the answer has to follow, if one is asked for."""
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return None
    schema: dict[str, Any] = wanted["json_schema"]["schema"]
    return schema


def _instance(schema: dict[str, Any], text: str) -> Any:
    """The least value of a schema, with `text` for every string."""
    kind = schema.get("type")
    if kind == "object":
        return {name: _instance(inner, text) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema["items"], text)] * schema.get("minItems", 1)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return text if kind == "string" else None


def _words(messages: list[dict[str, Any]], *, schema: dict[str, Any] | None, endless: bool) -> Iterator[str]:
    """The answer's tokens, each but the first with the space before it."""
    spoken = [_text(message) for message in messages if message["role"] == "user"]
    text = f"You said: {spoken[-1] if spoken else 'nothing'}"
    words = (text if schema is None else json.dumps(_instance(schema, text), ensure_ascii=False)).split()
    repeated = itertools.cycle(words) if endless else iter(words)
    return (word if i == 0 else f" {word}" for i, word in enumerate(repeated))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or part.get("refusal") or part.get("thinking") or "" for part in content)


def _describe(picture: Picture) -> dict[str, Any]:
    height, width = picture.pixels.shape[:2]
    red, green, blue = (int(mean) for mean in picture.pixels.mean(axis=(0, 1)))
    return {"type": "text", "text": f"[{width}x{height} #{red:02x}{green:02x}{blue:02x}]"}


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
