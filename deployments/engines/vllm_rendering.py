"""Templates and tokenizers of short prompts where they are asked for, without a thread in between.

vLLM hands both to a pool, so that a long prompt does not stop all streams. For a short one the two hand-overs
take longer than the work: 0.3 ms of the time to the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from typing import Any

import msgspec

SHORT_BYTES = 4096
"""Of a request as JSON. A template and a tokenizer take some 0.2 ms for as much."""

short: ContextVar[bool] = ContextVar("short", default=False)
"""Whether the request that this task is handing to vLLM is a short one."""


def is_short(body: dict[str, Any]) -> bool:
    """Whether a request's prompt may be made without a thread.

    A template out of the request itself (where the operator allows them) may take any time.
    """
    if "chat_template" in body:
        return False
    try:
        return len(msgspec.json.encode(body)) <= SHORT_BYTES
    except (TypeError, ValueError):  # pictures in it
        return False


class ShortInline(Executor):
    """Does what a short request submits at once, and leaves the rest to a pool.

    Args:
        pool: vLLM's own.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not short.get():
            return self._pool.submit(function, *args, **kwargs)
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def render_short_inline(renderer: Any) -> None:
    """Put it between a renderer of vLLM's and its pool (which vLLM may replace after a time-out)."""
    renderer._executor._inner = ShortInline(renderer._executor._inner)
