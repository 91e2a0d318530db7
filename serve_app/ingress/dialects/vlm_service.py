"""The VLM service, `POST /v1/chat` and `/v1/chat/stream`: one question, of a text, a picture or both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from deployments.contracts.errors import AtelierError
from serve_app.graph.operations import ChatCall
from serve_app.graph.readiness import State
from serve_app.ingress.dialects.dialect import Images
from serve_app.ingress.dialects.older import Answer, checked, missing
from serve_app.ingress.errors import STATUS
from serve_app.ingress.sse import Wire, plain

DESCRIBE = "Describe the picture."
"""What a picture alone asks."""


class _Chat(msgspec.Struct):
    input_type: Literal["text_only", "image_only", "text_image"]
    text: Annotated[str, Meta(max_length=2048)] | None = None
    image_url: str | None = None
    image_base64: str | None = None
    max_new_tokens: Annotated[int, Meta(ge=10, le=2048)] = 512
    temperature: Annotated[float, Meta(ge=0.1, le=1.5)] = 0.7


def chat_call(body: dict[str, Any]) -> ChatCall:
    """The core request. `input_type` decides which fields count; the others are ignored.

    Raises:
        InvalidRequest: code `invalid_value` for what the schema forbids, another where text or image is
            missing.
    """
    wire = checked(body, _Chat)
    text, images = DESCRIBE, Images(1, "image_url")
    parts: list[dict[str, Any]] = []
    if wire.input_type != "text_only":
        parts.append(_picture(wire, images))
    if wire.input_type != "image_only":
        text = wire.text or ""
        if not text.strip():
            raise missing("text", f"'input_type' {wire.input_type!r} needs one")
    parts.append({"type": "text", "text": text})
    content = parts if len(parts) > 1 else text
    chat = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": wire.max_new_tokens,
        "temperature": wire.temperature,
    }
    return ChatCall(chat, images.all())


def _picture(wire: _Chat, images: Images) -> dict[str, Any]:
    encoded = (wire.image_base64 or "").strip()
    if encoded:
        header = "" if encoded[:5].lower() == "data:" else "data:image/png;base64,"
        return images.lift(header + encoded, "image_base64")
    if not wire.image_url:
        way_out = f"'input_type' {wire.input_type!r} needs it, or 'image_base64'"
        raise missing("image_url", way_out)
    return images.lift(wire.image_url, "image_url")


def render(answer: Answer, milliseconds: float, gpu_gb: float, request_id: str) -> dict[str, Any]:
    """The whole answer. `gpu_gb` is the memory in use on the model's GPU, in GB; 0 without one."""
    return {
        "success": True,
        "message": "success",
        "result": answer.text,
        "usage": {
            "input_tokens": answer.usage.prompt_tokens,
            "output_tokens": answer.usage.completion_tokens,
            "inference_time_ms": round(milliseconds, 1),
            "gpu_memory_used_gb": round(gpu_gb, 3),
        },
        "request_id": request_id,
    }


def chunk(text: str) -> dict[str, Any]:
    """One event of a stream."""
    return {"chunk": text, "done": False}


def last_chunk(answer: Answer) -> dict[str, Any]:
    """The event that ends a stream."""
    return {"chunk": "", "done": True}


def health(state: State, gpu_gb: float, uptime: float) -> dict[str, Any]:
    """The state of the model; `uptime` in seconds."""
    return {
        "status": "unhealthy" if state == "failed" else "healthy",
        "model_loaded": state == "ready",
        "gpu_memory_used_gb": round(gpu_gb, 3),
        "uptime_seconds": round(uptime, 1),
    }


def render_error(error: AtelierError, request_id: str) -> tuple[int, dict[str, Any]]:
    """The error in the answer's own shape; what the schema forbids is 422."""
    status = 422 if error.code == "invalid_value" else STATUS[error.kind][0]
    body = {"success": False, "message": error.message, "result": None, "usage": None}
    return status, {**body, "request_id": request_id}


def _error_event(error: AtelierError, request_id: str, sent: int) -> dict[str, Any]:
    return {"error": error.message, "done": True}


WIRE = Wire(plain, _error_event)
