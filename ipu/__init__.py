"""The device: which PopTorch a run uses, and that PopTorch itself as `ipu.poptorch`.

`ipu.poptorch` resolves at its first use: Graphcore's package on an IPU or on Poplar's IPU model, this
program's own on the simulator. Choose with `select_device` before that; without a choice it is `auto`.
"""

from __future__ import annotations

from typing import Any

from ipu.device import (
    DEVICES,
    DROP_IN,
    DeviceChoice,
    DeviceError,
    make_simulator_importable,
    select_device,
)
from ipu.device import resolve as _resolve

from .instances import ALONE, Instances, join_instances

__all__ = [
    "ALONE",
    "DEVICES",
    "DROP_IN",
    "DeviceChoice",
    "DeviceError",
    "Instances",
    "join_instances",
    "make_simulator_importable",
    "poptorch",
    "select_device",
]


def __getattr__(name: str) -> Any:
    if name == "poptorch":
        return _resolve()
    raise AttributeError(f"module 'ipu' has no attribute {name!r}")
