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
