"""Exceptions, and the entry points that PopTorch has in its C++ module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipu_simulator import environment, variables

from ._trace import callers


class Error(Exception):
    """`type`, `message` and `location` say where it came from; str() has them as one text."""

    type = ""
    message = ""
    location = ""


class RecoverableError(Error):
    """An error of the system that a reset mends; `recovery_action` names it (IPU_RESET, FULL_RESET, ...)."""

    recovery_action = ""


class UnrecoverableError(Error):
    """An error of the system that no reset mends."""


def createPoptorchError(msg: str) -> Error:
    """An Error found by the Python layer."""
    error = Error(f"'poptorch_py_error': {msg}")
    error.type, error.message, error.location = "poptorch_py_error", msg, ""
    return error


def createBackendError(msg: str, type: str = "poptorch_cpp_error") -> Error:
    """An Error that PopTorch's C++ side finds (here: the simulator).

    Where PopTorch names a file and line of its own, this names the program's: the innermost one outside
    PyTorch and the simulator.
    """
    where = callers.place() or f"{Path(__file__).name}"
    error = Error(f"In {where}: '{type}': {msg}")
    error.type, error.message, error.location = type, msg, ""
    return error


def usesIpuModel(values: dict[str, Any] | None = None) -> bool:
    """Whether a program asked for Poplar's IPU model: by its options, which win, or by the environment."""
    if values and "use_model" in values:
        return bool(values["use_model"])
    return variables.asks_for_ipu_model()


MAX_IPUS_PER_PROCESS = 64
# GC200's and Bow's.
HARDWARE_VERSION = 2


def ipuHardwareVersion(numIpus: int = 1) -> int:
    """2 when the machine that the simulator stands for has that many IPUs, else 0; 0 too when the IPU model
    is on. ValueError for a machine that it doesn't know (IPU_SIMULATOR_TARGET).
    """
    return HARDWARE_VERSION if not usesIpuModel() and numIpus <= environment.target().num_ipus else 0


def _validateOptions(options: dict[str, Any]) -> None:
    """Refuses unknown option names and unfit value types in an `Options.toDict()`, as a compilation would."""
    from ._options.known import validate

    validate(options)
