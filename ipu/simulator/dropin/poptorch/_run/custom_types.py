"""Argument types that a program brings, and PyTorch Geometric's graphs: how to find the tensors in them.

The registered types are the process's, as in PopTorch.
"""

from __future__ import annotations

import copy
from typing import Any, Iterator

import torch

from ..poptorch_core import createPoptorchError


class ICustomArgParser:
    """Takes a type's values apart and puts them together again; the order of the tensors must not change."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Every tensor in `struct`, in an order that depends on its structure alone."""
        raise NotImplementedError

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """A value like `original_structure` with the iterator's next tensors in place of its own."""
        raise NotImplementedError


_parsers: dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: type, arg_parser: ICustomArgParser) -> None:
    """Lets models and data loaders take arguments of this type, and of its subclasses.

    Raises poptorch.Error unless the parser is an ICustomArgParser.
    """
    if not isinstance(arg_parser, ICustomArgParser):
        raise createPoptorchError("arg_parser must inherit from ICustomArgParser")
    _parsers[arg_data_type] = arg_parser


def parser_of(value: Any) -> ICustomArgParser | None:
    """The parser of the nearest registered class that `value` is an instance of."""
    if not _parsers:
        return None
    return next((_parsers[kind] for kind in type(value).__mro__ if kind in _parsers), None)


class _GraphParser(ICustomArgParser):
    """The tensors of a graph's stores, in the order in which stores and attributes were made."""

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
    """Lets models and data loaders take PyTorch Geometric's graphs. poptorch.Error where it isn't installed.

    As on an IPU, shapes are final once a model is compiled: pad graphs to equal numbers of nodes and edges.
    """
    try:
        from torch_geometric.data import Data, HeteroData
    except ImportError as error:
        raise createPoptorchError(
            "registerGeometricCustomArgParsers needs PyTorch Geometric: pip install torch_geometric "
            f"({error})"
        ) from error
    # A Batch is of one of these classes too.
    for kind in (Data, HeteroData):
        registerCustomArgParser(kind, _GraphParser())
