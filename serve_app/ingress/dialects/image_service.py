"""The image service, `POST /api/generate`: one prompt, one PNG."""

from __future__ import annotations

import math
import secrets
import time
from typing import Any

from deployments.contracts.errors import AtelierError, InvalidRequest
from deployments.contracts.messages import ImageDone, ImageQueue, ImageRequest
from deployments.contracts.settings import ModelSettings
from serve_app.graph.pace import UNKNOWN_S
from serve_app.ingress.dialects.image_sizes import resolve_size
from serve_app.ingress.dialects.older import numbered
from serve_app.ingress.errors import retry_seconds
from serve_app.ingress.tally import Counted

MAX_PROMPT = 512
ASPECT_RATIOS = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3")

CODES = {
    "prompt_empty": (1001, 400),
    "prompt": (1002, 400),
    "aspect_ratio": (1003, 400),
    "num_steps": (2001, 400),
    "cfg_scale": (2002, 400),
    "seed": (2003, 400),
    "loading": (3001, 503),
    "unavailable": (3001, 503),
    "overloaded": (3002, 503),
    "engine_failed": (4001, 500),
    "out_of_memory": (4001, 500),
    "encoding_failed": (4002, 500),
    "timeout": (4003, 504),
    "cancelled": (4004, 499),
    "internal": (5000, 500),
}
MALFORMED = 1000
"""The number of what is wrong with the request as a whole: not JSON, a wrong path or method, too large."""

OTHER_SEED = ("try a different seed",)
"""What may help where the engine knows nothing better."""


def image_request(body: dict[str, Any], model: ModelSettings, request_id: str) -> ImageRequest:
    """The core request.

    Raises:
        InvalidRequest: `param` names the field.
    """
    assert model.generation is not None  # kept by ModelSettings: an image model has them
    negative = body.get("negative_prompt")
    if negative is not None and not isinstance(negative, str):
        raise InvalidRequest("'negative_prompt' must be a string.", param="negative_prompt")
    width, height = resolve_size(_aspect_ratio(body.get("aspect_ratio")), model.generation)
    most = min(100, model.generation.max_steps)
    return ImageRequest(
        request_id=request_id,
        prompt=_prompt(body.get("prompt")),
        negative_prompt=model.generation.negative_prompt if negative is None else negative,
        width=width,
        height=height,
        steps=int(_number(body, "num_steps", 20, most, min(50, most), whole=True)),
        cfg_scale=float(_number(body, "cfg_scale", 1, 20, 4.0)),
        seed=_seed(body),
    )


def _prompt(given: Any) -> str:
    prompt = given.strip() if isinstance(given, str) else ""
    if not prompt:
        raise InvalidRequest("'prompt' is empty: say what to paint.", param="prompt", code="prompt_empty")
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequest(
            f"'prompt' has {len(prompt)} characters; at most {MAX_PROMPT} are allowed. Shorten it.",
            param="prompt",
        )
    return prompt


def _aspect_ratio(given: Any) -> str:
    ratio = "1:1" if given is None else given
    if ratio not in ASPECT_RATIOS:
        raise InvalidRequest(
            f"'aspect_ratio' must be one of {', '.join(ASPECT_RATIOS)}, written with a colon.",
            param="aspect_ratio",
        )
    return str(ratio)


def _number(
    body: dict[str, Any], name: str, least: float, most: float, default: float, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not right or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InvalidRequest(f"'{name}' must be {kind} from {least} to {most}.", param=name)
    return float(value)


def _seed(body: dict[str, Any]) -> int:
    seed = body.get("seed", 42)
    if seed is None:
        return secrets.randbits(31)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -1 <= seed <= 2**53:
        raise InvalidRequest(
            "'seed' must be a whole number from 0 to 2^53, -1 (from the clock) or null (random).",
            param="seed",
        )
    return time.time_ns() % 2**31 if seed == -1 else seed


def headers(done: ImageDone) -> dict[str, str]:
    """What is said beside the PNG: seed and steps that it was really painted with."""
    return {"x-seed": str(done.seed), "x-steps": str(done.steps)}


def queue_status(queue: ImageQueue) -> dict[str, Any]:
    """Until something was measured, `estimated_wait_seconds` is a guess: its clients count on a number."""
    processing = sum(request.ahead == 0 for request in queue.requests)
    guess = UNKNOWN_S * len(queue.requests)
    wait = queue.drain_seconds if queue.requests and queue.drain_seconds is not None else guess
    return {
        "status": "busy" if queue.requests else "idle",
        "queued": len(queue.requests) - processing,
        "processing": processing,
        "estimated_wait_seconds": math.ceil(wait),
    }


def metrics(queue: ImageQueue, counted: Counted) -> dict[str, Any]:
    """Measurements; code 0 counts the pictures that were delivered."""
    average = queue.average_seconds
    return {
        "memory_mb": round(queue.memory_mb, 1),
        "queue_length": len(queue.requests),
        "uptime_seconds": round(counted.uptime, 1),
        "average_generation_seconds": None if average is None else round(average, 3),
        "counts_by_code": {str(code): n for code, n in sorted(counted.codes.items())},
    }


def number(error: AtelierError) -> int:
    """The error's code."""
    return numbered(error, CODES, MALFORMED)[0]


def render_error(error: AtelierError, request_id: str) -> tuple[int, dict[str, Any]]:
    """`{"code", "message", "request_id"}`, and `retry_after` and `suggested_fix` where they help."""
    code, status = numbered(error, CODES, MALFORMED)
    body: dict[str, Any] = {"code": code, "message": error.message, "request_id": request_id}
    if (wait := retry_seconds(error)) is not None:
        body["retry_after"] = wait
    fixes = error.suggested_fix or (OTHER_SEED if code == CODES["engine_failed"][0] else ())
    if fixes:
        body["suggested_fix"] = list(fixes)
    return status, body
