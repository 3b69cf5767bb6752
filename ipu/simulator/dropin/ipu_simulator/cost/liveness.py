"""Which buffers are live when: lifetimes on a line of events, and their sum at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from numpy.typing import NDArray

from ..report.verdict import COMPONENTS, Buffer

_ROW = {component: row for row, component in enumerate(COMPONENTS)}


@dataclass(frozen=True)
class Event:
    """One operation at work. `phase` is forward, recompute, backward or update."""

    phase: str
    label: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.label}"


@dataclass(frozen=True)
class Lifetime:
    """A buffer, live during events `first` to `last`, both included."""

    buffer: Buffer
    first: int
    last: int

    def covers(self, event: int) -> bool:
        return self.first <= event <= self.last


@dataclass(frozen=True)
class Timeline:
    """What happens on an IPU in the course of a step, and the buffers that it takes beside those it always
    has."""

    events: tuple[Event, ...]
    lifetimes: tuple[Lifetime, ...]

    def then(self, later: Timeline) -> Timeline:
        """This timeline with another one behind it."""
        offset = len(self.events)
        moved = tuple(
            Lifetime(lifetime.buffer, lifetime.first + offset, lifetime.last + offset)
            for lifetime in later.lifetimes
        )
        return Timeline(self.events + later.events, self.lifetimes + moved)

    def live_bytes(self) -> NDArray[np.int64]:
        """Live bytes [component in the order of COMPONENTS, event]."""
        return live_bytes(self.lifetimes, len(self.events))

    def live_at(self, event: int) -> tuple[Buffer, ...]:
        return tuple(lifetime.buffer for lifetime in self.lifetimes if lifetime.covers(event))


def live_bytes(lifetimes: Sequence[Lifetime], num_events: int) -> NDArray[np.int64]:
    """Live bytes [component in the order of COMPONENTS, event]: a running sum over births and deaths."""
    changes = np.zeros((len(COMPONENTS), num_events + 1), dtype=np.int64)
    for lifetime in lifetimes:
        assert 0 <= lifetime.first <= lifetime.last < num_events, lifetime
        row = _ROW[lifetime.buffer.component]
        changes[row, lifetime.first] += lifetime.buffer.bytes
        changes[row, lifetime.last + 1] -= lifetime.buffer.bytes
    return changes.cumsum(axis=1)[:, :num_events]
