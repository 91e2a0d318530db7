"""OpenAI's older completions, of prompts instead of messages: the body stays as it is."""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.messages import MAX_PROMPTS
from serve_app.graph.operations import ChatCall
from serve_app.ingress.dialects.dialect import Dialect, check_choices, check_model


def completion_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """Check what the graph itself relies on; vLLM checks the rest.

    Raises:
        InvalidRequest: a field is missing or of the wrong shape; `param` names it.
    """
    check_model(body)
    check_choices(body)
    prompt = body.get("prompt")
    if prompt is None:
        raise InvalidRequest(
            "'prompt' is missing: send a string, or a list of strings or of token ids.",
            param="prompt",
            code="missing_required_parameter",
        )
    if not isinstance(prompt, str | list) or not prompt:
        raise InvalidRequest(
            "'prompt' must be a string, or a list of strings or of token ids, and not empty.", param="prompt"
        )
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    if many and len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"{len(prompt)} prompts in one request; at most {MAX_PROMPTS} are allowed.",
            param="prompt",
            code="invalid_value",
        )
    return ChatCall(body, surface="completions")


COMPLETIONS = Dialect(completion_call)
