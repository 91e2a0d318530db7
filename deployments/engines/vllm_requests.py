"""Between our messages and vLLM's: requests in, and vLLM's many kinds of errors out as our one tree."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from deployments.contracts.errors import (
    AtelierError,
    ContextTooLong,
    EngineFailed,
    InvalidImage,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from deployments.contracts.messages import ChatRequest, Picture
from deployments.engines.vllm_surfaces import SURFACES

logger = logging.getLogger(__name__)

BROKEN = "The engine failed on this request. Retry it; if it fails again, the operator finds it in the log."
_CONTEXT = re.compile(r"maximum context length (?:is |\()(\d+)")
_PROMPT = re.compile(r"(?:Input length \(|contains |has )((?:at least )?\d+)( characters)?")
_MAX_TOKENS = re.compile(r"max(?:_completion)?_tokens=(\d+) cannot be greater than max_model_len ?= ?(\d+)")
_APPENDIX = re.compile(r" \((?:parameter|value)=.*\)$", re.DOTALL)


def vllm_request(request: ChatRequest, pictures: Sequence[Picture], *, stream: bool, tokens: int = 1) -> Any:
    """The request of the surface's own vLLM class, to stream `tokens` a chunk. Raises InvalidRequest."""
    from pydantic import ValidationError

    surface = SURFACES[request.surface]
    body = surface.body(request.body, pictures)
    if surface.engine_ids(request.request_id):  # it generates
        body["stream"] = stream
    if surface.id_format is not None:
        body["request_id"] = surface.id_format.format(request.request_id)
    # vLLM's parsers of tool calls were written for a token at a time.
    if stream and tokens > 1 and surface.takes_chunk_size and not body.get("tools"):
        body.setdefault("stream_interval", tokens)
    if not stream:
        body.pop("stream_options", None)
    try:
        return surface.request_class()(**body)
    except ValidationError as error:
        raise _invalid_fields(error, surface.prompt) from None
    except Exception as error:  # vLLM's validators raise their own errors through pydantic
        raise from_exception(error, request) from None


def quiet_client_errors() -> None:
    """vLLM logs a stack trace for each bad request that streams: one line of ours says it better."""
    from vllm.exceptions import VLLMClientError

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (VLLMClientError, ValueError))

    for name in ("openai.chat_completion", "openai.completion", "openai.responses", "anthropic"):
        logging.getLogger(f"vllm.entrypoints.{name}.serving").addFilter(keep)


def from_response(response: Any, request: ChatRequest) -> AtelierError:
    """vLLM's ErrorResponse, or its JSON as a dict."""
    info = response["error"] if isinstance(response, dict) else response.error.model_dump()
    # Anthropic's form has no status: vLLM's converter failed.
    return _from_status(int(info.get("code") or 500), str(info["message"]), info.get("param"), request)


def from_exception(error: Exception, request: ChatRequest) -> AtelierError:
    """Whatever vLLM raised, by vLLM's own table of statuses."""
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, AtelierError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineFailed("The engine died under this request. It is being restarted.", retry_after=5)
    info = create_error_response(error).error
    if info.code >= 500:
        logger.error("vLLM failed", exc_info=error, extra={"request_id": request.request_id})
    return _from_status(info.code, info.message, info.param, request, logged=True)


def _from_status(
    status: int, message: str, param: str | None, request: ChatRequest, logged: bool = False
) -> AtelierError:
    extra, prompt = {"request_id": request.request_id}, SURFACES[request.surface].prompt
    if status == 404:
        return ModelNotFound(message, param=param or "model")
    if status == 503:
        return Overloaded("The engine's queue is full.", retry_after=1)
    if status >= 500:
        if not logged:
            logger.error("vLLM answered %d: %s", status, message, extra=extra)
        return EngineFailed(BROKEN)
    if message.startswith("Failed to apply"):  # names the processor's every argument
        logger.warning("vLLM: %s", message, extra=extra)
        return InvalidImage("The model cannot take a picture of this shape.", param=prompt)
    text = _APPENDIX.sub("", message)
    return _context_too_long(text, prompt) or InvalidRequest(
        text, param=prompt if param == "image" else param
    )


def _context_too_long(message: str, param: str) -> ContextTooLong | None:
    if too_many := _MAX_TOKENS.search(message):
        asked, window = too_many.groups()
        return ContextTooLong(
            f"This model's context holds {window} tokens, but max_tokens asks for {asked}.",
            param="max_tokens",
        )
    if not (context := _CONTEXT.search(message)):
        return None
    prompt = _PROMPT.search(message)
    length = f"{prompt.group(1)}{prompt.group(2) or ' tokens'}" if prompt else "more"
    return ContextTooLong(
        f"This model's context holds {context.group(1)} tokens, but '{param}' comes to {length}. Shorten it.",
        param=param,
    )


def _invalid_fields(error: Any, prompt: str) -> InvalidRequest:
    """A pydantic ValidationError in one sentence about its first field."""
    first = error.errors(include_url=False, include_input=False)[0]
    # Union branches stand in the location by type name: `str`, `list[...]`, `ChatCompletion...Param`.
    fields = [str(at) for at in first["loc"] if re.fullmatch(r"\d+|[a-z][a-z0-9_]*", str(at))]
    if len(fields) > 1 and fields[-1] in ("str", "int", "float", "bool", "list", "dict"):
        fields.pop()
    cause = first.get("ctx", {}).get("error")
    if fields and fields[0].isdigit():  # from an iterable that pydantic checks late: only messages hold any
        fields = [prompt]
    param = ".".join(fields) or getattr(cause, "parameter", None)
    text = _APPENDIX.sub("", str(cause)) if cause is not None else first["msg"]
    return InvalidRequest(f"{param}: {text}" if fields else text, param=param)
