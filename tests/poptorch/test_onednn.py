"""IPU_SIMULATOR_PRECISION=float32-onednn: float32 products by oneDNN, for any program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.numerics import onednn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.poptorch.executor_models import options, poptorch

needs_onednn = pytest.mark.skipif(
    not onednn.is_available(), reason="this PyTorch lacks oneDNN's products (they begin with 2.1)"
)

ROWS, WIDTH = 128, 192  # 4.7 million multiplications


class Products(TorchDispatchMode):
    """How many of the products inside are oneDNN's, and how many are not."""

    def __init__(self):
        super().__init__()
        self.onednn = self.others = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.onednn += name == "_linear_pointwise"
        self.others += name in ("mm", "addmm")
        return func(*args, **(kwargs or {}))


class Model(nn.Module):
    """Two products, the first one of `multiply`, for x [B, ROWS, WIDTH]."""

    def __init__(self, multiply):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)
        self._multiply = multiply

    def forward(self, x):
        out = self.last(torch.tanh(self._multiply(x, self.weight, self.bias)))
        return out, poptorch.identity_loss((out**2).mean(), "none")


def trained(monkeypatch, multiply, precision, accumulation=1):
    """Outputs, weights after two updates, and the products of the second one."""
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    model, found = Model(multiply), Products()
    settings = options(accumulation=accumulation)
    step = poptorch.trainingModel(model, settings, poptorch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(accumulation, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    step(x)
    with found:
        out, _ = step(x)
    step.copyWeightsToHost()
    return [out, *(weight.detach().clone() for weight in model.parameters())], found


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def written_to(x, weight, bias):
    product = F.linear(x, weight, bias)
    product.mul_(0.5)
    return product


CALLS = {
    "linear": F.linear,
    "linear without a bias": lambda x, weight, bias: F.linear(x, weight) + bias,
    "matmul": lambda x, weight, bias: torch.matmul(x, weight) + bias,
    "operator": lambda x, weight, bias: x @ weight.t() + bias,
    "mm": lambda x, weight, bias: x[0].mm(weight)[None] + bias,
    "addmm": lambda x, weight, bias: torch.addmm(bias, x.flatten(0, 1), weight)[None],
    "named": lambda x, weight, bias: F.linear(input=x, weight=weight, bias=bias),
    "strided": lambda x, weight, bias: F.linear(x, weight.repeat(1, 2)[:, ::2], bias),
    "transposed": lambda x, weight, bias: F.linear(x.mT.contiguous().mT, weight, bias),
    "in place": written_to,
    "a forward that runs each time": lambda x, weight, bias: Halved.apply(F.linear(x, weight, bias)),
}
PYTORCHS = {
    "factors": lambda x, weight, bias: torch.addmm(bias, x[0], weight, alpha=2)[None],
    "a matrix added": lambda x, weight, bias: torch.addmm(x[0], x[0], weight)[None] + bias,
    "a small one": lambda x, weight, bias: x + F.linear(x[:, :9], weight, bias).mean(),
    "autocast": lambda x, weight, bias: _autocast(x, weight, bias),
}


def _autocast(x, weight, bias):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x, weight, bias).float()


@needs_onednn
@pytest.mark.parametrize("name", [*CALLS, *PYTORCHS])
def test_products_are_onednns_and_agree(name, monkeypatch):
    multiply = {**CALLS, **PYTORCHS}[name]
    ours, found = trained(monkeypatch, multiply, "float32-onednn")
    theirs, plain = trained(monkeypatch, multiply, "float32")
    for first, second in zip(ours, theirs):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    assert plain.onednn == 0
    # Forward, the operand's gradient (the input needs none) and the weight's; and those of the last layer.
    assert found.onednn >= (5 if name in CALLS else 3)
    assert (found.others == 0) == (name in CALLS)


@needs_onednn
def test_merged_micro_batches(monkeypatch):
    """32 rows of one micro batch are too few; the four together are enough."""

    def few(x, weight, bias):
        return F.linear(x[:, :32], weight, bias)

    ours, found = trained(monkeypatch, few, "float32-onednn", accumulation=4)
    theirs, _ = trained(monkeypatch, few, "float32", accumulation=4)
    for first, second in zip(ours, theirs):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    assert found.onednn == 5 and found.others == 0


@needs_onednn
def test_inference(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "float32-onednn")
    layer, x, found = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, WIDTH), Products()
    run = poptorch.inferenceModel(layer, options())
    run(x)
    with found:
        out = run(x)
    assert (found.onednn, found.others) == (1, 0)
    assert torch.allclose(out, layer(x), atol=1e-5)


@needs_onednn
def test_a_gradients_gradient():
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)

    def second(linear):
        (first,) = torch.autograd.grad((linear(x, weight) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), weight)[0]

    ours, theirs = second(onednn.linear), second(F.linear)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@needs_onednn
def test_batched_weights_and_biases():
    x, weight, bias = torch.randn(2, 3, WIDTH), torch.randn(2, WIDTH, WIDTH), torch.randn(2, WIDTH)
    for dims in ((0, 0, 0), (0, 0, None), (None, 0, 0), (0, None, 0), (0, None, None)):
        operands = [tensor if dim == 0 else tensor[0] for tensor, dim in zip((x, weight, bias), dims)]
        ours = torch.func.vmap(onednn.linear, dims)(*operands)
        assert torch.allclose(ours, torch.func.vmap(F.linear, dims)(*operands), atol=1e-4), dims


def test_a_pytorch_without_onednn(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "float32-onednn")
    monkeypatch.setattr(onednn, "is_available", lambda: False)
    with pytest.raises(
        poptorch.Error, match=r"needs a PyTorch with oneDNN's products, which torch .* lacks: choose float32"
    ):
        poptorch.inferenceModel(nn.Linear(2, 2), options())(torch.zeros(1, 2))
