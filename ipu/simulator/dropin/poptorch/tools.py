"""Utilities for programs: tensor structures, custom attributes, printing of models, hardware queries."""

from __future__ import annotations

import builtins
import contextlib
import json
from typing import Any, Callable, Iterable, Iterator

import torch

from . import poptorch_core
from ._logging import logger
from ._run.structure import concatenated, leaves, map_leaves
from ._trace import run as trace
from .blocks import begin_block_hook
from .poptorch_core import createPoptorchError


def flattenTensorStructure(tensors: Any, canonical_structure: Any = None) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts; dicts in the key order of `canonical_structure`.

    Raises ValueError if the structures differ.
    """
    if canonical_structure is not None:
        tensors = _in_order_of(canonical_structure, tensors)
    return [leaf for leaf in leaves(tensors) if isinstance(leaf, torch.Tensor)]


def _in_order_of(canonical: Any, given: Any) -> Any:
    if isinstance(canonical, dict) and isinstance(given, dict):
        if set(canonical) != set(given):
            raise ValueError(f"Expected the keys {list(canonical)} but got {list(given)}")
        return {key: _in_order_of(part, given[key]) for key, part in canonical.items()}
    if isinstance(canonical, (tuple, list)) and isinstance(given, (tuple, list)):
        if len(canonical) != len(given):
            raise ValueError(f"Expected {len(canonical)} elements but got {len(given)}")
        return [_in_order_of(*pair) for pair in zip(canonical, given)]
    return given


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def reconstructTensorStructure(
    structure: Any, values: Iterable[Any], filter_fn: Callable[[Any], bool] = _is_tensor
) -> Any:
    """The structure with the leaves selected by `filter_fn` replaced by `values`, in order.

    Raises ValueError if there are fewer values than such leaves.
    """
    remaining = iter(values)
    missing = object()

    def replaced(leaf: Any) -> Any:
        value = next(remaining, missing) if filter_fn(leaf) else leaf
        if value is missing:
            raise ValueError("The structure has more leaves to replace than there are values")
        return value

    return map_leaves(structure, replaced)


def combine_batch_tensors_gen(tensors: Iterable[Iterable[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Combines batches: yields, for each position, the batches' tensors concatenated along dimension 0.

    Tensors without dimensions become one of the number of batches. Raises ValueError if a batch has more
    tensors than another, or shapes that can't be concatenated.
    """
    batches = [list(batch) for batch in tensors]
    lengths = {len(batch) for batch in batches}
    if len(lengths) > 1:
        raise ValueError(f"Batches with different numbers of tensors can't be combined: {sorted(lengths)}")
    yield from (concatenated(parts) for parts in zip(*batches))


def getIpuTensorId(x: torch.Tensor) -> int:
    """An id that is unique to a tensor during a run. Raises poptorch.Error outside a model's run."""
    if not isinstance(x, torch.Tensor) or not trace.isRunningOnIpu():
        raise createPoptorchError("getIpuTensorId needs a tensor of a model that runs on the IPU")
    return id(x)


def accessAttributes(attribute_id_str: str) -> dict[str, Any]:
    """A custom operation's attributes from a JSON string. Raises ValueError for anything else."""
    if not isinstance(attribute_id_str, str):
        raise ValueError(f"accessAttributes expects a JSON string, got {type(attribute_id_str)}")
    try:
        attributes = json.loads(attribute_id_str)
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid attribute identifier {attribute_id_str!r}: {error}") from error
    if not isinstance(attributes, dict):
        raise ValueError(f"Invalid attribute identifier {attribute_id_str!r}: not a JSON object")
    return attributes


def module_repr(m: torch.nn.Module) -> str:
    """repr(m), with `BeginBlock(...)` before each module that begins a block."""
    text = repr(m)
    if any(begin_block_hook(part) is not None for part in m.modules()):
        children = [f"({name}): {module_repr(child)}" for name, child in m.named_children()]
        if children:
            inner = "\n".join(([m.extra_repr()] if m.extra_repr() else []) + children)
            text = f"{m._get_name()}(\n  " + inner.replace("\n", "\n  ") + "\n)"
    hook = begin_block_hook(m)
    return text if hook is None else f"{hook!r}: {text}"


def print(m: torch.nn.Module) -> None:
    """Prints module_repr(m)."""
    builtins.print(module_repr(m))


def poptorchAtExit() -> None:
    """Flushes the log at exit."""
    for handler in logger.handlers:
        # The stream may have been replaced and closed: nothing to flush.
        with contextlib.suppress(OSError, ValueError):
            handler.flush()


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether the simulated machine has that many IPUs; False with the IPU model."""
    return bool(poptorch_core.ipuHardwareVersion(num_ipus))


def ipuHardwareVersion() -> int:
    """The IPUs' hardware version: 2. Raises AssertionError without IPUs (the IPU model)."""
    version = poptorch_core.ipuHardwareVersion()
    assert version, "No IPU hardware available on this system"
    return version
