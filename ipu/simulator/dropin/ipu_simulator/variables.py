"""The environment variables that the simulator reads. They are read at the time of use, and those of the
simulator are checked when poptorch is imported (environment.check_variables).

An empty variable counts as unset. (popdist reads those for the number of instances, PyTorch those of
torchrun.)
"""

from __future__ import annotations

import os
from pathlib import Path

# The simulator's variables.
TARGET = "IPU_SIMULATOR_TARGET"  # the machine to simulate
PRECISION = "IPU_SIMULATOR_PRECISION"  # the arithmetic: environment.PRECISIONS
PROFILE = "IPU_SIMULATOR_PROFILE"  # a folder for reports; set by --profile
CUSTOM_OPS = "IPU_SIMULATOR_CUSTOM_OPS"  # a file of functions; set by --custom-ops
STRICT = "IPU_SIMULATOR_STRICT"  # 1: errors where the simulator otherwise does what PopTorch refuses
MERGE = "IPU_SIMULATOR_MERGE"  # 0: micro batches of a weight update run one by one
# The announcement was printed. Set by environment.set_announced.
ANNOUNCED = "IPU_SIMULATOR_ANNOUNCED"
# Read by PopTorch too.
CACHE_FOLDER = "POPTORCH_CACHE_DIR"
WAIT_FOR_IPU = "POPTORCH_WAIT_FOR_IPU"
DEFAULT_OPTIONS = "POPTORCH_DEFAULT_OPTIONS"
LOG_DESTINATION = "POPTORCH_LOG_DEST"
LOG_LEVEL = "POPTORCH_LOG_LEVEL"
IPU_MODEL_VERSION = "POPTORCH_IPU_MODEL_VERSION"
IPU_MODEL = ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL")
# Read by Poplar too.
ENGINE_OPTIONS = "POPLAR_ENGINE_OPTIONS"
# Read by OpenMP.
WAIT_POLICY = "OMP_WAIT_POLICY"
# Set by torchrun.
RANK = "RANK"


def text(name: str, default: str = "") -> str:
    """A variable's value; the default if it is unset or empty."""
    return os.environ.get(name) or default


def whole_number(name: str, default: int) -> int:
    """A variable's value as a number >= 0, or the default. Raises ValueError for anything else."""
    value = text(name)
    if value and not value.isdecimal():
        raise ValueError(f"{name} is {value!r}; a whole number from 0 on is expected")
    return int(value) if value else default


def is_set(name: str) -> bool:
    """Whether the variable exists, even if empty."""
    return name in os.environ


def names() -> list[str]:
    """Names of all environment variables that are set."""
    return list(os.environ)


def set_for_children(name: str, value: str) -> None:
    """Sets a variable that other processes or C libraries read. Nothing else writes the environment.

    - IPU_SIMULATOR_PROFILE, IPU_SIMULATOR_CUSTOM_OPS: the command replaces itself by the program (exec).
    - IPU_SIMULATOR_ANNOUNCED: that program, and DataLoader workers that are spawned, import poptorch again.
    - OMP_WAIT_POLICY: OpenMP reads it when torch is imported.
    - RDMAV_FORK_SAFE: libibverbs reads it; PopTorch sets it.
    """
    os.environ[name] = value


def asks_for_ipu_model() -> bool:
    """Whether PopTorch's variables select Poplar's IPU model: a number other than 0."""
    return any(value.isdecimal() and int(value) != 0 for value in map(text, IPU_MODEL))


def strict() -> bool:
    """Whether what PopTorch refuses is refused also where the simulator need not."""
    return whole_number(STRICT, 0) != 0


def merges() -> bool:
    """Whether micro batches of a weight update may run as one, where that only reorders sums."""
    return whole_number(MERGE, 1) != 0


def profile_folder() -> Path | None:
    """Folder for reports on the compiled models; None: no reports. Raises ValueError if it is a file."""
    folder = text(PROFILE)
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{PROFILE} is {folder!r}, a file; a folder for the reports is expected")
    return Path(folder) if folder else None


def custom_ops_file() -> str:
    """The file of functions for custom operations, or an empty text. Raises ValueError if there is none."""
    file = text(CUSTOM_OPS)
    if file and not Path(file).is_file():
        raise ValueError(f"{CUSTOM_OPS} is {file!r}, but there is no such file in {Path.cwd()}")
    return file
