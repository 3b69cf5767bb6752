"""Merged micro batches: gradients of running them one by one, to the order of float32 sums; or not merged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.poptorch.executor_models import FEATURES, batch, options, poptorch

MICRO, ACCUMULATION = 6, 5
NOT_MERGED = "micro batches run one by one, not merged: "


class Program(nn.Module):
    """Two linear layers; subclasses differ in what is between them, or in the loss."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(FEATURES, 8), nn.Linear(8, 3)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def between(self, h):
        return h

    def loss(self, logits, y):
        return F.cross_entropy(logits, y)

    def forward(self, x, y):
        logits = self.second(self.between(torch.tanh(self.first(x))))
        return logits, self.loss(logits, y)


class SumLoss(Program):
    def loss(self, logits, y):
        return F.cross_entropy(logits, y, reduction="sum")


class NormalisedLoss(Program):
    """A mean over labels that aren't ignored, of which each micro batch has another number."""

    def loss(self, logits, y):
        losses, real = F.cross_entropy(logits, y, reduction="none"), (y != 1).float()
        return poptorch.identity_loss((losses * real).sum() / real.sum().clamp(min=1), reduction="none")


class LossPerSample(Program):
    def loss(self, logits, y):
        losses = F.cross_entropy(logits, y, reduction="none")
        return poptorch.identity_loss(losses * losses, reduction="none")


class Dropout(Program):
    def between(self, h):
        return F.dropout(F.dropout(h, 0.4).t(), 0.3).t()


class Noise(Program):
    def between(self, h):
        draws = torch.rand(8, device=h.device) + torch.empty_like(h).normal_(1.0, 2.0)
        return h + torch.randn_like(h.t()).t() * draws


class Attention(Program):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 3)

    def between(self, h):
        return self.layer(h.unsqueeze(1) * torch.ones(1, 4, 1, device=h.device)).mean(1)


class Coupled(Program):
    """Samples of a micro batch depend on each other, not on those of other micro batches."""

    def between(self, h):
        return (h - h.mean(0)) / h.norm() + h.cumsum(0) + h.sort(0)[0]


class BatchStatistics(Program):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def between(self, h):
        return self.norm(h)


class FrozenStatistics(Program):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8).eval()

    def between(self, h):
        return self.norm(h)


class Checkpointed(Program):
    def between(self, h):
        return poptorch.recomputationCheckpoint(h * h.size(1)) / h.numel()


class OwnMemory(Program):
    """In-place operations on tensors of one micro batch."""

    def between(self, h):
        made = torch.zeros_like(h)
        made[:, 1] = h[:, 0]
        return (h * 2).add_(made)


class Convolution(Program):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, 4, 3, padding=1, groups=2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(12.0).view(4, 1, 3) / 12)

    def between(self, h):
        return F.max_pool1d(self.layer(h.view(-1, 2, 4)), 2).flatten(1)


class Embedded(Program):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 8, padding_idx=0)

    def forward(self, x, y):
        logits = self.second(torch.tanh(self.first(x)) + self.table(y.int()))
        return logits.argmax(-1), self.loss(logits, y)


MERGED = [
    Program,
    SumLoss,
    NormalisedLoss,
    LossPerSample,
    Dropout,
    Noise,
    Attention,
    Coupled,
    BatchStatistics,
    FrozenStatistics,
    Checkpointed,
    OwnMemory,
    Convolution,
    Embedded,
]


class RunningStatistics(Program):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def between(self, h):
        return self.norm(h)


class Counter(Program):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def between(self, h):
        self.count.add_(1)
        return h * self.count


class WritesInput(Program):
    def forward(self, x, y):
        return super().forward(x.mul_(2), y)


class Half(Program):
    def between(self, h):
        return h.half().float()


class Autocast(Program):
    def between(self, h):
        with torch.autocast("cpu", torch.bfloat16):
            return (h @ h.t() @ h).float()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class CustomBackward(Program):
    def between(self, h):
        return Doubled.apply(h)


class Printing(Program):
    def between(self, h):
        return poptorch.ipu_print_tensor(h, print_gradient=False)


class Hooked(Program):
    def between(self, h):
        h.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
        return h


class DrawnByValue(Program):
    def between(self, h):
        return h * torch.bernoulli(h.detach().sigmoid())


class OverwritesSaved(Program):
    def between(self, h):
        return h.relu_()


class SharedMemory(Program):
    """Writes to a tensor that all micro batches would share."""

    def between(self, h):
        made = torch.zeros(MICRO, 8, device=h.device)
        made[:, 1] = h[:, 0]
        return h + made


class Recurrent(Program):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 8)

    def between(self, h):
        return self.layer(h.unsqueeze(0))[0][0]


