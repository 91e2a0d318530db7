"""Checks a body before an engine reads it: which parts and fields may reach the engine at all.

Both chat engines go through here, so that the fake one refuses what the real one refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import Picture

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Part type -> the one key that is kept. The others could carry a URL that the engine would fetch."""

OPERATOR_FIELDS = {
    "chat_template": "the operator's chat template is always used",
    "mm_processor_kwargs": "image processing is configured by the operator",
    "media_io_kwargs": "image processing is configured by the operator",
    "kv_transfer_params": "it is internal to a cluster",
    "ec_transfer_params": "it is internal to a cluster",
    "prompt_embeds": "prompts are text or token ids",
    "previous_input_messages": "the whole conversation is sent with each request",
}
"""Fields that vLLM's schema knows but that only the operator may set, and why."""

PictureRenderer = Callable[[Picture], dict[str, Any]]


def rendered_messages(
    body: dict[str, Any], pictures: Sequence[Picture], render: PictureRenderer
) -> list[dict[str, Any]]:
    """The body's messages, copied, with each picture part in the engine's own form.

    Raises InvalidRequest, naming the field, for anything that an engine must not see.
    """
    check_fields(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` must be a non-empty list of messages.", param="messages")
    return [_message(message, f"messages.{i}", pictures, render) for i, message in enumerate(messages)]


def check_fields(body: dict[str, Any]) -> None:
    """Raises InvalidRequest for a field that only the operator may set."""
    for name, reason in OPERATOR_FIELDS.items():
        if body.get(name):
            raise InvalidRequest(f"`{name}` cannot be set by a request: {reason}.", param=name)
    template_args = body.get("chat_template_kwargs")
    if isinstance(template_args, dict) and "chat_template" in template_args:
        raise InvalidRequest(
            f"`chat_template` cannot be set by a request: {OPERATOR_FIELDS['chat_template']}.",
            param="chat_template_kwargs.chat_template",
        )


def _message(
    message: Any, param: str, pictures: Sequence[Picture], render: PictureRenderer
) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest("A message must be an object with `role` and `content`.", param=param)
    if message.get("role") not in ROLES:
        raise InvalidRequest(f"`role` must be one of: {', '.join(ROLES)}.", param=f"{param}.role")
    content = message.get("content")
    if isinstance(content, str):
        _check_text(content, f"{param}.content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, list):
        raise InvalidRequest("`content` must be a string or a list of parts.", param=f"{param}.content")
    parts = [_part(part, f"{param}.content.{j}", pictures, render) for j, part in enumerate(content)]
    return {**message, "content": parts}


def _part(part: Any, param: str, pictures: Sequence[Picture], render: PictureRenderer) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise InvalidRequest("A content part must be an object with a `type`.", param=param)
    kind = part.get("type")
    if kind == "picture":
        return render(picture_of(part, param, pictures))
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        name = kind if isinstance(kind, str) else "type"
        raise InvalidRequest(
            f"Content parts of type {kind!r} are not accepted here.", param=f"{param}.{name[:64]}"
        )
    key = TEXT_PARTS[kind]
    if not isinstance(part.get(key), str):
        raise InvalidRequest(f"`{key}` must be a string.", param=f"{param}.{key}")
    _check_text(part[key], f"{param}.{key}")
    return {"type": kind, key: part[key]}


def _check_text(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can escape it, no tokenizer can read it
        raise InvalidRequest("The text is not valid Unicode.", param=param) from None


def picture_of(part: dict[str, Any], param: str, pictures: Sequence[Picture]) -> Picture:
    """The picture that a part names. Raises InvalidRequest."""
    number = part.get("picture")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(pictures):
        raise InvalidRequest("The part names a picture that was not sent.", param=f"{param}.picture")
    return pictures[number]
