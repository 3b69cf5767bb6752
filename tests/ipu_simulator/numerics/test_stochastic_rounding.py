"""Stochastic rounding: exact where probabilities can be enumerated, within 3 sigma where values are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from ipu_simulator.numerics import FloatingPointException, KeyedRandomness, StateRounding
from ipu_simulator.numerics.rounding import random_words, stochastic, to_device_dtype

ALL_HALVES = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
FINITE = ALL_HALVES[ALL_HALVES.isfinite()]


def words(count, seed=0, tensor="w", **key):
    return random_words(
        torch.Size([count]), seed, key.get("update", 0), key.get("replica", -1), key.get("step", 0), tensor
    )


def test_a_half_is_never_moved():
    for seed in range(4):
        rounded = stochastic(FINITE.float(), words(len(FINITE), seed))
        assert torch.equal(rounded.view(torch.int16), FINITE.view(torch.int16))


def test_only_the_two_neighbours_come_out():
    """Between every two adjacent float16 values: the midpoint, and next to either end."""
    halves = torch.sort(FINITE.float().unique()).values
    lower, upper = halves[:-1], halves[1:]
    for share in (2.0**-13, 0.25, 0.5, 1 - 2.0**-13):
        between = lower + (upper - lower) * share
        rounded = stochastic(between, words(len(between))).float()
        assert bool(((rounded == lower) | (rounded == upper)).all())
        # Some of each at the middle, of course.
        if share == 0.5:
            assert 0.45 < float((rounded == upper).float().mean()) < 0.55


@pytest.mark.parametrize("half", [1.0, -1.0, 1.9990234375, 0.1, 1000.0, 2.0**-14, -31000.0])
@pytest.mark.parametrize("dropped", [1, 2, 1000, 4096, 8000, 8191])
def test_a_normal_number_goes_up_exactly_as_often_as_it_is_far(half, dropped):
    """Over all 2^13 values of the random bits that matter, for any others."""
    lower = torch.tensor([half]).half().float()
    value = (lower.view(torch.int32) + dropped).view(torch.float32).expand(1 << 13).contiguous()
    every_word = torch.arange(1 << 13, dtype=torch.int32)
    for others in (0, 0x5A5A << 13, -1 << 13):
        rounded = stochastic(value, every_word | others).float()
        away = int((rounded != lower).sum())
        assert away == dropped


@pytest.mark.parametrize(
    "value",
    [1.0001, -1.0001, 0.33333, 12345.678, 65503.0, 2.0**-14 * 1.0003]
    + [3.3 * 2.0**-24, 0.7 * 2.0**-24, -0.01 * 2.0**-24, 1000.25 * 2.0**-24, 5e-6],
)
def test_the_mean_is_the_value_within_three_sigma(value):
    count = 1 << 18
    exact = torch.full((count,), value)
    rounded = stochastic(exact, words(count, seed=7)).double()
    low, high = float(rounded.min()), float(rounded.max())
    value = float(exact[0])
    chance = (value - low) / (high - low)
    sigma = (high - low) * math.sqrt(chance * (1 - chance) / count)
    assert low < value < high
    assert abs(float(rounded.mean()) - value) <= 3 * sigma


def test_the_ends_of_the_range():
    large = torch.tensor([65519.0, 65535.9, 65536.0, 1e30, math.inf]).repeat_interleave(1000)
    assert set(stochastic(large, words(5000)).tolist()) == {65504.0}
    assert set(stochastic(-large, words(5000)).tolist()) == {-65504.0}
    assert bool(stochastic(torch.full((1000,), math.nan), words(1000)).isnan().all())
    # The largest payload would overflow into the sign.
    payload = torch.full((1000,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert bool(stochastic(payload, words(1000)).isnan().all())
    zeros = stochastic(torch.tensor([0.0, -0.0]), words(2))
    assert zeros.view(torch.int16).tolist() == [0, -(1 << 15)]


def test_every_part_of_the_key_matters_and_nothing_else():
    base = {"seed": 1, "tensor": "encoder.weight", "update": 2, "replica": 3, "step": 4}
    first = words(1000, **base)
    assert torch.equal(first, words(1000, **base))
    # An element's word doesn't depend on how many elements there are.
    assert torch.equal(first[:7], words(7, **base))
    for changed in ({"seed": 2}, {"tensor": "encoder.bias"}, {"update": 3}, {"replica": 2}, {"step": 5}):
        other = words(1000, **{**base, **changed})
        assert float((other == first).float().mean()) < 0.01
    # Uniform: each bit is set in half of the words.
    many = words(1 << 16)
    for bit in range(32):
        share = float(((many >> bit) & 1).float().mean())
        assert abs(share - 0.5) < 3.5 * 0.5 / 2**8


def test_the_hosts_threads_and_generators_change_nothing():
    values = torch.linspace(-3, 3, 1_000_001)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            state = torch.random.get_rng_state()
            rounding = StateRounding(KeyedRandomness(5), by_chance=True, stops=False)
            results.append(rounding.store(values, torch.float16, "w"))
            assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_is_stored():
    randomness = KeyedRandomness(5, first_replica=2)
    values = torch.full((1000,), 1.0003)
    by_chance = StateRounding(randomness, by_chance=True, stops=False)
    nearest = StateRounding(randomness, by_chance=False, stops=False)
    assert by_chance.store(values, torch.float32, "w") is values
    assert set(nearest.store(values, torch.float16, "w").tolist()) == {1.0}
    first = by_chance.store(values, torch.float16, "w")
    assert set(first.tolist()) == {1.0, 1.0009765625}
    assert not torch.equal(first, by_chance.store(values, torch.float16, "w", replica=0))
    # Replicas are numbered among those of all processes.
    same_replica = StateRounding(KeyedRandomness(5), by_chance=True, stops=False)
    assert torch.equal(
        by_chance.store(values, torch.float16, "w", replica=0),
        same_replica.store(values, torch.float16, "w", replica=2),
    )
    randomness.iterations_done += 1
    assert not torch.equal(first, by_chance.store(values, torch.float16, "w"))
    # Any layout of the values gives each element its own word.
    matrix = torch.linspace(0, 1, 35).view(5, 7)
    assert torch.equal(
        by_chance.store(matrix.t().contiguous().t(), torch.float16, "w"),
        by_chance.store(matrix, torch.float16, "w"),
    )


@pytest.mark.parametrize("by_chance", [False, True])
def test_an_overflow_stops_where_it_is_asked_to(by_chance):
    stopping = StateRounding(KeyedRandomness(5), by_chance=by_chance, stops=True)
    stopping.store(torch.tensor([65519.0]), torch.float16, "w")
    with pytest.raises(FloatingPointException, match=r"w is too large for float16"):
        stopping.store(torch.tensor([65520.0]), torch.float16, "w")


@pytest.mark.parametrize(
    ("lower", "units"),
    [(0, 1), (0, 3), (0, 1 << 23), (0, (1 << 24) - 1), (1, 2), (1, 2 + (1 << 23)), (100, 1 << 17)],
)
def test_a_subnormal_number_goes_up_exactly_as_often_as_it_is_far(lower, units):
    """Of the 2^24 values of a word's upper bits the lowest `units` go up; the lower 8 bits don't matter."""
    exact = (lower + units * 2.0**-24) * 2.0**-24
    upper_bits = torch.tensor([0, units - 1, units, (1 << 24) - 1])
    values = torch.full((4,), exact)
    assert values[0].item() == exact
    for others in (0, 255):
        random = (upper_bits * 256 + others - ((upper_bits >> 23) << 32)).to(torch.int32)
        went_up = stochastic(values, random).double() / 2.0**-24 - lower
        assert went_up.tolist() == [float(bits < units) for bits in upper_bits.tolist()]


def test_seeds_have_64_bits_and_a_micro_batchs_seed_is_the_same_in_every_version():
    """A resumed run draws as the run that was stopped, so these numbers may never change."""
    assert KeyedRandomness(2**64 + 5).state == [5, 0]
    assert KeyedRandomness(-1).state == [2**64 - 1, 0]
    randomness = KeyedRandomness(0)
    randomness.state = [2**65 + 7, 3]
    assert randomness.state == [7, 3]
    seeds = [KeyedRandomness(seed).micro_batch_seed(replica, 2) for seed in range(50) for replica in range(4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert randomness.micro_batch_seed(1, 2) == 1361655177182897441
    assert random_words(torch.Size([3]), 7, 3, -1, 2, "weight").tolist() == [
        -374890210,
        -956807860,
        1746255810,
    ]


def test_a_tensor_of_the_devices_dtype_is_not_copied():
    values = torch.ones(3)
    assert to_device_dtype(values) is values
    copied = to_device_dtype(values, copy=True)
    assert torch.equal(copied, values) and copied.data_ptr() != values.data_ptr()
