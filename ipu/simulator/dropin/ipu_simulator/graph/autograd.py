"""Which forward operation a backward operation belongs to: the few private calls of PyTorch that tell.

Autograd numbers its nodes in the order in which they are made. A node is made just before its forward
operation is dispatched, and while it runs backward it is the "current node". Checked with PyTorch 2.13.
"""

from __future__ import annotations

import torch

# Gradient accumulators of leaves aren't numbered in order: they all have this number.
_UNNUMBERED = 2**64 - 1


def latest_node() -> int:
    """In a forward operation: the number of the node that will compute its gradient.

    An operation that has no gradient leaves the number of some earlier one.
    """
    return torch._C._autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]


def running_node() -> int | None:
    """In a backward operation: the number of the node it is part of; None between nodes, where gradients
    that reach one tensor on several ways are added.
    """
    node = torch._C._current_autograd_node()
    if node is None:
        return None
    number: int = node._sequence_nr()
    return None if number == _UNNUMBERED else number
