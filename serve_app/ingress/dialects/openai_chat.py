"""OpenAI chat completions: the body stays as it is, but for the images, which are lifted out of it."""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import Surface
from serve_app.graph.operations import ChatCall
from serve_app.ingress.dialects.dialect import (
    Dialect,
    Images,
    check_choices,
    check_model,
    required_list,
    wrong_type,
)

_EXAMPLE = '[{"role": "user", "content": "Hello"}]'
_TEXT_PARTS = ("text", "refusal")


def chat_call(body: dict[str, Any], max_images: int, surface: Surface = "chat") -> ChatCall:
    """Check what the graph itself relies on; vLLM checks the rest.

    Raises:
        InvalidRequest: a field is missing or of the wrong shape; `param` names it.
    """
    check_model(body)
    messages = required_list(body, "messages", _EXAMPLE)
    check_choices(body)
    images = Images(max_images, "messages")
    lifted = [_message(message, f"messages.{i}", images) for i, message in enumerate(messages)]
    return ChatCall({**body, "messages": lifted}, images.all(), surface)


def _message(message: Any, param: str, images: Images) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"'{param}' must be an object with a 'role' and 'content'.", param=param)
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, list):
        raise InvalidRequest(
            f"'{param}.content' must be a string or a list of parts such as "
            '{"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "..."}}.',
            param=f"{param}.content",
        )
    parts = [_part(part, f"{param}.content.{i}", images) for i, part in enumerate(content)]
    return {**message, "content": parts}


def _part(part: Any, param: str, images: Images) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return part
    if kind != "image_url":
        raise wrong_type(param, "'text' or 'image_url'")
    image, param = part.get("image_url"), f"{param}.image_url"
    if not isinstance(image, dict):
        image = {"url": image}
    return images.lift(image.get("url"), param, image.get("detail"), f"{param}.detail")


CHAT = Dialect(chat_call)
