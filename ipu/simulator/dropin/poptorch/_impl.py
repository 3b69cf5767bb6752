"""PopTorch's private module of this name: what optimum-graphcore and PopTorch's tests use of it."""

from __future__ import annotations

import weakref

import torch

from ._run import host_weights
from ._trace import run

__all__ = ["isDispatchTracing", "rewrapModelIfNecessary", "unwrapModelIfNecessary"]

# Wrapped classes of models that were unwrapped for a while.
_set_aside: weakref.WeakKeyDictionary[torch.nn.Module, host_weights.HostWeights] = weakref.WeakKeyDictionary()


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Give a wrapped model its own class back until rewrapModelIfNecessary."""
    host = host_weights.host_of(model)
    if host is not None:
        _set_aside[model] = host
        host_weights.unwrap(model)


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Wrap a model again that unwrapModelIfNecessary unwrapped."""
    host = _set_aside.pop(model, None)
    if host is not None:
        host_weights.wrap(model, host)


def isDispatchTracing() -> bool:
    """Whether a model runs on the device right now."""
    return run.isRunningOnIpu()
