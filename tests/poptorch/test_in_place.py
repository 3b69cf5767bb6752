"""In-place operations on tensors that a gradient needs: an IPU's graph has values, not memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ipu_simulator.numerics import SavedTensors

from tests.poptorch.executor_models import poptorch


class Doubled(torch.autograd.Function):
    """Its backward pass can't be replayed, so each run calls the forward."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.jit.script
def scripted(x):
    return torch.tanh(x * 0.5)


@torch.jit.script
def scripted_in_place(x):
    y = torch.exp(x)
    y.mul_(2.0)
    return y


def slices(x):
    x = x.exp()
    x[:, 1:] += 1
    x[0] *= 3
    return x


def chained(x):
    return x.sigmoid().tanh_().mul_(2).exp_().add_(1)


def shared(x):
    """The value before and the one after are both used."""
    before = x.exp()
    after = before * before
    before.mul_(0.5)
    return after + before


def of_a_view(x):
    x = x.exp()
    x.t()[1].zero_()
    x.flatten()[2:5].fill_(3.0)
    return x


def after_activations(x):
    x = F.leaky_relu_(F.elu(x.sigmoid(), inplace=True).exp())
    return F.hardtanh(F.silu(x), inplace=True)


FORWARDS = {
    "slices": slices,
    "chained": chained,
    "shared": shared,
    "of a view": of_a_view,
    "after activations": after_activations,
    "masked": lambda x: x.exp().masked_fill_(x > 0, 0.5),
    "copied": lambda x: x.exp().copy_(x),
    "in TorchScript": scripted_in_place,
    "out of a softmax": lambda x: x.softmax(-1).mul_(3),
}
BESIDE = {"alone": lambda x: x, "a function": Doubled.apply, "TorchScript": scripted}


class Model(torch.nn.Module):
    def __init__(self, function, beside):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.function = function
        self.beside = beside

    def forward(self, x, y):
        out = self.beside(self.function(self.layer(x)))
        return out, F.mse_loss(out, y)


def trained(model, steps, **options):
    chosen = poptorch.Options().randomSeed(1)
    chosen.replicationFactor(options.get("replicas", 1))
    chosen.Training.gradientAccumulation(options.get("accumulation", 1))
    executor = poptorch.trainingModel(model, chosen, poptorch.optim.SGD(model.parameters(), lr=2**-8))
    generator = torch.Generator().manual_seed(2)
    batch = 4 * options.get("replicas", 1) * options.get("accumulation", 1)
    outputs = []
    for _ in range(steps):
        x, y = torch.randn(2, batch, 4, generator=generator)
        outputs.append(executor(x, y)[0].clone())
    return outputs, [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", FORWARDS)
def test_gradients_use_the_values_from_before(name, beside):
    torch.manual_seed(0)
    model = Model(FORWARDS[name], BESIDE[beside])
    reference = Model(FORWARDS[name], BESIDE[beside])
    reference.load_state_dict(model.state_dict())
    found, weights = trained(model, 3, accumulation=2)
    generator = torch.Generator().manual_seed(2)
    for outputs in found:
        x, y = torch.randn(2, 8, 4, generator=generator)
        for part in (slice(0, 4), slice(4, 8)):
            with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
                out, loss = reference(x[part], y[part])
            loss.backward()
        assert torch.equal(outputs, out.detach())
        with torch.no_grad():
            for weight in reference.parameters():
                weight -= 2**-8 * (weight.grad / 2)
                weight.grad = None
    for weight, expected in zip(weights, reference.parameters()):
        assert torch.equal(weight, expected.detach())


class Dropped(torch.nn.Module):
    """Dropout in place behind a ReLU, as in vision models; with `beside`, each run calls the forward."""

    def __init__(self, beside=None):
        super().__init__()
        self.layer = torch.nn.Linear(8, 64)
        self.dropout = torch.nn.Dropout(0.5, inplace=True)
        self.head = torch.nn.Linear(64, 2)
        self.beside = beside

    def forward(self, x, y):
        hidden = self.dropout(torch.relu(self.layer(x)))
        if self.beside is not None:
            hidden = self.beside(hidden)
        out = self.head(hidden)
        return out, hidden, F.mse_loss(out.float(), y.float())


def runs(model, inplace, precision_of=lambda tensor: tensor, anchor=None):
    torch.manual_seed(0)
    model = precision_of(model)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    model.dropout.inplace = inplace
    options = poptorch.Options().randomSeed(1)
    options.replicationFactor(2).Training.gradientAccumulation(2)
    if anchor is not None:
        options.anchorTensor("anchored", anchor)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.125))
    x, y = precision_of(torch.randn(16, 8)), precision_of(torch.randn(16, 2))
    results = [tensor for _ in range(3) for tensor in executor(x, y)]
    return results + [weight.detach() for weight in model.parameters()]


def custom(x):
    (result,) = poptorch.custom_op([x], "Twice", "com.acme", 1, [x])
    return result


