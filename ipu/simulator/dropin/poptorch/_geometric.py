"""PyTorch Geometric's graphs as arguments: Data, HeteroData and Batch."""

from __future__ import annotations

import copy
from typing import Any, Iterator

import torch

from ._custom_args import ICustomArgParser, registerCustomArgParser
from .poptorch_core import createPoptorchError


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
