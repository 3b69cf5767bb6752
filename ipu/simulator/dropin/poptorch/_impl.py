"""The part of PopTorch's private module `_impl` that optimum-graphcore and PopTorch's tests use."""

from __future__ import annotations

import weakref

import torch

from ._run import host_weights
from ._trace import run

__all__ = ["isDispatchTracing", "rewrapModelIfNecessary", "unwrapModelIfNecessary"]

# The host state of temporarily unwrapped models.
_set_aside: weakref.WeakKeyDictionary[torch.nn.Module, host_weights.HostWeights] = weakref.WeakKeyDictionary()


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Unwraps a wrapped model until rewrapModelIfNecessary."""
    host = host_weights.host_of(model)
    if host is not None:
        _set_aside[model] = host
        host_weights.unwrap(model)


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Wraps a model again that unwrapModelIfNecessary unwrapped; otherwise a no-op."""
    host = _set_aside.pop(model, None)
    if host is not None:
        host_weights.wrap(model, host)


def _restoreWrapperIfNecessary(obj: object) -> object:
    """As rewrapModelIfNecessary, for an object of any type, which it returns."""
    if isinstance(obj, torch.nn.Module):
        rewrapModelIfNecessary(obj)
    return obj


def isDispatchTracing() -> bool:
    """Whether a model is running on the device in this thread."""
    return run.isRunningOnIpu()
