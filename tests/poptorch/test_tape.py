"""A forward's Python runs at compilation; later runs replay its calls to torch, or call the forward if the
tape doesn't hold everything that it computes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from tests.poptorch.executor_models import Classifier, batch, clones, options, poptorch, same

INPUTS = torch.linspace(-1, 1, 8).reshape(2, 4)


class Counting(torch.nn.Module):
    """Calls `compute` and counts."""

    def __init__(self, compute):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.compute = compute
        self.calls = []

    def forward(self, x):
        self.calls.append(len(self.calls))
        y = self.compute(self.layer(x), len(self.calls))
        return y, poptorch.identity_loss((y**2).sum(), "none")


@pytest.mark.parametrize("training", [True, False])
def test_python_runs_once_however_many_runs_follow(training, capfd):
    def compute(x, calls):
        print("computing")
        return x * calls

    model = Counting(compute)
    run_options = options(iterations=2)
    wrap = poptorch.trainingModel if training else poptorch.inferenceModel
    executor = wrap(model, run_options)
    for _ in range(3):
        executor(INPUTS)
    assert model.calls == [0]
    assert capfd.readouterr().out.count("computing") == 1


@pytest.mark.parametrize("name", ["layer.weight", "Gradient___layer.weight", "UpdatedVar___layer.bias"])
def test_anchored_weights_and_gradients_need_no_python(name):
    model = Counting(lambda x, calls: x)
    run_options = options(accumulation=2)
    run_options.anchorTensor("kept", name)
    executor = poptorch.trainingModel(model, run_options, torch.optim.SGD(model.parameters(), lr=0.1))
    kept = []
    for _ in range(3):
        executor(INPUTS)
        kept.append(executor.getAnchoredTensor("kept"))
    assert model.calls == [0]
    assert not torch.equal(kept[1], kept[2])


def test_an_executable_from_a_file_runs_python_once(tmp_path):
    path = str(tmp_path / "model")
    inference = poptorch.inferenceModel(Counting(lambda x, calls: x.sin()), options(iterations=2))
    inference.compileAndExport(path, INPUTS, export_model=False)
    model = Counting(lambda x, calls: x.sin())
    executor = poptorch.inferenceModel(model, options(iterations=2))
    executor.loadExecutable(path)
    assert model.calls == []
    for _ in range(3):
        output, _ = executor(INPUTS)
    assert model.calls == [0]
    torch.testing.assert_close(output, model.layer(INPUTS).sin().detach())


def test_what_changes_after_the_compilation_has_no_effect():
    model = Classifier().eval()
    executor = poptorch.inferenceModel(model)
    x, _ = batch(4)
    before = executor(x)
    model.first.register_forward_hook(lambda module, inputs, output: output * 0)
    assert torch.equal(executor(x), before)
    executor.destroy()
    assert not torch.equal(executor(x), before)


class _Doubled(torch.autograd.Function):
    """A custom backward pass that isn't the gradient of its forward."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 5


