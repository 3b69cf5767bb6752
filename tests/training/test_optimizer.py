"""Parameter groups as published, clipping that doesn't depend on how a batch is split, learning rates."""

import dataclasses
import itertools

import pytest
import torch

import config
import ipu
import model as models
from training import CheckpointError, OptimizerPlan, Schedule, build_optimizer
from training.optimizer import parameter_groups, set_learning_rate
from training.optimizer_state import check_state, state_at_rate

ipu.select_device("simulator")

PLAN = dataclasses.replace(
    config.load("test_bert").section(OptimizerPlan),
    optimizer="sgd",
    learning_rate=0.5,
    momentum=0.9,
    adam_beta1=0.9,
    adam_beta2=0.999,
    optimizer_eps=1e-6,
    weight_decay=0.01,
    max_grad_norm=None,
    loss_scaling=128.0,
    precision="float16",
    enable_half_first_order_momentum=False,
    reduction="mean",
    gradient_accumulation=1,
    replication_factor=1,
)


def groupbert():
    return models.PretrainingModel(
        models.ModelConfig(
            vocab_size=64,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            norm="pre",
            convolution=True,
            feed_forward="grouped_projected",
        )
    )


def test_every_parameter_stands_in_one_group_by_its_kind():
    model = groupbert()
    decayed, norms, biases = parameter_groups(model, 0.01, lamb=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [id(parameter) for group in (decayed, norms, biases) for parameter in group["params"]]
    assert sorted(grouped) == sorted(names)
    assert all(names[id(parameter)].endswith("bias") for parameter in biases["params"])
    assert all("norm" in names[id(parameter)] for parameter in norms["params"])
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert [group["weight_decay"] for group in (decayed, norms, biases)] == [0.01, 0.0, 0.0]
    assert biases["max_weight_norm"] == 0
    assert "max_weight_norm" not in decayed and "max_weight_norm" not in norms


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"])
def test_each_optimizer_trains_and_follows_its_learning_rate(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = build_optimizer(model, dataclasses.replace(PLAN, optimizer=name))
    before = model.weight.detach().clone()
    executor = ipu.poptorch.trainingModel(Loss(model), optimizer=optimizer)
    set_learning_rate(optimizer, 0.0)
    executor.setOptimizer(optimizer)
    executor(torch.ones(2, 3))
    assert torch.equal(model.weight, before)
    set_learning_rate(optimizer, 0.1)
    executor.setOptimizer(optimizer)
    executor(torch.ones(2, 3))
    assert not torch.equal(model.weight, before)
    executor.destroy()


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return ipu.poptorch.identity_loss(self.inner(x).pow(2).mean(), reduction="none")


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"])
def test_a_saved_state_goes_on_at_the_rate_of_the_next_update(kind):
    """As if the saved optimizer had had that rate; nothing else of its state changes."""

    def states(learning_rate):
        model = torch.nn.Linear(5, 3)
        plan = dataclasses.replace(PLAN, optimizer=kind, learning_rate=learning_rate)
        optimizer = build_optimizer(model, plan)
        ipu.poptorch.trainingModel(Loss(model), None, optimizer).compile(torch.ones(2, 5))
        state = optimizer.state_dict()
        return {part: state[part] for part in ("ipu_state", "ipu_param")}

    saved, expected = states(0.5), states(0.125)
    changed = state_at_rate(saved, 0.125, PLAN.loss_scaling)
    for part in ("ipu_state", "ipu_param"):
        assert changed[part].keys() == expected[part].keys()
        assert all(torch.equal(value, expected[part][name]) for name, value in changed[part].items())
    rates = [name for name in saved["ipu_param"] if "earningRate" in name]
    assert len(rates) == 2 and all(saved["ipu_param"][n] != changed["ipu_param"][n] for n in rates)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("accumulation", "replicas"), [(1, 1), (4, 1), (2, 2), (1, 4)])
def test_clipping_is_by_the_norm_of_the_mean_gradient(reduction, accumulation, replicas):
    torch.manual_seed(0)
    model, reference = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    reference.load_state_dict(model.state_dict())
    threshold, batch = 0.05, torch.randn(8, 5)
    plan = dataclasses.replace(
        PLAN,
        optimizer="adam",
        weight_decay=0.0,
        max_grad_norm=threshold,
        reduction=reduction,
        gradient_accumulation=accumulation,
        replication_factor=replicas,
    )
    poptorch = ipu.poptorch
    options = poptorch.Options()
    options.replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    kinds = {"mean": poptorch.ReductionType.Mean, "sum": poptorch.ReductionType.Sum}
    options.Training.accumulationAndReplicationReductionType(kinds[reduction])
    optimizer = build_optimizer(model, plan)
    executor = poptorch.trainingModel(Loss(model), options, optimizer)
    executor(batch)
    reference(batch).pow(2).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), threshold)
    assert norm > 2 * threshold
    # With "sum" the device's gradient is the mean times the number of micro batches.
    number = accumulation * replicas if reduction == "sum" else 1
    state = optimizer.state_dict()["ipu_state"]
    for name, weight in reference.named_parameters():
        moment = state[f"Accl1___inner.{name}"] / number  # after the first step
        torch.testing.assert_close(moment, (1 - plan.adam_beta1) * weight.grad, rtol=0, atol=1e-7)
    executor.destroy()


