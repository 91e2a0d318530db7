"""The VLM REST service, `POST /api/v1/chat`: a picture and a prompt, with history, streamed, or as OCR."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic_core import from_json

from deployments.contracts.errors import AtelierError, InvalidImage
from deployments.contracts.settings import ModelSettings
from serve_app.graph.operations import ChatCall
from serve_app.graph.readiness import State
from serve_app.ingress.dialects.dialect import Images
from serve_app.ingress.dialects.older import Answer, checked, missing, numbered
from serve_app.ingress.sse import Wire, plain

CODES = {
    "image_header": (4001, 400),
    "image_format": (4002, 415),
    "image_too_large": (4003, 413),
    "too_large": (4003, 413),
    "loading": (4004, 503),
    "unavailable": (4004, 503),
    "overloaded": (4005, 503),
    "cancelled": (4999, 499),
    "internal": (5000, 500),
    "engine_failed": (5000, 500),
    "encoding_failed": (5000, 500),
    "timeout": (5001, 504),
    "out_of_memory": (5002, 503),
}
MALFORMED = 4000

_HEADER = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")

READ = "Read all text in the picture, line by line, each with its bounding box."
_SIDE = {"type": "integer", "minimum": 0, "maximum": 1000}
_LINE = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "box": {"type": "array", "items": _SIDE, "minItems": 4, "maxItems": 4},
    },
    "required": ["text", "box"],
    "additionalProperties": False,
}
LINES = {
    "type": "object",
    "properties": {"lines": {"type": "array", "items": _LINE}},
    "required": ["lines"],
    "additionalProperties": False,
}
"""What OCR answers. A box is left, top, right, bottom in thousandths of the picture's width and height, as
Qwen3-VL was trained to say them."""


class _Turn(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str
    image: str | None = None


class _Chat(msgspec.Struct):
    prompt: str | None = None
    image: str | None = None
    max_tokens: Annotated[int, Meta(ge=64, le=1024)] = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    stream: bool = False
    history: list[_Turn] = []
    output: Literal["text", "ocr"] = "text"


@dataclass(frozen=True)
class Question:
    """A core request, and how it wants to be answered."""

    call: ChatCall
    stream: bool
    ocr: bool


def question(body: dict[str, Any], max_images: int, max_side: int) -> Question:
    """The core request. A picture is needed, now or in an earlier turn.

    Raises:
        InvalidRequest: a field is missing or malformed, or an image is not one that this service takes.
    """
    wire = checked(body, _Chat)
    ocr = wire.output == "ocr"
    prompt = (wire.prompt or "").strip() or (READ if ocr else "")
    if not prompt:
        raise missing("prompt", "say what you want to know of the picture")
    images = Images(max_images, "image")
    turns = [*wire.history, _Turn("user", prompt, wire.image)]
    params = [*(f"history.{i}.image" for i in range(len(wire.history))), "image"]
    messages = [_message(turn, images, param) for turn, param in zip(turns, params, strict=True)]
    if not images.all():
        raise missing("image", "send the picture as 'data:image/png;base64,...'")
    chat = {"messages": messages, "max_tokens": wire.max_tokens, "temperature": wire.temperature}
    if ocr:
        schema = {"name": "lines", "schema": LINES, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    sources = tuple(replace(source, max_side=max_side) for source in images.all())
    return Question(ChatCall(chat, sources), wire.stream, ocr)


def _message(turn: _Turn, images: Images, param: str) -> dict[str, Any]:
    if not turn.image:
        return {"role": turn.role, "content": turn.content}
    if turn.role != "user":
        raise InvalidImage(f"'{param}': only turns of the user hold pictures.", param=param)
    picture = images.lift(_checked_image(turn.image, param), param)
    return {"role": turn.role, "content": [picture, {"type": "text", "text": turn.content}]}


def _checked_image(url: str, param: str) -> str:
    url = url.strip()
    header = _HEADER.match(url)
    if header is None:
        raise InvalidImage(
            f"'{param}' lacks its data header: send it as 'data:image/png;base64,...' (or jpeg, webp).",
            param=param,
            code="image_header",
        )
    try:
        start = base64.b64decode(url[header.end() : header.end() + 32])
    except (binascii.Error, ValueError):
        return url  # preprocessing says what is wrong with it
    if not start.startswith(_MAGIC) and start[:4] + start[8:12] != b"RIFFWEBP":
        raise InvalidImage(
            f"'{param}' is not JPEG, PNG or WebP, judged by its content. Convert it to one of them.",
            param=param,
            code="image_format",
        )
    return url


def render(answer: Answer, milliseconds: float, ocr: bool) -> dict[str, Any]:
    """The whole answer; `lines` and `truncated` too for OCR."""
    data: dict[str, Any] = {
        "response": answer.text,
        "token_usage": answer.usage,
        "inference_time_ms": round(milliseconds, 1),
    }
    if ocr:
        data |= {"lines": _lines(answer.text), "truncated": answer.cut}
    return _success(data)


def _success(data: dict[str, Any]) -> dict[str, Any]:
    return {"code": 0, "message": "success", "data": data}


def _lines(text: str) -> list[Any]:
    """The complete lines of an answer that may have been cut off."""
    try:
        found = from_json(text, allow_partial=True)
    except ValueError:
        return []
    lines = found.get("lines", []) if isinstance(found, dict) else []
    return [line for line in lines if isinstance(line, dict) and len(line.get("box", ())) == 4]


def chunk(text: str) -> dict[str, Any]:
    """One event of a stream."""
    return _success({"delta": text, "done": False})


def last_chunk(answer: Answer, milliseconds: float, ocr: bool) -> dict[str, Any]:
    """The event that ends a stream holds the whole answer too."""
    event = render(answer, milliseconds, ocr)
    event["data"] |= {"delta": "", "done": True}
    return event


def health(model: ModelSettings, state: State, now: datetime) -> dict[str, Any]:
    """`now` in UTC."""
    return {
        "status": {"ready": "healthy", "idle": "healthy"}.get(state, state),
        "model": model.id,
        "multimodal": True,
        "cpu_optimized": model.gpu_fraction == 0,
        "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def render_error(error: AtelierError, request_id: str) -> tuple[int, dict[str, Any]]:
    """`{"code", "message", "data": null}`."""
    code, status = numbered(error, CODES, MALFORMED)
    return status, {"code": code, "message": error.message, "data": None}


def _error_event(error: AtelierError, request_id: str, sent: int) -> dict[str, Any]:
    return render_error(error, request_id)[1]


WIRE = Wire(plain, _error_event)
