"""trace.json: the step as a Chrome trace, for ui.perfetto.dev and chrome://tracing.

The process is a replica; its threads are the pipeline cycles, the IPUs and the host, in this order. Each
slice is a complete event ("X") in microseconds; slices of a thread never overlap. Flow arrows
follow a micro batch from stage to stage. Format: "Trace Event Format", Google, 2016.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from ..cost.verdict import Verdict
from .schedule import HOST, Schedule, Slice, schedule_of

_PROCESS = 1
_CYCLES, _FIRST_IPU = 1, 2
_CATEGORY = {"stash": "stash", "copies": "exchange"}

Event = dict[str, Any]


def trace_text(verdict: Verdict) -> str:
    """The trace as JSON text, one event per line."""
    plan = schedule_of(verdict)
    events = [*_names(verdict), *_cycles(plan), *_slices(plan), *_arrows(plan), *_after(verdict, plan)]
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
    other = {
        "config": verdict.config,
        "target": verdict.target,
        "origin": "predicted by a model; not measured",
        "pipeline_cycles_per_update": verdict.pipeline.pipeline_cycles_per_update,
        "pipeline_cycles_left_out": plan.omitted,
    }
    return f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [\n{lines}\n]}}\n'


def _names(verdict: Verdict) -> Iterable[Event]:
    yield _metadata("process_name", None, f"{verdict.config} on {verdict.target}: one replica, predicted")
    threads = [(_CYCLES, "pipeline cycles"), (_host(verdict), "host")]
    threads += [(_FIRST_IPU + memory.ipu, f"IPU {memory.ipu}") for memory in verdict.ipus]
    for thread, name in threads:
        yield _metadata("thread_name", thread, name)
        yield {
            "ph": "M",
            "name": "thread_sort_index",
            "pid": _PROCESS,
            "tid": thread,
            "args": {"sort_index": thread},
        }


def _metadata(kind: str, thread: int | None, name: str) -> Event:
    event: Event = {"ph": "M", "name": kind, "pid": _PROCESS, "args": {"name": name}}
    return event if thread is None else {**event, "tid": thread}


def _cycles(plan: Schedule) -> Iterable[Event]:
    ends_s = [cycle.start_s for cycle in plan.cycles[1:]] + [plan.cycles_end_s]
    for cycle, end_s in zip(plan.cycles, ends_s, strict=True):
        if cycle.start_s == plan.gap_s:
            name = f"{plan.omitted:,} identical pipeline cycles are left out here"
            yield {
                "ph": "i",
                "name": name,
                "cat": "cycle",
                "s": "p",
                "pid": _PROCESS,
                "tid": _CYCLES,
                "ts": _us(cycle.start_s),
            }
        name = f"cycle {cycle.index} ({cycle.phase})"
        yield _complete(name, "cycle", _CYCLES, cycle.start_s, end_s - cycle.start_s, {"phase": cycle.phase})


def _slices(plan: Schedule) -> Iterable[Event]:
    for slice_ in plan.slices:
        arguments: dict[str, Any] = {"stage": slice_.stage, "pipeline_cycle": slice_.cycle}
        if slice_.micro_batch >= 0:
            arguments["micro_batch"] = slice_.micro_batch
        yield _complete(
            f"{slice_.part} {slice_.stage}",
            _CATEGORY.get(slice_.part, slice_.part),
            _FIRST_IPU + slice_.ipu,
            slice_.start_s,
            slice_.duration_s,
            arguments,
        )


def _arrows(plan: Schedule) -> Iterable[Event]:
    """Flow arrows from each stage of a micro batch to the next, unless either is left out."""
    paths: dict[int, list[Slice]] = {}
    for slice_ in plan.slices:
        if slice_.part in ("forward", "backward"):
            paths.setdefault(slice_.micro_batch, []).append(slice_)
    number = 0
    for micro_batch, path in paths.items():
        path.sort(key=lambda slice_: (slice_.cycle, slice_.start_s))
        for one, other in itertools.pairwise(path):
            if other.cycle - one.cycle > 1 or one.ipu == other.ipu:
                continue
            number += 1
            shared: Event = {
                "name": f"micro batch {micro_batch}",
                "cat": "micro batch",
                "id": number,
                "pid": _PROCESS,
            }
            middle_s = one.start_s + one.duration_s / 2
            yield {**shared, "ph": "s", "tid": _FIRST_IPU + one.ipu, "ts": _us(middle_s)}
            yield {**shared, "ph": "f", "bp": "e", "tid": _FIRST_IPU + other.ipu, "ts": _us(other.start_s)}


def _after(verdict: Verdict, plan: Schedule) -> Iterable[Event]:
    """The weight update, on all IPUs at once, then host input and output."""
    for part in plan.after:
        if part.name == HOST:
            yield _complete(part.name, "host", _host(verdict), part.start_s, part.duration_s, {})
            continue
        for memory in verdict.ipus:
            thread = _FIRST_IPU + memory.ipu
            yield _complete(part.name, "update", thread, part.start_s, part.duration_s, {})


def _host(verdict: Verdict) -> int:
    return _FIRST_IPU + 1 + max(memory.ipu for memory in verdict.ipus)


def _complete(
    name: str, category: str, thread: int, start_s: float, duration_s: float, arguments: dict[str, Any]
) -> Event:
    start_us, end_us = _us(start_s), _us(start_s + duration_s)
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": _PROCESS,
        "tid": thread,
        "ts": start_us,
        "dur": round(end_us - start_us, 3),
        "args": arguments,
    }


def _us(seconds: float) -> float:
    """Microseconds, rounded to nanoseconds, so that a slice ends exactly where the next one starts."""
    return round(seconds * 1e6, 3)
