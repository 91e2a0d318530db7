"""Endpoints: read, hand to a dialect, call the operation, render. Nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deployments.contracts.settings import ModelSettings
from serve_app.graph.operations import Operations
from serve_app.graph.readiness import UP
from serve_app.ingress.body import read_json
from serve_app.ingress.dialects.dialect import Dialect
from serve_app.ingress.errors import json_response
from serve_app.ingress.scope import scope_of
from serve_app.ingress.sse import EventStream
from serve_app.settings import IngressSettings

Endpoint = Callable[[Request], Awaitable[Any]]


class Handlers:
    """The endpoints, over one set of operations."""

    def __init__(self, operations: Operations, settings: IngressSettings, started: int) -> None:
        self._operations = operations
        self._settings = settings
        self._started = started

    async def health(self, request: Request) -> Response:
        """The process answers. Says nothing about models: see `/ready`."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 when every model can take a request, else 503 with Retry-After."""
        readiness = self._operations.readiness
        states = readiness.states()
        waiting = [model_id for model_id, state in states.items() if state not in UP]
        if not waiting:
            return json_response({"status": "ready", "models": states})
        wait = max(readiness.retry_after(model_id) for model_id in waiting)
        headers = {"retry-after": str(max(1, round(wait)))}
        return json_response({"status": "loading", "models": states}, 503, headers)

    async def models(self, request: Request) -> Response:
        """All models, loaded or not."""
        data = [self._model(model) for model in self._operations.catalog.models]
        return json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One model, by id or alias."""
        return json_response(self._model(self._operations.catalog.get(request.path_params["model"])))

    def _model(self, model: ModelSettings) -> dict[str, Any]:
        return {
            "id": model.id,
            "object": "model",
            "created": self._started,
            "owned_by": "atelier",
            "task": model.task,
            "aliases": model.aliases,
            "state": self._operations.readiness.states()[model.id],
        }

    def text(self, dialect: Dialect) -> Endpoint:
        """The endpoint of a text API: answers whole or streamed."""

        async def endpoint(request: Request) -> Any:
            body = await read_json(request, self._settings.max_body_bytes)
            call = replace(dialect.call(body, self._settings.max_images), scope=scope_of(request.headers))
            request_id = request.state.request_id
            if dialect.wire is not None and body.get("stream"):
                events = self._operations.stream_chat(call, request_id)
                return await EventStream.open(events, request_id, dialect.wire)
            return json_response(await self._operations.chat(call, request_id))

        return endpoint
