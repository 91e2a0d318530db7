"""The image engine on diffusers: the asynchronous face of a step loop.

The event loop never waits for torch, and the step loop never waits for an encoder or a slow reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError

from deployments.contracts.errors import (
    AtelierError,
    Cancelled,
    EncodingFailed,
    EngineFailed,
    ModelLoading,
    TimedOut,
)
from deployments.contracts.messages import (
    ImageDone,
    ImageEvent,
    ImagePreview,
    ImageQueue,
    ImageRequest,
    Picture,
)
from deployments.contracts.settings import ModelSettings
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.image_ops import encode
from deployments.engines.painting import Event, Executor, Job, Painted, Plan
from deployments.engines.scheduler import StepScheduler
from deployments.engines.step_loop import StepLoop, shutting_down

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
T = TypeVar("T")


class DiffusersEngine:
    """Implements ImageEngine."""

    def __init__(self, settings: ModelSettings) -> None:
        try:
            self._args = DiffusersArgs.model_validate(settings.engine_args)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"engine_args of model {settings.id!r}: {faults}") from None
        self._settings = settings
        self._executor = self._make_executor()
        scheduler = StepScheduler(*self._args.bounds_for(settings))
        self._loop = StepLoop(self._executor, scheduler, self._deliver, f"diffusers-{settings.id}")
        # One thread for checks keeps requests in their order of arrival; encoders work beside each other.
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._jobs: set[Job] = set()
        self._ready = self._closed = False
        self._home: asyncio.AbstractEventLoop | None = None

    def _make_executor(self) -> Executor:
        from deployments.engines.diffusers_executor import DiffusersExecutor

        return DiffusersExecutor(self._settings, self._args)

    async def start(self) -> None:
        self._home = asyncio.get_running_loop()
        try:
            await asyncio.wrap_future(self._loop.start())
        except BaseException:
            await self.close()
            raise
        self._ready = not self._closed

    async def generate(
        self, request: ImageRequest, pictures: Sequence[Picture] = ()
    ) -> AsyncGenerator[ImageEvent, None]:
        self._require_open()
        plan = await self._plan(request, pictures)
        job = Job(request, pictures, plan, asyncio.Queue())
        self._jobs.add(job)
        limit = self._limit(job)
        try:
            # Forecasting a long queue takes milliseconds, and the check's thread keeps the order.
            await self._in(self._checks, lambda: self._loop.submit(job))
            while (event := await job.inbox.get()) is not None:
                if isinstance(event, AtelierError):
                    raise event
                yield await self._encoded(request, event) if isinstance(event, Painted) else event
        finally:
            if limit:
                limit.cancel()
            self._jobs.discard(job)
            self._loop.cancel(job)

    async def cancel(self, request_id: str) -> bool:
        error = Cancelled("The request was cancelled.")
        jobs = [job for job in self._jobs if job.request.request_id == request_id]
        stopped = [self._stop(job, error) for job in jobs]
        return any(stopped)

    async def queue(self) -> ImageQueue:
        if self._closed or not self._ready:
            return ImageQueue()
        return await self._in(self._checks, self._loop.queue)

    async def check_health(self) -> None:
        if self._closed or not self._ready:
            raise EngineFailed("The image engine is not running.")
        if self._executor.broken:
            raise EngineFailed(self._executor.broken)
        if (seconds := self._loop.stuck_seconds()) > self._args.stuck_after_s:
            raise EngineFailed(f"The image engine made no step for {seconds:.0f} seconds.")
        if not self._loop.alive():
            raise EngineFailed("The image engine's worker thread is gone.")

    async def close(self) -> None:
        """Stop at the next step, then free the memory; a hung thread is left behind after a while."""
        if self._closed:
            return
        self._closed, self._ready = True, False
        self._loop.close()
        await asyncio.wait([asyncio.wrap_future(self._loop.freed)], timeout=CLOSE_SECONDS)
        for pool in (self._checks, self._encoders):
            pool.shutdown(wait=False)

    # ------------------------------------------------------------------ parts
    def _require_open(self) -> None:
        if self._closed:
            raise shutting_down()
        if not self._ready:
            raise ModelLoading(
                "The image model is still loading; try again.", retry_after=self._settings.load_seconds
            )

    async def _plan(self, request: ImageRequest, pictures: Sequence[Picture]) -> Plan:
        try:
            plan = await self._in(self._checks, lambda: self._executor.plan(request, pictures))
        except Exception:
            self._require_open()  # closing takes away what the check reads
            raise
        self._require_open()
        return plan

    def _limit(self, job: Job) -> asyncio.TimerHandle | None:
        seconds = self._args.timeout_s
        if seconds is None:
            return None
        error = TimedOut(
            f"The request was not done within {seconds:g} seconds and was stopped.",
            suggested_fix=("ask for fewer steps, fewer pictures or a smaller size", "try again later"),
        )
        return asyncio.get_running_loop().call_later(seconds, self._stop, job, error)

    def _stop(self, job: Job, error: AtelierError) -> bool:
        """Take a job out; its reader hears why. Whether it was still in."""
        if not self._loop.cancel(job):
            return False
        job.inbox.put_nowait(error)
        return True

    def _deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        """Called in the step loop's thread."""
        assert self._home is not None
        if events and not self._home.is_closed():
            self._home.call_soon_threadsafe(_hand_out, events)

    async def _encoded(self, request: ImageRequest, painted: Painted) -> ImageEvent:
        def work() -> bytes:
            return encode(painted.pixels, request.output_format, request.output_compression)

        try:
            data = await self._in(self._encoders, work)
        except Exception:
            logger.exception(
                "image request %s: encoding failed",
                request.request_id,
                extra={"request_id": request.request_id},
            )
        else:
            if painted.partial is not None:
                return ImagePreview(painted.index, painted.partial, data)
            return ImageDone(painted.index, data, painted.seed, painted.steps, painted.healed)
        raise EncodingFailed(
            f"The picture was painted but could not be encoded as {request.output_format}.",
            suggested_fix=("use another output format",),
        )

    @staticmethod
    async def _in(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _hand_out(events: Sequence[tuple[Job, Any]]) -> None:
    for job, event in events:
        job.inbox.put_nowait(event)
