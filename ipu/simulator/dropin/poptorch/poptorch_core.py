"""Exceptions, and the entry points of PopTorch's C++ module."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Callable

from ipu_simulator import environment, variables

from ._trace import callers


class Error(Exception):
    """PopTorch's error.

    `type`: its origin; `message`: the text alone; `location`: the operation and the module of the forward
    that raised it, if known. str() has all three.
    """

    type = ""
    message = ""
    location = ""


class RecoverableError(Error):
    """A system error that a reset fixes; `recovery_action` names the reset (IPU_RESET, FULL_RESET, ...)."""

    recovery_action = ""


class UnrecoverableError(Error):
    """A system error that no reset fixes."""


PYTHON_LAYER = "poptorch_py_error"  # the type of errors without a place


def createPoptorchError(msg: str) -> Error:
    """An Error of PopTorch's Python layer."""
    error = Error(f"'{PYTHON_LAYER}': {msg}")
    error.type, error.message, error.location = PYTHON_LAYER, msg, ""
    return error


def createBackendError(msg: str, type: str = "poptorch_cpp_error", place: str | None = None) -> Error:
    """An Error of PopTorch's C++ side.

    PopTorch names a file and line of its C++ source; the simulator names the program's: `place`, or the
    innermost one outside PyTorch and the simulator.
    """
    where = place or callers.place() or f"{Path(__file__).name}"
    error = Error(f"In {where}: '{type}': {msg}")
    error.type, error.message, error.location = type, msg, ""
    return error


def usesIpuModel(values: dict[str, Any] | None = None) -> bool:
    """Whether Poplar's IPU model is used, by the options or, if they don't say, by the environment."""
    if values and "use_model" in values:
        return bool(values["use_model"])
    return variables.asks_for_ipu_model()


MAX_IPUS_PER_PROCESS = 64
# The version of GC200 and Bow.
HARDWARE_VERSION = 2


def ipuHardwareVersion(numIpus: int = 1) -> int:
    """2 if the simulated machine has that many IPUs; 0 otherwise, and with the IPU model.

    Raises ValueError for an unknown machine (IPU_SIMULATOR_TARGET).
    """
    return HARDWARE_VERSION if not usesIpuModel() and numIpus <= environment.target().num_ipus else 0


class TestErrorType(enum.Enum):
    """The kinds of errors of PopTorch's C++ side and of the libraries below it."""

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


# (type of the error, its `type`) where it isn't Error and "poptorch_cpp_error".
_TEST_ERRORS: dict[TestErrorType, tuple[type[Error], str]] = {
    TestErrorType.Popart: (Error, "popart_exception"),
    TestErrorType.PopartInternal: (Error, "popart_internal_exception"),
    TestErrorType.Poplibs: (Error, "poplibs_exception"),
    TestErrorType.PoplarUnrecoverable: (UnrecoverableError, "poplar_unrecoverable_runtime_error"),
    TestErrorType.PoplarUnknown: (Error, "poplar_unknown_runtime_error"),
    TestErrorType.PoplarRecoverableFullReset: (RecoverableError, "poplar_recoverable_runtime_error"),
    TestErrorType.PoplarLinkError: (Error, "poplar_link_error"),
}


def _throwTestError(error_type: TestErrorType) -> None:
    """Raises an error of this kind, for programs that test how they handle it."""
    kind, name = _TEST_ERRORS.get(error_type, (Error, "poptorch_cpp_error"))
    message = f"This is a test error of the kind {error_type.name}"
    location = "[0] throwTestError"
    recovery = "\nRecovery action required: FULL_RESET" if kind is RecoverableError else ""
    where = callers.place() or f"{Path(__file__).name}"
    error = kind(f"In {where}: '{name}': {message}{recovery}\nError raised in:\n  {location}")
    error.type, error.message, error.location = name, message, location
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


# Set by poptorch/__init__.py, because they need modules above this one.

# Raises poptorch.Error for unknown option names and wrong value types in an `Options.toDict()`.
_validateOptions: Callable[[dict[str, Any]], None]
# Whether a model runs on the device in this thread.
isCompilingWithDispatcher: Callable[[], bool]
