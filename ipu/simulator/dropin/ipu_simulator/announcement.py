"""The line that says a simulator is at work: once in a run, first thing on stderr."""

from __future__ import annotations

import contextlib
import os
import sys

from . import POPTORCH_VERSION
from .precision import IPU_FLOAT16, UnknownPrecision, precision
from .targets import UnknownTarget, target

# Set once the line was printed, and inherited by the processes that a program starts. Our own runners set it
# too (ipu/device.py): their first line is the device's banner.
_SAID = "IPU_SIMULATOR_ANNOUNCED"
_IPU_MODEL_VARIABLES = ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL")


def announcement() -> str:
    """What stands for what. Raises UnknownTarget and UnknownPrecision."""
    machine = target()
    if any(os.environ.get(name, "").strip("0").isdigit() for name in _IPU_MODEL_VARIABLES):
        stands_for = "Poplar's IPU model"
    else:
        stands_for = f"{machine.name} ({machine.num_ipus} IPUs)"
    if precision() == IPU_FLOAT16:
        stands_for += ", with its float16 numerics"
    return f"ipu.simulator: no IPU and no SDK in use; poptorch {POPTORCH_VERSION} stands for {stands_for}"


def announce() -> None:
    """Prints the line, unless this process or the one that started it has done so."""
    if os.environ.get(_SAID):
        return
    os.environ[_SAID] = "1"
    try:
        line = announcement()
    except (UnknownTarget, UnknownPrecision) as error:
        # Whoever asks for the hardware, or compiles, gets it as an error.
        line = f"ipu.simulator: {error}"
    # A notebook's or a service's process may have no stderr.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)
