"""Device selection: which PopTorch a run uses, available as `ipu.poptorch`.

`ipu.poptorch` is resolved at its first use: Graphcore's package on an IPU or on Poplar's IPU model, the
drop-in on the simulator. Call `select_device` before that; otherwise the device is `auto`.
"""

from __future__ import annotations

from typing import Any

from ipu.device import (
    DEVICES,
    DROP_IN,
    DeviceChoice,
    DeviceError,
    bfloat16_instructions,
    choose_waiting,
    fastest_precision,
    is_simulator,
    make_simulator_importable,
    select_device,
    simulator_choice,
    waiting_note,
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
    "bfloat16_instructions",
    "choose_waiting",
    "fastest_precision",
    "is_simulator",
    "join_instances",
    "make_simulator_importable",
    "poptorch",
    "select_device",
    "simulator_choice",
    "waiting_note",
]


def __getattr__(name: str) -> Any:
    if name == "poptorch":
        return _resolve()
    raise AttributeError(f"module 'ipu' has no attribute {name!r}")