@pytest.fixture
def custom_ops(tmp_path, monkeypatch):
    path = tmp_path / "functions.py"
    path.write_text('CUSTOM_OPS = {("Twice", "com.acme", 1): lambda inputs, attributes: inputs[0] * 2}\n')
    monkeypatch.setenv("IPU_SIMULATOR_CUSTOM_OPS", str(path))


@pytest.mark.parametrize("beside", [None, Doubled.apply, scripted, custom])
@pytest.mark.parametrize("precision", ["float32", "ipu-float16", "half"])
def test_dropout_in_place_is_dropout(beside, precision, monkeypatch, custom_ops):
    monkeypatch.setenv("IPU_SIMULATOR_MERGE", "0")  # not merged in place
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision.replace("half", "float32"))
    precision_of = (lambda one: one) if precision == "float32" else (lambda one: one.half())
    found = runs(Dropped(beside), True, precision_of)
    expected = runs(Dropped(beside), False, precision_of)
    assert (found[1] == 0).float().mean() > 0.6  # ReLU drops a half, dropout a half of the rest
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def test_anchored_results_too():
    """They are recorded in the forward, which each run calls."""
    executor = poptorch.trainingModel(Dropped(), optimizer=poptorch.optim.SGD(Dropped().parameters(), lr=0.1))
    executor.compile(torch.randn(4, 8), torch.randn(4, 2))
    (name, *_) = [name for name in executor.getTensorNames() if "Relu" in name and "Gradient" not in name]
    executor.destroy()
    found, expected = (runs(Dropped(), inplace, anchor=name) for inplace in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


class Counted(torch.nn.Module):
    """A buffer changes after it was used."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("factor", torch.tensor([2.0, 3.0]))

    def forward(self, x):
        loss = poptorch.identity_loss(self.weight * self.factor * x, "sum")
        self.factor.mul_(2)
        x.zero_()
        return loss


@pytest.mark.parametrize("times", [1, 3])
def test_buffers_and_inputs_may_change_after_their_use(times):
    model = Counted()
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))
    for _ in range(times):
        executor(torch.tensor([1.0, 10.0]))
    executor.copyWeightsToHost()
    sums = 2**times - 1
    assert model.weight.tolist() == [1 - 2 * sums, 1 - 30 * sums]
    assert model.factor.tolist() == [2 * 2**times, 3 * 2**times]


@pytest.mark.parametrize("write", [lambda x: x[1:].mul_(2), lambda x: x.t()[1].zero_(), lambda x: x.neg_()])
def test_a_write_into_a_part_counts(write):
    x = torch.rand(3, 3, requires_grad=True)
    with SavedTensors() as saved:
        y = x.exp()
        z = (y * y).sum()
        with torch.no_grad():
            write(y)
        z.backward()
    assert saved.has_copied
    torch.testing.assert_close(x.grad, 2 * (2 * x.detach()).exp())
    with SavedTensors() as saved:
        (x.exp() + 1).mul_(2).sum().backward()
    assert not saved.has_copied


def operations(model, training=True):
    from poptorch import simulator

    inputs = (torch.zeros(16, 8), torch.zeros(16, 2))
    return simulator.capture(model, inputs, {}, poptorch.Options(), training)


@pytest.mark.skipif(torch.__version__ < "2.3", reason="a graph needs torch 2.3")
@pytest.mark.parametrize("beside", [None, Doubled.apply])
def test_the_graph_of_a_verdict_is_the_one_without_in_place_operations(beside):
    """But for the name of the dropout: the ReLU's gradient reads the ReLU's result."""
    graph = operations(Dropped(beside))
    (relu,) = [op for op in graph.ops if op.name == "relu"]
    (gradient,) = [op for op in graph.ops if op.name == "threshold_backward"]
    assert relu.outputs[0] in gradient.inputs
    model = Dropped(beside)
    model.dropout.inplace = False
    names = [op.name for op in operations(model).ops]
    assert [op.name for op in graph.ops] == names


def in_place(weight):
    weight.add_(1)


def of_a_view(weight):
    weight[0] += 1


def of_data(weight):
    weight.data.mul_(2)


@pytest.mark.parametrize("change", [in_place, of_a_view, of_data])
@pytest.mark.parametrize("trains", [False, True])
def test_a_parameter_that_a_forward_changes_changes_once_a_run(change, trains):
    # Compiling runs the forward too, which mustn't count.
    class Changing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.changed = torch.nn.Parameter(torch.ones(3), requires_grad=False)
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            with torch.no_grad():
                change(self.changed)
            out = x * self.changed
            return out, poptorch.identity_loss(out * self.weight, "sum")

    model, x, expected = Changing(), torch.ones(3), torch.ones(3)
    if trains:
        ipu = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD([model.weight], lr=0.0))
    else:
        ipu = poptorch.inferenceModel(model)
    ipu.compile(x)
    for _ in range(3):
        change(expected)
        assert torch.equal(ipu(x)[0], expected)
