"""Lifetimes, compared with an independent replay of the schedule.

Every tensor's width is a different power of two, so the live bytes identify the live tensors.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from ipu_simulator.cost.aliases import materialised
from ipu_simulator.cost.liveness import (
    Event,
    Lifetime,
    Scheduled,
    Timeline,
    crossing_tensors,
    live_bytes,
    schedule,
    stashed_bytes,
    timeline,
)
from ipu_simulator.cost.memory import homes
from ipu_simulator.cost.ops import OpCost
from ipu_simulator.cost.verdict import COMPONENTS, Buffer
from ipu_simulator.graph.ir import Graph
from ipu_simulator.graph.stages import Stage, stages_of

from tests.ipu_simulator.cost.graphs import Builder, chain, settings


def test_the_running_sum_equals_counting_at_every_event():
    generator = random.Random(0)
    lifetimes = []
    for number in range(200):
        first = generator.randrange(50)
        buffer = Buffer(str(number), generator.choice(COMPONENTS), "", generator.randrange(1, 1000))
        lifetimes.append(Lifetime(buffer, first, generator.randrange(first, 50)))
    counted = [
        [
            sum(
                one.buffer.bytes
                for one in lifetimes
                if one.buffer.component == part and one.first <= event <= one.last
            )
            for event in range(50)
        ]
        for part in COMPONENTS
    ]
    assert np.array_equal(live_bytes(lifetimes, 50), counted)


def test_a_timeline_behind_another_keeps_its_own_order():
    buffer = Buffer("b", "temporary", "", 5)
    one = Timeline((Event("forward", "a"), Event("forward", "b")), (Lifetime(buffer, 0, 1),))
    two = Timeline((Event("update", "w"),), (Lifetime(buffer, 0, 0),))
    both = one.then(two)
    assert [event.label for event in both.events] == ["a", "b", "w"]
    assert both.live_bytes().sum(axis=0).tolist() == [5, 5, 5]
    assert both.live_at(2) == (buffer,)


def unique_sizes(graph: Graph) -> Graph:
    """The same graph, but each tensor with memory has one element more than all earlier ones together."""
    from dataclasses import replace

    tensors = tuple(
        replace(tensor, shape=(1 << tensor.id,), dtype="int8") if tensor.base is None else tensor
        for tensor in graph.tensors
    )
    return replace(graph, tensors=tensors)


def replay(graph: Graph, steps: list[Scheduled], kept: set[int]) -> list[int]:
    """Bytes of the tensors that must exist at each step: already made, received or restored, and read later.

    Tensors that another stage reads stay until the end; received ones exist from the beginning.
    """
    made: dict[tuple[int, int], int] = {}
    needed: dict[tuple[int, int], set[int]] = {}
    for event, step in enumerate(steps):
        for tensor_id in step.op.inputs:
            if tensor_id in kept and tensor_id not in step.stashed:
                continue
            key = (step.run, tensor_id)
            if key not in made and (step.forward_run, tensor_id) in made:
                key = (step.forward_run, tensor_id)
            if key not in made:
                made[key] = event if tensor_id in step.stashed else 0
            needed.setdefault(key, set()).add(event)
        for tensor_id in step.op.outputs:
            made.setdefault((step.run, tensor_id), event)
            readers = [op for op in graph.ops if tensor_id in op.inputs]
            sent = any(op.stage != step.op.stage for op in readers) or tensor_id in graph.outputs
            last = len(steps) - 1 if sent and step.phase != "recompute" else event
            needed.setdefault((step.run, tensor_id), set()).add(last)
    return [
        sum(
            graph.tensors[tensor_id].bytes
            for (run, tensor_id), first in made.items()
            if first <= event <= max(needed[run, tensor_id])
        )
        for event in range(len(steps))
    ]


WIDTHS = ([4, 4], [4, 4], [4], [4, 4])  # less than 63 tensors, for their sizes


def no_cost(_op: object) -> OpCost:
    return OpCost("elementwise")


@pytest.mark.parametrize("reads_outputs", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("stage_ipus", [(0,), (0, 1), (0, 1, 2, 0)])
def test_what_lives_is_what_is_still_read(stage_ipus, checkpoints, recompute, reads_outputs):
    graph = unique_sizes(chain(stage_ipus, WIDTHS[: len(stage_ipus)], 8, checkpoints, reads_outputs))
    program = settings(graph.num_ipus, recompute=recompute)
    stages = stages_of(graph, program)
    home = homes(graph)
    for ipu in range(graph.num_ipus):
        on_ipu = [stage for stage in stages if stage.ipu == ipu]
        steps = schedule(graph, on_ipu, pipelined=True)
        kept = {tensor_id for tensor_id, place in home.items() if place == ipu} | set(graph.inputs)
        resident = frozenset(kept)
        made = timeline(graph, steps, resident, crossing_tensors(graph), materialised(graph), no_cost)
        sizes = made.live_bytes().sum(axis=0)
        expected = replay(graph, steps, kept)
        for event, size, wanted in zip(made.events, sizes.tolist(), expected, strict=True):
            assert f"{size:b}" == f"{wanted:b}", event


@pytest.mark.parametrize("reads_outputs", [True, False])
@pytest.mark.parametrize("checkpoints", [True, False])
def test_every_operation_finds_its_inputs(checkpoints, reads_outputs):
    graph = chain((0, 1, 2, 0), [[4, 4], [4, 4, 4], [4], [4, 4]], 8, checkpoints, reads_outputs)
    for stage in stages_of(graph, settings(3)):
        made: set[int] = set()
        for step in schedule(graph, [stage], pipelined=True):
            others = {output for op in graph.ops if op.stage != stage.index for output in op.outputs}
            own = set(step.op.inputs) - set(homes(graph)) - set(graph.inputs) - others
            before = {tensor_id for run, tensor_id in made if run in (step.run, step.forward_run)}
            before |= set(step.stashed)
            assert own <= before, (step.label, step.phase)
            made |= {(step.run, output) for output in step.op.outputs}


@pytest.mark.parametrize("reads_outputs", [True, False])
@pytest.mark.parametrize("index, segments", [(0, {0, 1, 2}), (1, {0, 1})])
def test_segments_are_recomputed_just_before_they_are_needed(index, segments, reads_outputs):
    """In the last stage, operations after the last checkpoint run once."""
    graph = chain((0, 1), [[4, 4, 4], [4, 4, 4]], reads_outputs=reads_outputs)
    stage = stages_of(graph, settings(2))[index]
    steps = [step for step in schedule(graph, [stage], pipelined=True) if step.phase != "forward"]
    order = [(step.phase, step.op.segment) for step in steps]
    assert order == sorted(order, key=lambda entry: (-entry[1], entry[0] == "backward"))
    assert {segment for phase, segment in order if phase == "recompute"} == segments


def test_parts_of_a_tensor_wait_alone_but_never_take_more_than_the_whole():
    builder = Builder((0,))
    whole = builder.tensor([8, 4])
    parts = [builder.tensor([3, 4], base=whole) for _ in range(3)]
    graph = builder.graph()

    def waiting(*stashed: int) -> dict[int, int]:
        return stashed_bytes(graph, Stage(0, 0, (), (), (), stashed, 1, ()))

    assert waiting(parts[0]) == {whole: 24}
    assert waiting(*parts) == waiting(whole) == {whole: 64}


def test_an_ipu_goes_back_through_its_stages_in_reverse():
    graph = chain((0, 1, 0, 1), [[4], [4], [4], [4]])
    stages = [stage for stage in stages_of(graph, settings(2)) if stage.ipu == 0]
    steps = schedule(graph, stages, pipelined=True)
    order = list(dict.fromkeys((step.phase == "forward", step.op.stage) for step in steps))
    assert order == [(True, 0), (True, 2), (False, 2), (False, 0)]


def test_an_operation_in_place_takes_its_dying_input():
    builder = Builder((0,))
    x = builder.tensor([8, 4], "input", "input/0")
    a, b, c, d = (builder.tensor([8, 4]) for _ in range(4))
    builder.op("mm", [x], [a])
    builder.op("relu", [a], [b])
    builder.op("mm", [b], [c])
    builder.op("add", [b, c], [d])
    graph = builder.graph([x], [d])
    stages = [Stage(0, 0, graph.ops, (), (), (), 0, ())]
    steps = schedule(graph, stages, pipelined=True)
    made = timeline(graph, steps, frozenset([x]), crossing_tensors(graph), materialised(graph), no_cost)
    # a; b reuses a; b and c; d reuses b or c, and the other is live too
    assert made.live_bytes().sum(axis=0).tolist() == [64, 64, 128, 128]


def test_what_arrives_when_an_operation_in_place_runs_is_there_beside_its_result():
    """It comes from another IPU, or from a stash, and no earlier event has it."""
    builder = Builder((0,))
    x, a, b = (builder.tensor([8, 4]) for _ in range(3))
    builder.op("relu", [x], [a])
    builder.op("mm", [a], [b])
    graph = builder.graph([], [b])
    steps = schedule(graph, [Stage(0, 0, graph.ops, (), (), (), 0, ())], pipelined=True)
    made = timeline(graph, steps, frozenset(), crossing_tensors(graph), materialised(graph), no_cost)
    assert made.live_bytes().sum(axis=0).tolist() == [128, 128]


def test_statistics_that_are_always_live_are_not_counted_again_where_they_are_written():
    builder = Builder((0,))
    x, running = builder.tensor([8, 4], "input", "input/0"), builder.tensor([4], "buffer", "running_mean")
    normed, after = builder.tensor([8, 4]), builder.tensor([4], base=running)
    builder.op("native_batch_norm", [x, running], [normed, after])
    graph = builder.graph([x], [normed])
    steps = schedule(graph, [Stage(0, 0, graph.ops, (), (), (), 0, ())], pipelined=True)
    resident = frozenset([x, running])
    made = timeline(graph, steps, resident, crossing_tensors(graph), materialised(graph), no_cost)
    assert made.live_bytes().sum(axis=0).tolist() == [64]


def test_nothing_writes_over_what_is_still_read_or_of_another_size():
    builder = Builder((0,))
    x = builder.tensor([8, 4], "input", "input/0")
    a, b = builder.tensor([8, 4]), builder.tensor([8, 4])
    wide, total = builder.tensor([8, 4], dtype="float32"), builder.tensor([8, 4], dtype="float32")
    builder.op("mm", [x], [a])
    builder.op("relu", [a], [b])
    builder.op("add", [a, b], [wide])
    builder.op("mul", [wide, wide], [total])
    graph = builder.graph([x], [total])
    steps = schedule(graph, [Stage(0, 0, graph.ops, (), (), (), 0, ())], pipelined=True)
    made = timeline(graph, steps, frozenset([x]), crossing_tensors(graph), materialised(graph), no_cost)
    assert made.live_bytes().sum(axis=0).tolist() == [64, 128, 256, 128]


def test_without_a_pipeline_what_the_backward_pass_needs_lives_until_then():
    graph = chain((0, 1), [[4, 4], [4]])
    program = settings(2, execution="sharded", recompute=False)
    stages = stages_of(graph, program)
    resident = frozenset({*graph.inputs, *(key for key, place in homes(graph).items() if place == 0)})
    steps = schedule(graph, stages[:1], pipelined=False)
    made = timeline(graph, steps, resident, crossing_tensors(graph), materialised(graph), no_cost)
    # y of both layers and z of the first are read in the backward pass; nothing is restored.
    middle = next(event for event, step in enumerate(steps) if step.phase == "backward")
    live = made.live_at(middle)
    assert sorted(buffer.name for buffer in live if "gelu_backward" not in buffer.name) == sorted(
        ["mm [8, 4]", "mm [8, 4]", "gelu [8, 4]", "gelu [8, 4]", "received [8, 4]"]
    )
