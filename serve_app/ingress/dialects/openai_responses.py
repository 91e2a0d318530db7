"""OpenAI responses: images are lifted out of the input, and what would need a memory is refused.

A request may be answered by any replica, and none keeps what it has answered.
"""

from __future__ import annotations

from typing import Any

from deployments.contracts.errors import AtelierError, InvalidRequest
from serve_app.graph.operations import ChatCall
from serve_app.ingress.dialects.dialect import Dialect, Images, check_model, required_list, wrong_type
from serve_app.ingress.errors import envelope
from serve_app.ingress.sse import Wire, named

_EXAMPLE = '[{"role": "user", "content": "Hello"}]'
_TEXT_PARTS = ("input_text", "output_text", "refusal")
_REASONING = ("reasoning_text", "summary_text")
_TOOLS = ("function", "custom", "namespace")
_STATE = {
    "previous_response_id": "send the whole conversation as 'input'",
    "conversation": "send the whole conversation as 'input'",
    "background": "wait for the answer, or stream it",
}


def responses_call(body: dict[str, Any], max_images: int) -> ChatCall:
    """Check what the graph itself relies on; vLLM checks the rest.

    Raises:
        InvalidRequest: a field is missing or of the wrong shape; `param` names it.
    """
    check_model(body)
    for name, way_out in _STATE.items():
        if body.get(name):
            raise InvalidRequest(
                f"'{name}' is not supported, since no response is stored: {way_out}.",
                param=name,
                code="unsupported_value",
            )
    _check_tools(body.get("tools"))
    images = Images(max_images, "input")
    given = body.get("input")
    if not isinstance(given, str):
        items = required_list(body, "input", f"{_EXAMPLE}, or a string")
        given = [_item(item, f"input.{i}", images) for i, item in enumerate(items)]
    return ChatCall({**body, "input": given, "store": False}, images.all(), "responses")


def _check_tools(tools: Any) -> None:
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        if not isinstance(tool, dict) or tool.get("type") not in _TOOLS:
            # vLLM would leave it out without a word.
            raise wrong_type(f"tools.{i}", "'function' or 'custom': there are no built-in tools here")


def _item(item: Any, param: str, images: Images) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"'{param}' must be an object with a 'role' and 'content'.", param=param)
    lists = {key: item[key] for key in ("content", "output") if isinstance(item.get(key), list)}
    lifted = {
        key: [_part(part, f"{param}.{key}.{i}", images) for i, part in enumerate(parts)]
        for key, parts in lists.items()
    }
    return {**item, **lifted}


def _part(part: Any, param: str, images: Images) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS or kind in _REASONING:
        return part
    if kind != "input_image":
        raise wrong_type(param, "'input_text', 'output_text' or 'input_image'")
    if part.get("image_url") is None:
        raise InvalidRequest(
            f"'{param}.image_url' is missing: files are not stored here, send the image itself or its URL.",
            param=f"{param}.image_url",
        )
    return images.lift(part["image_url"], f"{param}.image_url", part.get("detail"), f"{param}.detail")


def error_event(error: AtelierError, request_id: str, sent: int) -> dict[str, Any]:
    """OpenAI's `error` event. Their SDK raises where it finds `error` in an event, so it holds that too."""
    fields = {"code": error.code, "message": error.message, "param": error.param}
    return {"type": "error", "sequence_number": sent, **fields, **envelope(error)}


RESPONSES = Dialect(responses_call, Wire(named, error_event))
