"""Weights that differ between replicas (replicaGrouping), against one plain model per group."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.poptorch.executor_models import poptorch

Kind, Returned = poptorch.CommGroupType, poptorch.VariableRetrievalMode
REPLICAS = 4
X = torch.linspace(-1, 2, 24).reshape(8, 3)
# How replicas 0 to 3 are grouped.
GROUPINGS = {
    (Kind.NoGrouping, 0): [0, 1, 2, 3],
    (Kind.Consecutive, 2): [0, 0, 1, 1],
    (Kind.Orthogonal, 2): [0, 1, 0, 1],
    (Kind.Consecutive, 4): [0, 0, 0, 0],
}


class Scaling(torch.nn.Module):
    """x times a weight [3], which is [groups, 3] on the host, and a shared weight."""

    def __init__(self, groups):
        super().__init__()
        self.own = torch.nn.Parameter(torch.arange(1.0, 3 * groups + 1).reshape(groups, 3) / 4)
        self.shared = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.shared.weight.copy_(torch.arange(9.0).reshape(3, 3) / 9)
            self.shared.bias.zero_()

    def forward(self, x):
        y = self.shared(x * self.own)
        return y, poptorch.identity_loss((y**2).sum(), "none")


def run_options(accumulation=1):
    made = poptorch.Options().replicationFactor(REPLICAS).outputMode(poptorch.OutputMode.All)
    made.Training.gradientAccumulation(accumulation)
    return made


@pytest.mark.parametrize(("grouping", "groups"), GROUPINGS.items(), ids=str)
@pytest.mark.parametrize("path", ["executor", "model"])
def test_each_replica_infers_with_its_groups_weight(grouping, groups, path):
    model = Scaling(1 + max(groups))
    executor = poptorch.inferenceModel(model, run_options())
    weight = executor.own if path == "executor" else model.own
    weight.replicaGrouping(*grouping, Returned.OnePerGroup)
    output, _ = executor(X)
    parts = [model.shared(x * model.own[groups[r]]) for r, x in enumerate(X.chunk(REPLICAS))]
    torch.testing.assert_close(output, torch.cat(parts).detach())


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.5),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.1),
}


@pytest.mark.parametrize(("grouping", "groups"), GROUPINGS.items(), ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_reduces_gradients_within_a_group(grouping, groups, optimizer):
    model = Scaling(1 + max(groups))
    plain = copy.deepcopy(model)
    executor = poptorch.trainingModel(model, run_options(2), OPTIMIZERS[optimizer](model.parameters()))
    executor.own.replicaGrouping(*grouping, Returned.OnePerGroup)
    steps = OPTIMIZERS[optimizer](plain.parameters())
    for _ in range(3):
        executor(X)
        steps.zero_grad()
        for i, x in enumerate(X):  # of one element: accumulation steps, of four replicas each
            y = plain.shared(x * plain.own[groups[i % REPLICAS]])
            (y**2).sum().div(len(X)).backward()
        steps.step()
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight)


@pytest.mark.parametrize("precision", ["float32", "ipu-float16"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["Post", "PostAndLoss", "Running", "float16", "Sum"])
@pytest.mark.parametrize(("grouping", "groups"), GROUPINGS.items(), ids=str)
def test_a_mean_is_over_the_group_if_it_runs_and_over_all_replicas_otherwise(
    grouping, groups, kind, accumulation, precision, monkeypatch
):
    """float16 accumulators take a running mean; other means divide the group's sum after it was reduced."""
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", precision)
    made = run_options(accumulation)
    if kind == "Sum":
        made.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    elif kind != "float16":
        strategy = poptorch.MeanReductionStrategy[kind]
        made.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)

    class Given(torch.nn.Module):
        """Weights [groups, 2] and [2] whose gradients are the input's sums."""

        def __init__(self):
            super().__init__()
            self.own = torch.nn.Parameter(torch.zeros(1 + max(groups), 2))
            self.shared = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return poptorch.identity_loss(((self.own + self.shared) * x).sum(), "sum")

    model = Given()
    accumulators = torch.float16 if kind == "float16" else None
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0, accum_type=accumulators)
    executor = poptorch.trainingModel(model, made, optimizer)
    executor.own.replicaGrouping(*grouping, Returned.OnePerGroup)
    x = torch.arange(accumulation * REPLICAS * 2.0).reshape(accumulation, REPLICAS, 2)
    executor(x.flatten(0, 1))
    by_replica = x.sum(0)  # exact in float16, as are all quotients
    sums = [by_replica[[r for r in range(REPLICAS) if groups[r] == g]].sum(0) for g in range(1 + max(groups))]
    size = REPLICAS // len(sums)
    divisor = accumulation * {"Running": size, "float16": size, "Sum": 1 / accumulation}.get(kind, REPLICAS)
    assert torch.equal(-model.own.detach(), torch.stack(sums) / divisor)
    assert torch.equal(
        -model.shared.detach(), by_replica.sum(0) / (1 if kind == "Sum" else x[..., 0].numel())
    )


