"""Liveness: the lifetimes of buffers on a sequence of events, and the live bytes at each event.

The events are one IPU's operations in one pipeline cycle of the main phase. The IPU runs its stages in turn:
all forward stages, then the backward stages in reverse order. With recomputation, a segment's forward
operations run again just before the first backward operation of that segment. A pipeline's last stage runs
its forward and backward pass in the same cycle.

Transfers between IPUs happen between cycles: a received buffer is live from the start of a cycle to its last
use, a buffer to be sent from its producer to the cycle's end. A stash yields a copy, which is live from its
first to its last use. Without a pipeline nothing is copied: activations are live until the backward pass
needs them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import BYTES_OF_DTYPE, Graph, Op, Tensor
from ..graph.stages import Stage
from ..op_table import row_of
from .aliases import Materialised, is_view
from .ops import PRODUCTS, OpCost
from .verdict import COMPONENTS, Buffer

_ROW = {component: row for row, component in enumerate(COMPONENTS)}


@dataclass(frozen=True)
class Event:
    """The execution of one operation. `phase` is forward, recompute, backward or update."""

    phase: str
    label: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.label}"


@dataclass(frozen=True)
class Lifetime:
    """A buffer that is live during events `first` to `last`, inclusive."""

    buffer: Buffer
    first: int
    last: int

    def covers(self, event: int) -> bool:
        return self.first <= event <= self.last


@dataclass(frozen=True)
class Timeline:
    """The events on one IPU over a step, and the buffers that aren't always live."""

    events: tuple[Event, ...]
    lifetimes: tuple[Lifetime, ...]

    def then(self, later: Timeline) -> Timeline:
        """This timeline followed by another one."""
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
    """Live bytes [component in the order of COMPONENTS, event]: a running sum of allocations and frees."""
    changes = np.zeros((len(COMPONENTS), num_events + 1), dtype=np.int64)
    for lifetime in lifetimes:
        assert 0 <= lifetime.first <= lifetime.last < num_events, lifetime
        row = _ROW[lifetime.buffer.component]
        changes[row, lifetime.first] += lifetime.buffer.bytes
        changes[row, lifetime.last + 1] -= lifetime.buffer.bytes
    return changes.cumsum(axis=1)[:, :num_events]


@dataclass(frozen=True)
class Scheduled:
    """An operation at its position in the cycle.

    :param run: number of the part of the cycle that shares activations (one micro batch's). For a forward
        stage it is the stage's number.
    :param forward_run: for a backward stage: the run whose activations are still live; None if they come from
        a stash.
    :param stashed: stashed tensors of the backward stage: id of the owner of the memory -> bytes.
    """

    op: Op
    phase: str
    run: int
    forward_run: int | None
    stashed: Mapping[int, int]

    @property
    def label(self) -> str:
        return f"{self.op.name} in {self.op.module}" if self.op.module else self.op.name


def schedule(graph: Graph, stages: Sequence[Stage], pipelined: bool) -> list[Scheduled]:
    """The operations of one cycle on the IPU that has exactly these `stages`."""
    steps: list[Scheduled] = []
    for stage in stages:
        steps += [Scheduled(op, "forward", stage.index, None, {}) for op in stage.forward]
        if not stage.stash_slots:
            steps += _backward_stage(graph, stage, same_micro_batch=True)
    for stage in reversed(stages):
        if stage.stash_slots:
            steps += _backward_stage(graph, stage, same_micro_batch=not pipelined)
    return steps


def stashed_bytes(graph: Graph, stage: Stage) -> dict[int, int]:
    """Tensors of one micro batch stashed for the backward stage: id of the owner of the memory -> bytes."""
    sizes: dict[int, int] = defaultdict(int)
    for tensor_id in stage.stashed:
        sizes[graph.owner(tensor_id).id] += graph.tensors[tensor_id].bytes
    return {owner: min(size, graph.tensors[owner].bytes) for owner, size in sizes.items()}


def _backward_stage(graph: Graph, stage: Stage, same_micro_batch: bool) -> list[Scheduled]:
    """Backward operations in order, each after the recomputation that it needs."""
    run, stashed = -1 - stage.index, stashed_bytes(graph, stage)
    forward_run = stage.index if same_micro_batch else None
    waiting = {op.index: op for op in stage.recompute}
    producer = {
        tensor_id: op
        for op in stage.recompute
        for tensor_id in op.outputs
        if graph.tensors[tensor_id].base is None
        and tensor_id not in stashed
        and tensor_id not in graph.checkpoints
    }
    segments: dict[int, list[Op]] = defaultdict(list)
    for op in stage.recompute:
        segments[op.segment].append(op)

    steps: list[Scheduled] = []
    for op in stage.backward:
        pending = segments.pop(op.segment, []) + _producers(graph, op, producer)
        needed: dict[int, Op] = {}
        while pending:  # and their inputs in other segments, transitively
            candidate = pending.pop()
            if candidate.index in waiting:
                needed[candidate.index] = waiting.pop(candidate.index)
                pending += _producers(graph, candidate, producer)
        steps += [
            Scheduled(needed[index], "recompute", run, forward_run, stashed) for index in sorted(needed)
        ]
        steps.append(Scheduled(op, "backward", run, forward_run, stashed))
    return steps


