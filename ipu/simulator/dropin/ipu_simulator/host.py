"""How the simulator lives with what else is installed: another PopTorch, and packages it needs now and then.

`import poptorch` needs nothing but torch. Reports, verdicts and stochastic rounding need more, and say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from . import variables

_FOLDER = Path(__file__).resolve().parents[1]
# The folder in the wheel; see pyproject.toml.
_INSTALLED_AS = "poptorch_simulator"
# Where Python's installers put packages.
_INSTALLED_PACKAGES = ("site-packages", "dist-packages")

# The command that runs programs on this copy of the simulator: the installed one, or the repository's.
COMMAND = "poptorch-simulator" if _FOLDER.name == _INSTALLED_AS else "python -m ipu.simulator"
# Its last word, in front of what the simulator says.
NAME = COMMAND.split()[-1]


def refuse_to_replace_another_poptorch() -> None:
    """Raises ImportError where another PopTorch is installed and nobody has chosen the simulator.

    Called by the simulator's poptorch, popdist and popart when they are imported.
    """
    if _chosen():
        return
    other = _other_poptorch()
    if other is not None:
        raise ImportError(
            f"there are two packages called poptorch: {other}, and the simulator's in {_FOLDER}. The latter "
            f"replaces another PopTorch only if asked to: {COMMAND} SCRIPT (or -m MODULE), or "
            f"PYTHONPATH={_FOLDER}. To use the other one: pip uninstall poptorch-simulator, and install the "
            "simulator in an environment without PopTorch"
        )


def _chosen() -> bool:
    """Whether our folder comes before installed packages on sys.path.

    The front door and PYTHONPATH put it there. An installed distribution doesn't: its .pth file adds the
    folder after site-packages.
    """
    for entry in sys.path:
        if Path(entry or ".").resolve() == _FOLDER:
            return True
        if Path(entry).name in _INSTALLED_PACKAGES:
            return False
    return False


def _other_poptorch() -> str | None:
    """The file of a PopTorch that isn't a copy of the simulator, on any folder of sys.path."""
    for entry in sys.path:
        if (Path(entry or ".") / "ipu_simulator").is_dir():
            continue
        spec = PathFinder.find_spec("poptorch", [entry or "."])
        # A folder without __init__.py has no origin, and is no package of Graphcore's.
        if spec is not None and spec.origin is not None:
            return spec.origin
    return None


@contextlib.contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Around imports of packages other than torch: if one is missing, says what for and how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name}, which isn't installed: pip install {error.name}", name=error.name
        ) from None


# This host's memory, kept from one micro batch to the next.
#
# Large tensors come and go with every micro batch. glibc gives each back to the system and fetches it anew,
# page by page, which takes a tenth to a quarter of a small model's step.

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

# Fetched at once where the heap has to grow: few calls, and less than a small model's activations.
_TOP_PAD_BYTES = 64 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """From now on, memory that this process frees isn't returned to the system; True if the allocator obeys.

    Left alone: an allocator that isn't glibc's, and one that the user has set up (MALLOC_...,
    GLIBC_TUNABLES).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in variables.names()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No mappings of single tensors, and no heap that shrinks (-1: never).
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return [mallopt(parameter, value) for parameter, value in settings] == [1] * len(settings)
