"""Templates and tokenizers of short prompts where they are asked for, without a thread in between.

vLLM hands both to a pool, so that a long prompt does not stop all streams. For a short one the two hand-overs
take longer than the work: 0.3 ms of the time to the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from typing import Any

SHORT = 4096
"""Characters and items of a request: the operator's template (a request brings none) and a tokenizer take
0.2 ms for as much."""

short: ContextVar[bool] = ContextVar("short", default=False)
"""Whether the request that this task is handing to vLLM is a short one."""


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
