"""How the host's threads wait for each other: spinning on an idle machine, asleep on a busy one.

PyTorch's kernels end in a barrier. OpenMP's threads spin there for milliseconds, which saves a wake-up where
each thread has a core. On cores that other programs use too, a thread spins through the time slice that the
one it waits for needs: an update took 7 to 14 times as long as with sleeping threads (2 threads on 2 cores
with a load of 9: docs/benchmarks.md). Results don't depend on how threads wait.
"""

from __future__ import annotations

import os
import sys

from . import variables

# With these, a user has decided. The first is OpenMP's, the others are those of GNU's and Intel's libraries.
_DECIDED = (variables.WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Of the cores, over the last minute. Above it, a second thread would often wait for a core.
_BUSY_SHARE = 0.5

_note = ""


def choose_waiting() -> str:
    """Lets the threads of PyTorch sleep while they wait, if other programs use this machine's cores.

    OpenMP reads the setting when torch is imported: without effect afterwards, and if the user has chosen.
    Returns `waiting_note()`.
    """
    global _note
    if "torch" in sys.modules or any(variables.is_set(name) for name in _DECIDED):
        return _note
    load, cores = _load(), _cores()
    if load > _BUSY_SHARE * cores:
        variables.set_for_children(variables.WAIT_POLICY, "passive")
        _note = (
            f"sleep while they wait for each other: the machine is busy (load {load:.1f} on {cores} "
            f"cores; {variables.WAIT_POLICY}=active makes them spin)"
        )
    return _note


def waiting_note() -> str:
    """What the threads do while they wait, and why; empty if nothing was changed."""
    return _note


def _load() -> float:
    """Programs that were running or ready to run, on average over the last minute; 0 if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows; no /proc
        return 0.0


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
