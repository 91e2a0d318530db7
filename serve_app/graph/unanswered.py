"""Requests that no replica has answered yet: they may still stand in Serve's own queue, where only the
ingress that sent them can reach them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from deployments.contracts.errors import Cancelled
from deployments.contracts.request_ids import is_named

T = TypeVar("T")


class Unanswered:
    """Waits for first answers, any of which can be given up by name."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._given_up: set[str] = set()

    async def wait(self, request_id: str, answer: Awaitable[T]) -> T:
        """The answer. Raises Cancelled if `cancel` came first."""
        task = asyncio.ensure_future(answer)
        self._waiting[request_id] = task
        try:
            return await task
        except asyncio.CancelledError:
            if request_id in self._given_up:
                raise Cancelled("The request was cancelled.") from None
            raise
        finally:
            del self._waiting[request_id]
            self._given_up.discard(request_id)

    def cancel(self, name: str) -> bool:
        """Give up every request that `name` means, the client's id or ours; whether there was one."""
        meant = [request_id for request_id in self._waiting if is_named(request_id, name)]
        for request_id in meant:
            self._given_up.add(request_id)
            self._waiting[request_id].cancel()
        return bool(meant)
