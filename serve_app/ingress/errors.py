"""Errors at the edge: the HTTP status is decided here, once, by kind; the envelope is the path's API's."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from deployments.contracts.errors import AtelierError

CLIENT, SERVER, UNAVAILABLE = "invalid_request_error", "server_error", "service_unavailable_error"

STATUS: dict[str, tuple[int, str]] = {
    "invalid": (400, CLIENT),
    "not_found": (404, CLIENT),
    "method_not_allowed": (405, CLIENT),
    "too_large": (413, CLIENT),
    "unsupported_media": (415, CLIENT),
    "cancelled": (499, CLIENT),
    "internal": (500, SERVER),
    "engine_failed": (500, SERVER),
    "encoding_failed": (500, SERVER),
    "timeout": (504, SERVER),
    "out_of_memory": (503, UNAVAILABLE),
    "unavailable": (503, UNAVAILABLE),
    "loading": (503, UNAVAILABLE),
    "overloaded": (503, UNAVAILABLE),
}
"""kind → HTTP status and OpenAI error type."""


def envelope(error: AtelierError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, as OpenAI clients expect it, and `suggested_fix` if any."""
    _, kind = STATUS[error.kind]
    fix = {"suggested_fix": error.suggested_fix} if error.suggested_fix else {}
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code, **fix}
    }


ANTHROPIC_PATHS = "/v1/messages"

ANTHROPIC = {
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


def anthropic_envelope(error: AtelierError, request_id: str) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message}, "request_id"}`, as Anthropic clients expect it."""
    info = {"type": ANTHROPIC.get(error.kind, CLIENT), "message": error.message}
    return {"type": "error", "error": info, "request_id": request_id}


def error_response(error: AtelierError, scope: Scope) -> Response:
    """The whole response, Retry-After included (in whole seconds, rounded up)."""
    status, _ = STATUS[error.kind]
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if scope["path"].startswith(ANTHROPIC_PATHS):
        return json_response(anthropic_envelope(error, scope["state"]["request_id"]), status, headers)
    return json_response(envelope(error), status, headers)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Encode with msgspec; `content` may hold raw JSON as `msgspec.Raw`."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


def unknown_error() -> AtelierError:
    """What a client hears of an exception that nobody foresaw."""
    return AtelierError("The server hit an unexpected error. It is logged under the request id.")
