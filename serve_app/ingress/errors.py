"""Errors at the edge: the HTTP status is decided here, once, by kind. Rendered in the OpenAI envelope."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response

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
    "unavailable": (503, UNAVAILABLE),
    "loading": (503, UNAVAILABLE),
    "overloaded": (503, UNAVAILABLE),
    "timeout": (504, SERVER),
}
"""kind → HTTP status and OpenAI error type."""


def envelope(error: AtelierError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, as OpenAI clients expect it."""
    _, kind = STATUS[error.kind]
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: AtelierError) -> Response:
    """The whole response, Retry-After included (in whole seconds, rounded up)."""
    status, _ = STATUS[error.kind]
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return json_response(envelope(error), status, headers)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Encode with msgspec; `content` may hold raw JSON as `msgspec.Raw`."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


def unknown_error() -> AtelierError:
    """What a client hears of an exception that nobody foresaw."""
    return AtelierError("The server hit an unexpected error. It is logged under the request id.")
