"""Nested tuples, lists, dictionaries and named tuples, as arguments and results of a model."""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator

import torch


def map_leaves(structure: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with `function` applied to each leaf, in order; containers keep their type."""
    if isinstance(structure, tuple):
        parts = [map_leaves(part, function) for part in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else tuple(parts)
    if isinstance(structure, list):
        return [map_leaves(part, function) for part in structure]
    if isinstance(structure, dict):
        # A copy keeps what subclasses (OrderedDict, transformers' outputs) hold beside their items.
        mapped = copy.copy(structure)
        for key, value in structure.items():
            mapped[key] = map_leaves(value, function)
        return mapped
    return function(structure)


def leaves(structure: Any) -> Iterator[Any]:
    """Every leaf, in order."""
    if isinstance(structure, (tuple, list)):
        for part in structure:
            yield from leaves(part)
    elif isinstance(structure, dict):
        for part in structure.values():
            yield from leaves(part)
    else:
        yield structure


def tensors(structure: Any) -> list[torch.Tensor]:
    """Every leaf that is a tensor, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, torch.Tensor)]


def with_tensors(structure: Any, replacements: list[torch.Tensor]) -> Any:
    """The same structure with its tensors replaced, in order."""
    remaining = iter(replacements)
    return map_leaves(structure, lambda leaf: next(remaining) if isinstance(leaf, torch.Tensor) else leaf)
