"""Buffers that a forward changes in place, where replicas would have to share them.

PopTorch has one value of a buffer for all replicas unless Options.broadcastBuffers(False). A replica that
changes it would leave the others behind, so PopTorch refuses that for floating-point buffers. Running
statistics of norms are excepted, and so are integer buffers.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

import torch
from ipu_simulator.graph.operations import schema_of

from ..poptorch_core import createBackendError
from . import Call, Listener
from . import run as trace
from .call_table import row_named


class SharedBuffers:
    """Listeners that refuse in-place changes.

    :param buffers: by name, those that replicas share; empty if there is one replica or each has a copy.
    :param replicas: the number of replicas, for the error.
    """

    def __init__(self, buffers: Mapping[str, torch.Tensor], replicas: int) -> None:
        self._replicas = replicas
        self._names: dict[int, str] = {}
        for name, buffer in buffers.items():
            if buffer.is_floating_point():
                self._names.setdefault(_memory(buffer), name)
        self._in_norm = False

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        outer = self._in_norm
        name = getattr(func, "__name__", "").partition(".")[0]  # without an operation's overload
        self._in_norm = outer or row_named(name).running_statistics
        try:
            return proceed(func, args, kwargs)
        finally:
            self._in_norm = outer

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for operations (watch.py). Raises poptorch.Error for a write to a shared buffer."""
        if self._names and not self._in_norm and trace.isRunningOnIpu():
            for written in schema_of(func).bind(args, kwargs).written:
                name = self._names.get(_memory(written))
                if name is not None:
                    raise createBackendError(
                        f"Buffer {name} is changed in place, but PopTorch does not support broadcasting "
                        f"buffers that change: with replicationFactor({self._replicas}) its value would "
                        "differ between replicas. If the model tolerates that, use "
                        "poptorch.Options.broadcastBuffers(False)."
                    )
        return proceed(func, args, kwargs)


def before_writes(keep: Callable[[torch.Tensor], None]) -> Listener:
    """Listener for operations that calls `keep` with each tensor that one is about to write to."""

    def on_operation(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for written in schema_of(func).bind(args, kwargs).written:
            keep(written)
        return proceed(func, args, kwargs)

    return on_operation


def _memory(tensor: torch.Tensor) -> int:
    """Identifies the memory that a tensor and its views share."""
    return int(tensor.untyped_storage()._cdata)
