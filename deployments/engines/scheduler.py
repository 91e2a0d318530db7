"""Which pictures take the next denoising step. Pure policy: no torch, no threads, no clock.

A request asks for one or more pictures; each picture is a `Slot` that wants a number of steps. Slots of one
group (one resolution, say) can take a step together. Between two steps anything may join or leave, so every
step is planned anew:

- Higher priorities first. Within one, a request begins in its turn of arrival, as soon as the pixels in
  flight leave room for it; pictures of lower priorities do not stand in its way.
- Among those begun, the request with the least virtual time leads, and its group takes the step: its slots
  first, then others in the order of their virtual time, as far as the pixels of a step allow.
- A step costs its request `pixels * sqrt(steps left)` of virtual time, and a new request starts at the
  leader's. Requests of one length thus share the machine evenly, a short one passes a long one, and nobody
  starves: a request that waits stands still in virtual time while all others move towards it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CAUTIOUS_STEPS = 200
"""After a batch did not fit into memory, so many steps pass before batches may grow again."""


@dataclass(eq=False)
class Slot:
    """One picture of a request."""

    ticket: Ticket
    index: int
    steps: int
    done: int = 0
    begun: bool = False
    alone: bool = False
    """Takes its steps in a batch of its own."""
    payload: Any = None
    """The executor's own; the policy does not look at it."""

    @property
    def left(self) -> int:
        return self.steps - self.done


@dataclass(eq=False)
class Ticket:
    """One request."""

    key: Hashable
    group: Hashable
    pixels: int
    """Of one picture."""
    priority: int
    arrival: int
    virtual: float
    slots: list[Slot] = field(default_factory=list)

    @property
    def turn(self) -> tuple[int, int]:
        """Order of beginning."""
        return -self.priority, self.arrival

    @property
    def begun(self) -> bool:
        return any(slot.begun for slot in self.slots)

    @property
    def left(self) -> int:
        return sum(slot.left for slot in self.slots)


