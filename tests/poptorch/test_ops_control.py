"""Loops, branches, dynamic slices, and MultiConv."""

from __future__ import annotations

import contextlib

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


class Program(torch.nn.Module):
    """A model that calls a function; a weight makes it trainable."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return poptorch.identity_loss(self.function(x * self.weight), "sum")


def doubled(x):
    return x * 2


def test_a_loop_turns_on_the_device_and_once_on_the_host():
    model = Program(lambda x: poptorch.for_loop(3, doubled, [x])[0])
    x = torch.ones(2)
    assert float(model(x).detach()) == 4.0
    assert float(poptorch.inferenceModel(model)(x)) == 16.0
    assert torch.equal(x, torch.ones(2))
    with pytest.raises(poptorch.Error, match=r"poptorch\.for_loop\(\) is only supported in inference"):
        poptorch.trainingModel(model)(x)
    with pytest.raises(ValueError, match="Object is not list"):
        poptorch.for_loop(3, doubled, x)
    with pytest.raises(ValueError, match="Element 1 is not a tensor"):
        poptorch.for_loop(3, doubled, [x, 1])


def test_a_branch_follows_its_condition_at_every_run():
    def branch(x):
        return poptorch.cond(x.sum() > 0, lambda a: a * 10, [x], lambda a: -a, [x])

    assert branch(torch.ones(1)) == [10.0] and branch(-torch.ones(1)) == [1.0]
    model = poptorch.inferenceModel(Program(lambda x: branch(x)[0]))
    assert [float(model(value)) for value in (torch.ones(1), -torch.ones(1), torch.ones(1))] == [
        10.0,
        1.0,
        10.0,
    ]
    with pytest.raises(poptorch.Error, match=r"poptorch\.cond\(\) is only supported in inference"):
        poptorch.trainingModel(Program(lambda x: branch(x)[0]))(torch.ones(1))
    with pytest.raises(ValueError, match="else_inps"):
        poptorch.cond(torch.tensor(True), doubled, [], doubled, ())


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("start, size, step", [(0, 4, 1), (0, 4, 2), (2, 2, 1), (1, 2, 2), (3, 1, 1)])
def test_slices_are_pythons(dim, start, size, step):
    x = torch.randn(4, 4, requires_grad=True)
    where = [slice(None)] * 2
    where[dim] = slice(start, start + size, step)
    part = poptorch.dynamic_slice(x, dim, torch.tensor([start]), size, step)
    assert torch.equal(part, x[tuple(where)])
    part.sum().backward()
    expected = torch.zeros(4, 4)
    expected[tuple(where)] = 1
    assert torch.equal(x.grad, expected)


def test_updates_are_pythons():
    x, src = torch.randn(4, 3), torch.randn(2, 3)
    expected = x.clone()
    expected[1:3] = src
    assert torch.equal(poptorch.dynamic_update(x, src, 0, torch.tensor([1]), 2), expected)


ONE = torch.tensor([1])


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: poptorch.dynamic_slice(x, 0, ONE.to(x.device), 7, 1),
            r"The size of the slice \(7\) must be a factor of the slicing dimension \(8\)\.",
        ),
        (lambda x: poptorch.dynamic_slice(x, -1, ONE.to(x.device), 3, 1), r"\(3\) .* dimension \(4\)\."),
        (lambda x: poptorch.dynamic_slice(x, 0, ONE.to(x.device), 16, 1), r"\(16\) .* dimension \(8\)\."),
        (lambda x: poptorch.dynamic_update(x, x[:3], 0, ONE.to(x.device), 3), r"\(3\) .* dimension \(8\)\."),
        (
            lambda x: poptorch.dynamic_slice(x, 0, 1, 2, 1),
            r"start of the slice must be a tensor, not 1 \(int\)",
        ),
        (lambda x: poptorch.dynamic_update(x, x[:2], 0, 1, 2), "start of the slice must be a tensor"),
        (lambda x: poptorch.dynamic_slice(x, 0, x[0, :1], 2, 1), "one integer, not .* of torch.float32"),
        (lambda x: poptorch.dynamic_slice(x, 0, x[0].int(), 2, 1), r"one integer, not \[4\]"),
        (lambda x: poptorch.dynamic_slice(x, 0, ONE.to(x.device), 2, 0), "positive integers, not 2 and 0"),
        (
            lambda x: poptorch.dynamic_update(x, x[:2], 0, ONE.to(x.device), 4),
            "has 2 elements .* its size is 4",
        ),
        (lambda x: poptorch.dynamic_update(x, x[0], 0, ONE.to(x.device), 4), "as many dimensions"),
        (lambda x: poptorch.dynamic_update(x, x[:2].half(), 0, ONE.to(x.device), 2), "torch.float16 for"),
    ],
)
def test_a_dynamic_slice_has_a_start_of_the_device_and_a_size_that_divides(call, message, on_device):
    x = torch.randn(8, 4)
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Program(call)).compile(x) if on_device else call(x)


def test_dynamic_slices_start_anew_in_every_run():
    class Window(torch.nn.Module):
        def forward(self, x, start):
            part = poptorch.dynamic_slice(x, 1, start, 2, 1)
            return part, poptorch.dynamic_update(x, part * 10, 1, start, 2)

    x, model = torch.arange(8.0).reshape(2, 4), poptorch.inferenceModel(Window())
    for start in (0, 2, 1):
        part, updated = model(x, torch.tensor([start]))
        expected = x.clone()
        expected[:, start : start + 2] *= 10
        assert torch.equal(part, x[:, start : start + 2]) and torch.equal(updated, expected)


def test_a_custom_operation_is_zeros_on_the_host():
    def custom(x, attributes=None):
        return poptorch.custom_op([x], "Cube", "com.acme", 1, example_outputs=[x], attributes=attributes)[0]

    assert torch.equal(custom(torch.ones(3), {"alpha": 0.5, "axes": [1, 2]}), torch.zeros(3))
    for attributes in ({1: 2}, {"a": []}, {"a": [1, "b"]}, {"a": object()}):
        with pytest.raises(ValueError):
            custom(torch.ones(1), attributes)


def test_a_layer_on_the_host_may_do_what_a_trace_may_not():
    seen = []

    def layer(x):
        seen.append((poptorch.isRunningOnIpu(), x.sum().item()))
        draws = torch.multinomial(x, 1)  # PopTorch has none
        return x + 1 + draws * torch.zeros(x[1].int() + 1)

    model = poptorch.inferenceModel(Program(poptorch.CPU(layer, "mine")))
    assert float(model(torch.ones(2))) == 4.0
    assert seen and set(seen) == {(False, 2.0)}


def test_convolutions_planned_together():
    plan = poptorch.MultiConv().availableMemoryProportions([0.1, 0.2]).partialsTypes(torch.half)
    with plan.planType(poptorch.MultiConvPlanType.Serial).cycleBackOff(0.1):
        pass
    with pytest.raises(ValueError):
        plan.partialsTypes(torch.int32)
    with pytest.raises(AssertionError):
        plan.perConvReservedTiles("many")


class TwoConvolutions(torch.nn.Module):
    """Two convolutions planned together, optionally inside another plan."""

    def __init__(self, plan, outer=None):
        super().__init__()
        self.plan, self.outer = plan, outer
        self.layers = torch.nn.ModuleList(torch.nn.Conv1d(1, 1, 2) for _ in range(2))

    def forward(self, x):
        with self.outer or contextlib.nullcontext(), self.plan:
            return torch.cat([layer(x) for layer in self.layers])


def test_plans_fit_their_convolutions():
    x = torch.randn(1, 1, 5)
    model = TwoConvolutions(poptorch.MultiConv().availableMemoryProportions((0.1, 0.2)))
    for _ in range(2):
        assert torch.allclose(poptorch.inferenceModel(model)(x), model(x))
    three = TwoConvolutions(poptorch.MultiConv().partialsTypes([torch.half] * 3))
    with pytest.raises(poptorch.Error, match=r"partialsTypes has 3 values for 2 convolutions"):
        poptorch.inferenceModel(three)(x)
    nested = TwoConvolutions(poptorch.MultiConv(), poptorch.MultiConv())
    with pytest.raises(poptorch.Error, match=r"Nested poptorch\.MultiConv operations are not supported"):
        poptorch.inferenceModel(nested)(x)
    assert torch.allclose(poptorch.inferenceModel(model)(x), model(x))


class OneAfterAnother(torch.nn.Module):
    """Convolutions one of which may need the other, also through a change in place."""

    def __init__(self, between):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Conv1d(1, 1, 1) for _ in range(2))
        self.between = between

    def forward(self, x):
        y = x * 2
        with poptorch.MultiConv():
            z = self.between(self.layers[0](x), y)
            return self.layers[1](z)


@pytest.mark.parametrize(
    ("between", "is_allowed"),
    [
        (lambda first, y: y, True),
        (lambda first, y: y.relu(), True),
        (lambda first, y: first, False),
        (lambda first, y: first.relu() + y, False),
        (lambda first, y: y.add_(first), False),
        (lambda first, y: first[0, 0].unsqueeze(0).unsqueeze(0), False),
    ],
)
def test_convolutions_of_one_plan_don_t_need_one_another(between, is_allowed):
    from poptorch.simulator import capture

    x, model = torch.randn(1, 1, 5), OneAfterAnother(between)
    if is_allowed:
        assert torch.equal(poptorch.inferenceModel(model)(x), model(x))
        capture(model, (x,), {}, poptorch.Options(), training=False)
        return
    with pytest.raises(poptorch.Error, match="this convolution needs the result of another one"):
        poptorch.inferenceModel(model)(x)
    with pytest.raises(poptorch.Error, match="this convolution needs the result of another one"):
        capture(model, (x,), {}, poptorch.Options(), training=False)


def test_a_plan_has_convolutions():
    class Empty(torch.nn.Module):
        def forward(self, x):
            with poptorch.MultiConv().partialsTypes([]):
                return x * 2

    assert torch.equal(Empty()(torch.ones(1)), torch.full((1,), 2.0))
    with pytest.raises(poptorch.Error, match=r"In test_ops_control\.py.*MultiConv has no convolutions"):
        poptorch.inferenceModel(Empty())(torch.ones(1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x[:1], r"input 0 is \[2\] of torch\.float32 and output of the body 0 is \[1\]"),
        (lambda x: x.half(), r"output of the body 0 is .* of torch\.float16"),
        (lambda x: (x, x), "got 1 of 'input' and 2 of 'output of the body'"),
        (lambda x: x.sum().reshape(()), r"\[\] of"),
        (lambda x: [3], "must be a tensor"),
    ],
)
def test_a_loop_keeps_number_shapes_and_types(body, message):
    executor = poptorch.inferenceModel(Program(lambda x: poptorch.for_loop(2, body, [x])[0]))
    with pytest.raises(poptorch.Error, match=message):
        executor(torch.ones(2))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda x: x[:1], r"output of else_body 0 is \[1\]"),
        (lambda x: x > 0, r"of torch\.bool"),
        (lambda x: (x, x), "and 2 of 'output of else_body'"),
    ],
)
def test_a_condition_has_like_branches(other, message):
    """Also if the first run doesn't take the branch."""
    executor = poptorch.inferenceModel(
        Program(lambda x: poptorch.cond(x.sum() > 0, doubled, [x], other, [x])[0])
    )
    with pytest.raises(poptorch.Error, match=message):
        executor(torch.ones(2))


def test_integers_of_a_loop_may_be_of_32_or_64_bits():
    """The device has only 32-bit integers."""
    loop = poptorch.inferenceModel(
        Program(lambda x: poptorch.for_loop(2, lambda n: n.int() + 1, [x.long()])[0].float())
    )
    assert float(loop(torch.ones(1))) == 3.0
