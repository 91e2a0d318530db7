"""Endpoints of the image APIs: read, hand to a dialect, call the operation, render. Nothing else."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deployments.contracts.errors import AtelierError, EngineFailed, InvalidRequest
from deployments.contracts.messages import ImageDone, ImageEvent, ImageRequest, ImageSource, ImageUsage
from deployments.contracts.request_ids import is_named
from deployments.contracts.settings import ModelSettings
from serve_app.graph.operations import Operations
from serve_app.ingress.body import FORM, media_type, read_form, read_json
from serve_app.ingress.dialects import image_queue, openai_images
from serve_app.ingress.dialects.openai_image_replies import ImageStream, comment, whole_response
from serve_app.ingress.errors import json_response
from serve_app.ingress.schemas.images import Painting
from serve_app.ingress.scope import scope_of
from serve_app.ingress.sse import COMMENTED, EventStream, with_heartbeat
from serve_app.settings import IngressSettings

MAX_IMAGES = 16
"""Images in one edit, as in OpenAI's API."""

HEARTBEAT_S = 10.0
"""Silence after which a stream says that it lives, and after which its headers go out at the latest."""

TIMEOUT_HEADER = "x-request-timeout-seconds"


class NoSuchRequest(AtelierError):
    """No image request with this id is waiting or being painted."""

    kind, default_code = "not_found", "request_not_found"


class ImageHandlers:
    """The endpoints, over one set of operations."""

    def __init__(self, operations: Operations, settings: IngressSettings) -> None:
        self._operations = operations
        self._settings = settings

    async def generate(self, request: Request) -> Any:
        """OpenAI image generations."""
        body = await read_json(request, self._settings.max_body_bytes)
        wire = openai_images.parse_generation(body)
        model = self._operations.image_model(wire.model)
        core = openai_images.image_request(wire, model, request.state.request_id)
        return await self._answer(request, "image_generation", wire, model, core)

    async def edit(self, request: Request) -> Any:
        """OpenAI image edits: a form with files, or JSON with URLs."""
        most = self._settings.max_body_bytes
        if media_type(request) == FORM:
            form = await read_form(request, most, MAX_IMAGES + 1)
            call = openai_images.parse_edit_form(form.fields, form.files, MAX_IMAGES)
        else:
            call = openai_images.parse_edit_json(await read_json(request, most), MAX_IMAGES)
        model = self._operations.image_model(call.wire.model)
        core = openai_images.edit_request(call, model, request.state.request_id)
        scope = scope_of(request.headers)
        sources = [replace(source, scope=scope) for source in call.sources]
        return await self._answer(request, "image_edit", call.wire, model, core, sources)

    async def queue(self, request: Request) -> Response:
        """What all image models, or the one asked for, paint now and what waits for them."""
        queues = [
            (model.id, await self._operations.image_queue(model)) for model in self._image_models(request)
        ]
        return json_response(image_queue.render_queues(queues))

    async def queued(self, request: Request) -> Response:
        """One request; the first one if several clients chose the same id."""
        name = request.path_params["request_id"]
        for model in self._image_models(request):
            for entry in (await self._operations.image_queue(model)).requests:
                if is_named(entry.request_id, name):
                    return json_response(image_queue.render_entry(model.id, entry))
        raise _no_such_request(name)

    async def cancel(self, request: Request) -> Response:
        """Stop painting; the client that waits for the picture is told so."""
        name = request.path_params["request_id"]
        if not await self._operations.cancel_image(None, name):
            raise _no_such_request(name)
        return json_response({"id": name, "object": "image.request", "cancelled": True})

    def _image_models(self, request: Request) -> Sequence[ModelSettings]:
        name = request.query_params.get("model")
        if name is not None:
            return [self._operations.image_model(name)]
        return [model for model in self._operations.catalog.models if model.task == "image_generation"]

    async def _answer(
        self,
        request: Request,
        kind: str,
        wire: Painting,
        model: ModelSettings,
        core: ImageRequest,
        sources: Sequence[ImageSource] = (),
    ) -> Any:
        timeout_s = _timeout(request)
        events = self._operations.generate(model, core, sources, timeout_s=timeout_s)
        if not wire.stream:
            done, usage = await collect(events, core.n)
            return json_response(whole_response(wire.quality, core, done, usage))
        items = _render(events, ImageStream(kind, wire.quality, core))
        # The first event is the place in the queue, so headers do not wait for the picture. Where even
        # that is long in coming, a heartbeat sends them; what failed before then keeps its HTTP status.
        items = with_heartbeat(items, [comment({"type": "waiting"})], HEARTBEAT_S)
        return await EventStream.open(items, request.state.request_id, COMMENTED)


async def collect(events: AsyncGenerator[ImageEvent, None], n: int) -> tuple[list[ImageDone], ImageUsage]:
    """All `n` pictures and the usage. Raises AtelierError."""
    done, usage = [], None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ImageDone):
                done.append(event)
            elif isinstance(event, ImageUsage):
                usage = event
    if usage is None or len(done) != n:
        raise _stopped()
    return done, usage


async def _render(
    events: AsyncGenerator[ImageEvent, None], stream: ImageStream
) -> AsyncGenerator[list[bytes], None]:
    async with aclosing(events):
        async for event in events:
            if items := stream.render(event):
                yield items
    if not stream.ended:
        raise _stopped()


def _stopped() -> EngineFailed:
    return EngineFailed("The image generator stopped before all pictures were done.")


def _timeout(request: Request) -> float | None:
    """What the client allows; zero and less is no limit, as in Ray Serve, whose header it is."""
    value = request.headers.get(TIMEOUT_HEADER)
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidRequest(
            f"The header {TIMEOUT_HEADER} must be a number of seconds.", param=TIMEOUT_HEADER
        )
    # Serve's own timer would answer with 408 in plain text and cut a stream off: ours goes first.
    return seconds - min(0.25, seconds / 4) if 0 < seconds < math.inf else None


def _no_such_request(name: str) -> NoSuchRequest:
    return NoSuchRequest(
        f"No image request {name[:100]!r} is waiting or being painted. Ids are those of the x-request-id "
        "header; a request that is done has none any more."
    )
