"""The estimate behind Retry-After, on a clock of the test's own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from serve_app.graph.pace import Pace


def test_queue_over_rate() -> None:
    now = 0.0
    pace = Pace(clock=lambda: now)
    for _ in range(10):
        with pace.request():
            now += 2.0  # one every two seconds
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(pace.request())
        assert pace.drain_seconds() == pytest.approx(20 * 2.0, rel=0.15)
        now += 1000  # nothing ends any more
        assert pace.drain_seconds() == 120


def test_unknown_and_least() -> None:
    now = 0.0
    pace = Pace(clock=lambda: now)
    assert pace.drain_seconds() == 2
    for _ in range(100):
        with pace.request():
            now += 0.01
    assert pace.drain_seconds() == 1


def test_failures_do_not_count_as_work_done() -> None:
    pace = Pace(clock=lambda: 0.0)
    for _ in range(5):
        with pytest.raises(LookupError), pace.request():
            raise LookupError
    assert pace.drain_seconds() == 2
