"""Precision.enableFloatingPointExceptions in the default float32: which values stop a call."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import poptorch

INFINITY, NAN = float("inf"), float("nan")


class Computing(torch.nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, *args):
        return self.compute(*args)


def executor(compute, enabled=True):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(enabled)
    return poptorch.inferenceModel(Computing(compute), options)


STOPS = [
    ("division by zero", torch.div, (1.0, 0.0)),
    ("division by zero", torch.log, (0.0,)),
    ("overflow", torch.exp, (200.0,)),
    ("invalid operation", torch.mul, (0.0, INFINITY)),
    ("invalid operation", torch.sqrt, (-1.0,)),
    ("invalid operation", torch.gt, (1.0, NAN)),
    ("invalid operation", torch.sub, (INFINITY, INFINITY)),
]


def test_fast_float16_stops_where_it_overflows(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16-fast")
    large = torch.full((2, 2), 60000.0).half()
    for compute in (torch.mm, torch.add, lambda a, b: (a.float() + b.float()).half()):
        with pytest.raises(poptorch.Error, match=r"floating point.*overflow"):
            executor(compute)(large, large)
    assert executor(torch.mm, enabled=False)(large, large).eq(65504).all()


@pytest.mark.parametrize(("what", "compute", "operands"), STOPS)
def test_exceptions_stop_a_call_where_they_are_on(what, compute, operands):
    tensors = [torch.full((2, 3), operand) for operand in operands]
    on, off = executor(compute), executor(compute, enabled=False)
    for _ in range(2):
        with pytest.raises(poptorch.Error, match=f"floating point exception.*{what}") as caught:
            on(*tensors)
        assert caught.value.type == "poplar_application_runtime_error"
    off(*tensors)
    on(*[torch.full((2, 3), 1.0)] * len(tensors))


@pytest.mark.parametrize(
    ("compute", "operand"),
    [
        (lambda x: torch.softmax(x.masked_fill(x > 1, -INFINITY), -1), 1.0),
        (lambda x: torch.where(x > 1, x, INFINITY), 1.0),
        (lambda x: x + 1, INFINITY),
        (lambda x: x * INFINITY, 1.0),
        (torch.isnan, NAN),
        (lambda x: x == x, NAN),
        (lambda x: x * 2, NAN),
    ],
)
def test_infinities_and_nan_that_are_meant_pass(compute, operand):
    x = torch.full((2, 3), operand)
    assert torch.equal(executor(compute)(x).nan_to_num(), compute(x).nan_to_num())


def test_the_backward_pass_stops_too():
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return poptorch.identity_loss((x * self.weight).sqrt().sum(), "none")

    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    model = Root()
    training = poptorch.trainingModel(model, options)
    training.compile(torch.ones(2))  # computes nothing
    with pytest.raises(poptorch.Error, match="division by zero"):
        training(torch.ones(2))
    assert model.weight == 0
