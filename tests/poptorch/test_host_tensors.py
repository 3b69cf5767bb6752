"""Tensors of the host in a forward: refused beside the device's, constants once moved, computed once."""

from __future__ import annotations

import logging
import runpy
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

from tests.poptorch.executor_models import poptorch

X = torch.arange(6.0).reshape(2, 3)
HOST, NUMBER, INDEX = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.tensor([0, 2])
PARAMETER = torch.nn.Parameter(torch.ones(3))  # of no model
LINEAR = torch.nn.Linear(3, 3)  # likewise
F = torch.nn.functional


class Model(torch.nn.Module):
    """Calls a function of itself and x. Has a parameter, a buffer, and a plain attribute that is a tensor."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.eye(3))
        self.register_buffer("buffer", torch.ones(3), persistent=False)
        self.weights = [self.weight]
        self.plain = torch.ones(1)
        self.calls = [0]

    def forward(self, x):
        return self.function(self, x)


def twice(function):
    """The second call's result, which must be the first one's."""
    executor = poptorch.inferenceModel(Model(function))
    first, second = executor(X), executor(X)
    assert torch.equal(first, second)
    return second


def written(x, index, value):
    y = x.clone()
    y[index] = value
    return y


def gathered(data, index):
    return poptorch.custom_op([data, index], "FastGatherLastDim", "poptorch.custom_ops", 1, [data])[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * HOST,
        lambda m, x: HOST * x,
        lambda m, x: x * NUMBER,
        lambda m, x: x * m.plain,
        lambda m, x: x.clone().add_(HOST),
        lambda m, x: HOST.clone().add_(x[0]),
        lambda m, x: torch.cat([x, HOST[None]]),
        lambda m, x: torch.stack([x[0], HOST]),
        lambda m, x: torch.where(x > 0, x, NUMBER),
        lambda m, x: x.clamp(max=NUMBER),
        lambda m, x: x.masked_fill(x > 0, NUMBER),
        lambda m, x: torch.einsum("bi,i->b", x, HOST),
        lambda m, x: torch.vmap(lambda row: row * HOST)(x),
        lambda m, x: x + (HOST * 2).view(1, 3).expand(2, 3),
        lambda m, x: x + torch.zeros_like(HOST),
        lambda m, x: x + HOST.new_ones(3),
        lambda m, x: x + HOST.expand_as(x),
        lambda m, x: x + HOST.clone().view_as(x[0]),
        lambda m, x: x + torch.broadcast_tensors(x, HOST)[1],
        lambda m, x: x[:, INDEX],
        lambda m, x: x[:, HOST > 1],
        lambda m, x: HOST[x.long() % 3],
        lambda m, x: written(x, INDEX[:1], NUMBER),
        lambda m, x: x.gather(1, INDEX[:, None]),
        lambda m, x: F.embedding(x.long() % 3, HOST[:, None]),
        lambda m, x: torch.nn.MSELoss()(x[0], HOST),
        lambda m, x: torch.nn.CrossEntropyLoss()(x, INDEX),
        lambda m, x: torch.distributions.Normal(HOST, HOST, validate_args=False).log_prob(x),
        lambda m, x: x * PARAMETER,
        lambda m, x: x * (PARAMETER * 2),
        lambda m, x: LINEAR(x),
        lambda m, x: poptorch.CPU(torch.add, "add")(x, HOST),
        lambda m, x: gathered(HOST.expand(2, 3), x.long() * 0),
        lambda m, x: poptorch.for_loop(2, lambda y, z: [y + z, z], [x, HOST])[0],
        lambda m, x: poptorch.dynamic_slice(x, 1, INDEX[:1], 1, 1),
        # Constructors of the host
        lambda m, x: x + torch.LongTensor([1, 2, 3]),
        lambda m, x: x + torch.Tensor([1.0, 2.0, 3.0]),
        lambda m, x: x + torch.Tensor(3).zero_(),
        lambda m, x: x + torch.from_numpy(np.ones(3)),
        lambda m, x: x + torch.as_tensor([1.0, 2.0, 3.0]),
        lambda m, x: x + torch.ones(3, device="cpu"),
        lambda m, x: x + torch.zeros_like(x, device=torch.device("cpu")),
        lambda m, x: x * torch.div(4, 2),  # of numbers
    ],
)
def test_a_host_tensor_beside_one_of_the_device(function):
    with pytest.raises(poptorch.Error, match=r"Expected an IPU tensor but got tensor\(device=cpu, shape=\["):
        twice(function)
    with pytest.raises(poptorch.Error, match=r"moved explicitly to the IPU, via cpu_tensor\.to\(\"ipu\"\)"):
        twice(function)


ON_DEVICE = [
    # Moved to the device
    lambda m, x: x + HOST.to(x.device),
    lambda m, x: x + HOST.to(device=x.device, dtype=torch.float16),
    lambda m, x: x + HOST.to(x),
    lambda m, x: x + HOST.type_as(x),
    lambda m, x: x * PARAMETER.to(x.device),
    lambda m, x: x + torch.from_numpy(np.ones(3, dtype=np.float32)).to(x.device),
    lambda m, x: x + torch.as_tensor([1.0, 2.0, 3.0], device=x.device),
    lambda m, x: x + torch.zeros_like(HOST, device=x.device),
    lambda m, x: x + F.one_hot(INDEX, 3).to(x.device),
    lambda m, x: written(x, 0, HOST),
    lambda m, x: written(x, torch.tensor([0], device=x.device), NUMBER),
    lambda m, x: x + m.buffer.copy_(HOST),
    # Made on the device
    lambda m, x: x + torch.tensor(HOST.tolist()) + torch.tensor([1.0, 2.0, 3.0]),
    lambda m, x: x + torch.full((3,), NUMBER) + torch.linspace(0, NUMBER, 3),
    lambda m, x: x + torch.hann_window(3) + 0 * torch.normal(0.0, 1.0, (3,)),
    lambda m, x: x + torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")[0],
    lambda m, x: x + x.new_tensor([1.0, 2.0, 3.0]) + x.new_zeros(3),
    lambda m, x: torch.distributions.Normal(torch.zeros(3), 1.0, validate_args=False).log_prob(x).exp(),
    # Numbers
    lambda m, x: x * NUMBER.item() * np.float32(2) + np.int64(1) + x / np.sqrt(3),
    lambda m, x: torch.add(x, x, alpha=NUMBER),
    lambda m, x: x.expand_as(HOST.expand(2, 3)) + x[INDEX[0]] + x[:, : INDEX[1]].sum(),
    # Computed without the modes' knowledge
    lambda m, x: torch.vmap(lambda row: row * 2)(x) + x,
    lambda m, x: torch.func.grad(lambda row: (row * row).sum())(x) + x,
    lambda m, x: sum(x) + x + x.data + x.detach(),
    lambda m, x: F.linear(x, m.weights[0]),
    lambda m, x: torch.utils.checkpoint.checkpoint(lambda y: y @ m.weight, x, use_reentrant=False) + x,
]


@pytest.mark.parametrize("function", ON_DEVICE)
@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
def test_what_is_on_the_device(function, precision, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    torch.testing.assert_close(twice(function), function(Model(None), X.clone()).detach(), rtol=0, atol=1e-3)


@pytest.mark.skipif(torch.__version__ < "2.3", reason="predictions need torch 2.3")
@pytest.mark.parametrize("function", ON_DEVICE)
def test_a_verdict_finds_it_there_too(function):
    from poptorch.simulator import verdict_of

    assert verdict_of(Model(function), (X,), poptorch.Options()).fits


@pytest.mark.parametrize("training", [False, True])
def test_a_moved_tensor_is_a_constant_of_the_executable(training):
    def forward(model, x):
        factor = model.plain.to(x.device)
        factor *= 3  # the device's, in each run anew
        return poptorch.identity_loss(x * factor * model.weight.sum(), "none")

    model = Model(forward)
    if training:
        executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    else:
        executor = poptorch.inferenceModel(model)
    assert torch.equal(executor(X), X * 9)
    model.plain.fill_(5.0)
    assert torch.equal(executor(X), X * 9) and torch.equal(executor(X), X * 9)
    assert model.plain.tolist() == [5.0]
    executor.destroy()
    assert torch.equal(executor(X), X * 45)


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = torch.ones(1)

    def forward(self, x):
        return x * self.plain.to(x.device)


def test_a_saved_executable_has_its_constants(tmp_path):
    model = Plain()
    executor = poptorch.inferenceModel(model)
    executor(X)
    model.plain.fill_(5.0)
    executor.save(str(tmp_path / "model.poptorch"))
    loaded = poptorch.load(str(tmp_path / "model.poptorch"))
    assert torch.equal(loaded(X), X) and torch.equal(loaded(X), X)
    assert loaded.model.plain.tolist() == [5.0]


def test_the_host_computes_once_at_compilation():
    def forward(model, x):
        model.calls[0] += 1
        model.plain += 1  # a tensor of the host that counts
        counted = model.plain.clone()
        model.plain.mul_(2)
        return x + counted.to(x.device) + model.plain.to(x.device) + model.calls[0]

    model = Model(forward)
    executor = poptorch.inferenceModel(model)
    for _ in range(3):
        assert torch.equal(executor(X), X + 2 + 4 + 1)
    assert model.calls == [1] and model.plain.tolist() == [4.0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: x.reshape(-1, torch.div(x.shape[-1], 2, rounding_mode="trunc")), X.reshape(-1, 1)),
        (lambda m, x: x[:, : torch.floor_divide(x.shape[-1], 2)], X[:, :1]),
        (lambda m, x: x.reshape(torch.mul(*x.shape).item()), X.reshape(6)),
        (lambda m, x: x + torch.zeros((torch.div(6, 2, rounding_mode="floor"),)), X),
        (lambda m, x: x + torch.arange(torch.add(x.shape[0], 1)), X + torch.arange(3)),
        (lambda m, x: x * int(torch.tensor(HOST.tolist(), device="cpu").sum()), X * 6),
        (lambda m, x: x.view(*torch.LongTensor([3, 2]).tolist()), X.view(3, 2)),
    ],
)
def test_numbers_of_the_host_are_sizes(function, expected):
    assert torch.equal(twice(function), expected)


def test_the_host_may_compute_what_the_device_cannot():
    spectrum = torch.fft.fft(HOST).real
    assert torch.equal(twice(lambda m, x: x + torch.fft.fft(HOST).real.to(x.device)), X + spectrum)
    assert torch.equal(twice(lambda m, x: x + HOST[:0].sum().item()), X)


def test_a_library_newer_than_poptorch_may_combine_them(tmp_path, caplog, monkeypatch):
    path = tmp_path / "library.py"
    path.write_text(
        "import torch\n"
        "FACTOR = torch.tensor([2.0])\n"
        "def function(x):\n"
        "    return torch.nn.functional.linear(x, x[:1] * FACTOR) * FACTOR.to(x.device)\n"
    )
    library = runpy.run_path(str(path), run_name="transformers.library")
    function, factor = library["function"], library["FACTOR"]
    expected = function(X)
    executor = poptorch.inferenceModel(Model(lambda m, x: function(x)))
    with caplog.at_level(logging.WARNING, logger="poptorch::python"):
        assert torch.equal(executor(X), expected)
    (text,) = [record.getMessage() for record in caplog.records]
    assert "library.py:4" in text and "Expected an IPU tensor" in text
    factor.fill_(7)
    assert torch.equal(executor(X), expected)  # a constant too
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    with pytest.raises(poptorch.Error, match=r"^In library\.py:4: .*Expected an IPU tensor"):
        twice(lambda m, x: function(x))


def test_a_module_that_is_no_part_of_the_model_is_refused_where_it_is_called():
    forward = lambda m, x: LINEAR(x)  # noqa: E731 (one line)
    line = forward.__code__.co_firstlineno
    with pytest.raises(
        poptorch.Error, match=rf"^In test_host_tensors\.py:{line}: .*shape=\[3\], dtype=float32"
    ):
        twice(forward)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.to(HOST),
        lambda m, x: x.to(tensor=HOST),
        lambda m, x: x.type_as(other=HOST),
        lambda m, x: x.type_as(torch.zeros(1, device="cpu")),
    ],
)
def test_a_move_to_the_host_by_its_tensor(function):
    with pytest.raises(poptorch.Error, match="Illegal move to CPU"):
        twice(function)


def test_a_result_of_the_host_is_warned_of():
    executor = poptorch.inferenceModel(Model(lambda m, x: (x, HOST * 2)))
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        executor(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(executor(X)[1], HOST * 2)


class Square(torch.autograd.Function):
    """A custom gradient, which no tape replays."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize(
    "again",
    [
        lambda m, x: Square.apply(x * m.weight.sum()) / 9,
        lambda m, x: poptorch.for_loop(2, lambda y: y + m.plain.to(x.device) * 0, [x])[0] ** 2,
        lambda m, x: poptorch.CPU(lambda y: y * y, "host")(x),
        lambda m, x: x * x,  # for comparison: replayed
    ],
)
def test_a_constant_stays_one_where_each_run_calls_the_forward(again):
    def forward(model, x):
        total = again(model, x)
        for number in range(2):
            moved = (model.plain + number).to(x.device) if number else model.plain.to(x)
            total = total + moved
            moved *= 0
        return total

    model = Model(lambda m, x: poptorch.identity_loss(forward(m, x), "none"))
    model.plain *= 10
    if "Square" in again.__code__.co_names:
        executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    else:
        executor = poptorch.inferenceModel(model)
    for edit in (1.0, 5.0):
        assert torch.equal(executor(X), X**2 + 21)
        model.plain.fill_(edit)
    assert model.plain.tolist() == [5.0]
