"""Reads a request's body: bounded, JSON, an object."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from deployments.contracts.errors import Cancelled, InvalidRequest, PayloadTooLarge, UnsupportedMedia


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        UnsupportedMedia: the Content-Type is something else than JSON.
        PayloadTooLarge: over `max_bytes`, found before the rest is read.
        InvalidRequest: not JSON, or not an object.
    """
    content_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMedia(
            f"Content-Type {content_type[:100]!r} is not supported here: send a JSON body with the header "
            "'Content-Type: application/json'."
        )
    raw = await _read(request, max_bytes)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return body


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    too_large = PayloadTooLarge(f"The body is larger than the limit of {max_bytes} bytes.")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large
            parts.append(part)
    except ClientDisconnect:
        raise Cancelled("The client went away while sending the body.") from None
    return b"".join(parts)
