"""A dispatched PyTorch operation: its arguments by name, and its autograd node.

The node links a backward operation to its forward operation. Autograd numbers nodes in order of creation. A
node is created just before its forward operation is dispatched, and while it runs backward it is the "current
node". These are private functions of PyTorch, checked with 2.13.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

# Arguments about storage or random number generation, which don't affect the computation.
_NOT_COMPUTED = frozenset({"device", "generator", "layout", "memory_format", "non_blocking", "pin_memory"})


@dataclass(frozen=True)
class Call:
    """The arguments of one call: tensors in order, the tensors that it writes to, all others."""

    tensors: list[torch.Tensor]
    written: list[torch.Tensor]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Schema:
    """An operation. `name` is aten's without overload, and without the underscore of in-place ones.

    :param pointwise: PyTorch's tag: each element of the result needs one element of each operand.
    """

    name: str
    arguments: tuple[tuple[str, Any, bool], ...]  # name, default, whether it is written to
    pointwise: bool = False

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Names the arguments of a call. Absent optional tensors are attributes with the value None."""
        tensors: list[torch.Tensor] = []
        written: list[torch.Tensor] = []
        attributes: dict[str, Any] = {}
        for index, (name, default, is_written) in enumerate(self.arguments):
            value = args[index] if index < len(args) else kwargs.get(name, default)
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                if is_written:
                    written.append(value)
            elif isinstance(value, (list, tuple)) and any(isinstance(one, torch.Tensor) for one in value):
                parts = [one for one in value if isinstance(one, torch.Tensor)]
                tensors += parts
                if is_written:
                    written += parts
                if len(parts) < len(value):  # such as index(x, [None, positions])
                    attributes[name] = tuple(isinstance(one, torch.Tensor) for one in value)
            elif name not in _NOT_COMPUTED:
                attributes[name] = _plain(value)
        return Call(tensors, written, attributes)


@functools.cache
def schema_of(func: Any) -> Schema:
    """The schema of an operation as dispatched (torch._ops.OpOverload)."""
    name = func.overloadpacket.__name__
    arguments = []
    for argument in func._schema.arguments:
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        default = argument.default_value if argument.has_default_value() else None
        arguments.append((argument.name, default, is_written))
    in_place = any(is_written for _, _, is_written in arguments)
    name = name[:-1] if in_place and name.endswith("_") else name
    return Schema(name, tuple(arguments), torch.Tag.pointwise in func.tags)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return tuple(_plain(one) for one in value)
    return value


_next_node = getattr(torch._C._autograd, "_get_sequence_nr", int)
# Gradient accumulators of leaves all have this number.
_UNNUMBERED = 2**64 - 1


def latest_node() -> int:
    """In a forward operation: number of the node that will compute its gradient.

    For an operation without a gradient it is the number of some earlier node; so it is before torch 2.3,
    which tells no number: only captures need it, and they need that version.
    """
    number: int = _next_node() - 1
    return number


def running_node() -> int | None:
    """In a backward operation: number of the node it belongs to; None between nodes, where gradients of one
    tensor from several uses are summed.
    """
    node = torch._C._current_autograd_node()
    if node is None:
        return None
    number: int = node._sequence_nr()
    return None if number == _UNNUMBERED else number
