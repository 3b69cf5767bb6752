"""The machines that the simulator can stand for."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

VARIABLE = "IPU_SIMULATOR_TARGET"
DEFAULT = "pod16"

# GC200 machines, and those of the Bow generation; the number in a name is that of its IPUs.
NAMES = "pod4 pod16 pod64 pod128 bow-pod4 bow-pod16 bow-pod64 bow-pod128 bow-pod256".split()


class UnknownTarget(ValueError):
    """A machine that the simulator doesn't know."""


@dataclass(frozen=True)
class Target:
    """A machine: its name and how many IPUs a program may have of it."""

    name: str
    num_ipus: int


def target() -> Target:
    """The machine that IPU_SIMULATOR_TARGET names now, else a pod16. Raises UnknownTarget."""
    name = os.environ.get(VARIABLE) or DEFAULT
    if name not in NAMES:
        likely = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.0)
        raise UnknownTarget(
            f"{VARIABLE} is {name!r}, which is no target of the simulator: the nearest is {likely[0]!r} "
            f"(all: {', '.join(NAMES)})"
        )
    return Target(name, int(name.rpartition("pod")[2]))
