"""The environment variables that the simulator reads, each at the moment when it is asked for.

Empty is the same as not set. (popdist reads those that say how many instances run; PyTorch reads torchrun's.)
"""

from __future__ import annotations

import os
from pathlib import Path

# The simulator's own.
TARGET = "IPU_SIMULATOR_TARGET"  # the machine to stand for
PRECISION = "IPU_SIMULATOR_PRECISION"  # how to compute
PROFILE = "IPU_SIMULATOR_PROFILE"  # a folder for reports; the front door's --profile sets it
CUSTOM_OPS = "IPU_SIMULATOR_CUSTOM_OPS"  # a file of functions; the front door's --custom-ops sets it
STRICT = "IPU_SIMULATOR_STRICT"  # 1: libraries are refused what programs are
# The line that says a simulator is at work was printed; inherited by the processes that a program starts.
# The application's runners set it too: their first line is the device's banner.
ANNOUNCED = "IPU_SIMULATOR_ANNOUNCED"
# PopTorch's.
CACHE_FOLDER = "POPTORCH_CACHE_DIR"
DEFAULT_OPTIONS = "POPTORCH_DEFAULT_OPTIONS"
LOG_DESTINATION = "POPTORCH_LOG_DEST"
LOG_LEVEL = "POPTORCH_LOG_LEVEL"
IPU_MODEL_VERSION = "POPTORCH_IPU_MODEL_VERSION"
IPU_MODEL = ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL")
# Poplar's.
ENGINE_OPTIONS = "POPLAR_ENGINE_OPTIONS"
# torchrun's.
RANK = "RANK"


def text(name: str, default: str = "") -> str:
    """A variable's value, or the default."""
    return os.environ.get(name) or default


def whole_number(name: str, default: int) -> int:
    """A variable's value from 0 on, or the default. Raises ValueError for anything else."""
    value = text(name)
    if value and not value.isdecimal():
        raise ValueError(f"{name} is {value!r}; a whole number from 0 on is expected")
    return int(value) if value else default


def is_set(name: str) -> bool:
    """Whether there is such a variable, be it empty."""
    return name in os.environ


def names() -> list[str]:
    """All that are set, other programs' too."""
    return list(os.environ)


def set_for_children(name: str, value: str) -> None:
    """Sets a variable for this process and those that it starts."""
    os.environ[name] = value


def asks_for_ipu_model() -> bool:
    """Whether PopTorch's variables ask for Poplar's IPU model: a number other than 0."""
    return any(value.isdecimal() and int(value) != 0 for value in map(text, IPU_MODEL))


def strict() -> bool:
    """Whether PopTorch's refusals hold for libraries newer than PopTorch, too."""
    return whole_number(STRICT, 0) != 0


def profile_folder() -> Path | None:
    """Where reports on the compiled models go; None where none are asked for."""
    folder = text(PROFILE)
    return Path(folder) if folder else None
