"""Argument types of a program's own: how to find the tensors in them."""

from __future__ import annotations

from typing import Any, Iterator

import torch

from .poptorch_core import createPoptorchError


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
