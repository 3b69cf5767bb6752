"""Typed accumulators against rational arithmetic: one rounding where an IPU stores, none elsewhere."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from ipu_simulator import numerics
from ipu_simulator.numerics import Reduction

LARGEST = 65504
# Whose sums round, tie, overflow float16 and cancel.
VALUES = (2050.0, 1.0, 2048.0, 3.0, 65504.0, 65504.0, -65504.0, 0.333251953125, 5.960464477539063e-08)
NAMES = ["weight"]


def _rounded(value: Fraction) -> Fraction:
    """To the nearest float16, which saturates. The values here are exact in float64, so this rounds once."""
    clamped = min(max(value, Fraction(-LARGEST)), Fraction(LARGEST))
    return Fraction(float(np.float16(float(clamped))))


def _float32(value: Fraction) -> Fraction:
    return Fraction(float(np.float32(float(value))))


def _expected(gradients: list[list[float]], reduction: Reduction) -> Fraction:
    """`gradients[replica][step]`."""
    accumulation, replicas = len(gradients[0]), len(gradients)
    total = Fraction(0)
    for of_replica in gradients:
        value = Fraction(of_replica[0])
        for step, gradient in enumerate(of_replica[1:], 1):
            if reduction is Reduction.MEAN_RUNNING:
                part = _float32(Fraction(gradient) / (step + 1))
                value = _rounded(
                    _float32(part + _float32(value * Fraction(float(np.float64(step / (step + 1))))))
                )
            else:
                value = _rounded(_float32(value + Fraction(gradient)))
        total += value
    if replicas > 1:
        if reduction in (Reduction.MEAN_RUNNING, Reduction.MEAN_POST_AND_LOSS):
            total /= replicas
        total = _rounded(_float32(total))
    divisor = replicas * accumulation
    if reduction is Reduction.MEAN_POST and divisor > 1:
        total = _rounded(_float32(total / divisor))
    return total


def _reduced(gradients: list[list[float]], reduction: Reduction) -> torch.Tensor:
    plan = numerics.StepPlan(gradient_accumulation=len(gradients[0]), replicas=len(gradients))
    settings = numerics.AccumulatorSettings(torch.float16, reduction, lambda: 1.0)
    rounding = numerics.StateRounding(numerics.KeyedRandomness(0, 0), by_chance=False, stops=False)
    source = numerics.TypedAccumulators(plan, settings, numerics.Processes(0, 1), rounding, NAMES)
    weight = torch.zeros(1, dtype=torch.float16)
    for replica, of_replica in enumerate(gradients):
        for step, gradient in enumerate(of_replica):
            weight.grad = torch.tensor([gradient], dtype=torch.float16)
            source.add([weight], numerics.MicroBatch(0, step, replica))
    (found,) = source.reduced([weight])
    assert found is not None
    return found


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_float16_accumulators_of_replicas(reduction: Reduction, replicas: int, accumulation: int) -> None:
    for number, values in enumerate(itertools.permutations(VALUES, replicas * accumulation)):
        if number % 97 and len(values) > 2:
            continue
        gradients = [list(values[replica * accumulation :][:accumulation]) for replica in range(replicas)]
        found = _reduced(gradients, reduction)
        assert found.dtype is torch.float16
        assert math.isfinite(found.item())
        assert Fraction(found.item()) == _expected(gradients, reduction), (gradients, reduction)


@pytest.mark.parametrize("reduction", list(Reduction))
def test_replicas_that_share_a_value_sum_their_own_gradients(reduction: Reduction) -> None:
    """Four replicas in two groups: each has the sum of its replicas' gradients. A running mean is over the
    group's, a division afterwards over all replicas.
    """
    plan = numerics.StepPlan(gradient_accumulation=2, replicas=4)
    settings = numerics.AccumulatorSettings(torch.float16, reduction, lambda: 1.0)
    rounding = numerics.StateRounding(numerics.KeyedRandomness(0, 0), by_chance=False, stops=False)
    source = numerics.TypedAccumulators(
        plan, settings, numerics.Processes(0, 1), rounding, NAMES, [(0, 1, 1, 0)]
    )
    weight = torch.zeros(1, dtype=torch.float16)
    given = [[1.0, 2.0], [4.0, 8.0], [16.0, 32.0], [64.0, 128.0]]
    for replica, of_replica in enumerate(given):
        for step, gradient in enumerate(of_replica):
            weight.grad = torch.tensor([gradient], dtype=torch.float16)
            source.add([weight], numerics.MicroBatch(0, step, replica))
    (found,) = source.reduced([weight])
    assert found is not None
    sums = np.array([1.0 + 2 + 64 + 128, 4.0 + 8 + 16 + 32])
    divisor = {
        Reduction.SUM: 1,
        Reduction.MEAN_POST: 4 * 2,
        Reduction.MEAN_POST_AND_LOSS: 4,
        Reduction.MEAN_RUNNING: 2 * 2,
    }[reduction]
    assert found.flatten().tolist() == (sums / divisor).tolist()


def test_replicas_round_their_accumulators_with_different_draws() -> None:
    """Stochastic rounding: the same gradients in two replicas are stored differently."""

    def stored(replica: int) -> list[float]:
        plan = numerics.StepPlan(gradient_accumulation=2, replicas=2)
        settings = numerics.AccumulatorSettings(torch.float16, Reduction.SUM, lambda: 1.0)
        rounding = numerics.StateRounding(numerics.KeyedRandomness(0, 0), by_chance=True, stops=False)
        source = numerics.TypedAccumulators(plan, settings, numerics.Processes(0, 1), rounding, NAMES)
        weight = torch.zeros(100, dtype=torch.float16)
        for step, gradient in enumerate((2048.0, 0.5)):
            weight.grad = torch.full((100,), gradient, dtype=torch.float16)
            source.add([weight], numerics.MicroBatch(0, step, replica))
        (found,) = source.reduced([weight])
        assert found is not None
        return list(found.tolist())

    first, second = stored(0), stored(1)
    assert set(first) | set(second) == {2048.0, 2050.0}
    assert first != second and first == stored(0)
