"""The simulator and its host: other PopTorch installations, optional packages, the CPU's instructions, and
the memory allocator.

`import poptorch` needs only torch. Reports, verdicts and stochastic rounding need more packages and name
them.
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
# The folder's name in the wheel; see pyproject.toml.
_INSTALLED_AS = "poptorch_simulator"
# Where Python's installers put packages.
_INSTALLED_PACKAGES = ("site-packages", "dist-packages")

# The command that runs programs on this copy of the simulator, installed or from the repository.
COMMAND = "poptorch-simulator" if _FOLDER.name == _INSTALLED_AS else "python -m ipu.simulator"
# Its last word, the prefix of the simulator's messages.
NAME = COMMAND.split()[-1]


def refuse_to_replace_another_poptorch() -> None:
    """Raises ImportError if another PopTorch is installed and the simulator wasn't chosen explicitly.

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
    """True if our folder precedes the installed packages on sys.path.

    The command and PYTHONPATH put it first. An installed distribution doesn't: its .pth file appends the
    folder after site-packages.
    """
    for entry in sys.path:
        if Path(entry or ".").resolve() == _FOLDER:
            return True
        if Path(entry).name in _INSTALLED_PACKAGES:
            return False
    return False


def _other_poptorch() -> str | None:
    """Path of a PopTorch on sys.path that isn't a copy of the simulator, or None."""
    for entry in sys.path:
        if (Path(entry or ".") / "ipu_simulator").is_dir():
            continue
        spec = PathFinder.find_spec("poptorch", [entry or "."])
        # A folder without __init__.py has no origin, and Graphcore's package has one.
        if spec is not None and spec.origin is not None:
            return spec.origin
    return None


@contextlib.contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Wraps imports of optional packages: the error says what needs a package and how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name}, which isn't installed: pip install {error.name}", name=error.name
        ) from None


# Of /proc/cpuinfo, fastest first: Intel's tiles, AVX-512's dot products, Arm's.
_BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def bfloat16_instructions(cpu_info: Path = _CPU_INFO) -> str | None:
    """The fastest instructions for products in bfloat16 that this CPU has; None if none are known."""
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return None
    flags: set[str] = set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags.update(value.split())
    return next((name for name in _BFLOAT16_INSTRUCTIONS if name in flags), None)


def free_memory_bytes() -> int | None:
    """Memory that this process can get without swapping: of the machine, and of its control group (version
    2); None where the system doesn't tell.
    """
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        group = Path("/sys/fs/cgroup")
        most, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        found.append(max(int(most) - int(used), 0))
    return min(found, default=None)


# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

# The heap grows in steps of this size: few system calls, and less than a small model's activations.
_TOP_PAD_BYTES = 64 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Stops malloc from returning freed memory to the system; True if the allocator accepted the settings.

    Every micro batch allocates and frees large tensors. By default glibc maps and unmaps each one, and the
    page faults cost 10% to 25% of a small model's step. Does nothing if the allocator isn't glibc's, or if
    the user has configured it (MALLOC_..., GLIBC_TUNABLES).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in variables.names()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No separate mappings for large blocks, and never shrink the heap (-1).
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return [mallopt(parameter, value) for parameter, value in settings] == [1] * len(settings)
