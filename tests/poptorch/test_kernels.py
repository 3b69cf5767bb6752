"""PyTorch kernels that the simulator avoids: wrong ones of old versions, slow ones in float16."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.poptorch.executor_models import poptorch


@pytest.mark.parametrize("version, allowed", [("2.0.1+cu117", False), ("2.1.0", True), ("2.13.0+cpu", True)])
def test_onednn_is_left_out_where_it_is_wrong(monkeypatch, version, allowed):
    before, seen = torch.backends.mkldnn.enabled, []

    class Looks(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.backends.mkldnn.enabled)
            return x * 2

    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    poptorch.inferenceModel(Looks())(torch.ones(1))
    assert set(seen) == {before and allowed}
    assert torch.backends.mkldnn.enabled == before


def test_gradients_of_convolutions_are_those_of_float64():
    torch.manual_seed(0)

    class Convolves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Conv1d(32, 32, 3, padding=1, groups=groups) for groups in (1, 8)
            )

        def forward(self, x):
            for layer in self.layers:
                x = torch.nn.functional.gelu(layer(x.transpose(1, 2))).transpose(1, 2)
            return poptorch.identity_loss(x**2, "mean")

    model, x = Convolves(), torch.randn(1, 16, 32)
    exact = Convolves().double()
    exact.load_state_dict(model.state_dict())
    exact(x.double()).backward()
    expected = [(weight - weight.grad).float() for weight in exact.parameters()]
    poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))(x)
    for weight, value in zip(model.parameters(), expected):
        torch.testing.assert_close(weight.detach(), value, atol=1e-5, rtol=0)


class Doubled(torch.autograd.Function):
    """Its backward pass can't be replayed, so each run calls the forward."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Convolutions(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.second = torch.nn.ConvTranspose2d(4, 2, 3)
        self.head = torch.nn.Linear(50, 3)
        self.function = function

    def forward(self, x, y=None):
        x = self.second(self.norm(self.first(x)).relu())
        logits = self.function(self.head(x.flatten(1)))
        return logits if y is None else (logits, torch.nn.functional.cross_entropy(logits.float(), y))


class Float16Kernels(TorchDispatchMode):
    """Names of convolutions, products and batch norms that PyTorch computes in float16."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(part in name for part in ("conv", "mm", "batch_norm")) and args[0].dtype is torch.float16:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [lambda x: x, Doubled.apply], ids=["replayed", "called"])
@pytest.mark.parametrize("training", [True, False])
def test_float16_networks_compute_in_float32_and_round_once(function, training):
    torch.manual_seed(0)
    model = Convolutions(function).train(training)
    x, y = torch.randn(4, 2, 5, 5).half(), torch.tensor([0, 1, 2, 0])
    expected = model(x.float()).detach()
    model.half()
    with Float16Kernels() as kernels:
        if training:
            executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.1))
            first, loss = executor(x, y)
            assert executor(x, y)[1] < loss
        else:
            executor = poptorch.inferenceModel(model)
            first = executor(x)
            assert torch.equal(executor(x), first)
    assert kernels.names == []
    assert first.dtype is torch.float16
    torch.testing.assert_close(first.float(), expected, rtol=5e-3, atol=5e-3)