class _Same(torch.autograd.Function):
    """Identity. A forward with a custom autograd.Function is called in each run."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def _in_place(x, calls):
    x = x * 1
    x[:, 0] = 3.0
    x[0].mul_(2)
    rows = list(x)
    parts = torch.split(x, 2, dim=1)
    with torch.no_grad():
        scale = x.detach().abs().max()
    return torch.stack(rows) / scale + torch.cat(parts[::-1], dim=1)


def _tangent(x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return forward_ad.unpack_dual(torch.sin(dual)).tangent


def _narrow(x, calls):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = x @ x.t()
    assert product.dtype is torch.bfloat16
    return product.float()


@pytest.mark.parametrize(
    ("compute", "repeats"),
    [
        (_in_place, False),
        (lambda x, calls: torch.nn.functional.dropout(x, 0.5) + torch.randn_like(x), False),
        (lambda x, calls: x.max(dim=1, keepdim=True).values + x, False),
        (lambda x, calls: _Doubled.apply(x), True),
        (lambda x, calls: torch.func.vmap(lambda row: row * row.sum())(x), True),
        (lambda x, calls: torch.func.jvp(torch.sin, (x,), (x * 2,))[1], True),
        (lambda x, calls: _tangent(x), True),
        (_narrow, False),
        (lambda x, calls: _narrow(_narrow(x, calls), calls), True),
    ],
    ids=[
        "in place",
        "random",
        "named results",
        "autograd function",
        "vmap",
        "jvp",
        "tangent",
        "autocast",
        "autocast twice",
    ],
)
def test_both_ways_train_alike(compute, repeats, monkeypatch):
    """Four runs with replay against four in which each run calls the forward."""
    monkeypatch.setenv("IPU_SIMULATOR_MERGE", "0")  # which only replays are

    def in_python(x, calls):
        return _Same.apply(compute(x, calls))

    results = []
    for with_python in (False, True):
        torch.manual_seed(0)
        model = Counting(in_python if with_python else compute)
        executor = poptorch.trainingModel(model, options(accumulation=2, seed=7))
        executor.compile(INPUTS)
        assert len(model.calls) == 1
        outputs = [executor(INPUTS) for _ in range(4)]
        assert (len(model.calls) > 1) == (repeats or with_python)
        results.append((outputs, clones(model)))
    (outputs, weights), (python_outputs, python_weights) = results
    for output, other in zip(outputs, python_outputs):
        assert torch.equal(output[0], other[0]) and torch.equal(output[1], other[1])
    assert same(weights, python_weights)


class _CallsOf(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_what_nothing_needs_is_not_computed_but_for_what_it_changes():
    class Wasteful(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            torch.argmax(x.float().exp(), dim=1).sin()  # for nothing
            self.seen.add_(x.abs().sum(dim=0).float())
            drawn = torch.rand(4)
            kept = x.float().cos()
            return kept + torch.rand(4), drawn.sum() * 0 + 1

    model = Wasteful()
    executor = poptorch.inferenceModel(model)
    executor.compile(INPUTS)
    with _CallsOf() as calls:
        executor(INPUTS)
    assert {"abs", "add_", "cos", "rand"} <= set(calls.names)
    assert not {"argmax", "exp", "sin", "float"} & set(calls.names)
    assert calls.names.count("rand") == 2
    executor.copyWeightsToHost()
    assert torch.equal(model.seen, INPUTS.abs().sum(dim=0))


def test_a_draw_that_nothing_needs_moves_the_others_all_the_same():
    def both(x):
        torch.rand(4)
        return x + torch.rand(4)

    results = []
    for with_python in (False, True):
        forward = (lambda x: _Same.apply(both(x))) if with_python else both
        executor = poptorch.inferenceModel(_Calling(forward), options(seed=3))
        executor.compile(INPUTS)
        results.append(executor(INPUTS))
    assert torch.equal(*results)


class _Calling(torch.nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


@pytest.mark.parametrize("is_output", [True, False])
def test_running_statistics_are_updated_each_time(is_output):
    model = torch.nn.BatchNorm1d(4)

    class Normalising(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = model

        def forward(self, x):
            normalised = self.norm(x)
            return normalised if is_output else x + 1

    executor = poptorch.inferenceModel(Normalising())
    for _ in range(3):
        executor(INPUTS)
    executor.copyWeightsToHost()
    reference = torch.nn.BatchNorm1d(4)
    for _ in range(3):
        reference(INPUTS)
    assert torch.equal(model.running_mean, reference.running_mean)
    assert model.num_batches_tracked == 3


def test_loops_and_branches_need_python():
    class Looping(torch.nn.Module):
        def forward(self, x):
            x = poptorch.for_loop(3, lambda y: [y + 1], [x])[0]
            return poptorch.cond(x.sum() > 0, lambda y: y, [x], lambda y: -y, [x])[0]

    executor = poptorch.inferenceModel(Looping())
    assert torch.equal(executor(torch.zeros(2)), torch.full((2,), 3.0))
    assert torch.equal(executor(torch.full((2,), -5.0)), torch.full((2,), 2.0))


def test_a_tensor_is_printed_in_each_run(capfd):
    def compute(x, calls):
        return poptorch.ipu_print_tensor(x, "mine") * 2

    model = Counting(compute)
    executor = poptorch.trainingModel(model, options(accumulation=2))
    executor.compile(INPUTS)
    assert "mine" not in capfd.readouterr().err
    for _ in range(3):
        executor(INPUTS)
    printed = capfd.readouterr().err
    assert model.calls == [0]
    assert printed.count("Gradient___mine") == 6 and printed.count("mine") == 12


def test_a_copied_executor_runs_its_own_model():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).T.data

    executor = poptorch.inferenceModel(Own())
    before = executor(INPUTS)
    other = copy.deepcopy(executor)
    with torch.no_grad():
        other.layer.weight.zero_()
    other.copyWeightsToDevice()
    assert not torch.equal(other(INPUTS), before)
    assert torch.equal(executor(INPUTS), before)


def test_arguments_are_found_by_name_and_key():
    forwards = []

    class Subtracting(torch.nn.Module):
        def forward(self, x, parts, **more):
            forwards.append(1)
            return x - 2 * parts["a"] - 3 * parts["b"] - 4 * more["c"] - 5 * more["d"]

    a, b, c, d, x = (torch.full((2,), float(10**i)) for i in range(5))
    executor = poptorch.inferenceModel(Subtracting())
    expected = x - 2 * a - 3 * b - 4 * c - 5 * d
    assert torch.equal(executor(x, {"a": a, "b": b}, c=c, d=d), expected)
    assert torch.equal(executor(x, {"b": b, "a": a}, d=d, c=c), expected)
    assert torch.equal(executor(d=d, parts={"b": b, "a": a}, c=c, x=x), expected)
    assert len(forwards) == 1  # of the compilation
