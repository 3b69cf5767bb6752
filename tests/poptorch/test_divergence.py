"""A loss that is NaN or infinite: the simulator says which layer and operation made it, and where."""

import re

import poptorch
import pytest
import torch


class Net(torch.nn.Module):
    """Layer `bad` makes NaN or an infinity of ordinary inputs."""

    def __init__(self, bad):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.bad = bad
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.norm(self.bad(self.first(x)))
        return y, poptorch.identity_loss(y.sum(), reduction="none")


class Made(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(params=["float32", "ipu-float16"])
def precision(request, monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", request.param)


def root(x):
    return torch.sqrt(-1 - x.abs())


def divide(x):
    return (x - x) / (x - x)


def overflow(x):
    return (x + 9) * 1e30 * 1e30 * 0


def training(model, options=None, lr=0.1):
    return poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=lr))


def trained(bad, options=None, steps=1):
    model = training(Net(bad), options)
    for _ in range(steps):
        model(torch.ones(2, 4))


def warnings_of(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if "The loss of" in line]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (root, r"invalid operation, in sqrt of layer 'bad', at test_divergence.py:\d+\.$"),
        (divide, r"invalid operation, in div of layer 'bad'"),
        (
            overflow,
            r"invalid operation, in mul of layer 'bad'.*; before it, .* overflow, in mul of",
        ),
    ],
)
@pytest.mark.usefixtures("precision")
def test_the_first_operation_is_named_with_layer_and_line(capfd, function, words):
    trained(Made(function))
    (line,) = warnings_of(capfd)
    assert "micro batch 0 of replica 0 is nan" in line
    assert re.search(words, line), line


def test_it_is_said_once_and_the_run_goes_on(capfd):
    trained(Made(root), steps=3)
    assert len(warnings_of(capfd)) == 1


def test_weights_that_an_update_broke_are_named(capfd):
    class Steep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0]))

        def forward(self, x):
            return poptorch.identity_loss((self.weight * x * 1e25).sum(), reduction="none")

    model = training(Steep(), lr=1e20)
    for _ in range(2):
        model(torch.ones(2))
    (line,) = warnings_of(capfd)
    assert "the weight weight holds an infinity before the forward" in line


def test_an_input_that_is_no_number_is_named(capfd):
    model = training(Net(Made(torch.relu)))
    model(torch.full((2, 4), float("nan")))
    (line,) = warnings_of(capfd)
    assert "input 0 holds NaN" in line


def test_the_micro_batch_and_the_replica_are_named(capfd):
    options = poptorch.Options().replicationFactor(2)
    options.Training.gradientAccumulation(2)

    class Log(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return poptorch.identity_loss((x * self.weight).log().sum(), reduction="none")

    model = training(Log(), options)
    model(torch.tensor([[1.0], [1.0], [1.0], [-1.0]]))
    (line,) = warnings_of(capfd)
    assert "micro batch 1 of replica 1" in line and "in log" in line


def test_looking_changes_nothing(capfd):
    """Buffers and the random stream are those of a run that nobody looked at."""

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.drop, self.norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)

        def forward(self, x, bad):
            y = self.norm(self.drop(x) * self.weight)
            return y, poptorch.identity_loss(y.sum() * 0 + bad.sum(), reduction="none")

    def outputs(values):
        noisy = Noisy()
        options = poptorch.Options().randomSeed(3)
        model = training(noisy, options, lr=0.0)
        found = [model(torch.ones(2, 4), torch.tensor([value]))[0] for value in values]
        model.copyWeightsToHost()
        return [*found, noisy.norm.running_mean, noisy.norm.num_batches_tracked]

    looked, plain = outputs([float("inf"), 1.0]), outputs([2.0, 1.0])
    assert len(warnings_of(capfd)) == 1
    assert all(torch.equal(one, other) for one, other in zip(looked, plain))


@pytest.mark.parametrize("function", [root, divide])
def test_a_floating_point_exception_names_operation_layer_and_line(function):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    with pytest.raises(poptorch.Error, match=r"in \w+ of layer 'bad', at test_divergence\.py:\d+"):
        trained(Made(function), options)


def test_a_floating_point_exception_of_the_backward_pass_says_so():
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    with pytest.raises(poptorch.Error, match="in the backward pass"):
        trained(Made(lambda x: torch.sqrt(x - x)), options)  # 0, whose gradient is infinite


def test_the_explanation_changes_no_parameter_or_buffer():
    class Changing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.changed = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
            self.register_buffer("count", torch.zeros(3))
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            with torch.no_grad():
                self.changed.add_(1)
                self.count.add_(1)
            return poptorch.identity_loss((x * self.weight).log(), "sum")

    model = Changing()
    trainer = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD([model.weight], lr=0.0))
    assert trainer(-torch.ones(3)).isnan()
    trainer.copyWeightsToHost()
    assert torch.equal(model.changed.detach(), torch.ones(3))
    assert torch.equal(model.count, torch.ones(3))
