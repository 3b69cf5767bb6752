"""Forwards with TorchScript, autograd functions, activation checkpoints and loops."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.poptorch.executor_models import poptorch


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 1.41421))


class Twice(torch.autograd.Function):
    """Its gradient is twice the true one, so that tests can tell them apart."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x.exp()


class Forward(torch.nn.Module):
    """A linear layer, a function applied to its result, and the mean squared error."""

    def __init__(self, function, layer):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        y = self.function(self.layer, x)
        return y, torch.nn.functional.mse_loss(y, x)


@pytest.mark.parametrize(
    ("function", "compiles"),
    [
        (lambda layer, x: scripted(layer(x)), False),
        (lambda layer, x: layer(x), True),
        (lambda layer, x: Twice.apply(layer(x)), False),
        (lambda layer, x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False), False),
        (lambda layer, x: torch.stack([row * 2 for row in layer(x)]), False),
        (lambda layer, x: torch.vmap(lambda row: row * 2)(layer(x)), False),
    ],
)
def test_trains_as_on_the_host(function, compiles):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    device = Forward(function, torch.jit.script(copy.deepcopy(layer)) if compiles else copy.deepcopy(layer))
    host, x = Forward(function, layer), torch.randn(4, 3)
    executor = poptorch.trainingModel(device, optimizer=torch.optim.SGD(device.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    for _ in range(2):
        found, loss = executor(x)
        expected, expected_loss = host(x)
        optimizer.zero_grad()
        expected_loss.backward()
        optimizer.step()
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(loss, expected_loss.detach())
    for mine, theirs in zip(device.parameters(), host.parameters()):
        torch.testing.assert_close(mine.detach(), theirs.detach())


@pytest.mark.parametrize("script", [scripted, Twice.apply])
def test_a_loss_that_goes_through_it_is_no_loss_of_its_own(script):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x):
            return poptorch.identity_loss(script(torch.nn.functional.mse_loss(self.layer(x), x)), "none")

    x = torch.randn(4, 3)
    executor = poptorch.trainingModel(Model())
    assert executor(x) > executor(x)


@pytest.mark.parametrize(
    "wrapped", [torch.nn.Parameter, torch.nn.Buffer, lambda x: torch.Tensor.as_subclass(x, torch.Tensor)]
)
def test_another_object_for_the_same_elements_has_those_of_each_run(wrapped):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return wrapped(x) * self.weight + wrapped(self.weight * x)

    executor = poptorch.inferenceModel(Model())
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(executor(torch.full((2,), value)), torch.full((2,), 2 * value))


class ReadsStatistics(torch.nn.Module):
    """Reads a norm's running mean before and after the norm; the weight's gradient is the mean."""

    def __init__(self, norm, beside):
        super().__init__()
        self.norm = norm
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.beside = beside

    def forward(self, x):
        before = self.norm.running_mean * 1
        y = self.beside(self.norm(x))
        after = self.norm.running_mean + 0 * y.mean()
        loss = poptorch.identity_loss(self.weight * self.norm.running_mean, "sum")
        return before, after, self.norm.running_mean, self.norm.running_var, loss


@pytest.mark.parametrize("beside", [lambda y: y, Twice.apply], ids=["replayed", "called"])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("norm", [torch.nn.BatchNorm1d, torch.nn.InstanceNorm1d])
def test_running_statistics_read_after_their_norm_are_those_from_before(norm, narrow, beside):
    norm = norm(2, affine=True, track_running_stats=True)
    model = ReadsStatistics(norm.half() if narrow else norm, beside)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
    options = poptorch.Options().deviceIterations(2)
    options.outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, options, optimizer)
    x = torch.tensor([[[1.0, 3.0], [4.0, 8.0]]]).repeat(4, 1, 1)  # means of 2 and 6
    mean, mean_sum = torch.zeros(2), torch.zeros(2)
    for _ in range(2):
        found = executor(x.half() if narrow else x)
        for iteration in range(2):
            for read in found[:3]:
                torch.testing.assert_close(read.view(2, -1, 2)[iteration, 0].float(), mean, rtol=2e-3, atol=0)
            mean_sum += mean
            mean = 0.9 * mean + 0.1 * torch.tensor([2.0, 6.0])
    executor.copyWeightsToHost()
    torch.testing.assert_close(norm.running_mean.float(), mean, rtol=2e-3, atol=0)
    torch.testing.assert_close(model.weight.detach(), -mean_sum, rtol=2e-3, atol=0)
    assert float(norm.running_var[0]) != 1


def test_mixed_statistics_of_replicas_are_no_change_of_a_buffer():
    """The implicit casts copy them back, inside the norm."""
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.data, norm.running_var.data = norm.running_mean.half(), norm.running_var.half()
    executor = poptorch.inferenceModel(torch.nn.Sequential(norm), poptorch.Options().replicationFactor(2))
    assert executor(torch.randn(4, 2)).shape == (4, 2)


def test_statistics_that_the_forward_changes_itself_are_pytorchs():
    class Clamps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, x):
            y = self.norm(x)
            self.norm.running_mean.clamp_(max=0.25)
            return y, self.norm.running_mean * 1

    executor = poptorch.inferenceModel(Clamps())
    for expected in ([0.2, 0.25], [0.25, 0.25]):
        found = executor(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))[1]
        torch.testing.assert_close(found, torch.tensor(expected))
