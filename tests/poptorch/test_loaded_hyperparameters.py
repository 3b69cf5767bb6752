"""Hyperparameters that `load_state_dict` brings to the device."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.poptorch.executor_models import Classifier, batch, clones, options, poptorch, same

optim = poptorch.optim
KINDS = {
    "SGD": lambda weights, **other: optim.SGD(weights, **{"lr": 0.5, **other}),
    "Adam": lambda weights, **other: optim.Adam(weights, **{"lr": 0.5, **other}),
    "AdamW": lambda weights, **other: optim.AdamW(weights, **{"lr": 0.5, **other}),
    "RMSprop": lambda weights, **other: optim.RMSprop(weights, **{"lr": 0.5, **other}),
    "LAMB": lambda weights, **other: optim.LAMB(weights, **{"lr": 0.5, **other}),
}
# All variable hyperparameters of each kind: as compiled, and as loaded later (powers of two are exact).
SETTINGS = {
    "SGD": ({"loss_scaling": 2.0, "weight_decay": 0.0}, {"lr": 0.125, "weight_decay": 0.25}),
    "SGD with dampening": ({"dampening": 0.0}, {"lr": 0.25, "dampening": 0.5}),
    "SGD with momentum": (
        {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "loss_scaling": 4.0},
        {"lr": 0.25, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125, "loss_scaling": 8.0},
    ),
    "SGD combined": (
        {"momentum": 0.5, "use_combined_accum": True, "velocity_scaling": 16.0, "loss_scaling": 2.0},
        {"lr": 0.25, "momentum": 0.25},
    ),
    "Adam": (
        {"betas": (0.5, 0.5), "eps": 1.0, "weight_decay": 0.0},
        {"lr": 0.25, "betas": (0.75, 0.875), "eps": 0.5, "weight_decay": 0.25},
    ),
    "AdamW": ({"weight_decay": 0.25, "loss_scaling": 2.0}, {"weight_decay": 0.5, "loss_scaling": 16.0}),
    "RMSprop": (
        {"momentum": 0.25, "alpha": 0.5, "eps": 1.0},
        {"lr": 0.125, "momentum": 0.5, "alpha": 0.75, "eps": 0.5},
    ),
    "LAMB": ({"max_weight_norm": 2.0, "weight_decay": 0.25}, {"lr": 0.25, "max_weight_norm": 0.5}),
}


def start(kind, calls=0, **arguments):
    """(model, executor, optimizer) after some calls."""
    model = Classifier()
    optimizer = KINDS[kind.partition(" ")[0]](model.parameters(), **arguments)
    executor = poptorch.trainingModel(model, options(accumulation=2), optimizer)
    for seed in range(calls):
        executor(*batch(4, seed))
    return model, executor, optimizer


def parameters(optimizer):
    return copy.deepcopy(optimizer.state_dict()["ipu_param"])


@pytest.mark.parametrize("compiled_first", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_next_run_uses_loaded_hyperparameters(kind, compiled_first):
    """As if the optimizer had been made with them, and they read back as they were loaded."""
    before, after = SETTINGS[kind]
    expected, executor, source = start(kind, calls=1, **{**before, **after})
    loaded = source.state_dict()
    model, other, optimizer = start(kind, **before)
    if compiled_first:
        other.compile(*batch(4))
    # The groups keep the old values, so only ipu_param can bring the new ones.
    mine = optimizer.state_dict()
    optimizer.load_state_dict({**mine, **{part: loaded[part] for part in ("ipu_state", "ipu_param")}})
    assert same(parameters(optimizer), loaded["ipu_param"])
    model.load_state_dict(clones(expected))
    if compiled_first:
        other.copyWeightsToDevice()
    for seed in (1, 2):
        executor(*batch(4, seed))
        other(*batch(4, seed))
        assert same(clones(model), clones(expected))
        assert same(parameters(optimizer), loaded["ipu_param"])


def test_set_optimizer_rules_once_attributes_change():
    _, executor, optimizer = start("SGD", calls=1)
    loaded = {**optimizer.state_dict(), "ipu_param": parameters(optimizer)}
    for name in loaded["ipu_param"]:
        if name.startswith("scaledLearningRate"):
            loaded["ipu_param"][name] = torch.tensor(0.25)
    optimizer.load_state_dict(loaded)
    executor.setOptimizer(optimizer)  # as before the load
    assert same(parameters(optimizer), loaded["ipu_param"])
    optimizer.param_groups[0]["lr"] = 0.125
    assert same(parameters(optimizer), loaded["ipu_param"])
    executor.setOptimizer(optimizer)
    assert float(parameters(optimizer)["scaledLearningRate0___specific___first.bias"]) == 0.125


def test_a_learning_rate_set_after_loading_rules_before_compiling_too():
    _, _, source = start("Adam", calls=1)
    model = Classifier()
    optimizer = optim.Adam(model.parameters(), lr=0.5)
    optimizer.load_state_dict(source.state_dict())
    optimizer.param_groups[0]["lr"] = 0.125
    poptorch.trainingModel(model, options(accumulation=2), optimizer).compile(*batch(4))
    assert float(parameters(optimizer)["learningRate___specific___first.bias"]) == 0.125


def test_weights_of_one_group_may_get_different_values():
    model, executor, optimizer = start("SGD", calls=1)
    state = copy.deepcopy(optimizer.state_dict())
    state["ipu_param"]["scaledLearningRate0___specific___first.bias"] = torch.tensor(0.0)
    optimizer.load_state_dict(state)
    before = clones(model)
    executor(*batch(4))
    moved = {name for name, value in clones(model).items() if not torch.equal(value, before[name])}
    assert moved == {"first.weight", "second.weight", "second.bias"}


def test_names_that_are_missing_or_not_variable_are_told(caplog):
    _, _, optimizer = start("AdamW", calls=1, weight_decay=0.25)
    state = copy.deepcopy(optimizer.state_dict())
    del state["ipu_param"]["weightDecay___specific___first.bias"]
    state["ipu_param"]["eps___specific___first.bias"] = torch.tensor(0.5)
    optimizer.load_state_dict(state)
    assert "Optimizer state lacks weightDecay___specific___first.bias" in caplog.text
    assert "Ignoring optimizer hyperparameters eps___specific___first.bias" in caplog.text
    now = parameters(optimizer)
    assert float(now["weightDecay___specific___first.bias"]) == 0.25
    assert "eps___specific___first.bias" not in now


def test_a_state_of_another_model_is_told(caplog):
    _, _, optimizer = start("Adam", calls=1)
    mine = optimizer.state_dict()
    optimizer.load_state_dict({**mine, "ipu_state": {**mine["ipu_state"], "Accl1___third": torch.ones(2)}})
    assert "Ignoring optimizer state Accl1___third: there is no such tensor" in caplog.text
    caplog.clear()
    optimizer.load_state_dict({**mine, "ipu_state": {**mine["ipu_state"], "Accum___third": torch.ones(2)}})
    assert not caplog.records


@pytest.mark.parametrize(
    ("part", "name", "value", "problem"),
    [
        ("ipu_state", "Accl1___first.bias", [1.0], r"must be a tensor, it is \[1\.0\]"),
        ("ipu_param", "learningRate___specific___first.bias", "fast", "must be a number, it is 'fast'"),
        (
            "ipu_param",
            "learningRate___specific___first.bias",
            torch.ones(2),
            "must be a number, it is tensor",
        ),
        ("ipu_param", "lossScaling_FLOAT", torch.tensor(0.0), r"must be above 0, it is 0\.0"),
    ],
)
@pytest.mark.parametrize("calls", [0, 1])
def test_values_that_no_state_has_are_refused(part, name, value, problem, calls):
    _, _, source = start("Adam", calls=1, loss_scaling=2.0)
    state = source.state_dict()
    _, executor, optimizer = start("Adam", calls=calls, loss_scaling=2.0)
    with pytest.raises(ValueError, match=f"{name} {problem}"):
        optimizer.load_state_dict({**state, part: {**state[part], name: value}})
    executor(*batch(4))


def test_a_warning_lists_a_few_of_many_names(caplog):
    _, _, optimizer = start("AdamW", calls=1, eps=0.25)
    optimizer.load_state_dict({**optimizer.state_dict(), "ipu_param": {}})
    (record,) = caplog.records
    assert "___first.bias, " in record.getMessage() and " and 4 more: the device keeps" in record.getMessage()


def test_copies_and_later_executors_compute_with_them_too():
    model, executor, optimizer = start("SGD", calls=1)
    state = copy.deepcopy(optimizer.state_dict())
    zero = {name: torch.tensor(0.0) for name in state["ipu_param"] if name.startswith("scaledLearningRate")}
    optimizer.load_state_dict({**state, "ipu_param": {**state["ipu_param"], **zero}})
    copied = copy.deepcopy(optimizer)
    assert same(parameters(copied), parameters(optimizer))
    executor.destroy()
    before = clones(model)
    again = poptorch.trainingModel(model, options(accumulation=2), optimizer)
    again(*batch(4))
    assert same(clones(model), before)


def test_a_state_without_hyperparameters_leaves_them():
    _, executor, optimizer = start("SGD", calls=1)
    before = parameters(optimizer)
    torchs = torch.optim.SGD(Classifier().parameters(), lr=0.125).state_dict()
    optimizer.load_state_dict({"ipu_state": None, "ipu_param": None, **torchs})
    assert same(parameters(optimizer), before)
    executor.setOptimizer(optimizer)
    assert float(parameters(optimizer)["scaledLearningRate0___specific___first.bias"]) == 0.125


@pytest.mark.parametrize(
    ("kind", "name"),
    [("AdamW", "loss_scaling"), ("SGD", "loss_scaling"), ("Adam", "max_grad_norm")],
)
def test_arguments_of_the_device_that_were_left_out_are_constants(kind, name):
    _, executor, optimizer = start(kind, calls=1)
    setattr(optimizer, name, 8.0)
    with pytest.raises(poptorch.Error, match=f"{name} was compiled in as the constant"):
        executor.setOptimizer(optimizer)
    _, executor, optimizer = start(kind, calls=1, **{name: 2.0})
    setattr(optimizer, name, 8.0)
    executor.setOptimizer(optimizer)
