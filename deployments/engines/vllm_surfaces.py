"""vLLM's APIs in one table: which serving class answers a surface, what it is given, how its answer reads.

A picture reaches vLLM as a decoded image, never as a URL. vLLM's chat takes one in its schema; responses and
messages do not, but vLLM makes chat messages of both. They are given a placeholder, and the picture takes its
place after vLLM's own conversion (`show_pictures`).
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import MAX_PROMPTS, Picture
from deployments.engines.chat_bodies import TEXT_PARTS, check_fields, picture_of, rendered_messages

_PLACEHOLDER = "picture:"

Body = dict[str, Any]
Pictures = Sequence[Picture]


def _chat_body(body: Body, pictures: Pictures) -> Body:
    return {**body, "messages": rendered_messages(body, pictures, pil_part)}


def _text_body(body: Body, pictures: Pictures) -> Body:
    check_fields(body)
    return dict(body)


def _responses_body(body: Body, pictures: Pictures) -> Body:
    check_fields(body)
    return {**body, "input": _placed(body.get("input"), "input", pictures, _responses_image)}


def _messages_body(body: Body, pictures: Pictures) -> Body:
    check_fields(body)
    return {**body, "messages": _placed(body.get("messages"), "messages", pictures, _anthropic_image)}


@dataclass(frozen=True)
class Surface:
    """One row of the table."""

    serving: str
    """Attribute of vLLM's application state."""
    method: str
    request: str
    """vLLM's request class, `module:name` under `vllm.entrypoints`."""
    prompt: str
    """The field that holds what the model reads, for error messages."""
    body: Callable[[Body, Pictures], Body]
    engine_ids: Callable[[str], list[str]] = lambda request_id: []
    """The ids that vLLM's engine knows the request by: closing a stream must abort them."""
    id_format: str | None = None
    """Where vLLM takes the request's id from its body: how it reads."""
    dump: dict[str, Any] = field(default_factory=dict)
    takes_chunk_size: bool = False
    """Whether its body may say how many tokens go into a chunk."""

    def request_class(self) -> Any:
        module, name = self.request.split(":")
        return getattr(importlib.import_module(f"vllm.entrypoints.{module}"), name)


SURFACES = {
    "chat": Surface(
        "openai_serving_chat",
        "create_chat_completion",
        "openai.chat_completion.protocol:ChatCompletionRequest",
        "messages",
        _chat_body,
        lambda request_id: [f"chatcmpl-{request_id}"],
        "{}",
        takes_chunk_size=True,
    ),
    "completions": Surface(
        "openai_serving_completion",
        "create_completion",
        "openai.completion.protocol:CompletionRequest",
        "prompt",
        _text_body,
        lambda request_id: [f"cmpl-{request_id}-{i}" for i in range(MAX_PROMPTS)],
        "{}",
        takes_chunk_size=True,
    ),
    "responses": Surface(
        "openai_serving_responses",
        "create_responses",
        "openai.responses.protocol:ResponsesRequest",
        "input",
        _responses_body,
        lambda request_id: [f"resp_{request_id}_0"],
        "resp_{}",
        {"by_alias": True},
    ),
    "messages": Surface(
        "anthropic_serving_messages",
        "create_messages",
        "anthropic.protocol:AnthropicMessagesRequest",
        "messages",
        _messages_body,
        lambda request_id: [f"chatcmpl-{request_id}"],
        dump={"exclude_none": True},
    ),
    "count_tokens": Surface(
        "anthropic_serving_messages",
        "count_tokens",
        "anthropic.protocol:AnthropicCountTokensRequest",
        "messages",
        _messages_body,
        dump={"exclude_none": True},
    ),
    "tokenize": Surface(
        "serving_tokenization",
        "create_tokenize",
        "serve.tokenize.protocol:TokenizeCompletionRequest",
        "prompt",
        _text_body,
    ),
    "tokenize_chat": Surface(
        "serving_tokenization",
        "create_tokenize",
        "serve.tokenize.protocol:TokenizeChatRequest",
        "messages",
        _chat_body,
    ),
    "detokenize": Surface(
        "serving_tokenization",
        "create_detokenize",
        "serve.tokenize.protocol:DetokenizeRequest",
        "tokens",
        _text_body,
    ),
}


def read_item(item: Any) -> str | None:
    """The JSON in one item of vLLM's streams: a frame of text, or an event before it is written.

    None at the end, where a stream says so.
    """
    if not isinstance(item, str):
        return str(item.model_dump_json(by_alias=True))
    data = item[item.find("data: ") + 6 :].rstrip()
    return None if data == "[DONE]" else data


def is_error(data: str) -> bool:
    return data.startswith(('{"error"', '{"type":"error"'))


shown: ContextVar[Pictures] = ContextVar("shown", default=())
"""The pictures of the request that this task is handing to vLLM."""


def show_pictures(renderer: Any) -> None:
    """Every chat message that vLLM reads passes here: placeholders become pictures, nothing else may load."""
    inner = renderer.preprocess_chat

    async def preprocess_chat(request: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return await inner(request, [_shown(message) for message in messages], *args, **kwargs)

    renderer.preprocess_chat = preprocess_chat


def keep_errors(serving: Any) -> None:
    """vLLM's converter of chat streams to messages replaces an error by its own trouble to parse it."""
    inner = serving.message_stream_converter

    async def message_stream_converter(frames: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        broken: list[str] = []

        async def whole() -> AsyncGenerator[str, None]:
            async for frame in frames:
                if is_error(read_item(frame) or ""):
                    broken.append(frame)
                    return
                yield frame

        async for event in inner(whole()):
            yield event
        for frame in broken:
            yield frame

    serving.message_stream_converter = message_stream_converter


def pil_part(picture: Picture) -> Body:
    from PIL import Image

    return {"type": "image_pil", "image_pil": Image.fromarray(picture.pixels), "uuid": picture.digest}


def _shown(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if content is None or isinstance(content, str) or not isinstance(content, Iterable):
        return message
    return {**message, "content": [_shown_part(part) for part in content]}


def _shown_part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, str) or kind in TEXT_PARTS or kind in ("image_pil", "tool_reference"):
        return part
    url = part.get("image_url") if kind in ("image_url", "input_image") else None
    url = url.get("url") if isinstance(url, dict) else url
    number = url.removeprefix(_PLACEHOLDER) if isinstance(url, str) and url.startswith(_PLACEHOLDER) else ""
    if not number.isdecimal() or int(number) >= len(shown.get()):
        raise InvalidRequest(f"Content parts of type {kind!r} are not accepted here.")
    return pil_part(shown.get()[int(number)])


def _responses_image(number: int) -> Body:
    return {"type": "input_image", "detail": "auto", "image_url": f"{_PLACEHOLDER}{number}"}


def _anthropic_image(number: int) -> Body:
    return {"type": "image", "source": {"type": "url", "url": f"{_PLACEHOLDER}{number}"}}


def _placed(items: Any, param: str, pictures: Pictures, render: Callable[[int], Body], depth: int = 3) -> Any:
    """The list with each picture part (at most inside a tool's result) as a placeholder in the API's form."""
    if not isinstance(items, list) or not depth:
        return items
    placed = []
    for i, item in enumerate(items):
        if isinstance(item, dict) and item.get("type") == "picture":
            picture_of(item, f"{param}.{i}", pictures)
            item = render(item["picture"])
        elif isinstance(item, dict):
            inside = [key for key in ("content", "output") if isinstance(item.get(key), list)]
            item = item | {
                key: _placed(item[key], f"{param}.{i}.{key}", pictures, render, depth - 1) for key in inside
            }
        placed.append(item)
    return placed