def schedule(**changes):
    values = {
        "learning_rate": 0.012,
        "lr_schedule": "linear",
        "warmup_steps": 10,
        "lr_warmup_power": 1.0,
        "lr_end": 0.0,
        "training_steps": 100,
    }
    return Schedule(**{**values, **changes})


@pytest.mark.parametrize("name", ["constant", "linear", "polynomial"])
def test_the_peak_is_reached_when_the_warm_up_ends(name):
    assert schedule(lr_schedule=name, lr_warmup_power=0.5).at(9) == pytest.approx(0.012)
    assert schedule(lr_schedule=name, lr_warmup_power=0.5).at(10) == pytest.approx(0.012)


def test_square_root_warm_up_of_groupbert():
    rates = [schedule(lr_schedule="polynomial", warmup_steps=4, lr_warmup_power=0.5).at(s) for s in range(4)]
    assert rates == pytest.approx([0.012 * (n / 4) ** 0.5 for n in (1, 2, 3, 4)])


def test_linear_ignores_what_belongs_to_polynomial():
    linear = schedule(lr_warmup_power=0.5, lr_end=1e-7)
    assert linear.at(4) == pytest.approx(0.012 * 5 / 10)
    assert linear.at(55) == pytest.approx(0.012 * 45 / 90)
    assert linear.at(99) > linear.at(100) == 0


def test_polynomial_decays_to_its_end():
    polynomial = schedule(lr_schedule="polynomial", lr_end=1e-7)
    assert polynomial.at(55) == pytest.approx(1e-7 + (0.012 - 1e-7) * 45 / 90)
    assert polynomial.at(99) > polynomial.at(100) == 1e-7


def test_every_update_moves_the_weights():
    for name in ("constant", "linear", "polynomial"):
        assert all(schedule(lr_schedule=name).at(step) > 0 for step in range(100))


def test_no_warm_up_starts_at_the_peak():
    assert schedule(warmup_steps=0).at(0) == pytest.approx(0.012)


