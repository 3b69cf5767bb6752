"""What is known of a dispatched operator of PyTorch: whether it computes, and what it writes to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Tuple

import torch

# These write what they are given or what chance gives; an infinity from them is meant.
_NOT_ARITHMETIC = frozenset(
    """_unsafe_view bernoulli bernoulli_ cat clone constant_pad_nd detach embedding empty empty_like
    empty_strided fill fill_ flip full full_like gather index index_select lift_fresh masked_fill
    masked_fill_ new_empty new_empty_strided new_full new_zeros normal_ ones_like random_ repeat roll
    scalar_tensor select_backward slice_backward stack uniform_ where zero_ zeros_like""".split()
)
# PyTorch's declaration doesn't say that these arguments, running statistics, are written to.
_ALSO_WRITTEN = {"native_batch_norm": (3, 4)}


@dataclass(frozen=True)
class Operator:
    """What is known of an operator: its name, whether it computes, which arguments it writes to, by position
    or name, and whether it returns one of those.
    """

    name: str
    computes: bool
    writes: Tuple[int, ...]
    writes_named: Tuple[str, ...]
    returns_written: bool


@cache
def operator_of(func: Any) -> Operator:
    """What is known of a dispatched operator."""
    name = func.overloadpacket.__name__
    schema = func._schema
    writes = [
        (index, argument)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    is_view = torch.Tag.inplace_view in func.tags or (
        not writes and any(argument.alias_info is not None for argument in schema.arguments)
    )
    by_position = tuple(index for index, argument in writes if not argument.kwarg_only)
    return Operator(
        name=name,
        computes=not is_view and name not in _NOT_ARITHMETIC,
        writes=by_position or _ALSO_WRITTEN.get(name, ()),
        writes_named=tuple(argument.name for _, argument in writes if argument.kwarg_only),
        returns_written=any(returned.alias_info is not None for returned in schema.returns),
    )
