"""poptorch.simulator: a verdict from Python."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
from ipu_simulator.environment import UnknownTarget, target  # noqa: E402 (there once the device is chosen)
from poptorch import simulator  # noqa: E402


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = poptorch.BeginBlock(torch.nn.Linear(64, 256), ipu_id=0)
        self.second = poptorch.BeginBlock(torch.nn.Linear(256, 64), ipu_id=1)

    def forward(self, x, labels=None):
        out = self.second(torch.relu(self.first(x)))
        if labels is None:
            return out
        return out, torch.nn.functional.mse_loss(out, labels)


def training_program(micro_batch_size=4):
    model = Model()
    options = poptorch.Options().deviceIterations(3)
    options.Training.gradientAccumulation(8)
    inputs = (torch.zeros(micro_batch_size, 64), torch.zeros(micro_batch_size, 64))
    return model, inputs, options, poptorch.optim.AdamW(model.parameters(), lr=1e-3)


def test_a_verdict_is_that_of_the_executor_that_compiles_the_program():
    model, inputs, options, optimizer = training_program()
    options.logCycleCount(True)
    verdict = simulator.verdict_of(model, inputs, options, optimizer)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(*(tensor.repeat(3 * 8, 1) for tensor in inputs))
    device_s = verdict.step_s - verdict.host_s
    assert executor.cycleCount() == round(device_s * 3 * target().clock_hz)


def test_nothing_needs_memory_or_values():
    """A model created without memory has the same verdict."""
    expected = simulator.verdict_of(*training_program())
    with simulator.without_memory():
        program = training_program()
    assert simulator.verdict_of(*program) == expected
    assert expected.fits and len(expected.ipus) == 2


def test_without_an_optimizer_it_is_inference():
    options = poptorch.Options().deviceIterations(2)
    verdict = simulator.verdict_of(Model(), (torch.zeros(4, 64),), options)
    assert verdict.pipeline.forward_stages == 2
    by_name = simulator.verdict_of(Model(), (), options, kwargs={"x": torch.zeros(4, 64)})
    assert by_name == verdict


def test_a_program_that_does_not_compile_is_poptorchs_error():
    """Default options give a pipeline of two stages too few iterations."""
    with pytest.raises(poptorch.Error, match=r"greater than or equal to the number of pipeline stages \(2\)"):
        simulator.verdict_of(Model(), (torch.zeros(4, 64),))


def test_the_machine_is_asked_for_by_name():
    small, large = (simulator.verdict_of(*training_program(), target=name) for name in ("pod4", "bow-pod16"))
    assert (small.target, large.target) == ("pod4", "bow-pod16")
    assert large.step_s < small.step_s
    with pytest.raises(UnknownTarget, match="target is 'pod5'"):
        simulator.verdict_of(*training_program(), target="pod5")


def test_importing_poptorch_leaves_it_alone():
    program = "import sys, poptorch; print('poptorch.simulator' in sys.modules)"
    path = {"PYTHONPATH": str(ipu.DROP_IN)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "False\n"
