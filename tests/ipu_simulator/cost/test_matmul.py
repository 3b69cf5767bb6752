"""The matmul planner: exhaustive search, poplibs' published behaviour, and properties."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from math import ceil, inf

import pytest
from ipu_simulator.cost.matmul import SERIAL_K, SERIAL_N, Product, plan
from ipu_simulator.environment import target

CHIP = target("bow-pod16")
BERT_LARGE_PRODUCTS = [
    Product(1, 1024, 1024, 1024),
    Product(1, 1024, 1024, 4096),
    Product(1, 1024, 4096, 1024),
    Product(128, 128, 64, 128),
    Product(128, 128, 128, 64),
    Product(1, 160, 1024, 15261),
    Product(4, 1024, 768, 192),
    Product(48, 1024, 112, 16),
]


def exhaustive(product, tiles, bound):
    """(cycles, bytes) of the best plan within `bound`, by brute force; poplibs' formulas written again."""
    best = (inf, inf)
    for m, n in {(product.m, product.n), (product.n, product.m)}:
        for sn, sk in itertools.product(SERIAL_N, SERIAL_K):
            blocks_n, blocks_k = ceil(ceil(n / sn) / 16), ceil(ceil(product.k / sk) / 16)
            if sn > ceil(n / 16) or sk > ceil(product.k / 16):
                continue
            for pg, pm, pn, pk in itertools.product(*map(tight, (product.groups, m, blocks_n, blocks_k))):
                if pg * pm * pn * pk <= tiles:
                    best = min(best, one_plan(product, m, n, tiles, sn, sk, pg, pm, pn, pk, bound))
    return best


def tight(total):
    return [parts for parts in range(1, total + 1) if ceil(total / ceil(total / parts)) == parts]


def one_plan(product, m, n, tiles, sn, sk, pg, pm, pn, pk, bound):
    g, rows = ceil(product.groups / pg), ceil(m / pm)
    og, ig = ceil(ceil(ceil(n / sn) / 16) / pn), ceil(ceil(ceil(product.k / sk) / 16) / pk)
    columns, depth = min(16 * og, ceil(n / sn)), min(16 * ig, ceil(product.k / sk))
    positions = ceil(rows / 6)
    worker = 31 + 4 * (positions - 3) if positions >= 3 else (35 if positions == 2 else 26)
    with_zeroing = worker - 1
    compute = 50 + 6 * (7 + 3 * (ig * g - 1))
    compute += g * (
        13 + (ig - 1) * (15 + og * (25 + 64 + 6 * worker)) + 11 + og * (25 + 64 + 6 * with_zeroing)
    )
    inputs, weights, partials = 2 * g * rows * depth, 2 * g * depth * columns, 2 * g * rows * columns
    exchange = inputs * (1 - 1 / pn) / (8 if pn % 2 == 0 else 4) + weights * (1 - 1 / pm) / 4
    reduction, reduced = 0.0, 0.0
    if pk > 1:
        exchange += partials / 4
        reduced = g * rows * columns / pk
        reduction = 33 + 6 * (20 + ceil(reduced / 8 / 6) * (pk - 1 + 9))
    serial = 0.0
    outputs = product.groups * m * n / tiles
    if sn * sk > 1:
        serial = 160 * sn * sk + 0.5 * product.groups * product.k * n / tiles
    if sn > 1:
        serial += 0.5 * outputs * sk
    if sk > 1:
        serial += 0.75 * outputs * sk
    temporary = ceil(max(inputs + weights + partials, partials + 2 * reduced))
    if temporary > bound:
        return (inf, inf)
    moved = 2 * product.groups * m * (product.k + n) / tiles
    swap = 2 * 587 + moved * (0.44 + 1 / 4) if m > n and product.groups == 1 else 0
    return sn * sk * (compute + exchange + reduction) + serial + swap, temporary


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_is_better_than_the_chosen_one(seed):
    draw = random.Random(seed)
    product = Product(draw.randint(1, 4), *(draw.choice([7, 16, 40, 64, 96, 130]) for _ in range(3)))
    small = replace(CHIP, tiles_per_ipu=draw.choice([4, 12, 31]))
    chosen = plan(product, small, draw.choice([0.02, 0.05, 0.3]))
    bound = chosen.temporary_bytes
    cycles, _bytes = exhaustive(product, small.tiles_per_ipu, bound)
    assert chosen.cycles == pytest.approx(cycles)
    unlimited = plan(product, small, 1.0)
    assert unlimited.cycles == pytest.approx(exhaustive(product, small.tiles_per_ipu, CHIP.bytes_per_tile)[0])


@pytest.mark.parametrize("product", BERT_LARGE_PRODUCTS)
@pytest.mark.parametrize("half_partials", [True, False])
def test_never_faster_than_the_amp_allows(product, half_partials):
    product = replace(product, half_partials=half_partials)
    macs = product.flops / 2
    rate = CHIP.half_macs_per_cycle if half_partials else CHIP.half_float_partials_macs_per_cycle
    for proportion in (0.1, 0.25, 1.0):
        made = plan(product, CHIP, proportion)
        assert made.compute_cycles >= macs / rate / CHIP.tiles_per_ipu
        assert made.tiles <= CHIP.tiles_per_ipu