@pytest.fixture(scope="module")
def saved():
    """A model, its optimiser's plan, and the state after two updates as the simulator has it."""
    plan = dataclasses.replace(PLAN, optimizer="lamb", gradient_accumulation=2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = torch.nn.LayerNorm(2), torch.nn.Linear(2, 2)
            self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x):
            return ipu.poptorch.identity_loss((self.norm(x * self.frozen) ** 2).sum(), "sum")

    model = Model()
    optimizer = build_optimizer(model, plan)
    options = ipu.poptorch.Options()
    options.Training.gradientAccumulation(2)
    executor = ipu.poptorch.trainingModel(model, options, optimizer)
    for _ in range(2):
        executor(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    state = optimizer.state_dict()
    executor.destroy()
    return model, plan, {part: state[part] for part in ("ipu_state", "ipu_param")}


LR = "learningRate___specific___norm.bias"


@pytest.mark.parametrize(
    ("part", "key", "value", "found"),
    [
        ("ipu_state", "Accl1___other", torch.zeros(2), "belongs to no weight"),
        ("ipu_state", "Accl1___frozen", torch.zeros(2), "belongs to no weight"),
        ("ipu_state", "nonsense", torch.zeros(2), "belongs to no weight"),
        ("ipu_state", "Accl3___norm.bias", torch.zeros(2), "Accl3___norm.bias isn't a tensor of this opt"),
        ("ipu_state", "Accl1___norm.bias", torch.zeros(3), r"has shape \(3,\), not \(2,\)"),
        ("ipu_state", "Accl1___norm.bias", torch.tensor(0.0), r"has shape \(\), not \(2,\)"),
        ("ipu_state", "Accl1___norm.bias", torch.zeros(2).half(), "float16, not torch.float32"),
        ("ipu_state", "Accl1___norm.bias", torch.zeros(2).double(), "float64, not torch.float32"),
        ("ipu_state", "Accl2___norm.bias", torch.full((2,), -1.0), "average of squares"),
        ("ipu_state", "Accl2___norm.bias", None, "Accl2 is missing for the weight norm.bias"),
        ("ipu_state", "Accl2___norm.bias", torch.zeros(2, dtype=torch.int32), "int32"),
        ("ipu_state", "Accl2___norm.bias", torch.full((2,), torch.nan), "NaN"),
        ("ipu_state", "Step___norm.bias", torch.tensor(3.0), "is 3.0, but the checkpoint's step is 2"),
        ("ipu_state", "Step___norm.bias", torch.tensor(0.0), "is 0.0, but the checkpoint's step is 2"),
        ("ipu_state", "Step___norm.bias", torch.ones(2), r"has shape \(2,\), not \(\)"),
        ("ipu_state", "Step___norm.bias", None, "Step is missing for the weight norm.bias"),
        ("ipu_state", "lossScaleUpdateFactor", torch.tensor(-1.0), "is -1.0, not a number above 0"),
        ("ipu_param", "lossScaling_FLOAT", torch.tensor(torch.inf), "lossScaling_FLOAT is inf"),
        ("ipu_param", "lossScaling_FLOAT", torch.ones(2), r"lossScaling_FLOAT is \[1.0, 1.0\]"),
        ("ipu_param", "lossScaling_FLOAT", torch.tensor(-1.0), "the configuration's is 128"),
        ("ipu_param", "lossScaling_FLOAT", None, "lossScaling_FLOAT is missing"),
        ("ipu_param", LR, None, f"{LR} is missing"),
        ("ipu_param", LR, torch.tensor(3), "is 3, not a finite number"),
        ("ipu_param", LR.replace("norm", "other"), torch.tensor(1.0), "has no hyperparameter learningRate"),
        ("ipu_param", "momentum", torch.tensor(1.0), "has no hyperparameter momentum"),
        ("ipu_param", "eps___specific___norm.bias", torch.tensor(-1.0), "the configuration's is 1e-06"),
    ],
)
def test_an_optimiser_state_of_another_run_is_refused(tmp_path, saved, part, key, value, found):
    model, plan, state = saved
    check_state(tmp_path, state, model, plan, 2, as_ipu=False)
    changed = {name: dict(tensors) for name, tensors in state.items()}
    changed[part][key] = value
    if value is None:
        del changed[part][key]
    with pytest.raises(CheckpointError, match=f"isn't the optimiser state of this run: .*{found}"):
        check_state(tmp_path, changed, model, plan, 2, as_ipu=False)


class Summed(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 1)

    def forward(self, x):
        return ipu.poptorch.identity_loss(super().forward(x).sum(), "sum")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "lamb_no_bias_correction"])
def test_the_state_of_every_optimiser_is_accepted(tmp_path, name):
    for precision, half, as_ipu in itertools.product(("float32", "float16"), (False, True), (False, True)):
        plan = dataclasses.replace(
            PLAN, optimizer=name, precision=precision, enable_half_first_order_momentum=half
        )
        is_half = as_ipu and precision == "float16"
        model = Summed().half() if is_half else Summed()
        ipu.select_device("simulator", precision="ipu-float16" if as_ipu else "float32")
        optimizer = build_optimizer(model, plan)
        executor = ipu.poptorch.trainingModel(model, None, optimizer)
        executor(torch.ones(1, 2, dtype=torch.float16 if is_half else torch.float32))
        check_state(tmp_path, optimizer.state_dict(), model, plan, 1, as_ipu=as_ipu)
        executor.destroy()
        if half and is_half and name != "sgd":
            with pytest.raises(CheckpointError, match=r"float16, not torch\.float32"):
                check_state(tmp_path, optimizer.state_dict(), model, plan, 1, as_ipu=False)
