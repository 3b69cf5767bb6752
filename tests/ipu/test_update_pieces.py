"""Adam works on pieces of tensors: the bits are those of whole tensors."""

import pytest
import torch

from ipu.simulator.numerics import GroupSettings, update_rules

PIECE = update_rules._PIECE_ELEMENTS
SIZES = [1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 40]
STEPS = [1, 2, 3, 4, 5, 6, 7]
GROUP = GroupSettings(lr=1e-3, weight_decay=0.01, eps=1e-6)


def tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=draw) for size in SIZES]


def state():
    w, g, m = (tensors(seed) for seed in range(3))
    return [w, g, m, [tensor.square() for tensor in tensors(3)]]


@pytest.mark.parametrize("decoupled", [True, False])
def test_pieces_give_the_bits_of_whole_tensors(decoupled):
    ours, whole = state(), state()
    update_rules.adam(*ours, STEPS, GROUP, decoupled)
    for index, step in enumerate(STEPS):
        update_rules._adam(*[[kind[index]] for kind in whole], [step], GROUP, decoupled)
    for mine, theirs in zip(ours, whole):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs))


def test_every_element_is_in_one_piece_with_its_own_step():
    w, g, m, v = state()
    for tensor in w:
        tensor.zero_()
    seen = dict.fromkeys(STEPS, 0)
    for piece_w, _, _, _, steps in update_rules.pieces(w, g, m, v, STEPS):
        assert sum(tensor.numel() for tensor in piece_w) < 2 * PIECE
        for tensor, step in zip(piece_w, steps):
            tensor.add_(1)
            seen[step] += tensor.numel()
    assert all(bool((tensor == 1).all()) for tensor in w)
    assert list(seen.values()) == SIZES


def test_a_tensor_that_is_not_contiguous_is_updated_too():
    side = 400  # more elements than a piece
    ours, whole = (
        [[tensor] for tensor in torch.randn(4, side, side, generator=torch.Generator().manual_seed(1)).abs()]
        for _ in range(2)
    )
    ours[1] = [ours[1][0].t().contiguous().t()]
    assert not ours[1][0].is_contiguous()
    update_rules.adam(*ours, [3], GROUP, True)
    update_rules._adam(*whole, [3], GROUP, True)
    assert torch.equal(ours[0][0], whole[0][0])
