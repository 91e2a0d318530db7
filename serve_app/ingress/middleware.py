"""Every request: an id of our own, one log line, and no exception that escapes to the client."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.errors import error_response, unknown_error

log = logging.getLogger("ray.serve")

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Pure ASGI, so that it costs nothing per streamed part.

    The id is minted here: a client's own `x-request-id` is only logged beside it, since two clients may
    send the same one and it may hold anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error", extra={"atelier_request_id": request_id})
            if status:
                raise
            await error_response(unknown_error())(scope, receive, send_with_id)
        finally:
            _log_line(scope, request_id, status, time.perf_counter() - started)


def _log_line(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    theirs = Headers(scope=scope).get("x-request-id", "")
    log.info(
        "%s %s %s %.1f ms %s",
        scope["method"],
        scope["path"],
        status or "cancelled",
        seconds * 1000,
        request_id,
        extra={
            "atelier_request_id": request_id,
            "client_request_id": theirs if _SAFE_ID.fullmatch(theirs) else None,
        },
    )
