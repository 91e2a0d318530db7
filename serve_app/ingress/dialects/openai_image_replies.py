"""Core image events to OpenAI's answers: a whole response, or the events of a stream.

Progress goes into SSE comments (`: {json}`), which SSE clients, the OpenAI SDK among them, skip.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from deployments.contracts.messages import (
    ImageDone,
    ImageEvent,
    ImagePreview,
    ImageQueued,
    ImageRequest,
    ImageStep,
    ImageUsage,
)

_QUALITY = {"low": "low", "high": "high", "hd": "high", "xhigh": "xhigh", "max": "max"}
"""What the answer calls a quality; the others mean the model's own steps, OpenAI's medium."""


def whole_response(
    quality: str | None, request: ImageRequest, done: Sequence[ImageDone], usage: ImageUsage
) -> dict[str, Any]:
    """OpenAI's `ImagesResponse`; each picture also says its seed and steps, and what healed it."""
    pictures = sorted(done, key=lambda picture: picture.index)
    return {
        "created": int(time.time()),
        "data": [
            {"b64_json": _base64(picture.data), "revised_prompt": None, **_painted(picture)}
            for picture in pictures
        ],
        **_shared(quality, request, pictures[0].data),
        "usage": _usage(usage),
    }


class ImageStream:
    """Renders the events of one request as they come.

    Of several pictures each gets its completed event as soon as it is done. What the request cost is known
    at its end only, so it stands on the last of them, and the others carry zeros: the sum is true.

    Args:
        kind: `image_generation` or `image_edit`.
        quality: as the client asked.
        request: as it was given to the engine.
    """

    def __init__(self, kind: str, quality: str | None, request: ImageRequest) -> None:
        self._kind = kind
        self._quality = quality
        self._request = request
        self._done = 0
        self._last: ImageDone | None = None
        self.ended = False
        """Whether the last completed event has been rendered."""

    def render(self, event: ImageEvent) -> list[bytes]:
        """SSE items: JSON events, and comments, which begin with a colon."""
        if isinstance(event, ImageQueued):
            return [comment({"type": "queued", "ahead": event.ahead, "eta_seconds": event.eta_seconds})]
        if isinstance(event, ImageStep):
            progress = {"index": event.index, "step": event.step, "steps": event.steps}
            return [comment({"type": "step", **progress})]
        if isinstance(event, ImagePreview):
            extra = {"partial_image_index": event.partial, "index": event.index}
            return [self._event("partial_image", event.data, extra)]
        if isinstance(event, ImageDone):
            self._done += 1
            if self._done < self._request.n:
                return [self._completed(event, ImageUsage(0, 0))]
            self._last = event
            return []
        if self._last is None:
            return []
        self.ended = True
        return [self._completed(self._last, event)]

    def _completed(self, picture: ImageDone, usage: ImageUsage) -> bytes:
        extra = {"index": picture.index, **_painted(picture), "usage": _usage(usage)}
        return self._event("completed", picture.data, extra)

    def _event(self, name: str, data: bytes, extra: dict[str, Any]) -> bytes:
        return msgspec.json.encode(
            {
                "type": f"{self._kind}.{name}",
                "b64_json": _base64(data),
                "created_at": int(time.time()),
                **_shared(self._quality, self._request, data),
                **extra,
            }
        )


def comment(content: dict[str, Any]) -> bytes:
    """An SSE comment of one line."""
    return b": " + msgspec.json.encode(content)


def _shared(quality: str | None, request: ImageRequest, data: bytes) -> dict[str, Any]:
    return {
        "size": "{}x{}".format(*_size(request, data)),
        "quality": _QUALITY.get(quality or "auto", "medium"),
        "background": "opaque",
        "output_format": request.output_format,
    }


def _size(request: ImageRequest, data: bytes) -> tuple[int, int]:
    """Of an edit that keeps its picture's size only the replica knows it: it is read off the result."""
    if request.width:
        return request.width, request.height
    from PIL import Image

    width, height = Image.open(io.BytesIO(data)).size  # the header: nothing is decoded
    return width, height


def _painted(picture: ImageDone) -> dict[str, Any]:
    healed = {} if picture.healed is None else {"healed": picture.healed}
    return {"seed": picture.seed, "steps": picture.steps, **healed}


def _usage(usage: ImageUsage) -> dict[str, Any]:
    read = usage.text_tokens + usage.input_image_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "image_tokens": usage.input_image_tokens,
            "text_tokens": usage.text_tokens,
        },
        "output_tokens": usage.image_tokens,
        "output_tokens_details": {"image_tokens": usage.image_tokens, "text_tokens": 0},
        "total_tokens": read + usage.image_tokens,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
