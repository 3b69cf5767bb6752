"""trace.json: complete, and equal to the verdict."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
from ipu_simulator.report.trace import trace_text

from tests.ipu_simulator.report.samples import fitting, overflowing
from tests.ipu_simulator.report.test_schedule import pipelined
from tests.ipu_simulator.report.trace_checks import check


@pytest.mark.parametrize(
    "verdict",
    [
        fitting(),
        overflowing(),
        pipelined((0,), 3),
        pipelined((0, 1, 2, 3, 4, 5, 6, 7, 0), 96),
        pipelined((0, 1), 50, trained=False),
        fitting(name='"quoted" \\ <b> \udc80'),
    ],
    ids=["fits", "overflows", "one IPU", "eight IPUs", "inference", "odd name"],
)
def test_a_trace_is_well_formed(verdict) -> None:  # type: ignore[no-untyped-def]
    check(trace_text(verdict))


def test_ipus_are_tracks_with_all_their_parts() -> None:
    events = check(trace_text(fitting()))
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    for ipu in range(4):
        thread = next(tid for tid, name in names.items() if name == f"IPU {ipu}")
        kinds = {event["cat"] for event in events if event["ph"] == "X" and event["tid"] == thread}
        assert kinds == {"forward", "recompute", "backward", "stash", "exchange", "update"}
    updates = [event["name"] for event in events if event["ph"] == "X" and event["cat"] == "update"]
    assert Counter(updates) == {"all-reduce": 4, "remote buffers": 4, "optimizer": 4}


def test_durations_are_the_verdicts() -> None:
    verdict = fitting()
    events = check(trace_text(verdict))
    stage = verdict.details.stages[2]
    expected = {
        "forward 2": stage.forward_s,
        "recompute 2": stage.recompute_s,
        "backward 2": stage.backward_s,
    }
    for name, seconds in expected.items():
        durations = [event["dur"] for event in events if event["name"] == name]
        assert durations
        assert durations == pytest.approx([seconds * 1e6] * len(durations), abs=2e-3)


def test_few_cycles_are_drawn_and_the_trace_says_how_many_are_not() -> None:
    verdict = fitting()
    text = trace_text(verdict)
    cycles = [event for event in check(text) if event["ph"] == "X" and event["cat"] == "cycle"]
    phases = Counter(event["args"]["phase"] for event in cycles)
    assert phases == {"fill": 8, "main": 4, "flush": 8}
    other = json.loads(text)["otherData"]
    assert other["pipeline_cycles_left_out"] == verdict.pipeline.pipeline_cycles_per_update - 20


def test_the_checks_see_faults() -> None:
    trace = json.loads(trace_text(fitting()))

    def broken(change) -> str:  # type: ignore[no-untyped-def]
        other = copy.deepcopy(trace)
        change(other["traceEvents"])
        return json.dumps(other)

    kinds = [event.get("cat") for event in trace["traceEvents"]]
    first = kinds.index("recompute")

    def overlap(events) -> None:  # type: ignore[no-untyped-def]
        events[first]["dur"] += 0.001  # by a nanosecond

    def unnamed(events) -> None:  # type: ignore[no-untyped-def]
        events[first]["tid"] = 99

    def half_arrow(events) -> None:  # type: ignore[no-untyped-def]
        events.remove(next(event for event in events if event["ph"] == "f"))

    for change in (overlap, unnamed, half_arrow):
        with pytest.raises(AssertionError):
            check(broken(change))