ONE_BY_ONE = {
    RunningStatistics: "its forward changes the buffer norm.",
    Counter: "its forward changes the buffer count",
    WritesInput: "its forward changes an input",
    Half: "its forward computes in float16",
    Autocast: "its forward computes in bfloat16",
    CustomBackward: "its forward can't be replayed",
    Printing: "its forward calls Python in each run",
    Hooked: "its forward calls Python in each run",
    DrawnByValue: "random numbers by aten.bernoulli.default",
    OverwritesSaved: "an in-place operation overwrites what a gradient needs",
    SharedMemory: "vmap: inplace arithmetic",
    Recurrent: "aten::lstm",
}


@pytest.fixture
def together(monkeypatch):
    """The numbers of micro batches that run together, in order."""
    found = []
    vmap = torch.func.vmap

    def counted(function, in_dims, randomness):
        batched = vmap(function, in_dims, randomness=randomness)

        def run(*inputs):
            found.append(next(len(tensor) for tensor in inputs if tensor.dim()))
            return batched(*inputs)

        return run

    monkeypatch.setattr(torch.func, "vmap", counted)
    return found


def run(kind, chosen=None, calls=2, prepare=lambda model: None, micro=MICRO):
    """(outputs of each call, weights and buffers, the executor), with weights changed by whole gradients."""
    torch.manual_seed(0)
    model = kind()
    prepare(model)
    chosen = chosen or options(accumulation=ACCUMULATION, mode=poptorch.OutputMode.All, seed=3)
    executor = poptorch.trainingModel(model, chosen, poptorch.optim.SGD(model.parameters(), lr=1.0))
    counts = chosen.device_iterations * chosen.replication_factor * chosen.Training.gradient_accumulation
    outputs = [executor(*batch(micro * counts, seed)) for seed in range(calls)]
    executor.copyWeightsToHost()
    return outputs, {name: tensor.clone() for name, tensor in model.state_dict().items()}, executor


def alone(monkeypatch, *arguments, **keywords):
    """`run`, one by one."""
    with monkeypatch.context() as changes:
        changes.setenv("IPU_SIMULATOR_MERGE", "0")
        return run(*arguments, **keywords)


def compare(found, expected, tolerance=1e-6):
    for name, tensor in expected[1].items():
        before = float(tensor.double().norm())
        assert float((found[1][name].double() - tensor.double()).norm()) <= tolerance * before, name
    for call, other in zip(found[0], expected[0]):
        for tensor, own in zip(call, other):
            assert tensor.shape == own.shape and tensor.dtype == own.dtype
            assert torch.allclose(tensor.float(), own.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MERGED)
def test_gradients_and_outputs_are_those_of_each(kind, together, monkeypatch, capsys):
    expected = alone(monkeypatch, kind, calls=1)
    assert together == []
    found = run(kind, calls=1)
    assert together == [2, ACCUMULATION]  # the trial, then the whole update
    compare(found, expected)
    assert NOT_MERGED not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_programs_that_run_one_by_one_are_as_before_and_say_why_once(kind, monkeypatch, capsys):
    expected = alone(monkeypatch, kind)
    assert NOT_MERGED not in capsys.readouterr().err
    found = run(kind)
    said = capsys.readouterr().err
    assert said.count(NOT_MERGED) == 1
    assert ONE_BY_ONE[kind] in said.partition(NOT_MERGED)[2].partition("\n")[0]
    assert all(torch.equal(tensor, expected[1][name]) for name, tensor in found[1].items())
    for call, other in zip(found[0], expected[0]):
        assert all(torch.equal(tensor, own) for tensor, own in zip(call, other))


