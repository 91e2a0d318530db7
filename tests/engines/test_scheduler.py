"""The policy, played with a fake executor: nobody starves, nothing is lost, nothing idles, order is kept."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engines.scheduler import CAUTIOUS_STEPS, Slot, StepScheduler


@dataclass(frozen=True)
class Wish:
    """A request that arrives before step `at` and leaves again before step `leaves`, if that comes."""

    at: int
    group: int
    pixels: int
    steps: int
    n: int
    priority: int
    leaves: int | None


WISHES = st.lists(
    st.builds(
        Wish,
        at=st.integers(0, 30),
        group=st.integers(0, 2),
        pixels=st.sampled_from([1, 2, 5, 20]),
        steps=st.integers(1, 12),
        n=st.integers(1, 4),
        priority=st.integers(0, 2),
        leaves=st.none() | st.integers(0, 60),
    ),
    min_size=1,
    max_size=12,
)


# No deadline: how long an example takes depends on the neighbours.
settings.register_profile("patient", deadline=None, max_examples=60)
settings.load_profile("patient")


class Player:
    """A fake executor: takes the steps that the policy plans, and checks each plan."""

    def __init__(self, wishes: list[Wish], step_pixels: int = 8, flight_pixels: int = 24) -> None:
        self.scheduler = StepScheduler(step_pixels, flight_pixels)
        self.wishes = wishes
        self.clock = 0
        self.taken: dict[tuple[int, int], int] = {}
        self.began: list[int] = []
        self.ended: dict[int, int] = {}
        self.left: set[int] = set()

    def play(self) -> Player:
        while self.clock <= 60 or len(self.scheduler):
            assert self.clock < 5000
            self._come_and_go()
            self._step()
            self.clock += 1
        return self

    def _come_and_go(self) -> None:
        for key, wish in enumerate(self.wishes):
            if wish.at == self.clock:
                self.scheduler.add(key, wish.group, wish.pixels, [wish.steps] * wish.n, wish.priority)
            if wish.leaves == self.clock and self.scheduler.remove(key):
                self.left.add(key)

    def _step(self) -> None:
        batch = self.scheduler.next()
        self._check(batch)
        for slot in batch:
            key: Any = slot.ticket.key
            if key not in self.began:
                self.began.append(key)
            self.taken[key, slot.index] = self.taken.get((key, slot.index), 0) + 1
            self.scheduler.advance(slot)
            if not slot.left and self.scheduler.finish(slot):
                self.ended[key] = self.clock

    def _check(self, batch: list[Slot]) -> None:
        tickets = self.scheduler.tickets()
        # Work is conserved: no pause while anybody waits, and no room in a step that somebody could use.
        assert bool(batch) == bool(tickets)
        if not batch:
            return
        assert len({slot.ticket.group for slot in batch}) == 1
        assert len(set(map(id, batch))) == len(batch)
        pixels = sum(slot.ticket.pixels for slot in batch)
        assert pixels <= self.scheduler.step_pixels or len(batch) == 1
        begun = [slot for ticket in tickets for slot in ticket.slots if slot.begun]
        for slot in begun:
            if slot not in batch and slot.ticket.group == batch[0].ticket.group:
                assert pixels + slot.ticket.pixels > self.scheduler.step_pixels
        assert max(slot.ticket.priority for slot in begun) == batch[0].ticket.priority
        for priority in {slot.ticket.priority for slot in begun}:
            flight = [s.ticket.pixels for s in begun if s.ticket.priority == priority]
            assert sum(flight) <= self.scheduler.flight_pixels or len(flight) == 1


@given(WISHES)
def test_nothing_is_lost_and_nothing_idles(wishes: list[Wish]) -> None:
    player = Player(wishes).play()
    for key, wish in enumerate(wishes):
        assert (key in player.ended) != (key in player.left)
        if key in player.ended:
            assert [player.taken[key, index] for index in range(wish.n)] == [wish.steps] * wish.n
        assert all(player.taken.get((key, index), 0) <= wish.steps for index in range(wish.n))


@given(WISHES, st.integers(0, 2))
def test_requests_of_a_priority_begin_in_their_order(wishes: list[Wish], priority: int) -> None:
    """They are begun in order; the first step may then come to a shorter one first."""
    scheduler, begun = StepScheduler(8, 24), list[int]()
    for key, wish in enumerate(wishes):
        scheduler.add(key, wish.group, wish.pixels, [wish.steps] * wish.n, wish.priority)
    while batch := scheduler.next():
        for ticket in scheduler.tickets():
            if ticket.begun and ticket.priority == priority and ticket.key not in begun:
                begun.append(ticket.arrival)
        for slot in batch:
            scheduler.advance(slot)
            if not slot.left:
                scheduler.finish(slot)
    waves = list(dict.fromkeys(begun))
    assert waves == sorted(waves)


@given(st.integers(2, 10), st.integers(1, 9))
def test_equals_end_in_their_order(many: int, steps: int) -> None:
    player = Player([Wish(0, 0, 5, steps, 1, 0, None) for _ in range(many)]).play()
    assert list(player.ended) == list(range(many))


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 5])), min_size=1, max_size=6),
)
def test_a_stream_of_newcomers_starves_nobody(steps: int, stream: list[tuple[int, int]]) -> None:
    """However many come, and however short, a request ends within a bound that depends on its length only."""
    scheduler, arrivals = StepScheduler(8, 24), count()
    scheduler.add("patient", "a", 5, [steps])
    for _ in range(60 * steps):
        while len(scheduler) < 4:
            few, pixels = stream[next(arrivals) % len(stream)]
            scheduler.add(next(arrivals), "b", pixels, [few])
        for slot in scheduler.next():
            scheduler.advance(slot)
            if not slot.left and scheduler.finish(slot) and slot.ticket.key == "patient":
                return
    pytest.fail("starved")


def run(scheduler: StepScheduler) -> list[Any]:
    """Keys in their order of ending."""
    order = []
    while batch := scheduler.next():
        for slot in batch:
            scheduler.advance(slot)
            if not slot.left and scheduler.finish(slot):
                order.append(slot.ticket.key)
    return order


def test_a_short_request_passes_long_ones() -> None:
    scheduler = StepScheduler(8, 100)
    for number in range(4):
        scheduler.add(number, "large", 8, [50])
    for _ in range(20):
        scheduler.advance(scheduler.next()[0])
    scheduler.add("short", "small", 1, [4])
    taken = 0
    while scheduler.next()[0].ticket.key != "short" or scheduler.next()[0].left > 1:
        scheduler.advance(scheduler.next()[0])
        taken += 1
    assert taken <= 8


def test_groups_take_turns() -> None:
    scheduler = StepScheduler(8, 100)
    scheduler.add("a", "left", 4, [20])
    scheduler.add("b", "right", 4, [20])
    groups = []
    for _ in range(20):
        batch = scheduler.next()
        groups.append(batch[0].ticket.group)
        scheduler.advance(batch[0])
    assert 8 <= groups.count("left") <= 12


def test_a_higher_priority_goes_first_even_into_a_full_flight() -> None:
    scheduler = StepScheduler(8, 8)
    for number in range(3):
        scheduler.add(number, "a", 8, [5])
    scheduler.add("urgent", "b", 8, [5], priority=1)
    assert scheduler.positions() == {0: 0, 1: 2, 2: 3, "urgent": 0}
    assert run(scheduler) == ["urgent", 0, 1, 2]


def test_a_slot_that_begins_again_is_alone() -> None:
    scheduler = StepScheduler(8, 100)
    tickets = [scheduler.add(number, "a", 1, [5]) for number in range(3)]
    batch = scheduler.next()
    assert len(batch) == 3
    scheduler.restart(tickets[1].slots[0], 4)
    seen = []
    while batch := scheduler.next():
        seen.append({slot.ticket.key for slot in batch})
        for slot in batch:
            scheduler.advance(slot)
            if not slot.left:
                scheduler.finish(slot)
    assert seen.count({1}) == 4
    assert all(1 not in keys or keys == {1} for keys in seen)


def test_what_did_not_fit_is_planned_smaller_for_a_while() -> None:
    scheduler = StepScheduler(8, 100)
    scheduler.add("a", "a", 1, [10_000] * 8)
    scheduler.narrow(8)
    assert len(scheduler.next()) == 4
    for _ in range(CAUTIOUS_STEPS):
        scheduler.went_well()
    assert len(scheduler.next()) == 8


def test_a_clone_leaves_the_original_alone() -> None:
    scheduler = StepScheduler(8, 8)
    for number in range(3):
        scheduler.add(number, "a", 4, [3])
    before = scheduler.positions()
    assert run(scheduler.clone()) == [0, 1, 2]
    assert scheduler.positions() == before
    assert run(scheduler) == [0, 1, 2]


def test_a_key_is_used_once() -> None:
    scheduler = StepScheduler(8, 8)
    scheduler.add("a", "a", 4, [3])
    with pytest.raises(ValueError, match="in the queue already"):
        scheduler.add("a", "a", 4, [3])
    assert not scheduler.remove("b")
