"""Micro batches together are those that run alone, for every way in which replicas share inputs."""

import itertools

import pytest
import torch
from ipu_simulator import numerics


@pytest.mark.parametrize("orthogonal", [False, True])
def test_consecutive_micro_batches_of_a_replica(orthogonal):
    plan = numerics.StepPlan(2, 5, 4, input_group_size=2, groups_are_orthogonal=orthogonal)
    tensor = torch.arange(plan.input_slices * 3 * 2).view(-1, 2)
    for iteration, replica, (begin, end) in itertools.product(
        range(2), range(4), itertools.combinations(range(6), 2)
    ):
        alone = [numerics.MicroBatch(iteration, step, replica) for step in range(begin, end)]
        together = plan.micro_inputs(tensor, alone[0], len(alone))
        assert torch.equal(together, torch.stack([plan.micro_input(tensor, which) for which in alone]))
    number = torch.tensor(3)
    assert plan.micro_inputs(number, numerics.MicroBatch(0, 0, 0), 5) is number
