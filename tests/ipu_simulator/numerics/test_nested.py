"""Structures of an operation's arguments are taken apart as PyTorch's own functions do."""

import pytest
import torch
from ipu_simulator.numerics import nested
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

ONE, TWO = torch.ones(2), torch.zeros(3)


@pytest.mark.parametrize(
    "value",
    [
        ONE,
        3,
        (),
        (ONE, [TWO, 2], {"dtype": torch.float16, "dim": [0, (1,)]}),
        ([ONE, None], "sum"),
        ((ONE, TWO), {"out": (TWO,)}),
    ],
)
def test_as_pytree(value):
    def mark(leaf):
        return "changed", id(leaf)

    assert list(map(id, nested.leaves(value))) == list(map(id, tree_flatten(value)[0]))
    assert repr(nested.mapped(mark, value)) == repr(tree_map(mark, value))
    assert repr(nested.mapped_tensors(mark, value)) == repr(tree_map_only(torch.Tensor, mark, value))