def test_float32_never_faster_than_the_amp_allows():
    product = Product(1, 1024, 1024, 1024, input_bytes=4)
    made = plan(product, CHIP, 0.6)
    assert made.compute_cycles >= product.flops / 2 / CHIP.float_macs_per_cycle / CHIP.tiles_per_ipu


@pytest.mark.parametrize("product", BERT_LARGE_PRODUCTS)
def test_more_memory_tiles_or_bandwidth_never_hurt(product):
    """For memory only where a plan fits: otherwise the bound is doubled, so that less may become more."""
    fitting = [
        made for made in (plan(product, CHIP, step / 40) for step in range(1, 41)) if made.within_bound
    ]
    cycles = [one.cycles for one in fitting]
    assert cycles == sorted(cycles, reverse=True)
    for key, values in (
        ("tiles_per_ipu", (300, 736, 1216, 1472)),
        ("exchange_bytes_per_cycle", (2, 4, 6)),
        ("shared_exchange_bytes_per_cycle", (6, 8, 16)),
    ):
        cycles = [plan(product, replace(CHIP, **{key: value}), 1.0).cycles for value in values]
        assert cycles == sorted(cycles, reverse=True), key


@pytest.mark.parametrize("product", BERT_LARGE_PRODUCTS)
def test_the_proportion_bounds_temporary_memory(product):
    for proportion in (0.05, 0.1, 0.15, 0.25, 0.6):
        made = plan(product, CHIP, proportion)
        if made.within_bound:
            assert made.temporary_bytes <= proportion * CHIP.bytes_per_tile


def test_a_tight_proportion_serialises_a_large_product():
    """As Poplar does at 0.15 in BERT Large's published recipes."""
    product = Product(1, 1024, 1024, 4096)
    assert plan(product, CHIP, 0.25).serial_splits == 1
    assert plan(product, CHIP, 0.15).serial_splits > 1


def test_an_impossible_bound_is_doubled_until_a_plan_fits():
    product = Product(1, 4096, 4096, 4096)
    least = plan(product, CHIP, 0.0).temporary_bytes
    proportion = 0.6 * least / CHIP.bytes_per_tile
    made = plan(product, CHIP, proportion)
    assert not made.within_bound
    assert least <= made.temporary_bytes <= 2 * proportion * CHIP.bytes_per_tile
    assert made == replace(plan(product, CHIP, 2 * proportion), within_bound=False)


@pytest.mark.parametrize(
    ("product", "proportion", "cycles"),
    [
        (Product(1, 1024, 1024, 3072), 0.25, 72_200),
        (Product(1, 1024, 1024, 1024), 0.25, 29_400),
        (Product(32, 512, 64, 512), 0.25, 13_400),
        (Product(32, 512, 512, 64), 0.25, 16_700),
        (Product(128, 128, 64, 128), 0.25, 4_900),
        (Product(4, 1024, 768, 192), 0.25, 17_900),
        (Product(48, 1024, 112, 16), 0.25, 3_600),
    ],
)
def test_cycles_are_those_of_an_earlier_independent_run_of_the_same_rules(product, proportion, cycles):
    """The earlier run searched fewer splits, and took two cycles to add a vector of partial sums."""
    made = plan(replace(product, resident="neither"), CHIP, proportion)
    assert 0.9 * cycles < made.cycles < 1.025 * cycles


def test_the_clock_and_the_size_of_the_machine_change_no_plan():
    product = Product(1, 512, 768, 768)
    assert plan(product, target("pod4"), 0.2) == plan(product, target("bow-pod256"), 0.2)


def test_few_rows_leave_the_larger_operand_where_it_is():
    """The same plan for both orders of the operands: batch-1 inference moves the sample, not the weights."""
    for rows in (1, 4, 8, 16, 64):
        one = plan(Product(1, rows, 4096, 4096), CHIP, 0.6)
        other = plan(Product(1, 4096, 4096, rows), CHIP, 0.6)
        assert one.cycles == other.cycles and one.swapped != other.swapped
        assert one.swap_cycles == 0 == other.swap_cycles
        # Every block of 16 x 16 weights is loaded in 64 cycles, by each tile's share of them.
        assert one.compute_cycles >= 256 * 256 / CHIP.tiles_per_ipu * 64


def test_a_swap_is_chosen_where_it_pays_and_costs_copies():
    """Per tile: 587 cycles for the operand and the result each, 451 for 1,024 bytes, and their exchange."""
    made = plan(Product(1, 2048, 2048, 16384), CHIP, 0.6)
    moved = 2 * (16384 * 2048 + 2048 * 16384) / CHIP.tiles_per_ipu
    assert made.swapped and made.swap_cycles == pytest.approx(2 * 587 + moved * (0.44 + 1 / 4))
