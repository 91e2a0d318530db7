"""Requests that no replica has answered yet: they may still stand in Serve's own queue, where only the
ingress that sent them can reach them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from deployments.contracts.errors import Cancelled
from deployments.contracts.request_ids import is_named

T = TypeVar("T")


class Unanswered:
    """Holds streams up to their first item; until then each can be given up by name."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._given_up: set[str] = set()

    async def watch(self, request_id: str, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The stream. Raises Cancelled if `cancel` came before its first item."""
        async with aclosing(stream):
            try:
                yield await self._first(request_id, stream)
            except StopAsyncIteration:
                return
            async for item in stream:
                yield item

    async def _first(self, request_id: str, stream: AsyncGenerator[T, None]) -> T:
        task = self._waiting[request_id] = asyncio.ensure_future(anext(stream))
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
