"""The thread that paints: it plans a step, takes it, tells everybody, and heals what failed.

Everything else talks to it under one lock that is never held while torch works. Knows no torch and no
asyncio: tests drive it with a fake executor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future

from deployments.contracts.errors import AtelierError, EngineFailed, OutOfMemory, Unavailable
from deployments.contracts.messages import ImageQueue, ImageQueued, ImageStep, QueuedImage
from deployments.engines.painting import (
    Event,
    Executor,
    Fault,
    Job,
    Painted,
    Painting,
    another_seed,
    fewer_steps,
    not_finite,
    preview_steps,
    with_ways_out,
)
from deployments.engines.scheduler import Slot, StepScheduler, Ticket
from deployments.engines.step_times import StepTimes

logger = logging.getLogger(__name__)

Deliver = Callable[[Sequence[tuple[Job, Event]]], None]
"""Called in the loop's thread and in that of `submit`; must not block."""


class StepLoop:
    """Owns the executor's thread, the queue and the measured times."""

    def __init__(self, executor: Executor, scheduler: StepScheduler, deliver: Deliver, name: str) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._deliver = deliver
        self._times = StepTimes()
        self._jobs: dict[Hashable, Job] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._working_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._loaded: Future[None] = Future()
        self.freed: Future[None] = Future()

    # ------------------------------------------------------------------ from other threads
    def start(self) -> Future[None]:
        """Load in the thread; the future says when, or why not."""
        self._thread.start()
        return self._loaded

    def submit(self, job: Job) -> None:
        """Queue a request; it hears `ImageQueued` first. Raises Unavailable when closing."""
        with self._wake:
            ahead = self._scheduler.clone()
        self._add(ahead, job)
        forecast = self._times.forecast(ahead)
        with self._wake:
            if self._closing:
                raise shutting_down()
            if job.gone:
                return
            self._jobs[id(job)] = job
            ticket = self._add(self._scheduler, job)
            job.slots = list(ticket.slots)
            for slot in ticket.slots:
                slot.payload = Painting(job, slot.index, job.request.seed + slot.index, job.request.steps)
            job.ahead = self._scheduler.positions()[id(job)]
            job.forecast = forecast.get(id(job)) if forecast else None
            self._deliver([(job, ImageQueued(job.ahead, job.forecast))])
            self._wake.notify()

    def cancel(self, job: Job) -> bool:
        """Take a request out before the next step; whether it was still in. It hears nothing more."""
        with self._wake:
            job.gone = True
            if self._jobs.pop(id(job), None) is None:
                return False
            self._scheduler.remove(id(job))
            moved = self._moved()
        self._announce(moved)
        return True

    def queue(self) -> ImageQueue:
        """A snapshot, in the order of work."""
        with self._wake:
            order = [(self._jobs[ticket.key], ticket.key) for ticket in self._scheduler.tickets()]
            positions = self._scheduler.positions()
            clone = self._scheduler.clone()
        eta = self._times.forecast(clone) or {}
        requests = tuple(_queued(job, positions[key], eta.get(key)) for job, key in order)
        drain = max(eta.values()) if eta else (None if requests else 0.0)
        return ImageQueue(requests, drain, self._times.average_seconds, self._executor.memory_mb())

    def stuck_seconds(self) -> float:
        """How long the step under way has taken; 0 between steps."""
        since = self._working_since
        return 0.0 if since is None else time.monotonic() - since

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End at the next step; `freed` says when the executor has let go."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if not self._thread.ident:
            self.freed.set_result(None)

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        try:
            self._executor.load()
        except BaseException as error:
            self._loaded.set_exception(error)
        else:
            self._loaded.set_result(None)
            while self._turn():
                pass
        self._executor.free()
        self.freed.set_result(None)

    def _turn(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or len(self._scheduler))
            if self._closing:
                jobs = list(self._jobs.values())
                self._jobs.clear()
                self._deliver([(job, shutting_down()) for job in jobs])
                return False
            batch = self._scheduler.next()
            self._working_since = time.monotonic()
        try:
            self._work(batch)
        except Exception:
            logger.exception("the step loop failed")
            for slot in batch:
                self._fail(slot, EngineFailed("The image engine failed on this request."))
        finally:
            self._working_since = None
        return True

    def _work(self, batch: list[Slot]) -> None:
        """One step of a batch and all that follows from it."""
        batch = [slot for slot in batch if self._has_begun(slot)]
        if not batch:
            return
        began = time.monotonic()
        well, ill = self._try(batch)
        if not ill:
            ticket = batch[0].ticket
            self._times.step(ticket.group, len(batch), ticket.pixels, time.monotonic() - began)
        with self._wake:
            if not ill:
                self._scheduler.went_well()
            well = [slot for slot in well if self._scheduler.holds(slot)]
            for slot in well:
                self._scheduler.advance(slot)
        self._deliver([(s.payload.job, ImageStep(s.index, s.done, s.steps)) for s in well])
        for slot in well:
            self._show(slot)
        for slot, fault in ill:
            self._heal(slot, fault)
        with self._wake:
            moved = self._moved()
        self._announce(moved)

    def _has_begun(self, slot: Slot) -> bool:
        """Whether it can take its step; what it starts from is made now if it was not yet."""
        if slot.payload.job.gone:
            return False
        if slot.payload.state is not None:
            return True
        began = time.monotonic()
        fault = self._guard(lambda: self._executor.begin(slot.payload), [slot])
        slot.payload.seconds = time.monotonic() - began
        if fault:
            self._fail(slot, with_ways_out(fault.error, slot.payload.job.request))
        return fault is None

    def _try(self, batch: list[Slot]) -> tuple[list[Slot], list[tuple[Slot, Fault]]]:
        """Take the step; where that fails, halve the batch until the culprit is alone."""
        finite: list[bool] = []
        paintings = [slot.payload for slot in batch]
        fault = self._guard(lambda: finite.extend(self._executor.step(paintings)), batch)
        if fault is None:
            broken = Fault(not_finite(), heals=True)
            well = [slot for slot, good in zip(batch, finite, strict=True) if good]
            return well, [(slot, broken) for slot, good in zip(batch, finite, strict=True) if not good]
        if len(batch) == 1 or self._executor.broken:
            return [], [(slot, fault) for slot in batch]
        if isinstance(fault.error, OutOfMemory):
            with self._wake:
                self._scheduler.narrow(len(batch) * batch[0].ticket.pixels)
        middle = len(batch) // 2
        halves = self._try(batch[:middle]), self._try(batch[middle:])
        return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]

    def _show(self, slot: Slot) -> None:
        """The preview or the finished picture, if it is time for one."""
        painting: Painting = slot.payload
        job, last = painting.job, slot.left == 0
        due = preview_steps(job.request.partial_images, slot.steps)[painting.shown :]
        if job.gone or not (last or slot.done in due):
            return
        pixels, began = [], time.monotonic()
        show = self._executor.end if last else self._executor.preview
        if fault := self._guard(lambda: pixels.append(show(painting)), [slot]):
            if last:
                self._heal(slot, fault)
            return  # nobody fails for want of a preview
        partial = None if last else painting.shown
        painting.shown += 1
        painted = Painted(slot.index, pixels[0], painting.seed, painting.steps, partial, painting.healed)
        self._deliver([(job, painted)])
        if last:
            self._times.end(slot.ticket.group, painting.seconds + time.monotonic() - began)
            self._finish(slot)

    def _finish(self, slot: Slot) -> None:
        job = slot.payload.job
        slot.payload.state = None
        with self._wake:
            if not self._scheduler.finish(slot):
                return
            self._jobs.pop(id(job), None)
        self._times.request(time.monotonic() - job.arrived, job.forecast)
        self._deliver([(job, job.plan.usage), (job, None)])

    # ------------------------------------------------------------------ failures
    def _guard(self, work: Callable[[], None], slots: Sequence[Slot]) -> Fault | None:
        fault = None
        try:
            work()
        except Exception as error:
            fault = self._executor.fault(error, [slot.payload.job.request.request_id for slot in slots])
        # Outside of the except block: the error and the tensors in its frames are gone by now.
        if fault:
            self._executor.recover()
        return fault

    def _heal(self, slot: Slot, fault: Fault) -> None:
        """Once, and alone, with fewer steps and another seed; then the request fails."""
        painting: Painting = slot.payload
        if not fault.heals or painting.healed or self._executor.broken:
            self._fail(slot, with_ways_out(fault.error, painting.job.request))
            return
        what = "out of memory" if isinstance(fault.error, OutOfMemory) else "not finite"
        painting.healed = f"{what} at step {min(slot.done + 1, slot.steps)} of {slot.steps}"
        painting.steps, painting.seed = fewer_steps(painting.steps), another_seed(painting.seed)
        painting.state = None
        with self._wake:
            self._scheduler.restart(slot, painting.job.plan.steps(painting.steps))

    def _fail(self, slot: Slot, error: AtelierError) -> None:
        job = slot.payload.job
        with self._wake:
            job.gone = True
            if self._jobs.pop(id(job), None) is None:
                return
            self._scheduler.remove(id(job))
        self._deliver([(job, error)])

    # ------------------------------------------------------------------ positions
    @staticmethod
    def _add(scheduler: StepScheduler, job: Job) -> Ticket:
        plan, request = job.plan, job.request
        steps = [plan.steps(request.steps)] * request.n
        return scheduler.add(id(job), plan.group, plan.pixels, steps, request.priority)

    def _moved(self) -> list[Job]:
        """Jobs whose position has changed since they were told."""
        positions = self._scheduler.positions()
        moved = [job for key, job in self._jobs.items() if positions.get(key, job.ahead) != job.ahead]
        for job in moved:
            job.ahead = positions[id(job)]
        return moved

    def _announce(self, moved: list[Job]) -> None:
        if not moved:
            return
        with self._wake:
            clone = self._scheduler.clone()
        eta = self._times.forecast(clone) or {}
        self._deliver([(job, ImageQueued(job.ahead, eta.get(id(job)))) for job in moved])


def shutting_down() -> Unavailable:
    return Unavailable("The image model is shutting down; try again.", retry_after=5)


def _queued(job: Job, ahead: int, eta: float | None) -> QueuedImage:
    request = job.request
    done, steps = sum(slot.done for slot in job.slots), sum(slot.steps for slot in job.slots)
    return QueuedImage(request.request_id, ahead, done, steps, request.width, request.height, request.n, eta)
