"""Elements as flat lists of tensors, and batches of one size from batches of any."""

from __future__ import annotations

import copy
from typing import Any, Iterator, Mapping, MutableMapping, Sequence

import torch

from .._run.custom_types import parser_of
from .._run.structure import made_of
from ..poptorch_core import createPoptorchError
from .ring import Build


def flatten(element: Any) -> tuple[list[torch.Tensor], Build]:
    """(tensors, a function that builds such an element from tensors) of a tensor, a flat container, a custom
    type, or a dict, which may hold dicts and custom types (a graph and its labels). Other mappings stay what
    they are (transformers' BatchEncoding).
    """
    values, build = _parts(element)
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise createPoptorchError(
            "An AsynchronousDataAccessor needs elements that are a tensor, a flat list, tuple or dict of "
            "tensors, or of a type given to poptorch.registerCustomArgParser: "
            f"got {type(element)} of {sorted({type(value).__name__ for value in values})}"
        )
    return values, build


def _parts(element: Any) -> tuple[list[Any], Build]:
    parser = parser_of(element)
    if parser is not None:
        return list(parser.yieldTensors(element)), lambda tensors: parser.reconstruct(element, iter(tensors))
    if isinstance(element, Mapping):
        return _parts_of_mapping(element)
    if isinstance(element, (list, tuple)):
        return list(element), lambda tensors: made_of(type(element), tensors)
    return [element], lambda tensors: tensors[0]


def _parts_of_mapping(element: Mapping[Any, Any]) -> tuple[list[Any], Build]:
    values: list[Any] = []
    builders: list[tuple[Any, int, Build]] = []  # by key: how many tensors, and what they make
    for key, part in element.items():
        nested = isinstance(part, Mapping) or parser_of(part) is not None
        parts, build = _parts(part) if nested else ([part], lambda tensors: tensors[0])
        values += parts
        builders.append((key, len(parts), build))

    def build_mapping(tensors: Sequence[Any]) -> Mapping[Any, Any]:
        remaining = iter(tensors)
        items = {key: build([next(remaining) for _ in range(count)]) for key, count, build in builders}
        if isinstance(element, dict) or not isinstance(element, MutableMapping):
            return items
        made = copy.copy(element)
        made.update(items)
        return made

    return values, build_mapping


class Rebatched:
    """Joins a loader's batches [k, ...], of any k, into batches [size, ...]; the last may be dropped or
    shorter.
    """

    def __init__(self, loader: Any, size: int, drop_last: bool) -> None:
        self.loader = loader
        self._size = size
        self._drop_last = drop_last

    def __len__(self) -> int:
        # A torch loader says how many elements its batches have in all; anything else yields elements.
        elements = len(getattr(self.loader, "dataset", self.loader))
        return (elements if self._drop_last else elements + self._size - 1) // self._size

    def __iter__(self) -> Iterator[Any]:
        pending: list[list[torch.Tensor]] = []
        held = 0
        for batch in self.loader:
            tensors, build = flatten(batch)
            pending.append(tensors)
            held += len(tensors[0])
            if held < self._size:
                continue
            whole = [torch.cat(parts) for parts in zip(*pending)]
            while held >= self._size:
                yield build([tensor[: self._size] for tensor in whole])
                whole = [tensor[self._size :] for tensor in whole]
                held -= self._size
            pending = [whole] if held else []
        if held and not self._drop_last:
            yield build([torch.cat(parts) for parts in zip(*pending)])
