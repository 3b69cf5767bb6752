"""Pipeline stages: what each computes in forward, recomputation and backward, and what it stashes.

F forward stages make 2F - 1 pipeline stages: the backward pass of forward stage s runs 2(F - 1 - s) pipeline
cycles later; the last stage runs both in one cycle. Until then the inputs of the backward pass are stashed
for each micro batch in flight (PopART, transforms/pipeline.cpp). `restage` moves blocks to other IPUs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Iterable, Protocol, Sequence

from ..op_table import row_of
from .ir import Graph, Op


class PipelineSettings(Protocol):
    """The settings of a program (cost/settings.py) that stages depend on."""

    @property
    def execution(self) -> str: ...

    @property
    def recompute(self) -> bool: ...


# Roles of tensors that are on each IPU from the start.
_WEIGHTS = frozenset({"parameter", "buffer", "constant"})


@dataclass(frozen=True)
class Stage:
    """One forward pipeline stage and its backward stage, both on the same IPU.

    :param recompute: forward operations that run again before the backward pass, in order. Those of one
        segment run just before its backward pass. In a pipeline's last stage, none after the last checkpoint
        (PopART, transforms/pipeline.cpp, setFinalFwdStageRecomputation), so usually none at all.
    :param stashed: ids of tensors that own their memory and are stashed for the backward pass. With
        recomputation: the stage's inputs and checkpoints from which it starts; otherwise all that the
        backward pass uses. Random operations repeat their draws from a seed of a few bytes, which isn't
        listed.
    :param stash_slots: number of micro batches of `stashed` in flight: 2(F-1-s)+1, 0 in the last stage. 1
        without a pipeline: the tensors themselves, not copies.
    :param sends_forward: ids of activations sent to the next stage's IPU, which may pass them on.
    :param sends_backward: ids of gradients sent to the previous stage's IPU.
    """

    index: int
    ipu: int
    forward: tuple[Op, ...]
    recompute: tuple[Op, ...]
    backward: tuple[Op, ...]
    stashed: tuple[int, ...]
    stash_slots: int
    sends_forward: tuple[int, ...]
    sends_backward: tuple[int, ...] = ()


def stages_of(graph: Graph, settings: PipelineSettings) -> tuple[Stage, ...]:
    """The stages of a graph; one per entry of `graph.stage_ipus`, including empty ones."""
    forward = [op for op in graph.ops if op.phase == "forward"]
    backward = [op for op in graph.ops if op.phase == "backward"]
    uses = _Uses(graph, forward)
    weights_gradients = _weights_gradients(graph, backward)
    num_stages = len(graph.stage_ipus)
    made = []
    for index, ipu in enumerate(graph.stage_ipus):
        pipelined = settings.execution == "pipelined"
        is_last = index == num_stages - 1
        of_backward = tuple(op for op in backward if op.stage == index)
        of_forward = tuple(op for op in forward if op.stage == index)
        final_segment = None
        if pipelined and is_last:
            final_segment = max((op.segment for op in of_forward), default=0)
        kept, again = uses.kept_and_recomputed(index, of_backward, settings.recompute, final_segment)
        if pipelined and is_last:
            kept = ()
        made.append(
            Stage(
                index=index,
                ipu=ipu,
                forward=of_forward,
                recompute=again,
                backward=of_backward,
                stashed=kept,
                stash_slots=_stash_slots(index, num_stages, pipelined) if graph.training else 0,
                sends_forward=_crossing(graph, forward, index, 1),
                sends_backward=_crossing(graph, backward, index, -1, weights_gradients),
            )
        )
    return tuple(made)


def _stash_slots(index: int, num_stages: int, pipelined: bool) -> int:
    if not pipelined:
        return 1
    return 0 if index == num_stages - 1 else 2 * (num_stages - 1 - index) + 1


class _Uses:
    """The forward tensors that the backward passes use."""

    def __init__(self, graph: Graph, forward: list[Op]) -> None:
        self._graph = graph
        self._producers = {number: op for op in forward for number in op.outputs}
        self._weights_alone = {tensor.id for tensor in graph.tensors if tensor.role in _WEIGHTS}
        # Tensors that depend only on weights are the same for every micro batch.
        for op in forward:
            if op.inputs and all(number in self._weights_alone for number in op.inputs):
                self._weights_alone.update(op.outputs)

    def kept_and_recomputed(
        self, stage: int, backward: Iterable[Op], recompute: bool, final_segment: int | None
    ) -> tuple[tuple[int, ...], tuple[Op, ...]]:
        """(tensors to stash for the backward pass, operations to recompute before it).

        :param final_segment: of a pipeline's last stage: operations from there to the loss run only once.
        """
        kept: set[int] = set()
        again: set[int] = set()
        waiting = [number for op in backward for number in op.inputs]
        seen: set[int] = set()
        while waiting:
            number = waiting.pop()
            if number in seen or number in self._weights_alone:
                continue
            seen.add(number)
            tensor = self._graph.tensors[number]
            producer = self._producers.get(number)
            if producer is None and tensor.role != "input":
                continue  # produced in the backward pass
            runs_once = (
                producer is not None and final_segment is not None and producer.segment >= final_segment
            )
            if producer is None or producer.stage != stage or number in self._graph.checkpoints or runs_once:
                kept.add(self._memory(number))
            elif tensor.base is not None:
                # Recomputing a view is free.
                again.add(producer.index)
                waiting += producer.inputs
            elif recompute:
                again.add(producer.index)
                waiting += producer.inputs
            else:
                kept.add(number)
        order = sorted(again)
        return tuple(sorted(kept)), tuple(self._graph.ops[index] for index in order)

    def _memory(self, number: int) -> int:
        """The tensor to stash: the owner of the memory, or a view of less than half of it."""
        owner = self._graph.owner(number)
        tensor = self._graph.tensors[number]
        return number if 2 * tensor.elements < owner.elements else owner.id


def _weights_gradients(graph: Graph, backward: list[Op]) -> frozenset[int]:
    """Gradients of weights and their summands: a weight that two stages use is on one IPU, which adds both to
    its accumulator.
    """
    makers = {number: op for op in backward for number in op.outputs}
    found: set[int] = set()
    waiting = list(graph.gradients.values())
    while waiting:
        number = waiting.pop()
        found.add(graph.owner(number).id)
        maker = makers.get(graph.owner(number).id)
        if maker is not None and row_of(maker.name).sums_gradients:
            waiting += maker.inputs
    return frozenset(found)


def _crossing(
    graph: Graph, ops: list[Op], index: int, direction: int, staying: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Tensors that leave a stage for the next one (direction 1) or the previous one (-1).

    A tensor for a later stage passes through all stages between. Views are sent with their memory.
    """
    if not 0 <= index + direction < len(graph.stage_ipus):
        return ()
    makers = {number: op.stage for op in ops for number in op.outputs}
    leaving = set()
    for op in ops:
        for number in op.inputs:
            maker = makers.get(number)
            if maker is not None and direction * maker <= direction * index < direction * op.stage:
                owner = graph.owner(number)
                if owner.role not in _WEIGHTS and owner.id not in staying:
                    leaving.add(owner.id)
    return tuple(sorted(leaving))


