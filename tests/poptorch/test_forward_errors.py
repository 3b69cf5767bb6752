"""Errors that a forward raises name the program's line, the operation and the module."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.poptorch.executor_models import poptorch

X = torch.ones(2, 3)
HERE = Path(__file__).name


class Inner(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Outer(torch.nn.Module):
    """A model whose submodule `inner` calls a function."""

    def __init__(self, function):
        super().__init__()
        self.inner = Inner(function)

    def forward(self, x):
        return self.inner(x) * 2


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def _line_of(function):
    return function.__code__.co_firstlineno


def _missing(x):
    raise KeyError("missing")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on errors came with Python 3.11")
@pytest.mark.parametrize(
    ("function", "error", "origin"),
    [
        (lambda x: x @ x, RuntimeError, "by torch.Tensor.matmul"),
        (lambda x: torch.nn.functional.linear(x, x[:, :1]), RuntimeError, "by torch.nn.functional.linear"),
        (lambda x: x[5], IndexError, "by torch.Tensor.__getitem__"),
        (lambda x: x.view(7), RuntimeError, "by torch.Tensor.view"),
        (lambda x: x + torch.ones(5), RuntimeError, "by torch.Tensor.add"),
        (lambda x: x + torch.Tensor([1.0])[torch.LongTensor([4])], IndexError, "by torch.Tensor.__getitem__"),
        (lambda x: poptorch.set_available_memory(3, 0.5), poptorch.Error, "by poptorch.set_available_memory"),
        (lambda x: poptorch.for_loop(2, lambda y: y @ y, [x])[0], RuntimeError, "by torch.Tensor.matmul"),
    ],
)
def test_an_error_of_pytorch_keeps_its_class_and_gets_a_note(function, error, origin):
    with pytest.raises(error) as caught:
        poptorch.inferenceModel(Outer(function)).compile(X)
    place = f"{HERE}:{_line_of(function)}"
    assert caught.value.__notes__ == [f"in the model's forward, at {place}, {origin}, in module inner"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on errors came with Python 3.11")
def test_an_error_of_the_program_names_its_line():
    with pytest.raises(KeyError) as caught:
        poptorch.inferenceModel(Outer(_missing)).compile(X)
    line = _line_of(_missing) + 1
    assert caught.value.__notes__ == [f"in the model's forward, at {HERE}:{line}, in module inner"]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: torch.unique(x), "torch.functional.unique"),
        (lambda x: x.cpu(), "torch.Tensor.cpu"),
        (lambda x: x * x.sum().item(), "torch.Tensor.item"),
        (lambda x: x.to(torch.complex64), "torch.Tensor.to"),
        (lambda x: torch.empty(0), "torch.empty"),
        (lambda x: torch.inverse(x[:2, :2]), "torch.inverse"),
        (lambda x: x * torch.LongTensor([2]), "torch.Tensor.mul"),
        (lambda x: poptorch.nop(x).nonzero(), "torch.Tensor.nonzero"),
        (lambda x: poptorch.for_loop(2, lambda y: y[:1], [x])[0], "poptorch.for_loop"),
    ],
)
def test_an_error_of_poptorch_says_all_in_its_text(function, operation):
    with pytest.raises(poptorch.Error) as caught:
        poptorch.inferenceModel(Outer(function)).compile(X)
    assert str(caught.value).startswith(f"In {HERE}:{_line_of(function)}: 'poptorch_cpp_error': ")
    assert str(caught.value).endswith(f"\nError raised in:\n  [0] {operation}\n  [1] module inner")
    assert caught.value.message in str(caught.value) and operation in caught.value.location


@pytest.mark.parametrize(
    "replays", [True, False], ids=["a replayed forward", "a forward that each run calls again"]
)
def test_a_value_that_pytorch_refuses_at_run_time(replays):
    table = torch.nn.Embedding(5, 2)

    def looks_up(x):
        return table(x) if replays else Identity.apply(table(x))

    model = Outer(looks_up)
    model.inner.table = table
    executor = poptorch.inferenceModel(model)
    executor(torch.tensor([1, 4]))
    with pytest.raises(poptorch.Error) as caught:
        executor(torch.tensor([1, 5]))
    text = str(caught.value)
    assert re.match(rf"In {HERE}:{_line_of(looks_up) + 1}: 'poplar_application_runtime_error': ", text)
    assert "torch.nn.functional.embedding, in module inner.table: index out of range in self. " in text
    assert "An IPU checks no values" in text and isinstance(caught.value.__cause__, IndexError)
    assert executor(torch.tensor([4, 1])).shape == (2, 2)


def test_a_value_that_pytorch_refuses_in_the_model_itself():
    executor = poptorch.inferenceModel(Inner(lambda x: torch.ones(3, 2)[x]))
    executor(torch.tensor([1]))
    with pytest.raises(poptorch.Error, match="in the model itself: index 3 is out of bounds"):
        executor(torch.tensor([3]))


def test_a_floating_point_exception_names_the_operation():
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    divides = lambda x: x / (x - 1)  # noqa: E731 (one line)
    executor = poptorch.inferenceModel(Outer(divides), options)
    executor(X * 2)
    with pytest.raises(poptorch.Error, match=rf"^In {HERE}:{_line_of(divides)}: ") as caught:
        executor(X)
    assert str(caught.value).endswith("[0] torch.Tensor.div\n  [1] module inner")


def test_an_error_in_a_library_names_its_line_and_the_program_s(tmp_path, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_STRICT", "1")
    path = tmp_path / "library.py"
    path.write_text("def function(x):\n    return x.nonzero()\n")
    function = runpy.run_path(str(path), run_name="transformers.library")["function"]
    calls = lambda x: function(x)  # noqa: E731 (one line)
    with pytest.raises(poptorch.Error, match=r"^In library\.py:2: ") as caught:
        poptorch.inferenceModel(Outer(calls)).compile(X)
    assert str(caught.value).endswith(
        f"[0] torch.Tensor.nonzero\n  [1] module inner\n  [2] {HERE}:{_line_of(calls)}"
    )


@pytest.mark.skipif(torch.__version__ < "2.3", reason="predictions need torch 2.3")
def test_a_verdict_s_errors_are_those_of_a_compilation():
    from poptorch.simulator import verdict_of

    masks = Outer(lambda x: x[x > 0])
    with pytest.raises(poptorch.Error) as compiling:
        poptorch.inferenceModel(masks).compile(X)
    with pytest.raises(poptorch.Error) as predicting:
        verdict_of(masks, (X,), poptorch.Options())
    assert str(predicting.value) == str(compiling.value)
