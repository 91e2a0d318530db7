"""Every request: an id of our own, one log line, and no exception that escapes to the client."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.contracts.request_ids import unique_id
from serve_app.ingress.errors import Errors, unknown_error

log = logging.getLogger("ray.serve")

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Pure ASGI, so that it costs nothing per streamed part.

    The client sees one `x-request-id`: its own, or else one that was minted on the way (HAProxy's). The
    id that engines and logs know is that one with a suffix of our own, since two clients may send the
    same id, and an engine must never meet one twice. In the scope's state the one is `client_request_id`,
    the other `request_id`.

    Args:
        app: what is wrapped.
        errors: writes what a client hears of an exception that nobody foresaw.
        server_echoes_id: the server around the application already puts `x-request-id` on every
            response, as Ray Serve does; a second one would spoil it.
    """

    def __init__(self, app: ASGIApp, errors: Errors, server_echoes_id: bool) -> None:
        self._app = app
        self._errors = errors
        self._server_echoes_id = server_echoes_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        theirs = Headers(scope=scope).get("x-request-id", "")
        client_id = theirs if _SAFE_ID.fullmatch(theirs) else f"req-{secrets.token_hex(6)}"
        request_id = unique_id(client_id)
        scope.setdefault("state", {}).update(request_id=request_id, client_request_id=theirs or client_id)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._server_echoes_id:
                    MutableHeaders(scope=message)["x-request-id"] = theirs or client_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error", extra={"atelier_request_id": request_id})
            if status:
                raise
            await self._errors.response(unknown_error(), scope)(scope, receive, send_with_id)
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            log.info(
                "%s %s %s %.1f ms %s",
                scope["method"],
                scope["path"],
                status or "cancelled",
                milliseconds,
                request_id,
                extra={"atelier_request_id": request_id},
            )
