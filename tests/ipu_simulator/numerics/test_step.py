"""A step's parts alone: which slice a replica reads, what runs together, and what has no loss or gradient."""

from __future__ import annotations

import pytest
import torch
from ipu_simulator import numerics
from ipu_simulator.numerics import MicroBatch, Reduction, Returned, Rule

ALONE = numerics.Processes(0, 1)


@pytest.mark.parametrize(
    ("replicas", "size", "orthogonal", "groups"),
    [
        (4, 2, False, [0, 0, 1, 1]),
        (4, 2, True, [0, 1, 0, 1]),
        (6, 2, True, [0, 1, 2, 0, 1, 2]),
        (6, 3, False, [0, 0, 0, 1, 1, 1]),
    ],
)
def test_replicas_of_a_group_read_one_slice(replicas, size, orthogonal, groups):
    plan = numerics.StepPlan(2, 3, replicas, size, orthogonal)
    count = replicas // size
    assert plan.input_slices == 2 * 3 * count
    for iteration, step in ((0, 0), (0, 2), (1, 0), (1, 2)):
        read = [plan.slice_index(MicroBatch(iteration, step, replica)) for replica in range(replicas)]
        assert read == [(3 * iteration + step) * count + group for group in groups]


def program(plan, forward, merge=None):
    return numerics.StepProgram(
        plan, forward, numerics.KeyedRandomness(1), enter_replica=lambda replica: None, merge=merge
    )


@pytest.mark.parametrize("together", [1, 2])
def test_without_a_loss_weights_have_no_gradients(together):
    plan = numerics.StepPlan(device_iterations=2, gradient_accumulation=2)
    weights, updates = [torch.ones(3, requires_grad=True)], []
    merge = numerics.Merge(together, lambda inputs, seeds: (None, [inputs[0] * weights[0]]))
    made = program(plan, lambda inputs: (None, [inputs[0] * weights[0]]), merge)
    x = torch.arange(12.0).view(4, 3)
    (found,) = numerics.run_training(
        made,
        [x],
        weights,
        updates.append,
        numerics.OutputCollector(plan, Returned.ALL),
        numerics.BackwardSums(plan, Reduction.SUM, ALONE),
    )
    assert updates == [[None], [None]]
    assert torch.equal(found, x) and made.randomness.iterations_done == 2


def test_two_micro_batches_run_together_where_they_may():
    plan, sizes = numerics.StepPlan(gradient_accumulation=5), []

    def merged(inputs, seeds):
        sizes.append(len(seeds))
        return (weight * inputs[0]).flatten(1).sum(1), []

    weight, updates = torch.ones((), requires_grad=True), []
    made = program(plan, lambda inputs: ((weight * inputs[0]).sum(), []), numerics.Merge(2, merged))
    collector = numerics.OutputCollector(plan, Returned.FINAL)
    sums = numerics.BackwardSums(plan, Reduction.SUM, ALONE)
    numerics.run_training(made, [torch.arange(5.0)], [weight], updates.append, collector, sums)
    # Of five micro batches in three runs, one runs alone.
    assert sizes == [2, 2] and updates == [[torch.tensor(10.0)]]


def test_inference_counts_its_iterations():
    """The next call's random numbers are others; a call of two iterations draws those of two calls."""

    def drawn(calls, iterations):
        plan = numerics.StepPlan(device_iterations=iterations)
        made = program(plan, lambda inputs: (None, [inputs[0] + torch.rand(())]))
        found = []
        for _ in range(calls):
            collector = numerics.OutputCollector(plan, Returned.ALL)
            (values,) = numerics.run_inference(made, [torch.zeros(iterations)], collector)
            found += values.flatten().tolist()
        assert made.randomness.iterations_done == calls * iterations
        return found

    assert drawn(2, 2) == drawn(4, 1) and len(set(drawn(4, 1))) == 4


@pytest.mark.parametrize("typed", [False, True])
def test_a_group_of_replicas_without_a_gradient_has_zeros(typed):
    plan, groups = numerics.StepPlan(replicas=2), [(0, 1), (0, 1)]
    rounding = numerics.StateRounding(numerics.KeyedRandomness(0), by_chance=False, stops=False)
    settings = numerics.AccumulatorSettings(None, Reduction.SUM, lambda: 1.0)
    source = (
        numerics.TypedAccumulators(plan, settings, ALONE, rounding, ["one", "none"], groups)
        if typed
        else numerics.BackwardSums(plan, Reduction.SUM, ALONE, groups)
    )
    weights = [torch.zeros(2), torch.zeros(2)]
    for replica, gradient in enumerate((None, torch.tensor([1.0, 2.0]))):
        weights[0].grad = gradient
        source.add(weights, MicroBatch(0, 0, replica))
    one, none = source.reduced(weights)
    assert one.tolist() == [[0.0, 0.0], [1.0, 2.0]] and none is None


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.LAMB])
def test_clipping_without_any_gradient_changes_nothing(rule):
    weight = torch.tensor([3.0, 4.0])
    settings = numerics.UpdateSettings(rule, (numerics.GroupSettings(lr=1.0),), max_grad_norm=1.0)
    numerics.Updater(settings, ["weight"], [weight], [0]).step([None], settings)
    assert weight.tolist() == [3.0, 4.0]
