"""The image engine on diffusers: the asynchronous side of one pipeline in one worker thread.

The event loop never waits for torch. One request paints at a time, the others wait in order of arrival; a
request that is closed stops at its next step, and only then does the next one begin.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from deployments.contracts.errors import EngineFailed, ModelLoading, Unavailable
from deployments.contracts.messages import ImageEvent, ImageRequest
from deployments.contracts.settings import ModelSettings
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_pipeline import PipelineRunner, Stopped

CLOSE_SECONDS = 30.0


class DiffusersEngine:
    """Implements ImageEngine."""

    def __init__(self, settings: ModelSettings) -> None:
        try:
            self._args = DiffusersArgs.model_validate(settings.engine_args)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"engine_args of model {settings.id!r}: {faults}") from None
        self._settings = settings
        self._runner = PipelineRunner(settings, self._args)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"diffusers-{settings.id}")
        self._turn = asyncio.Lock()
        self._job: _Job | None = None
        self._ready = self._closed = False

    async def start(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._runner.load)
        except BaseException:
            await self.close()
            raise
        self._ready = True

    async def generate(self, request: ImageRequest) -> AsyncGenerator[ImageEvent, None]:
        self._require_open()
        await self._turn.acquire()
        try:
            self._require_open()
            job = self._job = _Job(self._turn)
            job.start(self._worker, self._runner, request)
        except BaseException:
            self._turn.release()
            raise
        # From here on the end of the thread's work gives the turn back, however this generator ends.
        try:
            while (event := await job.events.get()) is not None:
                yield event
            job.raise_failure()
        except Stopped:
            raise Unavailable("The image model is shutting down; try again.", retry_after=5) from None
        finally:
            job.stop.set()

    async def check_health(self) -> None:
        if self._closed or not self._ready:
            raise EngineFailed("The image engine is not running.")
        if self._runner.broken:
            raise EngineFailed(self._runner.broken)
        if self._job is not None and self._job.idle_seconds() > self._args.stuck_after_s:
            raise EngineFailed(f"The image engine made no step for {self._job.idle_seconds():.0f} seconds.")
        if not any(thread.is_alive() for thread in self._worker._threads):
            raise EngineFailed("The image engine's worker thread is gone.")

    async def close(self) -> None:
        """Stop at the next step, then free the memory; a hung thread is left behind after a while."""
        if self._closed:
            return
        self._closed, self._ready = True, False
        if self._job is not None:
            self._job.stop.set()
        freed = asyncio.get_running_loop().run_in_executor(self._worker, self._runner.free)
        self._worker.shutdown(wait=False)
        await asyncio.wait([freed], timeout=CLOSE_SECONDS)

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The image model is shutting down; try again.", retry_after=5)
        if not self._ready:
            raise ModelLoading(
                "The image model is still loading; try again.", retry_after=self._settings.load_seconds
            )


class _Job:
    """One request in the worker thread: its events, its stop flag, its last sign of life."""

    def __init__(self, turn: asyncio.Lock) -> None:
        self.events: asyncio.Queue[ImageEvent | None] = asyncio.Queue()
        self.stop = threading.Event()
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._alive = time.monotonic()
        self._future: asyncio.Future[None] | None = None

    def start(self, worker: ThreadPoolExecutor, runner: PipelineRunner, request: ImageRequest) -> None:
        self._future = self._loop.run_in_executor(worker, runner.run, request, self._emit, self.stop)
        self._future.add_done_callback(self._end)

    def idle_seconds(self) -> float:
        if self._future is None or self._future.done():
            return 0.0
        return time.monotonic() - self._alive

    def raise_failure(self) -> None:
        if self._future is not None:
            self._future.result()

    def _emit(self, event: ImageEvent) -> None:
        """Called in the worker thread."""
        self._alive = time.monotonic()
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def _end(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # seen: nobody may be left to ask for it
        self.events.put_nowait(None)
        self._turn.release()
