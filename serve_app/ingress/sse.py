"""Server-sent events. A stream always ends explicitly: as its API ends one, or with an error if it broke."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from deployments.contracts.errors import AtelierError
from serve_app.ingress.errors import envelope, unknown_error

log = logging.getLogger("ray.serve")

DONE = b"data: [DONE]\n\n"


def plain(events: list[bytes]) -> bytes:
    """JSON events as SSE frames, joined into one body part."""
    return b"".join(b"data: " + event + b"\n\n" for event in events)


class _Named(msgspec.Struct):
    type: str


_name = msgspec.json.Decoder(_Named)


def named(events: list[bytes]) -> bytes:
    """The same where each frame also names its event, which is always the event's `type`."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (_name.decode(event).type.encode(), event) for event in events
    )


def commented(items: list[bytes]) -> bytes:
    """The same where an item that begins with a colon is a comment of one line."""
    return b"".join(item + b"\n\n" if item.startswith(b":") else named([item]) for item in items)


@dataclass(frozen=True)
class Wire:
    """How an API writes its streams."""

    frame: Callable[[list[bytes]], bytes]
    error: Callable[[AtelierError, str, int], dict[str, Any]]
    """What ends a broken stream: from the error, the request's id, and how many events were sent."""
    end: bytes = b""


DATA = Wire(plain, lambda error, request_id, sent: envelope(error), DONE)
"""OpenAI's chat and completions: unnamed events, then `[DONE]`."""

COMMENTED = Wire(commented, lambda error, request_id, sent: {"type": "error", **envelope(error)}, DONE)
"""OpenAI's images: named events with progress in comments between them, then `[DONE]`."""


class EventStream:
    """An ASGI response that sends what a generator yields.

    The first item is awaited before the headers go out (see `open`), so that an early error keeps its
    true HTTP status: the OpenAI SDK retries by status, and never once a stream has begun.
    """

    def __init__(
        self, first: list[bytes], rest: AsyncGenerator[list[bytes], None], request_id: str, wire: Wire
    ) -> None:
        self._first = first
        self._rest = rest
        self._request_id = request_id
        self._wire = wire

    @classmethod
    async def open(
        cls, events: AsyncGenerator[list[bytes], None], request_id: str, wire: Wire = DATA
    ) -> EventStream:
        """Wait for the first item.

        Raises:
            AtelierError: the request failed before anything was sent.
        """
        try:
            first: list[bytes] = await anext(events, [])
        except BaseException:
            await events.aclose()
            raise
        return cls(first, events, request_id, wire)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            # Tells nginx and its kin not to hold tokens back.
            (b"x-accel-buffering", b"no"),
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _part(send, self._wire.frame(self._first))
            await self._send_rest(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            # Reached by cancellation too, when the client goes away: it frees the engine's slot.
            await self._rest.aclose()

    async def _send_rest(self, send: Send) -> None:
        sent = len(self._first)
        try:
            async for events in self._rest:
                await _part(send, self._wire.frame(events))
                sent += len(events)
        except AtelierError as error:
            log.warning("stream broke: %s", error.message, extra={"atelier_request_id": self._request_id})
            await self._send_error(send, error, sent)
        except OSError:
            raise
        except Exception:
            log.exception("stream broke", extra={"atelier_request_id": self._request_id})
            await self._send_error(send, unknown_error(), sent)
        await _part(send, self._wire.end)

    async def _send_error(self, send: Send, error: AtelierError, sent: int) -> None:
        event = msgspec.json.encode(self._wire.error(error, self._request_id, sent))
        await _part(send, self._wire.frame([event]))


async def with_heartbeat(
    stream: AsyncGenerator[list[bytes], None], beat: list[bytes], seconds: float
) -> AsyncGenerator[list[bytes], None]:
    """The stream, with `beat` in it whenever it has been silent for so long."""
    item: asyncio.Task[list[bytes] | None] | None = None
    try:
        while True:
            item = item or asyncio.create_task(_next(stream))
            await asyncio.wait({item}, timeout=seconds)
            if not item.done():
                yield beat
                continue
            items, item = item.result(), None
            if items is None:
                return
            yield items
    finally:
        if item is not None:
            item.cancel()
            # A generator that is still running its cancellation cannot be closed.
            await asyncio.wait({item})
        await stream.aclose()


async def _next(stream: AsyncGenerator[list[bytes], None]) -> list[bytes] | None:
    return await anext(stream, None)


async def _part(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})
