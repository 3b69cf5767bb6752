"""Rules for any Chrome trace of complete events, whatever it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

KNOWN_PHASES = {"X", "M", "i", "s", "f"}


def check(text: str) -> list[dict[str, Any]]:
    """The events of a trace; AssertionError if Perfetto would refuse, drop or misplace one."""
    trace = json.loads(text)
    events: list[dict[str, Any]] = trace["traceEvents"]
    for event in events:
        assert event["ph"] in KNOWN_PHASES, event
        assert isinstance(event["name"], str) and event["name"], event
        assert isinstance(event["pid"], int), event
        if event["ph"] != "M":
            assert isinstance(event["tid"], int) and event["ts"] >= 0, event
    _threads_are_named(events)
    slices = _slices_nest(events)
    _arrows_are_whole(events, slices)
    return events


def _threads_are_named(events: list[dict[str, Any]]) -> None:
    named = [event["tid"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"]
    assert len(named) == len(set(named))
    assert {event["tid"] for event in events if event["ph"] == "X"} <= set(named)
    assert [event["name"] for event in events if event["ph"] == "M"].count("process_name") == len(
        {event["pid"] for event in events}
    )


def _slices_nest(events: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Slices of a thread are consecutive or nested, to the nanosecond."""
    threads: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] > 0, event
            threads[event["tid"]].append(event)
    for slices in threads.values():
        open_ends: list[int] = []
        for event in sorted(slices, key=lambda each: (each["ts"], -each["dur"])):
            start, end = _ns(event["ts"]), _ns(event["ts"]) + _ns(event["dur"])
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], f"{event} ends after the slice that it began in"
            open_ends.append(end)
    return threads


def _arrows_are_whole(events: list[dict[str, Any]], slices: dict[int, list[dict[str, Any]]]) -> None:
    """Every arrow has one start and one later end, each on a slice."""
    ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in ("s", "f"):
            ends[event["id"]].append(event)
            at = _ns(event["ts"])
            assert any(
                _ns(each["ts"]) <= at < _ns(each["ts"]) + _ns(each["dur"]) for each in slices[event["tid"]]
            ), f"{event} is on no slice"
    for start, *rest in ends.values():
        assert [start["ph"], *(event["ph"] for event in rest)] == ["s", "f"]
        assert start["ts"] < rest[0]["ts"]


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
