"""Reads a request's body, bounded: a JSON object, or a form with files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from deployments.contracts.errors import Cancelled, InvalidRequest, PayloadTooLarge, UnsupportedMedia

FORM = "multipart/form-data"
MAX_FIELDS = 64
MAX_FIELD_BYTES = 256 * 1024
"""Of a field that is no file. A prompt has 32,000 characters at most, of 4 bytes."""


@dataclass(frozen=True)
class Form:
    """A form's fields and files, in the order in which they came."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


def media_type(request: Request) -> str:
    """The Content-Type in lower case without its parameters; JSON if there is none."""
    declared: str = request.headers.get("content-type", "application/json")
    return declared.split(";")[0].strip().lower()


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        UnsupportedMedia: the Content-Type is something else than JSON.
        PayloadTooLarge: over `max_bytes`, found before the rest is read.
        InvalidRequest: not JSON, or not an object.
    """
    content_type = media_type(request)
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMedia(
            f"Content-Type {content_type[:100]!r} is not supported here: send a JSON body with the header "
            "'Content-Type: application/json'."
        )
    raw = b"".join([part async for part in _parts(request, max_bytes)])
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error}. Send one object, names and strings in double quotes.",
            code="invalid_json",
        ) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest(
            'The body must be a JSON object, such as {"model": "..."}: braces around all fields.',
            code="invalid_json",
        )
    return body


async def read_form(request: Request, max_bytes: int, max_files: int) -> Form:
    """A `multipart/form-data` body. Files are held in memory: `max_bytes` bounds them all together.

    Raises:
        PayloadTooLarge: over `max_bytes`, found before the rest is read.
        InvalidRequest: not a form, too many files or fields, or a field that is given twice.
    """
    parser = MultiPartParser(
        request.headers,
        _parts(request, max_bytes),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    parser.spool_max_size = max_bytes  # never a file on disk
    try:
        data = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}", code="invalid_form") from None
    try:
        return await _form(data)
    finally:
        await data.close()


async def _form(data: FormData) -> Form:
    form = Form()
    for name, value in data.multi_items():
        if not isinstance(value, str):
            form.files.setdefault(name, []).append(await value.read())
        elif name in form.fields:
            raise InvalidRequest(f"'{name[:100]}' is given twice.", param=name[:100], code="invalid_form")
        else:
            form.fields[name] = value
    return form


async def _parts(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes in. Raises PayloadTooLarge as soon as it is known to be over `max_bytes`."""
    declared = request.headers.get("content-length", "")
    too_large = PayloadTooLarge(f"The body is larger than the limit of {max_bytes} bytes.")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large
            yield part
    except ClientDisconnect:
        raise Cancelled("The client went away while sending the body.") from None
