"""The Starlette application: routes, middleware and error handlers around the operations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from deployments.contracts.errors import AtelierError
from serve_app.graph.operations import Operations
from serve_app.ingress.errors import Errors
from serve_app.ingress.handlers import Handlers
from serve_app.ingress.image_handlers import ImageHandlers
from serve_app.ingress.middleware import RequestContext
from serve_app.ingress.older_handlers import OlderHandlers
from serve_app.ingress.routes import ERRORS, routes
from serve_app.ingress.tally import Tally
from serve_app.settings import IngressSettings


class _Routing(AtelierError):
    kind = "not_found"


class _Method(AtelierError):
    kind = "method_not_allowed"


def make_application(
    operations: Operations,
    settings: IngressSettings,
    *,
    tally: Tally | None = None,
    server_echoes_id: bool = False,
) -> Starlette:
    """The whole HTTP floor over `operations`; it watches the models while it lives.

    Args:
        operations: what it calls.
        settings: limits of the edge.
        tally: counts over all replicas of the ingress; None where this is the only one.
        server_echoes_id: see `RequestContext`.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watcher = asyncio.create_task(operations.readiness.watch())
        yield
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher

    errors = Errors(ERRORS)
    return Starlette(
        routes=routes(
            Handlers(operations, settings, started=int(time.time())),
            ImageHandlers(operations, settings),
            OlderHandlers(operations, settings, tally or Tally()),
        ),
        middleware=[Middleware(RequestContext, errors=errors, server_echoes_id=server_echoes_id)],
        exception_handlers={
            AtelierError: partial(_atelier_error, errors),
            HTTPException: partial(_http_error, errors),
        },
        lifespan=lifespan,
    )


async def _atelier_error(errors: Errors, request: Request, error: Exception) -> Response:
    assert isinstance(error, AtelierError)
    return errors.response(error, request.scope)


async def _http_error(errors: Errors, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return errors.response(
            _Method(f"{request.method} is not allowed here; use {allowed}.", code="method_not_allowed"),
            request.scope,
        )
    nothing = _Routing(f"There is nothing at {request.url.path[:200]}.", code="not_found")
    return errors.response(nothing, request.scope)
