"""Counts of one replica and of all."""

from __future__ import annotations

from serve_app.ingress.tally import Counted, Tally


async def test_one_replica_alone() -> None:
    now = 100.0
    tally = Tally(clock=lambda: now)
    for code in (0, 1001, 0):
        tally.count(code)
    now = 107.5
    assert await tally.total() == Counted(7.5, {0: 2, 1001: 1})


async def test_all_replicas_together() -> None:
    async def everyone() -> list[Counted]:
        return [Counted(3, {0: 2, 3001: 1}), Counted(9, {0: 1, 5000: 4}), Counted(0.5, {})]

    tally = Tally(everyone)
    tally.count(1001)  # its own are among everyone's answers
    assert await tally.total() == Counted(9, {0: 3, 3001: 1, 5000: 4})


async def test_nobody_answers() -> None:
    async def everyone() -> list[Counted]:
        return []

    tally = Tally(everyone, clock=lambda: 1.0)
    tally.count(0)
    assert await tally.total() == Counted(0.0, {0: 1})
