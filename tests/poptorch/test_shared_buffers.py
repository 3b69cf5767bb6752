"""Buffers that a forward changes in place, with replicas."""

from __future__ import annotations

import pytest
import torch

from tests.poptorch.executor_models import options, poptorch

X = torch.linspace(-1, 2, 16).reshape(4, 4)


class Changing(torch.nn.Module):
    """Changes a buffer [3, 4] by a function, and returns its input with the buffer's sum added."""

    def __init__(self, change, dtype=torch.float32):
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.register_buffer("table", torch.zeros(3, 4, dtype=dtype))
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.change = change

    def forward(self, x):
        with torch.no_grad():
            self.change(self.inner, x)
        out = x * self.weight + self.inner.table.sum()
        return out, poptorch.identity_loss(out.sum(), "sum")


def grow(inner, x):
    inner.table += 1


def store(inner, x):
    inner.table[0] = x.detach().sum(0)


def write_out(inner, x):
    torch.ones((3, 4), out=inner.table)


WRITES = {
    "+=": grow,
    "add_": lambda inner, x: inner.table.add_(1),
    "copy_": lambda inner, x: inner.table.copy_(inner.table + 1),
    "fill_": lambda inner, x: inner.table.fill_(1.0),
    "item": store,
    "view": lambda inner, x: inner.table.view(-1)[2:4].mul_(2),
    "transposed": lambda inner, x: inner.table.t().zero_(),
    "index_put_": lambda inner, x: inner.table.index_put_((torch.zeros_like(x[0]).long(),), x[0]),
    "out": write_out,
    "addcmul_": lambda inner, x: inner.table.addcmul_(x[:1], x[:1]),
}


def wrapped(model, made, training=False):
    return poptorch.trainingModel(model, made) if training else poptorch.inferenceModel(model, made)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", WRITES.values(), ids=WRITES)
def test_a_floating_point_buffer_that_replicas_share_cant_change(change, training):
    executor = wrapped(Changing(change), options(replicas=2), training)
    with pytest.raises(poptorch.Error, match=r"Buffer inner.table .*Options.broadcastBuffers\(False\)"):
        executor(X)
    assert not executor.isCompiled()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", WRITES.values(), ids=WRITES)
def test_it_can_if_each_replica_has_one(change, training):
    for made in (options(replicas=2).broadcastBuffers(False), options()):
        wrapped(Changing(change), made, training)(X)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_integers_arent_concerned(dtype):
    executor = wrapped(Changing(lambda inner, x: inner.table.fill_(1), dtype), options(replicas=2))
    executor(X)
    assert executor(X)[0].shape == X.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_every_floating_point_type_is(dtype):
    executor = wrapped(Changing(grow, dtype), options(replicas=2))
    with pytest.raises(poptorch.Error, match="broadcastBuffers"):
        executor(X)


class Norm(torch.nn.Module):
    """A norm with a loss; `own`: its statistics are the model's buffers."""

    def __init__(self, norm, own=False):
        super().__init__()
        self.norm = norm
        self.scale = torch.nn.Parameter(torch.ones(()))
        if own:
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

    def forward(self, x):
        y = self.norm(x) if self.norm is not None else self.function(x)
        return y, poptorch.identity_loss((y * self.scale).sum(), "none")

    def function(self, x):
        return torch.nn.functional.batch_norm(x, self.mean, self.variance, training=True)


NORMS = {
    "batch": lambda: Norm(torch.nn.BatchNorm1d(3)),
    "instance": lambda: Norm(torch.nn.InstanceNorm1d(3, track_running_stats=True)),
    "function": lambda: Norm(None, own=True),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_running_statistics_arent_concerned(norm, training):
    x = torch.linspace(-1, 3, 48).reshape(4, 3, 4)
    wrapped(norm(), options(replicas=2), training)(x)


def test_only_the_norm_itself_may_change_them():
    class Scaling(Norm):
        def forward(self, x):
            with torch.no_grad():
                self.norm.running_mean.mul_(0.5)
            return super().forward(x)

    executor = poptorch.trainingModel(Scaling(torch.nn.BatchNorm1d(3)), options(replicas=2))
    with pytest.raises(poptorch.Error, match=r"Buffer norm\.running_mean"):
        executor(torch.ones(4, 3, 4))


def test_code_that_runs_on_the_host_isnt_concerned():
    class Host(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x + 1

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.host = Host()
            self.cpu = poptorch.CPU(self.host, "host")

        def forward(self, x):
            return self.cpu(x) * 2

    assert torch.equal(poptorch.inferenceModel(Model(), options(replicas=2))(X), (X + 1) * 2)
