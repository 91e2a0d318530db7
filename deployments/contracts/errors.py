"""The error tree. Every failure that a client may hear of is one of these; anything else is a bug.

    AtelierError
    ├── InvalidRequest            the caller must change the request
    │   ├── ModelNotFound         no such model id or alias
    │   ├── ContextTooLong        prompt and max_tokens exceed the model's window
    │   ├── InvalidImage          not decodable, not an allowed format, or over a limit
    │   ├── PayloadTooLarge       body or file over the byte limit
    │   └── UnsupportedMedia      wrong Content-Type
    ├── Unavailable               the same request may succeed later
    │   ├── ModelLoading          no replica is up yet
    │   └── Overloaded            every queue is full
    ├── EngineFailed              the engine broke on this request or died under it
    │   ├── OutOfMemory           it does not fit beside what else is running
    │   └── EncodingFailed        the picture was painted but could not be encoded
    ├── TimedOut                  it took longer than the caller or the profile allows
    └── Cancelled                 the caller went away

An error has a `kind` (a stable word that the edge maps to an HTTP status and each dialect to its own
code) and a `code` (the OpenAI string code). Errors survive pickling with all their fields.
"""

from __future__ import annotations

from typing import Any


class AtelierError(Exception):
    """Base of the tree.

    Args:
        message: for the client: what is wrong and the way out. Never the text of an unknown exception.
        param: the request field at fault, dotted (`messages.0.content`), if one is.
        code: OpenAI string code; the class default if None.
        retry_after: seconds after which a retry may succeed, if waiting helps.
        suggested_fix: what to change in the request, one way out an item.
    """

    kind = "internal"
    default_code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        suggested_fix: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after
        self.suggested_fix = suggested_fix

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ would drop the keyword arguments on the way between replicas.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[AtelierError], state: dict[str, Any]) -> AtelierError:
    error = cls(state["message"])
    error.__dict__.update(state)
    return error


class InvalidRequest(AtelierError):
    kind = "invalid"
    default_code: str | None = None


class ModelNotFound(InvalidRequest):
    kind, default_code = "not_found", "model_not_found"


class ContextTooLong(InvalidRequest):
    default_code = "context_length_exceeded"


class InvalidImage(InvalidRequest):
    default_code = "invalid_image"


class PayloadTooLarge(InvalidRequest):
    kind, default_code = "too_large", "payload_too_large"


class UnsupportedMedia(InvalidRequest):
    kind, default_code = "unsupported_media", "unsupported_media_type"


class Unavailable(AtelierError):
    kind, default_code = "unavailable", "service_unavailable"


class ModelLoading(Unavailable):
    kind, default_code = "loading", "model_loading"


class Overloaded(Unavailable):
    kind, default_code = "overloaded", "server_is_overloaded"


class EngineFailed(AtelierError):
    kind, default_code = "engine_failed", "engine_failed"


class OutOfMemory(EngineFailed):
    kind, default_code = "out_of_memory", "out_of_memory"


class EncodingFailed(EngineFailed):
    kind, default_code = "encoding_failed", "encoding_failed"


class TimedOut(AtelierError):
    kind, default_code = "timeout", "timeout"


class Cancelled(AtelierError):
    kind, default_code = "cancelled", "request_cancelled"
