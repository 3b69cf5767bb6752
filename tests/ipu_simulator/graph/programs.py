"""Programs for these tests, and a check that every captured graph must pass."""

from __future__ import annotations

import contextlib
from typing import Any, Sequence

import torch
from ipu_simulator.graph.ir import BYTES_OF_DTYPE

import ipu
import model as models
from tests.model.builders import VARIANTS, batch

ipu.select_device("simulator")
poptorch = ipu.poptorch
from poptorch import simulator  # noqa: E402 (there once the device is chosen)

BERT = VARIANTS["post-plain-dense"]
GROUPBERT = VARIANTS["pre-convolution-grouped_projected"]


def options(strategy: Any = None, **popart: Any) -> Any:
    """Options with enough gradient accumulation for every program here."""
    made = poptorch.Options()
    made.setExecutionStrategy(strategy or poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    made.deviceIterations(16)
    made.Training.gradientAccumulation(16)
    made.autoRoundNumIPUs(True)
    for name, value in popart.items():
        made._Popart.set(name, value)
    return made


def pretraining(
    config: models.ModelConfig,
    *,
    layers_per_ipu: Sequence[int] = (0, 1, 1),
    half: bool = False,
    without_memory: bool = True,
    serialization: int = 2,
    checkpoints: bool = True,
) -> models.PretrainingModel:
    """A pretraining model on IPUs, by default without memory for its weights."""
    with simulator.without_memory() if without_memory else contextlib.nullcontext():
        model = models.PretrainingModel(config, seed=0)
        if half:
            model.half()
    models.annotate(
        model,
        layers_per_ipu,
        embedding_serialization_factor=serialization,
        recompute_checkpoint_every_layer=checkpoints,
    )
    return model


def captured(
    model: torch.nn.Module, *args: Any, training: bool = True, made: Any = None, with_values: bool = False
) -> Any:
    """The graph of a model, checked."""
    graph = simulator.capture(model, args, {}, made or options(), training, with_values)
    check(graph)
    return graph


def captured_pretraining(config: models.ModelConfig, **how: Any) -> Any:
    """The graph of a pretraining model on a batch of 4 sequences of 20 tokens with 5 masked ones."""
    return captured(pretraining(config, **how), *batch(config))


def check(graph: Any) -> None:
    """Asserts what holds in every graph: each tensor is made once, before it is used; memory is shared with
    older tensors only; the forward pass comes first and never sees the backward pass.
    """
    made = {tensor.id for tensor in graph.tensors if tensor.role != "activation"}
    assert [tensor.id for tensor in graph.tensors] == list(range(len(graph.tensors)))
    for index, op in enumerate(graph.ops):
        assert op.index == index
        assert set(op.inputs) <= made, (op, [graph.tensors[number] for number in op.inputs])
        assert not made & set(op.outputs), op
        assert op.ipu == graph.stage_ipus[op.stage]
        made |= set(op.outputs)
    phases = [op.phase for op in graph.ops]
    assert phases == sorted(phases, reverse=True)
    for tensor in graph.tensors:
        assert tensor.dtype in BYTES_OF_DTYPE
        assert tensor.base is None or tensor.base < tensor.id
    for parameter, gradient in graph.gradients.items():
        assert graph.tensors[parameter].role == "parameter"
        assert graph.tensors[gradient].shape == graph.tensors[parameter].shape
        assert graph.tensors[gradient].dtype == graph.tensors[parameter].dtype
        assert gradient in made
    assert set(graph.outputs) <= made and set(graph.inputs) <= made
    assert [graph.tensors[number].role for number in graph.inputs] == ["input"] * len(graph.inputs)


def names(graph: Any, phase: str, module: str | None = None) -> list[str]:
    """Names of the operations of a phase, of one module if it is given."""
    return [op.name for op in graph.ops if op.phase == phase and module in (None, op.module)]
