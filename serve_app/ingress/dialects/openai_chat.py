"""OpenAI chat completions: the body stays as it is, but for the images, which are lifted out of it."""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import InvalidImage, InvalidRequest
from deployments.contracts.messages import ImageSource
from serve_app.graph.operations import ChatCall

MAX_CHOICES = 16
"""vLLM bounds `n` at 16,384: one request could fill every slot of an engine."""

_TEXT_PARTS = ("text", "refusal")


def chat_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """Check what the graph itself relies on; vLLM checks the rest.

    Raises:
        InvalidRequest: a field is missing or of the wrong shape; `param` names it.
    """
    model, messages = body.get("model"), body.get("messages")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("'model' must be a string: one of the ids in GET /v1/models.", param="model")
    if messages is None:
        raise InvalidRequest(
            '\'messages\' is missing: send a list such as [{"role": "user", "content": "Hello"}].',
            param="messages",
            code="missing_required_parameter",
        )
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list with at least one message.", param="messages")
    choices = body.get("n")
    if isinstance(choices, int) and choices > MAX_CHOICES:
        raise InvalidRequest(f"'n' may be at most {MAX_CHOICES}.", param="n", code="invalid_value")
    images: list[ImageSource] = []
    lifted = [_message(message, f"messages.{i}", images) for i, message in enumerate(messages)]
    if len(images) > max_images:
        raise InvalidImage(
            f"{len(images)} images in one request; at most {max_images} are allowed.",
            param="messages",
            code="too_many_images",
        )
    return ChatCall({**body, "messages": lifted}, tuple(images))


def _message(message: Any, param: str, images: list[ImageSource]) -> dict[str, Any]:
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


def _part(part: Any, param: str, images: list[ImageSource]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return part
    if kind != "image_url":
        raise InvalidRequest(
            f"'{param}.type' must be 'text' or 'image_url'.", param=f"{param}.type", code="invalid_value"
        )
    images.append(_source(part.get("image_url"), f"{param}.image_url"))
    return {"type": "picture", "picture": len(images) - 1}


def _source(image_url: Any, param: str) -> ImageSource:
    url = image_url.get("url") if isinstance(image_url, dict) else image_url
    if not isinstance(url, str) or not url.lower().startswith(("data:", "http://", "https://")):
        raise InvalidImage(
            f"'{param}.url' must be a string: an http(s) URL, or the image itself as "
            "'data:image/png;base64,...'.",
            param=param,
        )
    return ImageSource(url=url, param=param)
