"""popdist on the simulator: how many instances of a program run together, and which one this is.

PopRun's variables say so, or those of torchrun, which is what starts several processes where there is no
PopRun. They are read at each call.
"""

from __future__ import annotations

from ._environment import (
    checkNumIpusPerReplica,
    getDeviceId,
    getInstanceIndex,
    getNumInstances,
    getNumIpusPerReplica,
    getNumLocalReplicas,
    getNumTotalReplicas,
    getReplicaIndexOffset,
    isPopdistEnvSet,
)

__all__ = [
    "checkNumIpusPerReplica",
    "finalize",
    "getDeviceId",
    "getInstanceIndex",
    "getNumInstances",
    "getNumIpusPerReplica",
    "getNumLocalReplicas",
    "getNumTotalReplicas",
    "getReplicaIndexOffset",
    "init",
    "isPopdistEnvSet",
]


def init() -> None:
    """Nothing to prepare: a training executor finds the other instances when it is compiled."""


def finalize() -> None:
    """Nothing to give back."""


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"module 'popdist' has no attribute {name!r} on the simulator, which has {', '.join(__all__)} and "
        "popdist.poptorch.Options"
    )
