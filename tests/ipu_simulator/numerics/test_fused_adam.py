"""Adam with PyTorch's fused kernel equals Adam in single operations, for any memory layout."""

import pytest
import torch
from ipu_simulator.numerics import GroupSettings, update_rules

SIZES = [1, 7, 63, 64, 65, 70_001]
STEPS = [1, 2, 3, 4, 500, 6]
GROUP = GroupSettings(lr=1e-3, weight_decay=0.01, eps=1e-6)


def state():
    draw = torch.Generator().manual_seed(0)
    w, g, m, v = ([torch.randn(size, generator=draw) for size in SIZES] for _ in range(4))
    return [w, g, m, [tensor.square() for tensor in v]]


@pytest.mark.skipif(not update_rules.HAS_FUSED, reason="this PyTorch has no fused Adam for CPUs")
@pytest.mark.parametrize("decoupled", [True, False])
def test_both_ways_agree_to_the_last_bits(decoupled):
    fused, single = state(), state()
    update_rules.fused_adam(*fused, STEPS, GROUP, decoupled)
    update_rules.adam_by_operations(*single, STEPS, GROUP, decoupled)
    for kind in (0, 2, 3):
        torch.testing.assert_close(fused[kind], single[kind], rtol=1e-6, atol=1e-7)


def test_the_number_of_threads_does_not_show():
    ours, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ours.append(state())
            update_rules.adam(*ours[-1], STEPS, GROUP, True)
    finally:
        torch.set_num_threads(threads)
    for other in ours[1:]:
        assert all(torch.equal(a, b) for one, two in zip(ours[0], other) for a, b in zip(one, two))


@pytest.mark.parametrize("odd", range(4), ids=["weight", "gradient", "first moment", "second moment"])
def test_a_tensor_that_is_not_contiguous_is_updated_too(odd):
    """And so is the contiguous one after it; each has its step count."""
    draw = torch.Generator().manual_seed(1)
    ours = [list(pair) for pair in torch.rand(4, 2, 30, 40, generator=draw)]
    expected = [[tensor.clone() for tensor in pair] for pair in ours]
    ours[odd][0] = ours[odd][0].t().contiguous().t()
    assert not ours[odd][0].is_contiguous()
    update_rules.adam(*ours, [3, 40], GROUP, True)
    update_rules.adam_by_operations(*expected, [3, 40], GROUP, True)
    for kind in (0, 2, 3):
        torch.testing.assert_close(ours[kind], expected[kind], rtol=1e-6, atol=1e-7)
