"""Anthropic messages: images are lifted out of the blocks, those in a tool's result included."""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import AtelierError, InvalidImage, InvalidRequest
from serve_app.graph.operations import ChatCall
from serve_app.ingress.dialects.dialect import Dialect, Images, check_model, required_list, wrong_type
from serve_app.ingress.errors import CLIENT, STATUS
from serve_app.ingress.sse import Wire, named

_EXAMPLE = '[{"role": "user", "content": "Hello"}]'
_RESULT_BLOCKS = ("text", "tool_reference")
_BLOCKS = ("tool_use", "thinking", "redacted_thinking", "tool_addition", "tool_removal", *_RESULT_BLOCKS)


def messages_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """Check what the graph itself relies on; vLLM checks the rest.

    Raises:
        InvalidRequest: a field is missing or of the wrong shape; `param` names it.
    """
    return ChatCall(*_lifted(body, max_images), "messages")


def count_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """The same for a count of tokens."""
    return ChatCall(*_lifted(body, max_images), "count_tokens")


def _lifted(body: dict[str, Any], max_images: int) -> tuple[dict[str, Any], Any]:
    check_model(body)
    messages = required_list(body, "messages", _EXAMPLE)
    _check_system(body.get("system"))
    images = Images(max_images, "messages")
    lifted = [_message(message, f"messages.{i}", images) for i, message in enumerate(messages)]
    return {**body, "messages": lifted}, images.all()


def _check_system(system: Any) -> None:
    for i, block in enumerate(system if isinstance(system, list) else []):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise wrong_type(f"system.{i}", "'text'")  # vLLM would leave it out without a word


def _message(message: Any, param: str, images: Images) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"'{param}' must be an object with a 'role' and 'content'.", param=param)
    content = message.get("content")
    if isinstance(content, str):
        return message
    if not isinstance(content, list):
        raise InvalidRequest(
            f"'{param}.content' must be a string or a list of blocks such as "
            '{"type": "text", "text": "..."} or {"type": "image", "source": {...}}.',
            param=f"{param}.content",
        )
    blocks = [_block(block, f"{param}.content.{i}", images) for i, block in enumerate(content)]
    return {**message, "content": blocks}


def _block(block: Any, param: str, images: Images) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "tool_result":
        inside = block.get("content")
        if not isinstance(inside, list):
            return block
        parts = [_inside(part, f"{param}.content.{i}", images) for i, part in enumerate(inside)]
        return {**block, "content": parts}
    if kind in _BLOCKS:
        return block
    if kind != "image":
        raise wrong_type(param, "'text', 'image', 'tool_use', 'tool_result' or 'thinking'")
    return _image(block.get("source"), f"{param}.source", images)


def _inside(block: Any, param: str, images: Images) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in _RESULT_BLOCKS:
        return block
    if kind != "image":
        raise wrong_type(param, "'text' or 'image'")
    return _image(block.get("source"), f"{param}.source", images)


def _image(source: Any, param: str, images: Images) -> dict[str, Any]:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "url":
        return images.lift(source.get("url"), f"{param}.url")
    if kind != "base64":
        raise wrong_type(param, "'base64' or 'url'")
    if not isinstance(source.get("data"), str) or not isinstance(source.get("media_type"), str):
        raise InvalidImage(f"'{param}' must hold 'media_type' and 'data', both strings.", param=param)
    return images.lift(f"data:{source['media_type']};base64,{source['data']}", f"{param}.data")


_ERROR_TYPES = {
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "internal": "api_error",
    "engine_failed": "api_error",
    "encoding_failed": "api_error",
    "out_of_memory": "api_error",
    "timeout": "timeout_error",
    "unavailable": "overloaded_error",
    "loading": "overloaded_error",
    "overloaded": "overloaded_error",
}
"""kind → Anthropic error type, where it is not `invalid_request_error`."""


def anthropic_error(error: AtelierError, request_id: str) -> tuple[int, dict[str, Any]]:
    """`{"type": "error", "error": {type, message}, "request_id"}`, as Anthropic clients expect it."""
    info = {"type": _ERROR_TYPES.get(error.kind, CLIENT), "message": error.message}
    return STATUS[error.kind][0], {"type": "error", "error": info, "request_id": request_id}


def error_event(error: AtelierError, request_id: str, sent: int) -> dict[str, Any]:
    """Anthropic's `error` event, which looks like its error bodies."""
    return anthropic_error(error, request_id)[1]


MESSAGES = Dialect(messages_call, Wire(named, error_event))
COUNT_TOKENS = Dialect(count_call, None)
