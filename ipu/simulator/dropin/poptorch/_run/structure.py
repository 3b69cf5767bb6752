"""Nested structures of a model's arguments and results: tuples, lists, dictionaries, custom types.

Parsers of custom types (and of PyTorch Geometric's graphs) find the tensors in their values. Their registry
is global to the process, as in PopTorch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any, Callable, Iterator, Sequence

import torch

from .._logging import logger
from ..poptorch_core import createPoptorchError


class ICustomArgParser:
    """Flattens values of a custom type into tensors and rebuilds them; both use the same tensor order."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Every tensor in `struct`, in an order that depends only on its structure.

        Raises NotImplementedError unless a subclass implements it.
        """
        raise NotImplementedError

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """A copy of `original_structure` whose tensors are the iterator's next ones.

        Raises NotImplementedError unless a subclass implements it.
        """
        raise NotImplementedError


_parsers: dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: type, arg_parser: ICustomArgParser) -> None:
    """Lets models and data loaders accept arguments of this type and its subclasses.

    Raises poptorch.Error unless the parser is an ICustomArgParser.
    """
    if not isinstance(arg_parser, ICustomArgParser):
        raise createPoptorchError("arg_parser must inherit from ICustomArgParser")
    _parsers[arg_data_type] = arg_parser


def parser_of(value: Any) -> ICustomArgParser | None:
    """The parser registered for the value's class or its nearest base class; None if there is none."""
    if not _parsers:
        return None
    return next((_parsers[kind] for kind in type(value).__mro__ if kind in _parsers), None)