def test_lamb_has_a_norm_for_each_group():
    model = Scaling(4)
    parts = [model.own[i].detach().clone() for i in range(REPLICAS)]
    optimizer = poptorch.optim.LAMB(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, run_options(), optimizer)
    executor.own.replicaGrouping(Kind.NoGrouping, 0, Returned.OnePerGroup)
    executor(X)
    for i in range(REPLICAS):
        # The first step's u has 1 in each component, but for eps.
        u = (model.own[i] - parts[i]).abs() / 0.1
        torch.testing.assert_close(u, torch.full((3,), (parts[i].norm() / 3**0.5).item()), rtol=1e-4, atol=0)
    assert optimizer.state_dict()["ipu_state"]["Accl1___own"].shape == (4, 3)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "LAMB", "SGD", "RMSprop"])
@pytest.mark.parametrize("returned", [Returned.OnePerGroup, Returned.AllReplicas], ids=lambda r: r.name)
@pytest.mark.parametrize(("grouping", "groups"), GROUPINGS.items(), ids=str)
def test_the_state_of_such_a_weight_is_like_the_weight(grouping, groups, returned, kind):
    """One value per group or replica, the count of steps too; and it can be loaded again."""

    def start():
        model = Scaling(1 + max(groups))
        momentum = {"momentum": 0.5} if kind in ("SGD", "RMSprop") else {}
        optimizer = getattr(poptorch.optim, kind)(model.parameters(), lr=0.01, **momentum)
        executor = poptorch.trainingModel(model, run_options(2), optimizer)
        executor.own.replicaGrouping(*grouping, returned)
        return model, executor, optimizer

    model, executor, optimizer = start()
    executor(X)
    executor(X)
    values = REPLICAS if returned == Returned.AllReplicas else 1 + max(groups)
    own, shared = model.own.detach().clone(), model.shared.weight.detach().clone()
    assert own.shape == (values, 3)
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict()["ipu_state"].items()}
    of_own = {name: tensor for name, tensor in state.items() if name.endswith("___own")}
    assert {name: tensor.shape[0] for name, tensor in of_own.items()} == dict.fromkeys(of_own, values)
    if kind in ("Adam", "AdamW", "LAMB"):
        assert state["Step___own"].tolist() == [2.0] * values
        assert state["Step___shared.weight"].tolist() == 2.0
    if values == REPLICAS:
        for tensor in of_own.values():
            assert all(torch.equal(tensor[r], tensor[groups.index(groups[r])]) for r in range(REPLICAS))
    again, other, loaded = start()
    other.compile(X)
    loaded.load_state_dict({**loaded.state_dict(), "ipu_state": state})
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict()["ipu_state"].items())
    with torch.no_grad():
        again.own.data = own.clone()
        again.shared.weight.copy_(shared)
        again.shared.bias.copy_(model.shared.bias)
    other.copyWeightsToDevice()
    executor(X)
    other(X)
    assert torch.equal(again.own, model.own) and torch.equal(again.shared.weight, model.shared.weight)


