"""What the replicas of all models share: an engine's life in a Serve deployment."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from deployments.contracts.engines import Engine
from deployments.contracts.errors import EngineFailed
from deployments.engines import garbage
from deployments.engines.gpu_memory import used_gb

E = TypeVar("E", bound=Engine)


class EngineReplica(Generic[E]):
    """Holds one engine from the replica's start to its end."""

    _engine: E | None = None

    async def _start(self, engine: E) -> None:
        try:
            await engine.start()
        except BaseException:
            await engine.close()  # or a half-loaded model keeps its memory while Serve retries
            raise
        garbage.settle()
        self._engine = engine

    def _running(self) -> E:
        if self._engine is None:
            raise EngineFailed("The engine is not running.")
        return self._engine

    async def check_health(self) -> None:
        """Called by Serve; three failures in a row and the replica is replaced."""
        await self._running().check_health()

    async def gpu_memory_gb(self) -> float:
        """GB in use on the cards of this replica; 0 without one."""
        return used_gb()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Serve calls this once when the replica stops, and awaits what it returns.

        Python calls it again when the object goes: there is nothing left to close then, and no coroutine
        is made that nobody awaits.
        """
        engine, self._engine = self._engine, None
        return engine.close() if engine is not None else None
