"""Errors at the edge: the HTTP status is decided by kind, once; how the body looks, by the path's API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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

Renderer = Callable[[AtelierError, str], tuple[int, dict[str, Any]]]
"""An error and the request's id, as the client knows it → HTTP status and body. Each API has one."""


def envelope(error: AtelierError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, as OpenAI clients expect it, and `suggested_fix` if any."""
    _, kind = STATUS[error.kind]
    fix = {"suggested_fix": error.suggested_fix} if error.suggested_fix else {}
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code, **fix}
    }


def openai_error(error: AtelierError, request_id: str) -> tuple[int, dict[str, Any]]:
    """OpenAI's renderer, and that of every path which no other API claims."""
    return STATUS[error.kind][0], envelope(error)


class Errors:
    """Writes an error in the API of the path on which it happened.

    Args:
        by_path: path → renderer; it holds for what lies below the path too, the longest one first.
    """

    def __init__(self, by_path: Mapping[str, Renderer]) -> None:
        self._by_path = by_path

    def response(self, error: AtelierError, scope: Scope) -> Response:
        """The whole response, Retry-After included."""
        status, body = self._renderer(scope["path"])(error, scope["state"]["client_request_id"])
        wait = retry_seconds(error)
        return json_response(body, status, {} if wait is None else {"retry-after": str(wait)})

    def _renderer(self, path: str) -> Renderer:
        while path:
            if path in self._by_path:
                return self._by_path[path]
            path = path.rpartition("/")[0]
        return openai_error


def retry_seconds(error: AtelierError) -> int | None:
    """When to come back, in whole seconds, rounded up; None where waiting does not help."""
    return None if error.retry_after is None else max(1, math.ceil(error.retry_after))


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Encode with msgspec; `content` may hold raw JSON as `msgspec.Raw`."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


def unknown_error() -> AtelierError:
    """What a client hears of an exception that nobody foresaw."""
    return AtelierError("The server hit an unexpected error. It is logged under the request id.")
