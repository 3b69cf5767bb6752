"""A convolution's plan, found a second time by trying every split: work, exchange and memory of one tile."""

from __future__ import annotations

from itertools import product as combinations
from math import ceil

import numpy as np
import pytest
from ipu_simulator.cost.convolution import Convolution, plan_convolution
from ipu_simulator.cost.matrix_unit import kernel_cycles, slic_cycles, unit_of
from ipu_simulator.environment import target

CHIP = target("pod16")
# Of groups, whose channels fill too few blocks of the AMP to be a product's: these plans are chosen.
CONVOLUTIONS = (
    Convolution(8, 48, 16, 16, (1, 128), (1, 7)),
    Convolution(10, 48, 16, 40, (4, 32), (2, 7)),
    Convolution(3, 24, 32, 32, (1, 384), (1, 15), half_partials=False),
    Convolution(2, 48, 16, 16, (8, 60), (3, 5)),
)


def smallest_parts(total: int) -> list[tuple[int, int]]:
    """(parts, elements of the largest part): the fewest parts for each size."""
    fewest: dict[int, int] = {}
    for parts in range(1, min(total, CHIP.tiles_per_ipu) + 1):
        fewest.setdefault(ceil(total / parts), parts)
    return [(parts, size) for size, parts in fewest.items()]


def plans(it: Convolution) -> list[tuple[float, int]]:
    """(cycles, temporary bytes) of every split over groups, positions and blocks of output channels."""
    unit = unit_of(CHIP, it.input_bytes, it.half_partials)
    for_taps = unit_of(CHIP, it.input_bytes, half_partials=False)
    rows, blocks = it.batch * it.field[0] * it.field[1], ceil(it.out_channels / unit.block_out)
    found = []
    for (g, groups), (m, here), (n, out_blocks) in combinations(
        *map(smallest_parts, (it.groups, rows, blocks))
    ):
        if g * m * n > CHIP.tiles_per_ipu:
            continue
        columns = min(out_blocks * unit.block_out, it.out_channels)
        sizes = [np.array(each) for each in (groups, here)]
        shape = (*sizes, it.field[1], it.in_channels, np.array(columns), it.kernel)
        compute = float(kernel_cycles(for_taps, *shape))
        slic = slic_cycles(CHIP, *shape) if it.input_bytes == 2 else None
        if slic is not None:
            compute = min(compute, float(slic))
        halo = (it.kernel[0] - 1) * it.field[1] + it.kernel[1] - 1
        inputs = groups * it.in_channels * (here + halo) * it.input_bytes
        weights = groups * it.in_channels * columns * it.kernel[0] * it.kernel[1] * it.input_bytes
        partials = groups * here * columns * (2 if it.half_partials and it.input_bytes == 2 else 4)
        # An even number of parts of the outputs: pairs of tiles receive the same inputs at once.
        rate = CHIP.shared_exchange_bytes_per_cycle if n % 2 == 0 else CHIP.exchange_bytes_per_cycle
        exchange = inputs / rate + weights * (1 - 1 / m) / CHIP.exchange_bytes_per_cycle
        found.append((compute + exchange, inputs + weights + partials))
    return found


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.6])
def test_the_plan_is_the_fastest_of_those_with_room(convolution: Convolution, share: float) -> None:
    every = plans(convolution)
    bound = max(share * CHIP.bytes_per_tile, min(size for _, size in every))
    cycles, size = min(each for each in every if each[1] <= bound)
    made = plan_convolution(convolution, CHIP, share)
    assert (made.cycles, made.temporary_bytes) == (pytest.approx(cycles), size)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_operations_are_counted_for_every_position_of_the_kernel(convolution: Convolution) -> None:
    outputs = convolution.batch * np.prod(convolution.field) * convolution.groups * convolution.out_channels
    assert convolution.flops == 2 * outputs * convolution.in_channels * np.prod(convolution.kernel)
