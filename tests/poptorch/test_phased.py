"""Phased execution: placement of blocks, errors, and unchanged results."""

from __future__ import annotations

import json

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


def _two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    poptorch.BeginBlock(layers[0], "A")
    poptorch.BeginBlock(layers[1], "B")
    return layers


def _places(strategy, blocks: str) -> list[tuple[int, int]]:
    """(phase, IPU) of each block, from a model with one operation per block."""

    class Model(torch.nn.Module):
        def forward(self, x):
            for block in blocks.split():
                with poptorch.Block(block):
                    x = torch.relu(x)
            return x

    options = poptorch.Options().setExecutionStrategy(strategy).autoRoundNumIPUs(True)
    executor = poptorch.inferenceModel(Model(), options)
    executor.compile(torch.ones(2))
    nodes = json.loads(executor._debugGetPopartIR())["maingraph"]
    attributes = [node["attributes"] for node in nodes]
    return [(int(each["__pipeline_stage"]), int(each["__ipu_number"])) for each in attributes]


@pytest.mark.parametrize("kind", [poptorch.SerialPhasedExecution, poptorch.ParallelPhasedExecution])
def test_phases_give_what_the_model_gives(kind):
    model = _two_layers()
    inputs = torch.randn(5, 3)
    options = poptorch.Options().setExecutionStrategy(kind("A", ["B"]))
    assert torch.equal(poptorch.inferenceModel(model, options)(inputs), model(inputs))


@pytest.mark.parametrize("kind", [poptorch.SerialPhasedExecution, poptorch.ParallelPhasedExecution])
def test_phases_must_be_given(kind):
    for arguments in ((), (poptorch.AutoStage.AutoIncrement,)):
        with pytest.raises(AssertionError, match="no AutoStage for PhasedExecution, please explicitly"):
            kind(*arguments)


def test_parallel_phases_alternate_between_even_and_odd_ipus():
    Stage = poptorch.Stage
    strategy = poptorch.ParallelPhasedExecution(
        [Stage("A"), Stage("A2")], [Stage("B"), Stage("B2")], [Stage("C"), Stage("C2")]
    )
    assert _places(strategy, "A A2 B B2 C C2") == [
        (0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2),
    ]  # fmt: skip
    strategy.phase(1).ipus(3, 5)
    assert _places(strategy, "A B2") == [(0, 0), (1, 5)]
    strategy.phase(1).ipus(0, 1)
    with pytest.raises(AssertionError, match="even IPUs and odd phases on odd"):
        _places(strategy, "A B")


def test_serial_phases_share_their_ipus():
    strategy = poptorch.SerialPhasedExecution(
        poptorch.Phase(poptorch.Stage("A"), poptorch.Stage("A2")), poptorch.Phase("B", "C")
    )
    assert _places(strategy, "A A2 B C") == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 0),
    ]
    assert strategy.stage("C") is strategy.phase(1).stage(0)


def test_unknown_blocks_and_phases_are_refused():
    strategy = poptorch.SerialPhasedExecution("A", "B")
    with pytest.raises(AssertionError, match="Unknown block C"):
        strategy.stage("C")
    with pytest.raises(AssertionError, match="Unknown Block 'C' list of expected Blocks"):
        _places(strategy, "A C")
    with pytest.raises(AssertionError, match="Unknown phase 2"):
        strategy.phase(2)
    with pytest.raises(AssertionError, match="A associated with more than one stage"):
        poptorch.SerialPhasedExecution("A", "A")
    with pytest.raises(AssertionError, match="one IPU for each"):
        strategy.phase(0).ipus(0, 1)


def test_settings_reach_the_options():
    serial = poptorch.SerialPhasedExecution("A").useSeparateBackwardPhase()
    serial.setTensorsLiveness(poptorch.Liveness.OffChipAfterEachPhase)
    assert serial.backendOptions() == {
        "execution_mode": 2,
        "separate_backward_phase": True,
        "tensors_liveness": 3,
        "serial_phases_execution": True,
    }
    parallel = poptorch.ParallelPhasedExecution("A").sendTensorsOffChipAfterFwd()
    assert parallel.backendOptions()["tensors_liveness"] == poptorch.Liveness.OffChipAfterFwd.value
    with pytest.raises(AssertionError):
        serial.setTensorsLiveness(3)
