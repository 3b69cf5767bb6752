"""Optimizers: classes and defaults, update rules, changes at run time, state."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.poptorch.executor_models import Classifier, batch, clones, options, poptorch, same

optim = poptorch.optim
ALL = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01},
    "LAMB": {"lr": 0.01, "weight_decay": 0.1},
}


def start(optimizer_of, made=None, calls=0):
    """(model, executor, optimizer) after some calls."""
    model = Classifier()
    optimizer = optimizer_of(model)
    executor = poptorch.trainingModel(model, made, optimizer)
    for seed in range(calls):
        executor(*batch(4, seed))
    return model, executor, optimizer


# ---- classes


@pytest.mark.parametrize("name", ALL)
def test_classes_are_torch_optimizers_too(name):
    optimizer = getattr(optim, name)(Classifier().parameters(), **ALL[name])
    assert isinstance(optimizer, optim.Optimizer)
    assert isinstance(optimizer, getattr(torch.optim, name, torch.optim.Optimizer))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step + 1))
    assert optimizer.param_groups[0]["lr"] == 0.5 * ALL[name]["lr"]


def test_arguments_left_out_have_torchs_defaults_and_are_constant():
    optimizer = optim.AdamW(Classifier().parameters())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        1e-3,
        (0.9, 0.999),
        1e-8,
        0.01,
    )
    assert optimizer.loss_scaling == 1.0 and optimizer.accum_type is torch.float32
    assert optimizer.variable_attrs.isConstant("lr")
    optimizer = optim.AdamW(Classifier().parameters(), lr=1e-3, loss_scaling=2.0)
    assert not optimizer.variable_attrs.isConstant("lr")
    assert not optimizer.variable_attrs.isConstant("loss_scaling")
    assert optimizer.variable_attrs.isConstant("weight_decay")
    optimizer.variable_attrs.markAsConstant("lr")
    assert optimizer.variable_attrs.isConstant("lr")
    with pytest.raises(AssertionError, match="Unknown attribute lrr, allowed values"):
        optimizer.variable_attrs.markAsVariable("lrr")


def test_lamb_without_a_limit_has_popart_s():
    assert optim.LAMB(Classifier().parameters()).param_groups[0]["max_weight_norm"] == 65500.0


def test_arguments_are_checked():
    parameters = list(Classifier().parameters())
    with pytest.raises(
        AssertionError, match=r"Accumulation types must be either torch.float32 or torch.float16"
    ):
        optim.Adam(parameters, accum_type=torch.int32)
    with pytest.raises(ValueError, match="maximize"):
        optim.SGD(parameters, lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="Only non-amsgrad Adam/AdamW optimizers are supported"):
        start(lambda model: optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(AssertionError, match=r"Unsupported optimizer type\. Types supported"):
        start(lambda model: torch.optim.Adagrad(model.parameters()))


@pytest.mark.parametrize(
    ("arguments", "ignored"),
    [
        ({"velocity_scaling": 2.0}, "velocity_scaling is ignored"),
        ({"use_combined_accum": True, "velocity_scaling": 2.0}, None),
        (
            {"use_combined_accum": True, "accum_type": torch.float32},
            "accum_type and velocity_accum_type are ignored",
        ),
        (
            {"use_combined_accum": True, "velocity_accum_type": torch.float16},
            "velocity_accum_type are ignored",
        ),
        ({"accum_type": torch.float16, "velocity_accum_type": torch.float16}, None),
    ],
)
def test_arguments_of_the_other_sgd_are_told(arguments, ignored, caplog):
    optim.SGD(Classifier().parameters(), lr=0.1, momentum=0.9, **arguments)
    assert [ignored in record.getMessage() for record in caplog.records] == (
        [] if ignored is None else [True]
    )


def test_lamb_steps_on_the_host_as_on_the_device():
    reference = Classifier()
    host = optim.LAMB(reference.parameters(), lr=0.1, weight_decay=0.1)
    model, executor, _ = start(lambda model: optim.LAMB(model.parameters(), lr=0.1, weight_decay=0.1))
    for seed in range(3):
        x, y = batch(4, seed)
        host.zero_grad()
        reference(x, y)[1].backward()
        host.step()
        executor(x, y)
    for mine, other in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(mine.detach().clone(), other.detach(), rtol=1e-6, atol=1e-6)


# ---- update rules that differ from PyTorch's


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3), torch.optim.AdamW),
        (lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.3), torch.optim.Adam),
        (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.3), torch.optim.SGD),
        (lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, weight_decay=0.3), torch.optim.RMSprop),
    ],
)
def test_torch_optimizers_update_as_in_torch(ours, torchs):
    """AdamW is a subclass of Adam in newer PyTorch, but must not be treated as Adam."""
    reference = Classifier()
    host = ours(reference.parameters())
    assert type(host) is torchs
    model, executor, _ = start(lambda model: ours(model.parameters()))
    for seed in range(3):
        x, y = batch(4, seed)
        host.zero_grad()
        reference(x, y)[1].backward()
        host.step()
        executor(x, y)
    for mine, other in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(mine.detach().clone(), other.detach(), rtol=1e-5, atol=1e-6)


def test_a_groups_max_weight_norm_of_zero_makes_lamb_adamw():
    def groups(model):
        biases = [model.first.bias, model.second.bias]
        weights = [model.first.weight, model.second.weight]
        return [{"params": weights}, {"params": biases, "max_weight_norm": 0}]

    lamb, executor, _ = start(lambda model: optim.LAMB(groups(model), lr=0.1, weight_decay=0.2))
    adam, other, _ = start(lambda model: optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2))
    executor(*batch(4))
    other(*batch(4))
    for layer in ("first", "second"):
        ours, theirs = getattr(lamb, layer), getattr(adam, layer)
        torch.testing.assert_close(ours.bias.detach(), theirs.bias.detach(), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(ours.weight.detach(), theirs.weight.detach(), atol=1e-3)


def test_lambs_weight_norm_is_limited():
    """With |w| above the limit, the step has exactly the length lr * limit."""
    model, executor, _ = start(lambda model: optim.LAMB(model.parameters(), lr=0.1, max_weight_norm=0.5))
    before = clones(model)
    executor(*batch(4))
    for name, value in model.named_parameters():
        if before[name].norm() > 0.5:
            assert float((value.detach() - before[name]).norm()) == pytest.approx(0.05, rel=1e-4)


def test_lamb_obeys_bias_correction_and_adamw_ignores_it():
    def after(kind, correction):
        model, executor, _ = start(
            lambda model: kind(model.parameters(), lr=0.1, bias_correction=correction, eps=1e-3)
        )
        executor(*batch(4))
        return clones(model)

    assert same(after(optim.AdamW, True), after(optim.AdamW, False))
    assert not same(after(optim.LAMB, True), after(optim.LAMB, False))


def test_loss_scaling_divides_out():
    def after(scale):
        model, executor, _ = start(
            lambda model: optim.AdamW(model.parameters(), lr=0.1, loss_scaling=scale), options(accumulation=2)
        )
        executor(*batch(4))
        return clones(model)

    assert same(after(1.0), after(1024.0))


def mean_or_sum(mean):
    made = options(accumulation=2, replicas=2)
    made.Training.accumulationAndReplicationReductionType(
        poptorch.ReductionType.Mean if mean else poptorch.ReductionType.Sum
    )
    return made


def reduced_gradients(mean, model=None):
    """Of `batch(8)`, by name: over accumulation and replicas."""
    reference = Classifier()
    if model is not None:
        reference.load_state_dict(clones(model))
    x, y = batch(8)
    sum(reference(x[i : i + 2], y[i : i + 2])[1] for i in range(0, 8, 2)).div(4 if mean else 1).backward()
    return {name: weight.grad for name, weight in reference.named_parameters()}


def norm(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("limit", [0.01, 1e6])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_adam_clips_by_the_norm_of_the_whole_reduced_gradient(kind, mean, limit):
    """In units without the loss scale; the first moment after a step is (1 - beta1) times the gradient."""
    _, executor, optimizer = start(
        lambda model: getattr(optim, kind)(
            model.parameters(), lr=0.1, betas=(0.75, 0.9), max_grad_norm=limit, loss_scaling=64.0
        ),
        mean_or_sum(mean),
    )
    executor(*batch(8))
    gradients = reduced_gradients(mean)
    share = min(1.0, limit / norm(gradients.values()))
    for name, gradient in gradients.items():
        moment = optimizer.state_dict()["ipu_state"][f"Accl1___{name}"]
        torch.testing.assert_close(moment, 0.25 * share * gradient, rtol=1e-4, atol=1e-7)


SGDS = {
    "plain": {},
    "plain, dampening": {"dampening": 0.25},
    "separate": {"momentum": 0.5, "dampening": 0.25},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "combined": {"momentum": 0.5, "use_combined_accum": True, "velocity_scaling": 8.0},
}


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("limit", [2.0, 1e6])
@pytest.mark.parametrize("arguments", SGDS.values(), ids=SGDS)
def test_sgd_clips_the_velocity_as_the_device_scales_it(arguments, limit, mean):
    """PopART clips the input of the variable update: the velocity times the loss scaling (the combined
    accumulator: times the velocity scaling), or the scaled gradient of SGD without momentum.
    """
    rate, decay, scale = 0.5, 0.1, 64.0
    model, executor, optimizer = start(
        lambda model: optim.SGD(
            model.parameters(), rate, weight_decay=decay, loss_scaling=scale, max_grad_norm=limit, **arguments
        ),
        mean_or_sum(mean),
    )
    momentum, undamped = arguments.get("momentum", 0.0), 1 - arguments.get("dampening", 0.0)
    unit = arguments.get("velocity_scaling", scale)
    velocity = {name: torch.zeros_like(weight) for name, weight in clones(model).items()}
    for _ in range(3):
        weights, gradients = clones(model), reduced_gradients(mean, model)
        if momentum:
            decayed = {name: gradients[name] + decay * weights[name] for name in weights}
            velocity = {name: momentum * velocity[name] + undamped * decayed[name] for name in weights}
            nesterov = {name: decayed[name] + momentum * velocity[name] for name in weights}
            terms, kept = nesterov if arguments.get("nesterov") else velocity, weights
        else:
            terms = {name: undamped * gradients[name] for name in weights}
            kept = {name: (1 - rate * undamped * decay) * weights[name] for name in weights}
        # Without momentum, PopART's term is the gradient before dampening.
        length = unit * norm(terms.values()) / (1 if momentum else undamped)
        share = min(1.0, limit / length)
        assert (share < 1) == (limit == 2.0)
        executor(*batch(8))
        for name, value in clones(model).items():
            expected = kept[name] - rate * share * terms[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    # The velocity that is kept isn't clipped.
    state = optimizer.state_dict()["ipu_state"]
    for name in velocity if momentum else ():
        slot = "Accl" if "velocity_scaling" in arguments else "Accl1"
        torch.testing.assert_close(state[f"{slot}___{name}"], velocity[name], rtol=1e-4, atol=1e-6)


def test_tensorflows_rmsprop_has_epsilon_inside_and_starts_at_one():
    model, executor, _ = start(
        lambda model: optim.RMSprop(model.parameters(), lr=0.1, alpha=0.9, eps=0.5, use_tf_variant=True)
    )
    reference = Classifier()
    x, y = batch(4)
    reference(x, y)[1].backward()
    executor(x, y)
    for mine, other in zip(model.parameters(), reference.parameters()):
        average = 0.9 + 0.1 * other.grad**2
        expected = other - 0.1 * other.grad / (average + 0.5).sqrt()
        torch.testing.assert_close(mine.detach().clone(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_weights_outside_the_optimizers_groups_do_not_move():
    model, executor, _ = start(lambda model: optim.AdamW(model.second.parameters(), lr=0.1))
    executor(*batch(4))
    assert torch.equal(model.first.weight, Classifier().first.weight)
    assert not torch.equal(model.second.weight, Classifier().second.weight)


# ---- changes at run time


def test_a_changed_learning_rate_waits_for_set_optimizer():
    model, executor, optimizer = start(lambda model: optim.SGD(model.parameters(), lr=0.5))
    optimizer.param_groups[0]["lr"] = 0.0
    x, y = batch(4)
    executor(x, y)
    moved = clones(model)
    assert not same(moved, clones(Classifier()))
    executor.setOptimizer(optimizer)
    executor(x, y)
    assert same(clones(model), moved)


def test_a_constant_cannot_change_after_compiling():
    model, executor, optimizer = start(lambda model: optim.SGD(model.parameters(), lr=0.5), calls=1)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(poptorch.Error, match=r"weight_decay of group 0 was compiled in as the constant 0"):
        executor.setOptimizer(optimizer)
    model, executor, optimizer = start(
        lambda model: optim.SGD(model.parameters(), 0.5, weight_decay=0.0), calls=1
    )
    optimizer.param_groups[0]["weight_decay"] = 0.1
    executor.setOptimizer(optimizer)
    before = clones(model)
    reference = Classifier()
    reference.load_state_dict(before)
    x, y = batch(4)
    reference(x, y)[1].backward()
    executor(x, y)
    weight = reference.first.weight
    expected = weight - 0.5 * (weight.grad + 0.1 * weight)
    torch.testing.assert_close(model.first.weight.detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_what_is_constant_is_decided_by_compiling():
    model, executor, optimizer = start(lambda model: optim.AdamW(model.parameters(), lr=0.5), calls=1)
    compiled = list(optimizer.state_dict()["ipu_param"])
    assert {name.partition("___")[0] for name in compiled} == {"learningRate"}
    for attribute in ("weight_decay", "loss_scaling"):
        optimizer.variable_attrs.markAsVariable(attribute)
    optimizer.variable_attrs.markAsConstant("lr")
    optimizer.param_groups[0]["lr"] = 0.25
    executor.setOptimizer(optimizer)
    assert list(optimizer.state_dict()["ipu_param"]) == compiled
    assert float(optimizer.state_dict()["ipu_param"][compiled[0]]) == 0.25
    other = optim.AdamW(model.parameters(), lr=0.125, weight_decay=0.01, eps=1e-8)
    executor.setOptimizer(other)
    assert list(other.state_dict()["ipu_param"]) == compiled
    other.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(poptorch.Error, match="weight_decay of group 0 was compiled in"):
        executor.setOptimizer(other)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_so_is_whether_there_is_a_velocity(momentum):
    model, executor, optimizer = start(lambda model: optim.SGD(model.parameters(), 0.5, momentum), calls=1)
    compiled = {part: list(optimizer.state_dict()[part]) for part in ("ipu_state", "ipu_param")}
    executor.setOptimizer(optim.SGD(model.parameters(), 0.5, momentum=0.0))
    executor.setOptimizer(other := optim.SGD(model.parameters(), 0.5))
    executor(*batch(4))
    assert {part: list(other.state_dict()[part]) for part in ("ipu_state", "ipu_param")} == compiled


def test_the_update_rule_cannot_change_after_compiling():
    model, executor, _ = start(lambda model: optim.SGD(model.parameters(), lr=0.5), calls=1)
    with pytest.raises(poptorch.Error, match="it is SGD2, the new one is ADAMW"):
        executor.setOptimizer(optim.AdamW(model.parameters(), lr=0.5))


@pytest.mark.parametrize(
    ("kind", "arguments", "change", "problem"),
    [
        ("SGD", {}, {"lr": -0.5}, r"lr of group 0 is -0\.5"),
        ("SGD", {"weight_decay": 0.0}, {"weight_decay": -1.0}, r"weight_decay of group 0 is -1\.0"),
        ("SGD", {"momentum": 0.9}, {"momentum": -0.5}, "momentum of group 0"),
        ("Adam", {"betas": (0.9, 0.9)}, {"betas": (0.9, 1.0)}, r"betas of group 0 is \(0\.9, 1\.0\)"),
        ("RMSprop", {"eps": 1e-8}, {"eps": -1.0}, "eps of group 0"),
        ("LAMB", {"max_weight_norm": 1.0}, {"max_weight_norm": -1.0}, "max_weight_norm of group 0"),
    ],
)
def test_values_out_of_range_are_refused_when_they_reach_the_device(kind, arguments, change, problem):
    def make(model):
        return getattr(optim, kind)(model.parameters(), **{"lr": 0.1, **arguments})

    _, executor, optimizer = start(make)
    optimizer.param_groups[0].update(change)
    executor.setOptimizer(optimizer)
    with pytest.raises(poptorch.Error, match=f"Invalid {kind.upper()}.* optimizer: {problem}"):
        executor(*batch(4))
    _, executor, optimizer = start(make, calls=1)
    optimizer.param_groups[0].update(change)
    with pytest.raises(poptorch.Error, match=problem):
        executor.setOptimizer(optimizer)


@pytest.mark.parametrize("scaling", [0.0, -1.0])
def test_a_loss_is_scaled_by_more_than_0(scaling):
    _, executor, _ = start(lambda model: optim.SGD(model.parameters(), lr=0.1, loss_scaling=scaling))
    with pytest.raises(poptorch.Error, match=f"loss_scaling is {scaling}"):
        executor(*batch(4))


@pytest.mark.parametrize("value", [None, "fast", [0.1]])
def test_an_attribute_is_a_number(value):
    _, executor, optimizer = start(lambda model: optim.SGD(model.parameters(), lr=0.1))
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match="lr of parameter group 0 must be a number, it is"):
        executor.setOptimizer(optimizer)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match=r"Parameter group 0 lacks lr\."):
        executor.setOptimizer(optimizer)
    if value is not None:  # None is "not given"
        with pytest.raises(ValueError, match="loss_scaling must be a number"):
            start(lambda model: optim.SGD(model.parameters(), lr=0.1, loss_scaling=value))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("Adam", "first_order_momentum_accum_type", torch.float16),
        ("Adam", "second_order_momentum_accum_type", torch.float16),
        ("SGD", "velocity_accum_type", torch.float16),
        ("RMSprop", "use_tf_variant", True),
    ],
)
def test_types_of_the_state_cannot_change_after_compiling(kind, name, value):
    _, executor, optimizer = start(lambda model: getattr(optim, kind)(model.parameters(), lr=0.1), calls=1)
    setattr(optimizer, name, value)
    with pytest.raises(poptorch.Error, match=f"Can't replace the compiled optimizer: its {name} is"):
        executor.setOptimizer(optimizer)


def test_float16_accumulators_switch_to_the_running_mean():
    running = poptorch.MeanReductionStrategy.Running

    def strategy(executor):
        return executor.options.Training.meanAccumulationAndReplicationReductionStrategy

    model, executor, _ = start(lambda model: optim.AdamW(model.parameters(), accum_type=torch.float16))
    assert strategy(executor) == running
    model, executor, _ = start(lambda model: optim.AdamW(model.parameters(), lr=0.1), calls=1)
    assert strategy(executor) == poptorch.MeanReductionStrategy.Post
    with pytest.raises(ValueError, match="Invalid optimizer: the new optimizer would require changing"):
        executor.setOptimizer(optim.AdamW(model.parameters(), lr=0.1, accum_type=torch.float16))


def test_unexpected_attributes_are_told_once(caplog):
    _model, executor, optimizer = start(
        lambda model: optim.AdamW([{"params": model.parameters(), "max_weight_norm": 0}], lr=0.1)
    )
    assert not caplog.records  # the first optimizer's attributes are only recorded
    optimizer.param_groups[0]["surprise"] = 1
    optimizer.another = 1
    executor.setOptimizer(optimizer)
    executor.setOptimizer(optimizer)
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "Ignoring unexpected group 0 attribute in ADAMW optimizer: ['surprise']",
        "Ignoring unexpected optimizer attribute in ADAMW optimizer: ['another']",
    ]


def test_a_subclass_is_told_once_that_its_own_step_is_not_run(caplog):
    class Mine(torch.optim.Adam):
        pass

    _, executor, optimizer = start(lambda model: Mine(model.parameters(), lr=0.1))
    executor.setOptimizer(optimizer)
    (record,) = caplog.records
    assert "Optimizer `Mine` subclassed from classes in poptorch.optim or torch.optim are unlikely" in (
        record.getMessage()
    )


# ---- state


@pytest.mark.parametrize("name", ALL)
def test_a_run_resumes_exactly(name):
    """Weights, optimizer and random state saved after two calls: the third and fourth are bit-identical."""

    def make():
        return start(
            lambda model: getattr(optim, name)(model.parameters(), **ALL[name]), options(accumulation=2)
        )

    model, executor, optimizer = make()
    for seed in range(2):
        executor(*batch(4, seed))
    saved = clones(model), copy.deepcopy(optimizer.state_dict()), executor.rng_state
    for seed in range(2, 4):
        executor(*batch(4, seed))
    expected = clones(model)
    for compile_first in (False, True):
        model, executor, optimizer = make()
        if compile_first:
            executor.compile(*batch(4))
        executor.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        executor.rng_state = saved[2]
        for seed in range(2, 4):
            executor(*batch(4, seed))
        assert same(clones(model), expected)
        assert float(optimizer.state_dict()["ipu_state"].get("Step___first.bias", 4.0)) == 4.0


def test_state_goes_by_popart_s_names():
    model, executor, optimizer = start(
        lambda model: optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2, loss_scaling=8.0),
        options(accumulation=2),
    )
    state = optimizer.state_dict()
    assert state["ipu_state"] is None and state["ipu_param"] is None and not optimizer.has_state()
    executor.compile(*batch(4))
    state = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    slots = ("Accl1", "Accl2", "Step", "Accum")
    assert state["state"] == {}
    assert set(state["ipu_state"]) == {f"{slot}___{name}" for slot in slots for name in names}
    assert set(state["ipu_param"]) == {
        f"{kind}___specific___{name}" for kind in ("learningRate", "weightDecay") for name in names
    } | {"lossScaling_FLOAT"}
    assert float(state["ipu_param"]["learningRate___specific___first.bias"]) == pytest.approx(0.1)
    assert optimizer.state_dict()["ipu_state"] is state["ipu_state"]  # until it runs again
    executor(*batch(4))
    assert optimizer.state_dict()["ipu_state"] is not state["ipu_state"]


def test_sgd_without_momentum_has_no_state():
    _, _executor, optimizer = start(
        lambda model: optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1), calls=1
    )
    state = optimizer.state_dict()
    assert state["ipu_state"] == {}
    assert float(state["ipu_param"]["scaledLearningRate0___specific___first.bias"]) == 0.5
    assert float(state["ipu_param"]["weightDecayScaleFactor0___specific___first.bias"]) == pytest.approx(0.95)
    _, _, optimizer = start(
        lambda model: optim.SGD(model.parameters(), 0.5, momentum=0.9, use_combined_accum=True), calls=1
    )
    assert "Accl___first.bias" in optimizer.state_dict()["ipu_state"]


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        ({}, {"Accum"}),
        ({"momentum": 0.9}, {"Accum", "Accl1"}),
        ({"momentum": 0.9, "use_combined_accum": True}, {"Accl"}),
    ],
)
def test_sgd_accumulates_beside_or_in_its_velocity(arguments, slots):
    made = options(accumulation=2)
    _, _, optimizer = start(lambda model: optim.SGD(model.parameters(), 0.5, **arguments), made, calls=1)
    assert {name.partition("___")[0] for name in optimizer.state_dict()["ipu_state"]} == slots


def test_accumulators_can_be_kept_from_the_host():
    made = options(accumulation=2)
    made._Popart.set("disableGradAccumulationTensorStreams", True)
    _, _executor, optimizer = start(lambda model: optim.Adam(model.parameters(), lr=0.1), made, calls=1)
    assert not any(name.startswith("Accum") for name in optimizer.state_dict()["ipu_state"])


def test_what_cannot_be_loaded():
    optimizer = optim.Adam(Classifier().parameters(), lr=0.1)
    with pytest.raises(KeyError):
        optimizer.load_state_dict({})
    with pytest.raises(RuntimeError, match="Cannot load optimizer state dictionary because it is empty"):
        optimizer.set_state_dict({})
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU"):
        optimizer.load_state_dict(torch.optim.Adam(Classifier().parameters(), lr=0.1).state_dict())
    torchs = torch.optim.Adam(Classifier().parameters(), lr=0.3).state_dict()
    optimizer.load_state_dict({"ipu_state": None, "ipu_param": None, **torchs})
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert not optimizer.has_state()


def test_missing_entries_are_kept_from_the_device(caplog):
    _, _executor, optimizer = start(lambda model: optim.Adam(model.parameters(), lr=0.1), calls=2)
    state = copy.deepcopy(optimizer.state_dict())
    gone = state["ipu_state"].pop("Accl1___first.bias")
    state["ipu_state"]["Accl2___first.bias"].zero_()
    optimizer.load_state_dict(state)
    assert "Accl1___first.bias" in caplog.text
    loaded = optimizer.state_dict()["ipu_state"]
    assert torch.equal(loaded["Accl1___first.bias"], gone)
    assert not loaded["Accl2___first.bias"].any()


def test_a_replaced_optimizer_keeps_its_last_state_and_the_device_goes_on():
    model, executor, first = start(lambda model: optim.Adam(model.parameters(), lr=0.1), calls=1)
    second = optim.Adam(model.parameters(), lr=0.2)
    executor.setOptimizer(second)
    kept = first.state_dict()["ipu_state"]
    executor(*batch(4))
    assert first.state_dict()["ipu_state"] is kept
    assert float(kept["Step___first.bias"]) == 1.0
    assert float(second.state_dict()["ipu_state"]["Step___first.bias"]) == 2.0


def test_copies_of_an_optimizer_are_off_the_device_with_its_state():
    _, executor, optimizer = start(
        lambda model: optim.AdamW(model.parameters(), lr=0.1, loss_scaling=4.0), calls=1
    )
    copied = copy.deepcopy(optimizer)
    executor(*batch(4))
    assert copied.loss_scaling == 4.0 and not copied.variable_attrs.isConstant("lr")
    assert float(copied.state_dict()["ipu_state"]["Step___first.bias"]) == 1.0
    assert float(optimizer.state_dict()["ipu_state"]["Step___first.bias"]) == 2.0


def test_destroy_leaves_the_last_state_with_the_optimizer():
    _, executor, optimizer = start(lambda model: optim.Adam(model.parameters(), lr=0.1), calls=3)
    executor.destroy()
    assert float(optimizer.state_dict()["ipu_state"]["Step___first.bias"]) == 3.0


def test_hyperparameters_have_the_same_order_in_every_process():
    # A set's order differs between processes, and with it the bytes of a saved optimizer.
    def lamb(model):
        return optim.LAMB(
            model.parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, max_weight_norm=2.0
        )

    _, _, optimizer = start(lamb, calls=1)
    names = [name.partition("___")[0] for name in optimizer.state_dict()["ipu_param"]]
    assert names[:6] == ["learningRate", "eps", "weightDecay", "maxWeightNorm", "beta1", "beta2"]
