"""Temporary monkeypatches of torch are undone after compilations and runs, and don't affect other threads."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.poptorch.executor_models import poptorch


def _state():
    return (
        vars(torch.Tensor).get("__new__"),
        vars(torch.autograd.Function)["apply"],
        vars(torch.nn.RNNBase)["check_input"],
        torch.backends.mkldnn.enabled,
    )


BEFORE = _state()
X = torch.ones(1, 2)


class Calls(torch.nn.Module):
    """A model that calls a function of one tensor."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Kind(torch.Tensor):
    """A tensor subclass."""


def test_torch_is_as_before_after_a_forward_whatever_comes_of_it():
    seen = []

    def forward(x):
        seen.append(_state())
        return x * 2

    poptorch.inferenceModel(Calls(forward))(X)
    assert all(now is not before for now, before in zip(seen[0][:3], BEFORE[:3]))
    assert _state() == BEFORE
    with pytest.raises(ZeroDivisionError):
        poptorch.inferenceModel(Calls(lambda x: x / (1 // 0)))(X)
    assert _state() == BEFORE


def _in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(60)
    return results[0]


def test_other_threads_have_torch_s_own_functions_during_a_compilation():
    def elsewhere():
        with pytest.raises((RuntimeError, ValueError)):
            torch.nn.GRU(2, 2)(X.half())  # a dtype that only implicit casts accept
        return Doubled.apply(X.clone().requires_grad_()).grad_fn is not None, Kind(X)

    found = []

    def forward(x):
        found.append(_in_thread(elsewhere))
        return x * 2

    executor = poptorch.inferenceModel(Calls(forward))
    executor.compile(X)
    assert found[0][0] and type(found[0][1]) is Kind
    # The other thread's autograd.Function isn't part of the forward: later runs replay the tape.
    executor(X)
    assert len(found) == 1


def test_compilations_that_overlap_in_two_threads():
    """The second one starts during the first, and continues after its end."""
    inside, ended = threading.Event(), threading.Event()

    def second(x):
        inside.set()
        assert ended.wait(60)
        return Kind(x * 2).as_subclass(torch.Tensor)

    results = []
    thread = threading.Thread(target=lambda: results.append(poptorch.inferenceModel(Calls(second))(X)))

    def first(x):
        thread.start()
        assert inside.wait(60)
        return x * 3

    assert torch.equal(poptorch.inferenceModel(Calls(first))(X), X * 3)
    ended.set()
    thread.join(60)
    assert torch.equal(results[0], X * 2)
    assert _state() == BEFORE
