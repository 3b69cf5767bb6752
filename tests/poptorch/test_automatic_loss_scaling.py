"""Automatic loss scaling, which can be watched in every precision."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import options, poptorch

SIZE = 4
Mode = poptorch.OutputMode
# An eighth of float16's largest number: a scaled gradient above it halves the scale.
EDGE = 65504 / 8


@pytest.fixture(params=["float32", "ipu-float16"], autouse=True)
def precision(request, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", request.param)


class Given(torch.nn.Module):
    """A weight [4] whose gradient is the input, summed over the micro batch."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(SIZE, dtype=dtype))

    def forward(self, x):
        return poptorch.identity_loss((self.weight * x).float().sum(), "sum")


def start(counts=(1, 1, 1), dtype=torch.float16, optimizer_of=None, scaling=True, strategy=None):
    """(executor, optimizer): loss scaling 4, anchors of every micro batch."""
    made = options(*counts)
    made.Training.setAutomaticLossScaling(scaling)
    if strategy is not None:
        made.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    for short, long in (("s", "finalLossScale"), ("factor", "lossScaleUpdateFactor")):
        made.anchorTensor(short, long, Mode.All)
    model = Given(dtype)
    kind = optimizer_of or (lambda weights: poptorch.optim.SGD(weights, lr=2.0**-9, loss_scaling=4.0))
    optimizer = kind(model.parameters())
    return poptorch.trainingModel(model, made, optimizer), optimizer


def scales(largest, updates, scale=4.0):
    """The loss scale of each update, and of the one after the last, for these largest gradients."""
    found = [scale]
    for _ in range(updates):
        scale = scale / 2 if largest * scale > EDGE else min(scale * 2, 2.0**15)
        found.append(scale)
    return found


@pytest.mark.parametrize("largest", [1.0, 32.0, 2.0**-10, 4096.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_scale_of_each_micro_batch_can_be_anchored(dtype, largest):
    executor, optimizer = start((6, 2, 2), dtype)
    executor(torch.full((24, SIZE), largest, dtype=dtype))
    expected = scales(largest, 6)
    # [iterations, accumulation, replicas]: it changes with each update.
    each = [scale for scale in expected[:-1] for _ in range(4)]
    assert executor.getAnchoredTensor("s").tolist() == each
    assert executor.getAnchoredTensor("factor").tolist() == [scale / 4 for scale in each]
    state = optimizer.state_dict()["ipu_state"]
    assert state["lossScaleUpdateFactor"].item() == expected[-1] / 4
    executor(torch.full((24, SIZE), largest, dtype=dtype))
    assert executor.getAnchoredTensor("s")[0] == expected[-1]


def test_a_single_large_micro_batch_lowers_it():
    executor, _ = start((3, 2, 1))
    x = torch.ones(6, SIZE, dtype=torch.float16)
    x[2] = 4096.0
    executor(x)
    assert executor.getAnchoredTensor("s").tolist() == [4, 4, 8, 8, 4, 4]


@pytest.mark.parametrize("mode", ["Final", "Sum", "All"])
def test_a_scale_is_laid_out_like_a_loss(mode):
    made = options(2).outputMode(Mode.Final)
    made.Training.setAutomaticLossScaling(True)
    made.anchorTensor("s", "finalLossScale", Mode[mode])
    model = Given(torch.float32)
    executor = poptorch.trainingModel(model, made, poptorch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.ones(2, SIZE))
    shown = executor.getAnchoredTensor("s")
    assert shown.dtype is torch.float32
    assert shown.tolist() == {"Final": 2.0, "Sum": 3.0, "All": [1.0, 2.0]}[mode]


@pytest.mark.parametrize("strategy", [*poptorch.MeanReductionStrategy], ids=lambda s: s.name)
def test_it_follows_the_gradients_that_the_device_would_have(strategy):
    """PostAndLoss divides the loss by the accumulation steps, so gradients reach the edge later."""
    executor, _ = start((12, 4, 1), strategy=strategy)
    executor(torch.ones(48, SIZE, dtype=torch.float16))
    divided = 4 if strategy is poptorch.MeanReductionStrategy.PostAndLoss else 1
    each = [scale for scale in scales(1 / divided, 12)[:-1] for _ in range(4)]
    assert executor.getAnchoredTensor("s").tolist() == each


def test_updates_are_those_without_it(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_MERGE", "0")  # with it they aren't merged

    def trained(scaling):
        model = torch.nn.Linear(SIZE, 3)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.arange(float(weight.numel())).reshape(weight.shape) / 16)

        class Loss(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, x):
                return poptorch.identity_loss((self.model(x) ** 2).sum(), "sum")

        made = options(2, 2, 2)
        made.Training.setAutomaticLossScaling(scaling)
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
        poptorch.trainingModel(Loss(), made, optimizer)(torch.linspace(-1, 1, 32).reshape(8, SIZE))
        return model.state_dict()

    with_it, without = trained(True), trained(False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_the_factor_is_part_of_a_loaded_state():
    executor, optimizer = start((3, 1, 1))
    executor(torch.ones(3, SIZE, dtype=torch.float16))
    state = optimizer.state_dict()
    assert state["ipu_state"]["lossScaleUpdateFactor"].item() == 8.0
    other, resumed = start()
    resumed.load_state_dict(state)
    other(torch.ones(1, SIZE, dtype=torch.float16))
    assert other.getAnchoredTensor("s").item() == 32.0


def test_the_loss_scaling_becomes_variable():
    _, optimizer = start(optimizer_of=lambda weights: poptorch.optim.AdamW(weights, lr=0.5))
    assert not optimizer.variable_attrs.isConstant("loss_scaling")
    executor, optimizer = start(optimizer_of=lambda weights: poptorch.optim.AdamW(weights, lr=0.5))
    executor(torch.ones(1, SIZE, dtype=torch.float16))
    assert optimizer.state_dict()["ipu_param"]["lossScaling_FLOAT"].item() == 1.0
    optimizer.loss_scaling = 16.0
    executor.setOptimizer(optimizer)
    executor(torch.ones(1, SIZE, dtype=torch.float16))
    assert executor.getAnchoredTensor("s").item() == 32.0


def test_it_goes_with_optimizers_of_pytorch():
    executor, _ = start((3, 1, 1), optimizer_of=lambda weights: torch.optim.SGD(weights, lr=2.0**-9))
    executor(torch.ones(3, SIZE, dtype=torch.float16))
    assert executor.getAnchoredTensor("s").tolist() == [1.0, 2.0, 4.0]


def test_without_it_there_is_no_such_tensor():
    executor, _ = start(scaling=False)
    with pytest.raises(poptorch.Error, match="Anchor tensor 'finalLossScale'"):
        executor(torch.ones(1, SIZE, dtype=torch.float16))
    made = options()
    made.Training.setAutomaticLossScaling(True)
    model = Given(torch.float16)
    executor = poptorch.trainingModel(model, made, poptorch.optim.SGD(model.parameters(), lr=1.0))
    executor.compile(torch.ones(1, SIZE, dtype=torch.float16))
    assert {"lossScaling_FLOAT", "lossScaleUpdateFactor", "finalLossScale"} <= {*executor.getTensorNames()}
