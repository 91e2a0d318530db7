"""Calls a server again where that may help, and only there.

What may pass is "loading" and "full": HTTP 429 and 503, in the image service the codes 3001 and 3002. A wrong
parameter stays wrong, and a picture that failed was already tried twice: neither is sent again.
"""

from __future__ import annotations

import random
import time
from typing import Any

import requests

TRIES = 6
MAX_WAIT_S = 120


def call(method: str, url: str, **kwargs: Any) -> requests.Response:
    """The answer; the last one if all were refusals."""
    for attempt in range(TRIES):
        response = requests.request(method, url, timeout=600, **kwargs)
        if not may_pass(response) or attempt == TRIES - 1:
            break
        time.sleep(wait_seconds(response, attempt))
    return response


def may_pass(response: requests.Response) -> bool:
    """Whether the same request may succeed later."""
    return response.status_code in (429, 503) or fields(response).get("code") in (3001, 3002)


def wait_seconds(response: requests.Response, attempt: int) -> float:
    """What the server says, else 0.5, 1, 2, ... seconds, give or take a quarter."""
    told = response.headers.get("retry-after") or fields(response).get("retry_after")
    try:
        return min(max(float(told), 0), MAX_WAIT_S)
    except (TypeError, ValueError):
        return min(0.5 * 2**attempt, 30) * random.uniform(0.75, 1.25)


def fields(response: requests.Response) -> dict[str, Any]:
    """The body, if it is a JSON object."""
    if not response.headers.get("content-type", "").startswith("application/json"):
        return {}
    body = response.json()
    return body if isinstance(body, dict) else {}
