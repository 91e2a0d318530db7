"""The step loop with a fake executor: events, positions, cancelling, previews, healing. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments.contracts.errors import EngineFailed, InvalidRequest, OutOfMemory, Unavailable
from deployments.contracts.messages import ImageQueued, ImageRequest, ImageStep, ImageUsage, Picture
from deployments.engines.painting import (
    Event,
    Fault,
    Job,
    Painted,
    Painting,
    Plan,
    another_seed,
    not_finite,
    preview_steps,
)
from deployments.engines.scheduler import StepScheduler
from deployments.engines.step_loop import StepLoop
from deployments.engines.step_times import StepTimes

REQUEST = ImageRequest("r", "p", " ", 16, 16, steps=4, cfg_scale=2.0, seed=7)
USAGE = ImageUsage(1, 1)


class Executor:
    """Paints numbers: the picture is its seed. Fails where it is told to."""

    broken: str | None = None

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.rule: Callable[[Sequence[Painting]], list[bool]] = lambda paintings: [True] * len(paintings)
        self.end_fails = 0
        self.begin_error: Exception | None = None
        self.recovered = 0
        self.step_seconds = 0.0
        self.freed = False

    def load(self) -> None: ...

    def free(self) -> None:
        self.freed = True

    def plan(self, request: ImageRequest, pictures: Sequence[Picture]) -> Plan:
        return Plan((request.width, request.height), 1, USAGE)

    def begin(self, painting: Painting) -> None:
        if self.begin_error:
            raise self.begin_error
        painting.state = 0

    def step(self, paintings: Sequence[Painting]) -> list[bool]:
        assert self.gate.wait(10)
        time.sleep(self.step_seconds)
        self.batches.append([p.job.request.request_id for p in paintings])
        finite = self.rule(paintings)
        for painting in paintings:
            painting.state += 1
        return finite

    def preview(self, painting: Painting) -> np.ndarray:
        return np.full((1, 1, 3), painting.state, np.uint8)

    def end(self, painting: Painting) -> np.ndarray:
        if self.end_fails:
            self.end_fails -= 1
            raise not_finite()
        return np.full((1, 1, 3), painting.seed % 256, np.uint8)

    def fault(self, error: Exception, request_ids: Sequence[str]) -> Fault:
        if isinstance(error, MemoryError):
            return Fault(OutOfMemory("too much"), heals=True)
        if isinstance(error, EngineFailed):
            return Fault(error, heals=True)
        return Fault(EngineFailed("failed"), heals=False)

    def recover(self) -> None:
        self.recovered += 1

    def memory_mb(self) -> float:
        return 1.0


class Stage:
    """A loop whose events can be waited for."""

    def __init__(self, step_pixels: int = 8, flight_pixels: int = 64) -> None:
        self.executor = Executor()
        self.heard: dict[int, list[Event]] = {}
        self.news = threading.Condition()
        self.loop = StepLoop(self.executor, StepScheduler(step_pixels, flight_pixels), self.deliver, "test")
        self.loop.start().result(10)

    def deliver(self, events: Sequence[tuple[Job, Event]]) -> None:
        with self.news:
            for job, event in events:
                self.heard.setdefault(id(job), []).append(event)
            self.news.notify_all()

    def send(self, name: str = "r", **changes: Any) -> Job:
        request = replace(REQUEST, request_id=name, **changes)
        job = Job(request, (), self.executor.plan(request, ()))
        self.loop.submit(job)
        return job

    def wait(self, job: Job, when: Callable[[list[Event]], bool]) -> list[Event]:
        with self.news:
            assert self.news.wait_for(lambda: when(self.heard.get(id(job), [])), 10)
            return list(self.heard[id(job)])

    def all(self, job: Job) -> list[Event]:
        def ended(events: list[Event]) -> bool:
            return bool(events) and (events[-1] is None or isinstance(events[-1], Exception))

        return self.wait(job, ended)

    def painted(self, job: Job) -> list[Painted]:
        return [event for event in self.all(job) if isinstance(event, Painted) and event.partial is None]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.executor.gate.set()
    stage.loop.close()
    stage.loop.freed.result(10)


def at(step: int, *names: str, error: Exception | None = None) -> Callable[[Sequence[Painting]], list[bool]]:
    """Fails once a picture of these requests is at this step (counted from 1), each time."""

    def rule(paintings: Sequence[Painting]) -> list[bool]:
        bad = [p.job.request.request_id in names and p.state + 1 == step for p in paintings]
        if error and any(bad):
            raise error
        return [not one for one in bad]

    return rule


def test_the_events_of_a_request(stage: Stage) -> None:
    events = stage.all(stage.send(n=2, steps=2))
    assert isinstance(events[0], ImageQueued)
    assert events[0].ahead == 0
    for index in range(2):
        own = [e for e in events if getattr(e, "index", None) == index]
        assert own[:2] == [ImageStep(index, 1, 2), ImageStep(index, 2, 2)]
        assert isinstance(own[2], Painted)
        assert (own[2].seed, own[2].steps, own[2].healed) == (7 + index, 2, None)
    assert events[-2:] == [USAGE, None]
    assert stage.executor.batches == [["r", "r"]] * 2


def test_joining_and_leaving_at_step_boundaries(stage: Stage) -> None:
    stage.executor.gate.clear()
    first = stage.send("long", steps=6)
    second = stage.send("short", steps=2)
    stage.executor.gate.set()
    stage.all(first)
    stage.all(second)
    assert stage.executor.batches.count(["long"]) >= 3
    assert sum("short" in batch for batch in stage.executor.batches) == 2


def test_previews_are_spread_over_the_steps(stage: Stage) -> None:
    events = stage.all(stage.send(steps=8, partial_images=3))
    previews = [e for e in events if isinstance(e, Painted) and e.partial is not None]
    assert [(e.partial, int(e.pixels[0, 0, 0])) for e in previews] == [(0, 2), (1, 4), (2, 6)]
    assert preview_steps(3, 2) == [1]
    assert preview_steps(3, 1) == []
    assert preview_steps(0, 50) == []


def test_positions_change_as_others_leave() -> None:
    stage = Stage(step_pixels=1, flight_pixels=1)
    stage.executor.gate.clear()
    jobs = [stage.send(str(number), steps=2) for number in range(3)]
    assert [job.ahead for job in jobs] == [0, 1, 2]
    queue = stage.loop.queue()
    assert [(r.request_id, r.ahead, r.steps) for r in queue.requests] == [
        ("0", 0, 2),
        ("1", 1, 2),
        ("2", 2, 2),
    ]
    assert stage.loop.cancel(jobs[1])
    assert not stage.loop.cancel(jobs[1])
    stage.wait(jobs[2], lambda events: len(events) == 2)
    stage.executor.gate.set()
    events = stage.all(jobs[2])
    assert [e.ahead for e in events if isinstance(e, ImageQueued)] == [2, 1, 0]
    stage.loop.close()
    stage.loop.freed.result(10)
    assert stage.executor.freed


def test_a_cancelled_request_is_gone_at_the_next_step(stage: Stage) -> None:
    stage.executor.gate.clear()
    gone, stays = stage.send("gone", steps=50), stage.send("stays", steps=3)
    stage.loop.cancel(gone)
    stage.executor.gate.set()
    stage.all(stays)
    assert sum("gone" in batch for batch in stage.executor.batches) <= 1
    assert not [e for e in stage.heard[id(gone)] if isinstance(e, ImageStep)]
    assert stage.loop.queue().requests == ()


def test_a_request_given_up_before_it_was_queued(stage: Stage) -> None:
    job = Job(REQUEST, (), stage.executor.plan(REQUEST, ()))
    stage.loop.cancel(job)
    stage.loop.submit(job)
    assert stage.loop.queue().requests == ()


@pytest.mark.parametrize("error", [None, MemoryError()], ids=["nan", "oom"])
def test_the_culprit_is_healed_alone_and_the_others_go_on(stage: Stage, error: Exception | None) -> None:
    stage.executor.rule = rule = at(3, "bad", error=error)

    def once(paintings: Sequence[Painting]) -> list[bool]:
        return rule(paintings) if all(p.healed is None for p in paintings) else [True] * len(paintings)

    stage.executor.rule = once
    stage.executor.gate.clear()
    jobs = [stage.send("bad" if number == 2 else str(number), steps=10) for number in range(5)]
    stage.executor.gate.set()
    for number, job in enumerate(jobs):
        (done,) = stage.painted(job)
        if number == 2:
            assert (done.steps, done.seed) == (8, another_seed(7))
            assert done.healed == f"{'out of memory' if error else 'not finite'} at step 3 of 10"
        else:
            assert (done.steps, done.seed, done.healed) == (10, 7, None)
    assert all(batch == ["bad"] for batch in stage.executor.batches[-8:] if "bad" in batch)
    steps = [event for event in stage.heard[id(jobs[1])] if isinstance(event, ImageStep)]
    assert [step.step for step in steps] == list(range(1, 11))


@pytest.mark.parametrize(
    ("error", "kind", "fixes"),
    [
        (None, EngineFailed, ("reduce num_steps to 8", "try a different seed", "lower true_cfg_scale to 1")),
        (MemoryError(), OutOfMemory, ("use a smaller size", "try again later")),
    ],
)
def test_what_fails_twice_is_told_with_the_ways_out(
    stage: Stage, error: Exception | None, kind: type[EngineFailed], fixes: tuple[str, ...]
) -> None:
    stage.executor.rule = at(1, "bad", error=error)
    last = stage.all(stage.send("bad", steps=10))[-1]
    assert type(last) is kind
    assert last.suggested_fix == fixes
    assert last.code == ("out_of_memory" if error else "image_not_finite")
    assert len(stage.executor.batches) == 2
    assert stage.painted(stage.send("good"))


def test_another_failure_is_told_at_once_and_hits_nobody_else(stage: Stage) -> None:
    stage.executor.rule = at(2, "bad", error=RuntimeError("secret"))
    stage.executor.gate.clear()
    jobs = [stage.send("bad" if number == 1 else str(number)) for number in range(3)]
    stage.executor.gate.set()
    assert isinstance(stage.all(jobs[1])[-1], EngineFailed)
    assert stage.painted(jobs[0])
    assert stage.painted(jobs[2])
    assert stage.executor.recovered


def test_a_failure_at_the_end_heals_too(stage: Stage) -> None:
    stage.executor.end_fails = 1
    (done,) = stage.painted(stage.send(steps=10))
    assert (done.steps, done.healed) == (8, "not finite at step 10 of 10")
    stage.executor.end_fails = 2
    assert isinstance(stage.all(stage.send())[-1], EngineFailed)


def test_a_request_that_cannot_begin_fails_once(stage: Stage) -> None:
    stage.executor.begin_error = InvalidRequest("no")
    job = stage.send(n=3)
    assert isinstance(stage.all(job)[-1], EngineFailed)
    assert len(stage.heard[id(job)]) == 2


def test_a_broken_device_fails_everybody(stage: Stage) -> None:
    def lost(paintings: Sequence[Painting]) -> list[bool]:
        stage.executor.broken = "The GPU context is lost"
        raise RuntimeError

    stage.executor.rule = lost
    stage.executor.gate.clear()
    jobs = [stage.send(str(number)) for number in range(3)]
    stage.executor.gate.set()
    assert all(isinstance(stage.all(job)[-1], EngineFailed) for job in jobs)


def test_closing_tells_everybody(stage: Stage) -> None:
    stage.executor.gate.clear()
    jobs = [stage.send(str(number), steps=1000) for number in range(3)]
    stage.loop.close()
    stage.executor.gate.set()
    assert all(isinstance(stage.all(job)[-1], Unavailable) for job in jobs)
    with pytest.raises(Unavailable):
        stage.send()


def test_a_failing_load_is_told() -> None:
    executor = Executor()

    def fail() -> None:
        raise OSError("no such checkpoint")

    executor.load = fail  # type: ignore[method-assign]
    loop = StepLoop(executor, StepScheduler(1, 1), lambda events: None, "test")
    with pytest.raises(OSError, match="no such checkpoint"):
        loop.start().result(10)
    loop.freed.result(10)
    assert executor.freed


def test_a_forecast_follows_the_measured_steps(stage: Stage) -> None:
    stage.executor.step_seconds = 0.01
    assert stage.send().forecast is None
    stage.all(stage.send(steps=20))
    stage.executor.gate.clear()
    job = stage.send(steps=50)
    stage.executor.gate.set()
    assert job.forecast is not None
    assert 0.25 < job.forecast < 2.0


class TestStepTimes:
    """Forecasts against a simulated clock."""

    @staticmethod
    def seconds(width: int, pixels: int) -> float:
        return 0.02 + 0.001 * width * pixels

    def test_nothing_measured_nothing_foretold(self) -> None:
        times, queue = StepTimes(), StepScheduler(8, 64)
        queue.add("a", "g", 1, [4])
        assert times.forecast(queue) is None
        assert times.step_seconds("g", 1, 1) is None

    def test_widths_never_seen_are_read_off_a_line(self) -> None:
        times = StepTimes()
        for _ in range(10):
            for width in (1, 4):
                times.step("g", width, 16, self.seconds(width, 16))
        assert times.step_seconds("other", 8, 16) == pytest.approx(self.seconds(8, 16), rel=0.05)
        one_size = StepTimes()
        one_size.step("g", 1, 16, 0.5)
        assert one_size.step_seconds("other", 1, 32) == pytest.approx(1.0)

    def test_a_queue_is_played_to_its_end(self) -> None:
        times, queue = StepTimes(), StepScheduler(64, 256)
        for width in (1, 2, 3, 4):
            times.step("g", width, 16, self.seconds(width, 16))
            times.step("h", width, 16, self.seconds(width, 16))
        times.end("g", 0.03)
        for key, steps in enumerate((4, 16, 400)):
            queue.add(key, "g" if key else "h", 16, [steps])
        forecast = times.forecast(queue.clone())
        assert forecast is not None
        clock, ends = 0.0, {}
        while batch := queue.next():
            clock += self.seconds(len(batch), 16)
            for slot in batch:
                queue.advance(slot)
                if not slot.left:
                    clock += 0.03 if slot.ticket.group == "g" else 0.0
                    queue.finish(slot)
                    ends[slot.ticket.key] = clock
        for key in (1, 2):
            assert forecast[key] == pytest.approx(ends[key], rel=0.1)

    def test_a_lasting_error_is_learned(self) -> None:
        times = StepTimes()
        times.step("g", 1, 16, 0.1)
        for _ in range(40):
            queue = StepScheduler(16, 16)
            queue.add("a", "g", 16, [10])
            foretold = (times.forecast(queue) or {})["a"]
            times.request(2.0, foretold)
        assert foretold == pytest.approx(2.0, rel=0.05)
        assert times.average_seconds == pytest.approx(2.0)