def _producers(graph: Graph, op: Op, producer: Mapping[int, Op]) -> list[Op]:
    owners = (graph.owner(tensor_id).id for tensor_id in op.inputs)
    return [producer[owner] for owner in owners if owner in producer]


@dataclass
class _Live:
    """A buffer and the events of its lifetime so far."""

    tensor: Tensor
    component: str
    what: str
    module: str
    bytes: int
    first: int
    last: int


def timeline(
    graph: Graph,
    steps: Sequence[Scheduled],
    resident: frozenset[int],
    crossing: frozenset[int],
    sizes: Materialised,
    op_cost: Callable[[Op], OpCost],
) -> Timeline:
    """The buffers of a cycle, without those that are always live.

    :param resident: ids of the tensors that are always live on this IPU: weights, buffers, constants, inputs.
    :param crossing: `crossing_tensors` of the graph.
    """
    steps = [step for step in steps if not is_view(step.op, graph) and step.op.index not in sizes.sums]
    live: dict[tuple[int, int], _Live] = {}
    lifetimes: list[Lifetime] = []
    for event, step in enumerate(steps):
        op, run = step.op, step.run
        for owner in map(graph.owner, op.inputs):
            key = (run, owner.id)
            if key not in live and step.forward_run is not None and (step.forward_run, owner.id) in live:
                key = (step.forward_run, owner.id)
            if key in live:
                live[key].last = max(live[key].last, event)
            elif owner.id in step.stashed and step.forward_run is None:
                size = step.stashed[owner.id]
                live[key] = _Live(owner, "recompute", "restored", op.module, size, event, event)
            elif owner.id not in resident:
                size = sizes.bytes.get(owner.id, owner.bytes)
                live[key] = _Live(owner, "temporary", "received", op.module, size, 0, event)
        component = "recompute" if step.phase == "recompute" else "temporary"
        for owner in map(graph.owner, op.outputs):
            if owner.id not in resident and (run, owner.id) not in live:
                last = len(steps) - 1 if owner.id in crossing and step.phase != "recompute" else event
                size = sizes.bytes.get(owner.id, owner.bytes)
                live[run, owner.id] = _Live(owner, component, op.name, op.module, size, event, last)
        lifetimes += [Lifetime(buffer, event, event) for buffer in _while_at_work(graph, op, op_cost(op))]

    for event, step in enumerate(steps):
        if row_of(step.op.name).in_place:
            _overwrite(graph, step, event, live)
    for entry in live.values():
        if entry.bytes:
            name = f"{entry.what} {list(entry.tensor.shape)}"
            buffer = Buffer(name, entry.component, entry.module, entry.bytes)
            lifetimes.append(Lifetime(buffer, entry.first, entry.last))
    return Timeline(tuple(Event(step.phase, step.label) for step in steps), tuple(lifetimes))


def _while_at_work(graph: Graph, op: Op, cost: OpCost) -> list[Buffer]:
    """Memory of an operation besides its inputs and outputs: its working set, and rearranged operands of a
    product (elsewhere the rearranged tensor is an output)."""
    product = cost.kind in PRODUCTS
    buffers: list[Buffer] = []
    if cost.working_set_bytes:
        part = "matmul_working_set" if product else "temporary"
        buffers.append(Buffer(f"working set of {op.name}", part, op.module, cost.working_set_bytes))
    if product and cost.rearranged_elements:
        tensors = [graph.tensors[tensor_id] for tensor_id in (*op.inputs, *op.outputs)]
        elements = min(cost.rearranged_elements, sum(tensor.elements for tensor in tensors))
        size = elements * BYTES_OF_DTYPE[tensors[-1].dtype]
        buffers.append(Buffer(f"rearranged operands of {op.name}", "temporary", op.module, size))
    return buffers


def _overwrite(graph: Graph, step: Scheduled, event: int, live: dict[tuple[int, int], _Live]) -> None:
    """Lets the result reuse the memory of an input that dies here: the input ends one event earlier."""
    output = live.get((step.run, graph.owner(step.op.outputs[0]).id))
    if output is None or output.first != event:
        return
    for owner in map(graph.owner, step.op.inputs):
        entry = live.get((step.run, owner.id))
        alike = entry is not None and entry.bytes == output.bytes and owner.dtype == output.tensor.dtype
        if entry is not None and alike and entry.first < entry.last == event:
            entry.last = event - 1
            return


def crossing_tensors(graph: Graph) -> frozenset[int]:
    """Ids of the tensors that another stage or the host needs."""
    stage_of = {
        graph.owner(output).id: op.stage
        for op in graph.ops
        if not is_view(op, graph)
        for output in op.outputs
    }
    used_elsewhere = {
        graph.owner(tensor_id).id
        for op in graph.ops
        if not is_view(op, graph)
        for tensor_id in op.inputs
        if stage_of.get(graph.owner(tensor_id).id, op.stage) != op.stage
    }
    return frozenset(used_elsewhere | {graph.owner(tensor_id).id for tensor_id in graph.outputs})
