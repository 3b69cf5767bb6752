"""Convolutions: equivalence to matmuls, and the waste of small channel groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipu_simulator.cost.convolution import Convolution, plan_convolution
from ipu_simulator.cost.matmul import plan
from ipu_simulator.environment import target

CHIP = target("pod16")
# GroupBERT Base: 48 groups of 16 channels, 7 tokens, 1024 of them.
GROUPED = Convolution(8, 48, 16, 16, (1, 128), (1, 7))


def test_a_kernel_of_one_position_is_a_matmul():
    convolution = Convolution(2, 4, 768, 192, (1, 512), (1, 1))
    assert plan_convolution(convolution, CHIP, 0.2).cycles == plan(convolution.as_product, CHIP, 0.2).cycles
    assert convolution.flops == 2 * 2 * 512 * 4 * 768 * 192


def test_groupberts_convolution_is_a_small_part_of_a_layer():
    cycles = plan_convolution(GROUPED, CHIP, 0.2).cycles
    assert 3_000 < cycles < 4_700  # poplibs' formulas, worked by hand
    feed_forward = plan(Convolution(8, 1, 768, 3072, (1, 128), (1, 1)).as_product, CHIP, 0.2).cycles
    assert cycles < 0.1 * feed_forward


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_smaller_groups_waste_the_amp(channels):
    """The time shrinks less than the work."""
    small = replace(GROUPED, groups=768 // channels, in_channels=channels, out_channels=channels)
    share = small.flops / GROUPED.flops
    assert plan_convolution(small, CHIP, 0.2).cycles > share * plan_convolution(GROUPED, CHIP, 0.2).cycles


@pytest.mark.parametrize(
    "convolution",
    [GROUPED, Convolution(4, 1, 64, 64, (56, 56), (3, 3)), Convolution(1, 1, 3, 64, (112, 112), (7, 7))],
)
def test_never_faster_than_the_amp_and_better_machines_never_slower(convolution):
    made = plan_convolution(convolution, CHIP, 0.6)
    assert made.cycles >= convolution.flops / 2 / 64 / CHIP.tiles_per_ipu
    for key, factor in (("tiles_per_ipu", 0.5), ("exchange_bytes_per_cycle", 0.5), ("bytes_per_tile", 0.2)):
        value = getattr(CHIP, key)
        worse = replace(CHIP, **{key: type(value)(value * factor)})
        assert plan_convolution(convolution, worse, 0.6).cycles >= made.cycles, key


@pytest.mark.parametrize("taps", [2, 3, 7, 9])
def test_more_taps_take_longer(taps):
    fewer = replace(GROUPED, kernel=(1, taps - 1))
    more = replace(GROUPED, kernel=(1, taps))
    assert plan_convolution(more, CHIP, 0.2).cycles > plan_convolution(fewer, CHIP, 0.2).cycles
