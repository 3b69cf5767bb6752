"""Convolutions: equivalence to matmuls, and the waste of small channel groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ipu_simulator.cost.convolution import (
    Convolution,
    gradient_of_input,
    plan_convolution,
    plan_weights_gradient,
)
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
    # Worked by hand: 35 positions, 2 blocks of 8 outputs and 7 taps on a tile take 14 * 370 cycles; exchange.
    assert 5_000 < cycles < 7_500
    feed_forward = plan(Convolution(8, 1, 768, 3072, (1, 128), (1, 1)).as_product, CHIP, 0.2).cycles
    assert cycles < 0.15 * feed_forward


@pytest.mark.parametrize("channels", [1, 2])
def test_smaller_groups_waste_the_amp(channels):
    """The time shrinks less than the work. Groups of 4 and 8 have the SLIC vertex."""
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


def test_the_gradient_of_weights_is_a_product_over_positions():
    """Of one position of the kernel without copies; of more with a copy of the input for each."""
    one = Convolution(20, 1, 64, 256, (56, 56), (1, 1))
    product = replace(one.as_product, m=64, k=20 * 56 * 56, resident="neither")
    assert plan_weights_gradient(one, CHIP, 0.15).cycles == plan(product, CHIP, 0.15).cycles
    nine = replace(one, kernel=(3, 3))
    of_nine = plan(replace(product, m=9 * 64), CHIP, 0.15).cycles
    copied = 20 * 56 * 56 * 64 * 9 * 2 / CHIP.tiles_per_ipu
    # 0.44 cycles a byte to copy, 1/4 to exchange.
    assert plan_weights_gradient(nine, CHIP, 0.15).cycles == pytest.approx(of_nine + 587 + copied * 0.69)


def test_strides_cost_a_gradient_of_the_input_no_more_than_the_forward_pass():
    strided = Convolution(20, 1, 256, 512, (28, 28), (1, 1))
    assert gradient_of_input(strided).flops == strided.flops
    assert gradient_of_input(strided).in_channels == 512