def restage(graph: Graph, ipu_of_block: Sequence[int]) -> Graph:
    """The graph that would have been captured with these blocks on these IPUs, without capturing it again.

    :param graph: captured with every block as a separate stage: each on another IPU than the one before.
    :param ipu_of_block: the new IPU for each stage of `graph`. Consecutive blocks on the same IPU become one
        stage.
    """
    assert len(ipu_of_block) == len(graph.stage_ipus), (ipu_of_block, graph.stage_ipus)
    checkpoints_of_block = Counter(
        graph.producers[graph.owner(number).id].stage
        for number in graph.checkpoints
        if graph.owner(number).id in graph.producers
    )
    stage_ipus: list[int] = []
    places: list[tuple[int, int, int]] = []  # of each block: stage, IPU, checkpoints before it in its stage
    segment = 0
    for block, ipu in enumerate(ipu_of_block):
        if not stage_ipus or stage_ipus[-1] != ipu:
            stage_ipus.append(ipu)
            segment = 0
        places.append((len(stage_ipus) - 1, ipu, segment))
        segment += checkpoints_of_block[block]
    ops = []
    for op in graph.ops:
        stage, ipu, before = places[op.stage]
        ops.append(replace(op, stage=stage, ipu=ipu, segment=before + op.segment))
    return replace(graph, ops=tuple(ops), stage_ipus=tuple(stage_ipus))
