"""Stages, checked by executing them: a backward pass finds every tensor it reads, and keeps no other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.graph.ir import Graph
from ipu_simulator.graph.stages import Stage, restage, stages_of
from torch import nn

import model as models
from tests.ipu_simulator.cost.graphs import Builder, chain
from tests.ipu_simulator.graph.programs import (
    BERT,
    GROUPBERT,
    captured,
    captured_pretraining,
    options,
    poptorch,
    pretraining,
)
from tests.model.builders import batch

HIDDEN = (4, 20, BERT.hidden_size)
DEEP = replace(BERT, num_layers=4)


def settings(execution: str = "pipelined", recompute: bool = True) -> SimpleNamespace:
    return SimpleNamespace(execution=execution, recompute=recompute)


def lacks(graph, stage: Stage, without: int | None = None) -> bool:
    """Whether an operation of a stage's backward pass lacks a tensor, starting from the stash.

    :param without: a stashed tensor, or the first output of a recomputed operation, to be left out.
    """
    weights = {tensor.id for tensor in graph.tensors if tensor.role in ("parameter", "buffer", "constant")}
    for op in graph.ops:
        if op.inputs and set(op.inputs) <= weights:
            weights |= set(op.outputs)
    backward = {number for op in graph.ops if op.phase == "backward" for number in op.outputs}
    there = weights | backward | set(stage.stashed) - {without}
    # A view of what is there is there.
    for op in (*stage.forward, *(op for op in graph.ops if op.stage != stage.index)):
        views = all(graph.tensors[number].base is not None for number in op.outputs)
        if views and set(op.inputs) <= there:
            there |= set(op.outputs)
    for op in (*stage.recompute, *stage.backward):
        if not set(op.inputs) <= there:
            return True
        if op.outputs[0] != without:
            there |= set(op.outputs)
    return False


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("config", [DEEP, replace(GROUPBERT, num_layers=4)], ids=["bert", "groupbert"])
def test_what_the_backward_pass_reads_is_kept_or_made_again(
    config: models.ModelConfig, checkpoints: bool, recompute: bool
) -> None:
    config = replace(config, hidden_dropout=0.1)
    graph = captured_pretraining(config, layers_per_ipu=(1, 2, 1), checkpoints=checkpoints)
    for stage in stages_of(graph, settings(recompute=recompute))[:-1]:
        assert not lacks(graph, stage)
        for number in stage.stashed:
            assert lacks(graph, stage, number)
        computing = [op for op in stage.recompute if graph.tensors[op.outputs[0]].base is None]
        assert bool(computing) == recompute
        for op in computing:
            assert lacks(graph, stage, op.outputs[0]), op


def test_without_a_pipeline_the_last_stage_recomputes_like_the_others() -> None:
    """PopART's rule for the final forward stage is one of pipelines."""
    graph = captured_pretraining(DEEP, layers_per_ipu=(1, 2, 1))
    stages = stages_of(graph, settings("sharded"))
    assert [stage.stash_slots for stage in stages] == [1] * len(stages)
    last = stages[-1]
    computing = [op for op in last.recompute if graph.tensors[op.outputs[0]].base is None]
    assert computing and not lacks(graph, last)
    assert all(lacks(graph, last, number) for number in last.stashed)
    assert all(lacks(graph, last, op.outputs[0]) for op in computing)


def test_slots_are_those_of_the_published_schedule() -> None:
    graph = captured_pretraining(DEEP, layers_per_ipu=(0, 2, 1, 1))
    assert [stage.stash_slots for stage in stages_of(graph, settings())] == [9, 7, 5, 3, 0]


def test_stages_have_every_operation_once() -> None:
    graph = captured_pretraining(DEEP, layers_per_ipu=(1, 2, 1))
    stages = stages_of(graph, settings())
    assert [(stage.index, stage.ipu) for stage in stages] == [(0, 0), (1, 1), (2, 2), (3, 0)]
    of_stages = [op.index for stage in stages for op in (*stage.forward, *stage.backward)]
    assert sorted(of_stages) == list(range(len(graph.ops)))


def test_a_stage_of_layers_keeps_its_input_and_the_checkpoints_between_them() -> None:
    graph = captured_pretraining(DEEP, layers_per_ipu=(0, 3, 1))
    embedding, layers, layer, head = stages_of(graph, settings())

    def shapes(stage: Stage) -> list:
        return sorted(graph.tensors[number].shape for number in stage.stashed)

    # Word and token type ids: everything else is made again from them.
    assert shapes(embedding) == [(4, 20)] * 2
    # The mask, and the inputs of the three layers; the output of the last isn't needed here.
    assert shapes(layers) == [(4, 20)] + [HIDDEN] * 3
    assert shapes(layer) == [(4, 20), HIDDEN]
    assert not head.stashed and not head.recompute