def test_a_step_count_of_an_older_state_is_loaded_too():
    model = Scaling(4)
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.01)
    executor = poptorch.trainingModel(model, run_options(), optimizer)
    executor.own.replicaGrouping(Kind.NoGrouping, 0, Returned.OnePerGroup)
    executor(X)
    state = dict(optimizer.state_dict()["ipu_state"])
    optimizer.load_state_dict(
        {**optimizer.state_dict(), "ipu_state": {**state, "Step___own": torch.tensor(7.0)}}
    )
    assert optimizer.state_dict()["ipu_state"]["Step___own"].tolist() == [7.0] * 4


def test_float16_numerics_too(monkeypatch):
    monkeypatch.setenv("IPU_SIMULATOR_PRECISION", "ipu-float16")
    model = Scaling(2).half()
    with torch.no_grad():
        model.own.copy_(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
    executor = poptorch.trainingModel(model, run_options(2), poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor.own.replicaGrouping(Kind.Orthogonal, 2, Returned.OnePerGroup)
    x = torch.ones(8, 3).half()
    x[1::2] = 0  # every second replica, which are the second group
    executor(x)
    assert torch.equal(model.own[1], torch.tensor([1.0, 2.0, 3.0]).half())
    assert not torch.equal(model.own[0], model.own[1])


@pytest.mark.parametrize("kind", [Kind.All, Kind.Consecutive])
def test_all_replicas_may_come_back(kind):
    model = Scaling(2)
    if kind == Kind.All:
        model.own = torch.nn.Parameter(model.own[0].detach())
    executor = poptorch.trainingModel(model, run_options(), poptorch.optim.SGD(model.parameters(), lr=0.01))
    executor.own.replicaGrouping(kind, 2, Returned.AllReplicas)
    executor(X)
    own = model.own.detach().clone()
    assert own.shape == (4, 3) and torch.equal(own[0], own[1]) and torch.equal(own[2], own[3])
    assert torch.equal(own[1], own[2]) == (kind == Kind.All)
    executor.copyWeightsToDevice()
    executor.copyWeightsToHost()
    assert torch.equal(model.own, own)


@pytest.mark.parametrize(
    ("grouping", "problem"),
    [
        ((Kind.Consecutive, 3), "groups of 3 replicas don't divide"),
        ((Kind.Orthogonal, 0), "groups of 0 replicas don't divide"),
        ((Kind.NoGrouping, 0), r"one value for each of 4 groups of replicas, but its shape is \[2, 3\]"),
    ],
)
def test_what_fits_no_replicas(grouping, problem):
    executor = poptorch.inferenceModel(Scaling(2), run_options())
    executor.own.replicaGrouping(*grouping, Returned.OnePerGroup)
    with pytest.raises(poptorch.Error, match=problem):
        executor(X)


@pytest.mark.parametrize("wrap", [poptorch.trainingModel, poptorch.inferenceModel])
def test_arguments_and_time_of_the_call(wrap):
    model = Scaling(4)
    executor = wrap(model, run_options())
    with pytest.raises(poptorch.Error, match="comm_group_type must be"):
        executor.own.replicaGrouping(3, 0, Returned.OnePerGroup)
    with pytest.raises(poptorch.Error, match="variable_retrieval_mode must be"):
        model.own.replicaGrouping(Kind.NoGrouping, 0, 0)
    executor.own.replicaGrouping(Kind.NoGrouping, 0, Returned.OnePerGroup)
    executor(X)
    with pytest.raises(poptorch.Error, match="before the model is compiled"):
        executor.own.replicaGrouping(Kind.All, 0, Returned.OnePerGroup)
    with pytest.raises(poptorch.Error, match="parameters of an executor"):
        Scaling(1).own.replicaGrouping(Kind.All, 0, Returned.OnePerGroup)


def test_a_file_keeps_the_grouping(tmp_path):
    executor = poptorch.inferenceModel(Scaling(4), run_options())
    executor.own.replicaGrouping(Kind.NoGrouping, 0, Returned.OnePerGroup)
    output, _ = executor(X)
    executor.save(str(tmp_path / "model"))
    assert torch.equal(poptorch.load(str(tmp_path / "model"))(X)[0], output)
