"""Which models are up, and when to come back for those that are not.

A watcher asks the cluster in the background, so that no request pays for the question. A model that is
still loading is refused at once with the time that is left, not held in a queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from deployments.contracts.errors import ModelLoading, Unavailable
from deployments.contracts.settings import ModelSettings

log = logging.getLogger("ray.serve")

State = Literal["ready", "idle", "loading", "failed"]
"""`idle`: scaled to zero; the next request starts it."""

UP: tuple[State, ...] = ("ready", "idle")
T = TypeVar("T")

# openai-python ignores a Retry-After above 120 s and does not retry at all.
MAX_RETRY_AFTER_S = 120.0


@dataclass
class _Record:
    since: float
    load_seconds: float
    state: State = "loading"
    working: set[asyncio.Future[Any]] = field(default_factory=set)
    """Requests under way, to be cancelled when the model goes down."""

    def change(self, state: State, now: float) -> None:
        self.state, self.since = state, now
        if state not in UP:
            lost, self.working = self.working, set()
            for work in lost:
                work.cancel()


class Readiness:
    """Keeps the state of every model.

    Args:
        models: those to watch.
        probe: asks the cluster: deployment name → state. May raise; the last answer then stands.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        probe: Callable[[], Awaitable[Mapping[str, State]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._models = {model.id: model for model in models}
        now = clock()
        self._records = {m.id: _Record(since=now, load_seconds=m.load_seconds) for m in models}
        self._look_now = asyncio.Event()

    async def watch(self) -> None:
        """Poll until cancelled: often while something is not ready, seldom otherwise."""
        while True:
            await self.refresh()
            settled = all(record.state in UP for record in self._records.values())
            self._look_now.clear()
            try:
                await asyncio.wait_for(self._look_now.wait(), timeout=5.0 if settled else 0.5)
            except TimeoutError:
                continue

    def look_now(self) -> None:
        """A call just failed as if a replica had died: do not wait for the next poll."""
        self._look_now.set()

    async def refresh(self) -> None:
        """One poll."""
        try:
            states = await self._probe()
        except Exception:
            log.warning("cannot ask the cluster for the models' state", exc_info=True)
            return
        now = self._clock()
        for model_id, record in self._records.items():
            state = states.get(self._models[model_id].deployment_name, "loading")
            if state == record.state:
                continue
            if state == "ready" and record.state == "loading":
                record.load_seconds = max(1.0, now - record.since)
            record.change(state, now)

    def require(self, model: ModelSettings) -> None:
        """Return if the model can take a request.

        Raises:
            ModelLoading: it is on its way; `retry_after` is what is left of the last load time.
            Unavailable: it failed to start; Serve keeps trying.
        """
        record = self._records[model.id]
        if record.state in UP:
            return
        wait = self.retry_after(model.id)
        if record.state == "failed":
            raise Unavailable(
                f"The model {model.id!r} failed to start; the server's log says why. It is being retried.",
                code="model_failed",
                retry_after=wait,
            )
        raise ModelLoading(
            f"The model {model.id!r} is still loading. Try again in about {wait:.0f} seconds.",
            retry_after=wait,
        )

    def is_ready(self, model: ModelSettings) -> bool:
        """Whether the model has a replica."""
        return self._records[model.id].state == "ready"

    async def while_up(self, model: ModelSettings, work: Awaitable[T]) -> T:
        """The result of `work`, unless the model's last replica goes meanwhile.

        Serve would hold such a request until a new replica has loaded, which may take minutes.

        Raises:
            ModelLoading, Unavailable: the model went down; `work` has been cancelled.
        """
        record, task = self._records[model.id], asyncio.ensure_future(work)
        record.working.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task in record.working:
                raise  # the caller's own cancellation
            self.require(model)
            raise Unavailable(
                "The model was lost and is back. Send the request again.", retry_after=1
            ) from None
        finally:
            record.working.discard(task)

    def retry_after(self, model_id: str) -> float:
        """Seconds until the model should be ready.

        A load that overruns its estimate is expected to take half as long again, so that a client with
        two retries is carried through.
        """
        record = self._records[model_id]
        elapsed = self._clock() - record.since
        remaining = max(record.load_seconds - elapsed, elapsed / 2, 1.0)
        return min(remaining, MAX_RETRY_AFTER_S)

    def states(self) -> dict[str, State]:
        """Model id → state."""
        return {model_id: record.state for model_id, record in self._records.items()}