def test_without_checkpoints_a_stage_keeps_its_inputs_alone() -> None:
    graph = captured_pretraining(DEEP, layers_per_ipu=(0, 3, 1), checkpoints=False)
    layers = stages_of(graph, settings())[1]
    assert sorted(graph.tensors[number].shape for number in layers.stashed) == [(4, 20), HIDDEN]


def test_metrics_are_not_computed_again() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = poptorch.BeginBlock(nn.Linear(4, 4), "first", 0)
            self.second = poptorch.BeginBlock(nn.Linear(4, 4), "second", 1)

        def forward(self, x, y):
            h = torch.tanh(self.first(x))
            largest = h.argmax(dim=1)
            return largest, F.mse_loss(self.second(torch.sigmoid(h)), y)

    graph = captured(Model(), torch.randn(2, 4), torch.randn(2, 4))
    first, _ = stages_of(graph, settings())
    assert "argmax" in [op.name for op in first.forward]
    # sigmoid's own gradient is worked out from its output, which therefore is made again.
    assert [op.name for op in first.recompute if op.name in ("argmax", "sigmoid", "tanh")] == [
        "tanh",
        "sigmoid",
    ]


def test_activations_go_forward_and_their_gradients_come_back() -> None:
    graph = captured_pretraining(DEEP, layers_per_ipu=(0, 2, 1, 1))
    stages = stages_of(graph, settings())

    def shapes(numbers: tuple[int, ...]) -> list:
        return sorted(graph.tensors[number].shape for number in numbers)

    # The mask passes through every stage that has layers behind it.
    assert [shapes(stage.sends_forward) for stage in stages] == [
        [(4, 20), HIDDEN],
        [(4, 20), HIDDEN],
        [(4, 20), HIDDEN],
        [HIDDEN],
        [],
    ]
    # The head's gradient of the word embeddings stays on IPU 0, where they are.
    assert [shapes(stage.sends_backward) for stage in stages] == [[], [HIDDEN], [HIDDEN], [HIDDEN], [HIDDEN]]


def test_stages_that_take_turns_keep_one_micro_batch() -> None:
    sharded = options(poptorch.ShardedExecution())
    graph = captured(pretraining(DEEP, layers_per_ipu=(0, 2, 2)), *batch(DEEP), made=sharded)
    stages = stages_of(graph, settings("sharded", recompute=False))
    assert [stage.stash_slots for stage in stages] == [1, 1, 1, 1]
    assert all(not lacks(graph, stage) for stage in stages)
    assert all(stage.stashed for stage in stages)


def test_inference_keeps_nothing() -> None:
    model = pretraining(DEEP, layers_per_ipu=(0, 2, 2)).eval()
    stages = stages_of(captured(model, *batch(DEEP), training=False), settings())
    assert [(stage.stashed, stage.recompute, stage.backward, stage.stash_slots) for stage in stages] == [
        ((), (), (), 0)
    ] * 4
    assert [len(stage.sends_forward) for stage in stages] == [2, 2, 1, 0]


def test_a_view_of_a_weight_for_a_later_stage_is_not_sent() -> None:
    """A weight's memory goes to no other IPU with each micro batch; a copy of it is an activation."""
    builder = Builder((0, 1))
    x, weight = builder.tensor((2, 3), "input"), builder.tensor((3, 3), "parameter")
    view, copied = builder.tensor((3, 3), base=weight), builder.tensor((3, 3))
    made, summed = builder.tensor((2, 3)), builder.tensor((2, 3))
    builder.op("t", [weight], [view])
    builder.op("clone", [x], [copied])
    builder.stage = 1
    builder.op("mm", [x, view], [made])
    builder.op("mm", [made, copied], [summed])
    graph = builder.graph([x], [summed])
    assert [stage.sends_forward for stage in stages_of(graph, settings())] == [(copied,), ()]


def test_moved_blocks_are_those_of_a_capture_there() -> None:
    """Checkpoints of earlier blocks in a stage count in the segments of later ones."""

    def places(graph: Graph) -> list:
        return [(op.name, op.stage, op.ipu, op.segment) for op in graph.ops]

    width = [8]
    for ipu_of_block in ((0, 0, 0, 1), (0, 1, 1, 1), (0, 1, 2, 2), (0, 0, 1, 0)):
        moved = restage(chain((0, 1, 2, 0), [width, width * 2, width, width * 3]), ipu_of_block)
        ipus = [ipu for ipu, _ in itertools.groupby(ipu_of_block)]
        layers = iter([1, 2, 1, 3])
        widths = [width * sum(next(layers) for _ in same) for _, same in itertools.groupby(ipu_of_block)]
        assert moved.stage_ipus == tuple(ipus)
        assert places(moved) == places(chain(ipus, widths))
