"""Small tools that programs and PopTorch's own examples reach for."""

from __future__ import annotations

import builtins
import contextlib
import json
from typing import Any, Callable, Iterable

import torch

from . import poptorch_core
from ._logging import logger
from ._run.structure import leaves, map_leaves
from ._trace import run as trace
from .blocks import begin_block_hook
from .poptorch_core import createPoptorchError


def flattenTensorStructure(tensors: Any, canonical_structure: Any = None) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts; dicts in the order of `canonical_structure`'s keys."""
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
    """The same structure with its leaves that `filter_fn` takes replaced by `values`, in order."""
    remaining = iter(values)
    return map_leaves(structure, lambda leaf: next(remaining) if filter_fn(leaf) else leaf)


def getIpuTensorId(x: torch.Tensor) -> int:
    """A number that tells a tensor from all others of the run; poptorch.Error outside a model's run."""
    if not isinstance(x, torch.Tensor) or not trace.isRunningOnIpu():
        raise createPoptorchError("getIpuTensorId needs a tensor of a model that runs on the IPU")
    return id(x)


def accessAttributes(attribute_id_str: str) -> dict[str, Any]:
    """A custom operation's attributes from their JSON text. ValueError for anything else."""
    if not isinstance(attribute_id_str, str):
        raise ValueError(f"Attributes are found by a text, not by {type(attribute_id_str)}")
    try:
        attributes = json.loads(attribute_id_str)
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid attribute identifier {attribute_id_str!r}: {error}") from error
    if not isinstance(attributes, dict):
        raise ValueError(f"Invalid attribute identifier {attribute_id_str!r}: not a JSON object")
    return attributes


def module_repr(m: torch.nn.Module) -> str:
    """repr(m), with the block that each module begins written around it."""
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
    """What happens when the program ends: the log is written out."""
    for handler in logger.handlers:
        # A stream that was replaced and closed meanwhile has nothing to write.
        with contextlib.suppress(OSError, ValueError):
            handler.flush()


# What a program may ask about the machine.


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether that many IPUs answer. The simulator stands for them, unless the IPU model is asked for."""
    return bool(poptorch_core.ipuHardwareVersion(num_ipus))


def ipuHardwareVersion() -> int:
    """The IPUs' hardware version: 2. AssertionError where there are none."""
    version = poptorch_core.ipuHardwareVersion()
    assert version, "No IPU hardware available on this system"
    return version