class StepScheduler:
    """The queue and the plan of the next step."""

    def __init__(self, step_pixels: int, flight_pixels: int) -> None:
        """Args: pixels that one step may hold, and that may be begun and not yet finished. A single picture
        beyond either bound is painted alone."""
        self.step_pixels = step_pixels
        self.flight_pixels = max(flight_pixels, step_pixels)
        self._widest, self._cautious = step_pixels, 0
        self._tickets: dict[Hashable, Ticket] = {}
        self._arrivals = 0
        self._clock = 0.0

    # ------------------------------------------------------------------ changes
    def add(
        self, key: Hashable, group: Hashable, pixels: int, steps: Sequence[int], priority: int = 0
    ) -> Ticket:
        """A request for `len(steps)` pictures of `pixels` each. Raises ValueError for a key in use."""
        if key in self._tickets:
            raise ValueError(f"{key!r} is in the queue already")
        ticket = Ticket(key, group, pixels, priority, self._arrivals, self._clock)
        ticket.slots = [Slot(ticket, index, count) for index, count in enumerate(steps)]
        self._arrivals += 1
        self._tickets[key] = ticket
        self._admit()
        return ticket

    def remove(self, key: Hashable) -> bool:
        """Take a request out; whether it was in."""
        if self._tickets.pop(key, None) is None:
            return False
        self._admit()
        return True

    def advance(self, slot: Slot, steps: int = 1) -> None:
        """A slot has taken its step. Nothing happens if its request has left meanwhile."""
        ticket = slot.ticket
        if not self.holds(slot):
            return
        cost = steps * ticket.pixels * math.sqrt(ticket.left)
        ticket.virtual += cost
        # The starting line moves with the work done: a stream of short requests cannot hold it still.
        self._clock += cost / len(self._tickets)
        slot.done = min(slot.done + steps, slot.steps)

    def finish(self, slot: Slot) -> bool:
        """A slot is through and makes room; whether it was the last of its request."""
        ticket = slot.ticket
        if not self.holds(slot):
            return False
        ticket.slots.remove(slot)
        if not ticket.slots:
            del self._tickets[ticket.key]
        self._admit()
        return not ticket.slots

    def restart(self, slot: Slot, steps: int) -> None:
        """A slot begins again, from now on alone."""
        slot.steps, slot.done, slot.alone = steps, 0, True

    def narrow(self, pixels: int) -> None:
        """A step of so many pixels did not fit: plan half of it for a while."""
        self.step_pixels, self._cautious = max(1, pixels // 2), CAUTIOUS_STEPS

    def went_well(self) -> None:
        """A step did fit; after enough of them, steps may grow again."""
        self._cautious -= 1
        if self._cautious <= 0 and self.step_pixels < self._widest:
            self.step_pixels, self._cautious = min(self._widest, 2 * self.step_pixels), CAUTIOUS_STEPS

    # ------------------------------------------------------------------ questions
    def next(self) -> list[Slot]:
        """The slots that take the next step together; none if there is nothing to do."""
        ready = [slot for ticket in self._tickets.values() for slot in ticket.slots if slot.begun]
        if not ready:
            return []
        ready.sort(key=_order)
        leader = ready[0]
        self._clock = max(self._clock, leader.ticket.virtual)
        batch, room = [leader], self.step_pixels - leader.ticket.pixels
        if leader.alone:
            return batch
        for slot in ready[1:]:
            ticket = slot.ticket
            if ticket.group == leader.ticket.group and not slot.alone and ticket.pixels <= room:
                batch.append(slot)
                room -= ticket.pixels
        return batch

    def holds(self, slot: Slot) -> bool:
        """Whether a slot is still wanted."""
        return self._tickets.get(slot.ticket.key) is slot.ticket and slot in slot.ticket.slots

    def positions(self) -> dict[Hashable, int]:
        """Requests before each one: 0 once it has begun, else those begun and those waiting before it."""
        waiting = sorted((t for t in self._tickets.values() if not t.begun), key=lambda ticket: ticket.turn)
        begun = len(self._tickets) - len(waiting)
        places = {ticket.key: begun + place for place, ticket in enumerate(waiting)}
        return {key: places.get(key, 0) for key in self._tickets}

    def tickets(self) -> list[Ticket]:
        """All requests, in the order in which the policy prefers them now."""
        return sorted(
            self._tickets.values(),
            key=lambda t: (not t.begun, -t.priority, t.virtual if t.begun else 0, t.turn),
        )

    def clone(self) -> StepScheduler:
        """An independent copy without payloads, to look ahead with."""
        copy = StepScheduler(self.step_pixels, self.flight_pixels)
        copy._arrivals, copy._clock = self._arrivals, self._clock
        for key, ticket in self._tickets.items():
            twin = copy._tickets[key] = replace(ticket)
            twin.slots = [replace(slot, ticket=twin, payload=None) for slot in ticket.slots]
        return copy

    def __len__(self) -> int:
        return len(self._tickets)

    # ------------------------------------------------------------------ beginning
    def _admit(self) -> None:
        """Begin what there is room for, in turn: nobody passes one that waits for room."""
        turns = sorted(self._tickets.values(), key=lambda ticket: ticket.turn)
        flight = 0
        below = [(t.priority, t.pixels) for t in turns for slot in t.slots if slot.begun]
        for ticket in turns:
            flight = sum(pixels for priority, pixels in below if priority >= ticket.priority)
            for slot in ticket.slots:
                if slot.begun:
                    continue
                if flight and flight + ticket.pixels > self.flight_pixels:
                    return
                if not ticket.begun:
                    ticket.virtual = max(ticket.virtual, self._clock)
                slot.begun = True
                flight += ticket.pixels
                below.append((ticket.priority, ticket.pixels))


def _order(slot: Slot) -> tuple[int, float, int, int]:
    ticket = slot.ticket
    return -ticket.priority, ticket.virtual, ticket.arrival, slot.index
