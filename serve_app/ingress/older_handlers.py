"""Endpoints of the services that came before: read, hand to a dialect, call the operation, render."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deployments.contracts.errors import AtelierError
from serve_app.graph.operations import ChatCall, Operations
from serve_app.ingress.body import read_json
from serve_app.ingress.dialects import image_service, vlm_rest, vlm_service
from serve_app.ingress.dialects.older import Answer, retold
from serve_app.ingress.errors import STATUS, json_response, unknown_error
from serve_app.ingress.image_handlers import collect
from serve_app.ingress.scope import scope_of
from serve_app.ingress.sse import EventStream
from serve_app.ingress.tally import Tally
from serve_app.settings import IngressSettings

log = logging.getLogger("ray.serve")

SHOWN = 600
"""Characters of a parameter in the log."""


class OlderHandlers:
    """The endpoints of the image service, the VLM service and the VLM REST service."""

    def __init__(self, operations: Operations, settings: IngressSettings, tally: Tally) -> None:
        self._operations = operations
        self._settings = settings
        self._tally = tally

    # ------------------------------------------------------------------ image service
    async def generate(self, request: Request) -> Response:
        """`POST /api/generate`: the PNG itself."""
        with self._counted(), _recorded(request) as record:
            body = record(await read_json(request, self._settings.max_body_bytes))
            model = self._operations.image_model(None)
            core = image_service.image_request(body, model, request.state.request_id)
            (done,), _ = await collect(self._operations.generate(model, core), n=1)
            return Response(done.data, media_type="image/png", headers=image_service.headers(done))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        code = image_service.number(unknown_error())
        try:
            yield
            code = 0
        except AtelierError as error:
            code = image_service.number(error)
            raise
        except asyncio.CancelledError:
            code = image_service.CODES["cancelled"][0]
            raise
        finally:
            self._tally.count(code)

    async def image_health(self, request: Request) -> Response:
        """`GET /api/health`: the process answers."""
        return json_response({"status": "ok"})

    async def queue_status(self, request: Request) -> Response:
        """`GET /api/queue/status`."""
        queue = await self._operations.image_queue(self._operations.image_model(None))
        return json_response(image_service.queue_status(queue))

    async def metrics(self, request: Request) -> Response:
        """`GET /api/metrics`."""
        queue = await self._operations.image_queue(self._operations.image_model(None))
        return json_response(image_service.metrics(queue, await self._tally.total()))

    # ------------------------------------------------------------------ VLM service
    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat`: the whole answer."""
        with _recorded(request) as record:
            call = vlm_service.chat_call(record(await read_json(request, self._settings.max_body_bytes)))
            answer, milliseconds = await self._answer(request, call)
            memory = await self._operations.gpu_memory_gb(self._operations.chat_model(None))
            told = vlm_service.render(answer, milliseconds, memory, request.state.client_request_id)
            return json_response(told)

    async def chat_stream(self, request: Request) -> Any:
        """`POST /v1/chat/stream`: server-sent events."""
        with _recorded(request) as record:
            call = vlm_service.chat_call(record(await read_json(request, self._settings.max_body_bytes)))
            events = retold(self._chunks(request, call), vlm_service.chunk, vlm_service.last_chunk)
            return await EventStream.open(events, request.state.request_id, vlm_service.WIRE)

    async def vlm_health(self, request: Request) -> Response:
        """`GET /v1/health`."""
        model = self._operations.chat_model(None)
        state = self._operations.readiness.states()[model.id]
        memory = await self._operations.gpu_memory_gb(model) if state == "ready" else 0.0
        uptime = (await self._tally.total()).uptime
        return json_response(vlm_service.health(state, memory, uptime))

    # ------------------------------------------------------------------ VLM REST service
    async def rest_chat(self, request: Request) -> Any:
        """`POST /api/v1/chat`: whole or streamed."""
        settings, started = self._settings, time.perf_counter()
        with _recorded(request) as record:
            body = record(await read_json(request, settings.max_body_bytes))
            asked = vlm_rest.question(body, settings.max_images, settings.max_image_side)
            if not asked.stream:
                answer, milliseconds = await self._answer(request, asked.call)
                return json_response(vlm_rest.render(answer, milliseconds, asked.ocr))

            def end(answer: Answer) -> dict[str, Any]:
                return vlm_rest.last_chunk(answer, _milliseconds(started), asked.ocr)

            events = retold(self._chunks(request, asked.call), vlm_rest.chunk, end)
            return await EventStream.open(events, request.state.request_id, vlm_rest.WIRE)

    async def rest_health(self, request: Request) -> Response:
        """`GET /api/v1/health`."""
        model = self._operations.chat_model(None)
        state = self._operations.readiness.states()[model.id]
        return json_response(vlm_rest.health(model, state, datetime.now(UTC)))

    # ------------------------------------------------------------------ both
    async def _answer(self, request: Request, call: ChatCall) -> tuple[Answer, float]:
        """The answer and its milliseconds, preprocessing and waiting included."""
        started, answer = time.perf_counter(), Answer()
        limit, call = self._settings.chat_timeout_s, _scoped(request, call)
        answer.add(await self._operations.chat(call, request.state.request_id, timeout_s=limit))
        return answer, _milliseconds(started)

    def _chunks(self, request: Request, call: ChatCall) -> AsyncGenerator[list[bytes], None]:
        streamed = {**call.body, "stream": True, "stream_options": {"include_usage": True}}
        call = replace(_scoped(request, call), body=streamed)
        return self._operations.stream_chat(
            call, request.state.request_id, timeout_s=self._settings.chat_timeout_s
        )


def _scoped(request: Request, call: ChatCall) -> ChatCall:
    return replace(call, scope=scope_of(request.headers))


def _milliseconds(started: float) -> float:
    return (time.perf_counter() - started) * 1000


@contextmanager
def _recorded(request: Request) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Log the parameters, and with them the stack of what failed, under the request's id."""
    request_id, path = request.state.request_id, request.url.path
    about, parameters = {"atelier_request_id": request_id}, {}

    def record(body: dict[str, Any]) -> dict[str, Any]:
        parameters.update({name[:SHOWN]: _shown(name, value) for name, value in body.items()})
        log.info("%s %s asked: %r", path, request_id, parameters, extra=about)
        return body

    try:
        yield record
    except Exception as error:
        theirs = isinstance(error, AtelierError) and STATUS[error.kind][0] < 500
        level = logging.INFO if theirs else logging.ERROR
        said = (path, request_id, error, parameters)
        log.log(level, "%s %s failed: %s %r", *said, extra=about, exc_info=not theirs)
        raise


def _shown(name: str, value: Any) -> Any:
    """A parameter as the log shows it: a prompt is told, a picture is not."""
    text = value if isinstance(value, str) else str(value)
    most = 40 if "image" in name else SHOWN
    return value if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