class _GraphParser(ICustomArgParser):
    """The tensors of a graph's stores, in insertion order of stores and attributes."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        for store in struct.stores:
            yield from (value for value in store.values() if isinstance(value, torch.Tensor))

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        graph = copy.copy(original_structure)
        for store in graph.stores:
            for name, value in list(store.items()):
                if isinstance(value, torch.Tensor):
                    store[name] = next(tensor_iterator)
        return graph


def registerGeometricCustomArgParsers() -> None:
    """Lets models and data loaders accept PyTorch Geometric's graphs. poptorch.Error if it isn't installed.

    As on an IPU, shapes are fixed at compilation: pad graphs to equal numbers of nodes and edges.
    """
    try:
        from torch_geometric.data import Data, HeteroData
    except ImportError as error:
        raise createPoptorchError(
            "registerGeometricCustomArgParsers needs PyTorch Geometric: pip install torch_geometric "
            f"({error})"
        ) from error
    # A Batch is an instance of one of these classes too.
    for kind in (Data, HeteroData):
        registerCustomArgParser(kind, _GraphParser())


def made_of(kind: type, parts: Sequence[Any]) -> Any:
    """A list or tuple of this type. A namedtuple's constructor takes its fields as separate arguments, those
    of torch.Size and torch.return_types take a sequence.
    """
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)


def _map_values(structure: Any, function: Callable[[Any], Any]) -> Any:
    """As map_leaves, but values of custom types count as leaves."""
    if parser_of(structure) is not None:
        return function(structure)
    if isinstance(structure, tuple):
        return made_of(type(structure), [_map_values(part, function) for part in structure])
    if isinstance(structure, list):
        return [_map_values(part, function) for part in structure]
    if isinstance(structure, dict):
        mapped = _copy_of(structure)
        for key, value in structure.items():
            mapped[key] = _map_values(value, function)
        return mapped
    return function(structure)


def _copy_of(structure: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
    """A shallow copy that keeps the attributes of subclasses (OrderedDict, transformers' outputs)."""
    try:
        return copy.copy(structure)
    except TypeError:
        # Also a dataclass (diffusers' outputs): copy.copy would call its constructor without arguments.
        duplicate = type(structure).__new__(type(structure))
        duplicate.__dict__.update(structure.__dict__)
        return duplicate


def map_leaves(structure: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with `function` applied to each leaf, in order; containers keep their type."""

    def apply(value: Any) -> Any:
        parser = parser_of(value)
        if parser is None:
            return function(value)
        mapped = [function(tensor) for tensor in parser.yieldTensors(value)]
        return parser.reconstruct(value, iter(mapped))

    return _map_values(structure, apply)


def expanded(structure: Any) -> Any:
    """The same structure with values of custom types as [type, tensor, ...], which can be compared."""

    def expand(value: Any) -> Any:
        parser = parser_of(value)
        return value if parser is None else [type(value), *parser.yieldTensors(value)]

    return _map_values(structure, expand)


def leaves(structure: Any) -> Iterator[Any]:
    """Every leaf, in order."""
    parser = parser_of(structure)
    if parser is not None:
        yield from parser.yieldTensors(structure)
    elif isinstance(structure, (tuple, list)):
        for part in structure:
            yield from leaves(part)
    elif isinstance(structure, dict):
        for part in structure.values():
            yield from leaves(part)
    else:
        yield structure


def tensor_paths(structure: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each of `tensors(structure)`: a tuple of keys and indices."""
    parser = parser_of(structure)
    if parser is not None or isinstance(structure, (tuple, list)):
        for index, part in enumerate(structure if parser is None else parser.yieldTensors(structure)):
            yield from tensor_paths(part, (*path, index))
    elif isinstance(structure, dict):
        for key, part in structure.items():
            yield from tensor_paths(part, (*path, key))
    elif isinstance(structure, torch.Tensor):
        yield path


def check_types(structure: Any, what: str) -> None:
    """Raises poptorch.Error for a dataclass that holds tensors and has no custom parser to find them."""
    for leaf in leaves(structure):
        fields = dataclasses.fields(leaf) if dataclasses.is_dataclass(leaf) else ()
        if any(isinstance(getattr(leaf, field.name, None), torch.Tensor) for field in fields):
            raise createPoptorchError(
                f"{what} of type {type(leaf)} holds tensors: use a tuple, list or dictionary, or register "
                "the type with poptorch.registerCustomArgParser."
            )


def tensors(structure: Any) -> list[torch.Tensor]:
    """Every leaf that is a tensor, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, torch.Tensor)]


def with_tensors(structure: Any, replacements: list[torch.Tensor]) -> Any:
    """The same structure with its tensors replaced, in order."""
    remaining = iter(replacements)
    return map_leaves(structure, lambda leaf: next(remaining) if isinstance(leaf, torch.Tensor) else leaf)


def concatenated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors concatenated along dimension 0, 0-d ones stacked. ValueError if their shapes differ."""
    if len({(tensor.dim(), *tensor.shape[1:]) for tensor in parts}) > 1:
        raise ValueError(
            "Batches are concatenated along dimension 0, for which all other dimensions must be equal: got "
            f"{', '.join(str(list(tensor.shape)) for tensor in parts)}"
        )
    return torch.cat(list(parts)) if parts[0].dim() else torch.stack(list(parts))


def joined(batches: Sequence[Any]) -> Any:
    """One structure of the batches': tensors concatenated, lists of plain values (names) appended.

    Other plain values are the first batch's, with a warning if they differ. Raises ValueError if structures
    or shapes differ.
    """
    first = batches[0]
    kinds = {type(batch).__name__ for batch in batches}
    parser = parser_of(first)
    if len(kinds) > 1:
        raise ValueError(f"Batches of different types can't be joined: {sorted(kinds)}")
    if parser is not None:
        parts = zip(*(list(parser.yieldTensors(batch)) for batch in batches))
        return parser.reconstruct(first, iter([concatenated(position) for position in parts]))
    if isinstance(first, torch.Tensor):
        return concatenated(batches)
    if isinstance(first, list) and not tensors(first):
        return [value for batch in batches for value in batch]
    if isinstance(first, (tuple, list)):
        if len({len(batch) for batch in batches}) > 1:
            raise ValueError(f"Batches of different lengths can't be joined: {[len(b) for b in batches]}")
        return made_of(type(first), [joined(position) for position in zip(*batches)])
    if isinstance(first, Mapping):
        if any(batch.keys() != first.keys() for batch in batches):
            raise ValueError(f"Batches with different keys can't be joined: {[list(b) for b in batches]}")
        whole = _copy_of(first) if isinstance(first, MutableMapping) else {}
        for key in first:
            whole[key] = joined([batch[key] for batch in batches])
        return whole
    if any(batch != first for batch in batches):
        logger.warning(
            "The batches of a combined batch have different values (%s): only the first's is kept",
            ", ".join(map(str, batches)),
        )
    return first
