"""popdist on the simulator: how many instances of a program run together, and which one this is.

PopRun's variables say so, or those of torchrun, which is what starts several processes where there is no
PopRun. They are read at each call.
"""

from __future__ import annotations

import os

from ipu_simulator.host import refuse_to_replace_another_poptorch as _refuse_to_replace

_refuse_to_replace()

_TOTAL_REPLICAS = "POPDIST_NUM_TOTAL_REPLICAS"
_LOCAL_REPLICAS = "POPDIST_NUM_LOCAL_REPLICAS"
_REPLICA_OFFSET = "POPDIST_REPLICA_INDEX_OFFSET"
_IPUS_PER_REPLICA = "POPDIST_NUM_IPUS_PER_REPLICA"

# PopRun starts processes with MPI; torchrun is the simulator's way to start several.
_INSTANCES = ("OMPI_COMM_WORLD_SIZE", "WORLD_SIZE")
_INSTANCE = ("OMPI_COMM_WORLD_RANK", "RANK")


def isPopdistEnvSet() -> bool:
    """Whether PopRun, or torchrun in its place, started this process."""
    return _TOTAL_REPLICAS in os.environ or all(name in os.environ for name in ("WORLD_SIZE", "RANK"))


def getNumInstances() -> int:
    """Processes that run this program together; 1 where nothing says otherwise."""
    total, local = _number(_TOTAL_REPLICAS), _number(_LOCAL_REPLICAS)
    by_replicas = None if total is None or local is None else _share(total, local, _LOCAL_REPLICAS)
    return _first(*map(_number, _INSTANCES), by_replicas, 1)


def getInstanceIndex() -> int:
    """This process among them, from 0 on."""
    offset = _number(_REPLICA_OFFSET, least=0)
    by_replicas = None if offset is None else offset // getNumLocalReplicas()
    return _first(*(_number(name, least=0) for name in _INSTANCE), by_replicas, 0)


def getNumTotalReplicas() -> int:
    """Replicas of all instances together."""
    return _first(_number(_TOTAL_REPLICAS), getNumInstances() * getNumLocalReplicas())


def getNumLocalReplicas() -> int:
    """Replicas of this instance. ValueError where instances can't have equal numbers of them."""
    local, total = _number(_LOCAL_REPLICAS), _number(_TOTAL_REPLICAS)
    if local is not None or total is None:
        return _first(local, 1)
    return _share(total, getNumInstances(), "the number of instances")


def getReplicaIndexOffset() -> int:
    """The index, among all replicas, of this instance's first."""
    return _first(_number(_REPLICA_OFFSET, least=0), getInstanceIndex() * getNumLocalReplicas())


def getNumIpusPerReplica() -> int:
    """IPUs that each replica has; 1 where nothing says otherwise."""
    return _first(_number(_IPUS_PER_REPLICA), 1)


def checkNumIpusPerReplica(num_ipus_per_replica: int) -> None:
    """RuntimeError where PopRun reserved another number of IPUs for a replica."""
    reserved = _number(_IPUS_PER_REPLICA)
    if reserved is not None and reserved != num_ipus_per_replica:
        raise RuntimeError(
            f"The model needs {num_ipus_per_replica} IPUs per replica, but {reserved} are reserved: start it "
            f"with poprun --ipus-per-replica {num_ipus_per_replica}"
        )


def getDeviceId(num_ipus_per_replica: int | None = None) -> int:
    """This instance's device: one group of IPUs for each instance, in their order."""
    if num_ipus_per_replica is not None:
        checkNumIpusPerReplica(num_ipus_per_replica)
    return getInstanceIndex()


def _number(name: str, least: int = 1) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}; a whole number from {least} on is expected")
    return int(text)


def _first(*candidates: int | None) -> int:
    return next(number for number in candidates if number is not None)


def _share(total: int, parts: int, of: str) -> int:
    if total % parts:
        raise ValueError(f"{_TOTAL_REPLICAS} is {total}, which is no multiple of {of} ({parts})")
    return total // parts


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


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"module 'popdist' has no attribute {name!r} on the simulator, which has {', '.join(__all__)} and "
        "popdist.poptorch.Options"
    )
