"""vLLM's own tokenize and detokenize."""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import InvalidRequest
from serve_app.graph.operations import ChatCall
from serve_app.ingress.dialects.dialect import Dialect, check_model, required_list
from serve_app.ingress.dialects.openai_chat import chat_call


def tokenize_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """A prompt, or a chat as the model's template would write it. Raises InvalidRequest."""
    if body.get("messages") is not None:
        return chat_call(body, max_images, "tokenize_chat")
    check_model(body)
    if not isinstance(body.get("prompt"), str):
        raise InvalidRequest(
            "Send 'prompt', a string, or 'messages', as to chat completions.", param="prompt"
        )
    return ChatCall(body, surface="tokenize")


def detokenize_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """A list of token ids. Raises InvalidRequest."""
    check_model(body)
    required_list(body, "tokens", "[1, 2, 3]")
    return ChatCall(body, surface="detokenize")


TOKENIZE = Dialect(tokenize_call, None)
DETOKENIZE = Dialect(detokenize_call, None)
