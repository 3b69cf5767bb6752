"""Compilation sees shapes and types, never values: those of the first micro batch may be refused in a run."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch

F = torch.nn.functional
GOOD, BAD = torch.tensor([1, 2]), torch.tensor([9, -7])


class Model(torch.nn.Module):
    """Calls a function of a table [5, 2] and integers [2]."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.table = torch.nn.Embedding(5, 2, _weight=torch.arange(10.0).reshape(5, 2))

    def forward(self, index):
        return self.function(self.table.weight, index)


def _written(table, index):
    made = table.clone()
    made[index] = 0.0
    return made


@pytest.mark.parametrize(
    "function",
    [
        lambda t, i: F.embedding(i, t),
        lambda t, i: F.embedding(i, t) + F.embedding(i - 1, t),
        lambda t, i: F.embedding_bag(i[None], t),
        lambda t, i: t[i],
        lambda t, i: t.gather(0, i[:, None]),
        lambda t, i: t.index_select(0, i),
        lambda t, i: t.index_fill(0, i, 1.0),
        _written,
        lambda t, i: t.scatter(0, i[:, None], 1.0),
        lambda t, i: t.clone().scatter_(0, i[:, None], 1.0),
        lambda t, i: t.scatter_add(0, i[:, None], torch.ones(2, 1)),
        lambda t, i: t.scatter_reduce(0, i[:, None], torch.ones(2, 1), "sum"),
        lambda t, i: F.cross_entropy(t.repeat(1, 3)[:2, :5], i),
        lambda t, i: F.nll_loss(t.repeat(1, 3)[:2, :5], i),
        lambda t, i: F.one_hot(i, 5),
        lambda t, i: F.binary_cross_entropy(i / 5, i * 0.0),
        lambda t, i: torch.bernoulli(i / 5) * 0,
        lambda t, i: torch.normal(0.0 * i, 3.0 - i) * 0,
        lambda t, i: 10 // (i - 9),
        lambda t, i: poptorch.dynamic_slice(t.repeat(2, 1)[:8], 0, i[:1], 4, 1),
        lambda t, i: poptorch.dynamic_update(t.repeat(2, 1)[:8], torch.ones(4, 2), 0, i[:1], 4),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
def test_a_value_that_pytorch_refuses(function, precision, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    model = Model(function)
    executor = poptorch.inferenceModel(model)
    executor.compile(BAD)
    expected = model(GOOD).detach()
    torch.testing.assert_close(executor(GOOD), expected, check_dtype=False, rtol=1e-3, atol=1e-3)
    with pytest.raises(poptorch.Error, match="An IPU checks no values"):
        executor(BAD)
    torch.testing.assert_close(executor(GOOD), expected, check_dtype=False, rtol=1e-3, atol=1e-3)


def test_training_compiles_with_labels_out_of_range():
    def loss(table, index):
        return F.cross_entropy(F.embedding(index, table) @ table.T, index)

    model = Model(loss)
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    executor.compile(BAD)
    reference = Model(loss)
    losses = []
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(reference(GOOD))
        losses[-1].backward()
        optimizer.step()
    for expected in losses:
        torch.testing.assert_close(executor(GOOD), expected.detach())
    torch.testing.assert_close(model.table.weight, reference.table.weight)


def test_the_host_s_values_are_seen():
    host = torch.ones(3)
    executor = poptorch.inferenceModel(Model(lambda t, i: t + host[torch.LongTensor([7])].to(t.device)))
    with pytest.raises(IndexError, match="out of bounds"):
        executor.compile(GOOD)


@pytest.mark.parametrize(
    "function", [lambda t, i: t @ t, lambda t, i: t.gather(2, i), lambda t, i: t[i, i, i]]
)
def test_shapes_are_checked(function):
    with pytest.raises((RuntimeError, IndexError)):
        poptorch.inferenceModel(Model(function)).compile(GOOD)
