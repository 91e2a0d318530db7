"""The fake engine's answers in the shapes of the other APIs: completions, responses, messages, tokenize."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import Picture
from deployments.engines.chat_bodies import check_fields, rendered_messages

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    request_id: str
    model: str
    prompt_tokens: int
    tokens: list[str]
    finish_reason: str

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def usage(self) -> Body:
        prompt, completion = self.prompt_tokens, len(self.tokens)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def envelope(self, kind: str, prefix: str) -> Body:
        identity = f"{prefix}{self.request_id}"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": self.model}


Stream = AsyncGenerator[Body, None]
Tokens = AsyncIterator[str]


@dataclass(frozen=True)
class Shape:
    """How a surface asks and answers."""

    chat: Callable[[Body], Body]
    """Its body as a chat body."""
    whole: Callable[[Answer], Body]
    stream: Callable[[Answer, Tokens, Body], Stream]


def _chat(answer: Answer) -> Body:
    message = {"role": "assistant", "content": answer.text, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**answer.envelope("chat.completion", "chatcmpl-"), "choices": [choice], "usage": answer.usage()}


async def _chat_stream(answer: Answer, tokens: Tokens, body: Body) -> Stream:
    envelope = answer.envelope("chat.completion.chunk", "chatcmpl-")

    def chunk(delta: Body, finish_reason: str | None = None) -> Body:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**envelope, "choices": [choice]}

    yield chunk({"role": "assistant", "content": ""})
    async for token in tokens:
        yield chunk({"content": token})
    yield chunk({}, answer.finish_reason)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**envelope, "choices": [], "usage": answer.usage()}


def _from_completions(body: Body) -> Body:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequest("The fake engine takes one prompt of text.", param="prompt")
    return {"max_tokens": 16, **body, "messages": [{"role": "user", "content": prompt}]}


def _completion(answer: Answer, text: str | None = None, *, last: bool = True) -> Body:
    reason = answer.finish_reason if last else None
    text = answer.text if text is None else text
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {**answer.envelope("text_completion", "cmpl-"), "choices": [choice], "usage": answer.usage()}


async def _completion_stream(answer: Answer, tokens: Tokens, body: Body) -> Stream:
    async for token in tokens:
        yield _completion(answer, token, last=False) | {"usage": None}
    yield _completion(answer, "") | {"usage": None}


def _from_messages(body: Body) -> Body:
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    messages = body.get("messages")
    return {**body, "messages": [*system, *messages] if isinstance(messages, list) else messages}


def _message(answer: Answer) -> Body:
    return {
        "id": f"chatcmpl-{answer.request_id}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": answer.text}],
        "model": answer.model,
        "stop_reason": "end_turn" if answer.finish_reason == "stop" else "max_tokens",
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": len(answer.tokens)},
    }


async def _message_stream(answer: Answer, tokens: Tokens, body: Body) -> Stream:
    message = _message(answer)
    usage = message["usage"]
    begun = message | {"content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    yield {"type": "message_start", "message": begun}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    async for token in tokens:
        delta = {"type": "text_delta", "text": token}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": message["stop_reason"]}, "usage": usage}
    yield {"type": "message_stop"}


def _from_responses(body: Body) -> Body:
    given = body.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return {**body, "messages": messages, "max_tokens": body.get("max_output_tokens")}


def _response(answer: Answer, *, done: bool = True) -> Body:
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    item = {"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": [part]}
    counted = {"input_tokens": answer.prompt_tokens, "output_tokens": len(answer.tokens)}
    return {
        "id": f"resp_{answer.request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "model": answer.model,
        "status": "completed" if done else "in_progress",
        "output": [item] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {**counted, "total_tokens": sum(counted.values())} if done else None,
    }


async def _response_stream(answer: Answer, tokens: Tokens, body: Body) -> Stream:
    number, place = 1, {"item_id": "msg_0", "output_index": 0, "content_index": 0}
    begun = _response(answer, done=False)
    yield {"type": "response.created", "sequence_number": 0, "response": begun}
    async for token in tokens:
        delta = {"type": "response.output_text.delta", "delta": token, "logprobs": []}
        yield {**delta, **place, "sequence_number": number}
        number += 1
    yield {"type": "response.completed", "sequence_number": number, "response": _response(answer)}


SHAPES = {
    "chat": Shape(dict, _chat, _chat_stream),
    "completions": Shape(_from_completions, _completion, _completion_stream),
    "messages": Shape(_from_messages, _message, _message_stream),
    "responses": Shape(_from_responses, _response, _response_stream),
}


def count(
    surface: str, body: Body, pictures: Sequence[Picture], context: int, text: Any, picture: Any
) -> Body:
    """Tokenize and its kin; `text` reads a message, `picture` draws one in words."""
    check_fields(body)
    if surface == "detokenize":
        raise InvalidRequest("The fake engine cannot detokenize: it makes its tokens up.", param="tokens")
    chat = {"messages": [{"role": "user", "content": body.get("prompt")}]} if surface == "tokenize" else body
    messages = rendered_messages(_from_messages(chat), pictures, picture)
    words = [word for message in messages for word in text(message).split()]
    if surface == "count_tokens":
        return {"input_tokens": len(words)}
    tokens = [zlib.crc32(word.encode()) for word in words]
    return {"count": len(words), "max_model_len": context, "tokens": tokens, "token_strs": None}