@pytest.mark.parametrize("mode", ["All", "Final", "Sum", "EveryN"])
def test_every_output_mode_over_replicas_and_iterations(mode, together, monkeypatch):
    def chosen():
        made = options(4, ACCUMULATION, 2, poptorch.OutputMode[mode], 2 if mode == "EveryN" else 1, seed=7)
        made.anchorTensor("updated", "UpdatedVar___second.bias", poptorch.OutputMode.All)
        made.anchorTensor("before", "second.bias", poptorch.OutputMode.All)
        return made

    expected = alone(monkeypatch, Dropout, chosen())
    found = run(Dropout, chosen())
    assert together == [2] + [ACCUMULATION] * 4 * 2 * 2
    compare(found, expected, 5e-6)
    for name in ("updated", "before"):
        anchored = [one[2].getAnchoredTensor(name) for one in (found, expected)]
        assert anchored[0].shape == anchored[1].shape
        assert torch.allclose(*anchored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", [poptorch.ReductionType.Sum, poptorch.ReductionType.Mean])
def test_reductions(reduction, together, monkeypatch):
    def chosen():
        made = options(accumulation=ACCUMULATION, replicas=2, seed=3)
        made.Training.accumulationAndReplicationReductionType(reduction)
        return made

    compare(run(LossPerSample, chosen(), 1), alone(monkeypatch, LossPerSample, chosen(), 1))
    assert ACCUMULATION in together


def test_a_merged_run_is_deterministic():
    first, second = run(Attention), run(Attention)
    assert all(torch.equal(tensor, second[1][name]) for name, tensor in first[1].items())


def test_a_resumed_run_is_the_same(together):
    whole = run(Dropout, calls=3)

    class Resumed(Dropout):
        pass

    started = run(Resumed, calls=2)
    state = started[2].rng_state
    model = Dropout()
    model.load_state_dict(started[1])
    chosen = options(accumulation=ACCUMULATION, mode=poptorch.OutputMode.All, seed=3)
    executor = poptorch.trainingModel(model, chosen, poptorch.optim.SGD(model.parameters(), lr=1.0))
    data = batch(MICRO * ACCUMULATION, 2)
    executor.compile(*data)
    executor.rng_state = state
    output = executor(*data)
    assert together.count(ACCUMULATION) == 3 + 2 + 1
    assert all(torch.equal(tensor, own) for tensor, own in zip(output, whole[0][2]))
    executor.copyWeightsToHost()
    assert all(torch.equal(tensor, whole[1][name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("anchored", ["Gradient___first.weight", "Tanh:0"])
def test_tensors_of_each_micro_batch_need_each_micro_batch(anchored, together, capsys):
    chosen = options(accumulation=ACCUMULATION)
    chosen.anchorTensor("kept", anchored, poptorch.OutputMode.All)
    executor = run(Program, chosen)[2]
    assert together == [] and NOT_MERGED in capsys.readouterr().err
    assert len(executor.getAnchoredTensor("kept")) > 1


def test_a_hook_of_a_weight_sees_each_micro_batch(together, capsys):
    seen = []
    run(Program, calls=1, prepare=lambda model: model.first.weight.register_hook(seen.append) and None)
    assert len(seen) == ACCUMULATION and together == []
    assert "the weight first.weight has a hook" in capsys.readouterr().err


def test_precision_of_an_ipu_and_inference_are_not_merged(together, monkeypatch, capsys):
    poptorch.inferenceModel(Program(), options())(*batch(MICRO))
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16")
    run(Program)
    assert together == [] and NOT_MERGED not in capsys.readouterr().err


def test_a_large_micro_batch_is_not_merged_and_a_medium_one_in_parts(together, capsys):
    class Wide(Program):
        size_bytes = 50 << 20

        def between(self, h):
            wide = torch.empty(self.size_bytes // 4, device=h.device)
            return h * wide[:8].fill_(2.0)

    class Wider(Wide):
        size_bytes = 600 << 20

    run(Wide, options(accumulation=15), 1)
    assert together == [2, 7, 8]  # at most 512 MiB
    together.clear()
    run(Wider, options(accumulation=2), 1)
    assert together == [] and NOT_MERGED not in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_its_micro_batch(together, caplog):
    class Divided(Program):
        def loss(self, logits, y):
            return poptorch.identity_loss((logits / (y + 1).unsqueeze(1)).sum(), reduction="none")

    model = Divided()
    executor = poptorch.trainingModel(
        model, options(accumulation=4), poptorch.optim.SGD(model.parameters(), lr=0.1)
    )
    x, y = batch(4)
    executor(x, y.abs())
    assert together == [2, 4]
    y[2] = -1
    executor(x, y)
    assert "The loss of micro batch 2 of replica 0 is" in caplog.text


def test_an_error_in_a_merged_micro_batch_is_that_of_running_alone(monkeypatch):
    messages = []
    for merge in ("0", "1"):
        monkeypatch.setenv("IPU_SIMULATOR_MERGE", merge)
        model = Program()
        executor = poptorch.trainingModel(
            model, options(accumulation=4), poptorch.optim.SGD(model.parameters(), lr=0.1)
        )
        x, y = batch(4)
        executor(x, y)
        y[3] = 7
        with pytest.raises(poptorch.Error, match="cross_entropy") as caught:
            executor(x, y)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("merged", ["0", "1"])
def test_a_floating_point_exception_is_named_merged_or_not(monkeypatch, merged):
    monkeypatch.setenv("IPU_SIMULATOR_MERGE", merged)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return poptorch.identity_loss(self.layer(x) / (x[:, :1] - 3), "mean")

    options = poptorch.Options()
    options.Training.gradientAccumulation(4)
    options.Precision.enableFloatingPointExceptions(True)
    model = poptorch.trainingModel(Model(), options)
    x = torch.rand(8, 4)
    model(x)
    x[5, 0] = 3.0
    with pytest.raises(poptorch.Error, match=r"division by zero or overflow, in div, at test_merging\.py"):
        model(x)
