"""popdist on the simulator: the number of instances of a program, and this instance's index and replicas.

The values come from the environment variables of PopRun, or of torchrun, which starts several processes on
the simulator. They are read at each call.
"""

from __future__ import annotations

import os
import typing as _typing

from ipu_simulator.environment import target as _target
from ipu_simulator.host import refuse_to_replace_another_poptorch as _refuse_to_replace

_refuse_to_replace()

_T = _typing.TypeVar("_T")

_TOTAL_REPLICAS = "POPDIST_NUM_TOTAL_REPLICAS"
_LOCAL_REPLICAS = "POPDIST_NUM_LOCAL_REPLICAS"
_REPLICA_OFFSET = "POPDIST_REPLICA_INDEX_OFFSET"
_IPUS_PER_REPLICA = "POPDIST_NUM_IPUS_PER_REPLICA"

# PopRun starts processes with MPI; the simulator uses torchrun.
_INSTANCES = ("OMPI_COMM_WORLD_SIZE", "WORLD_SIZE")
_INSTANCE = ("OMPI_COMM_WORLD_RANK", "RANK")


def isPopdistEnvSet() -> bool:
    """Whether PopRun or torchrun started this process."""
    return _TOTAL_REPLICAS in os.environ or all(name in os.environ for name in ("WORLD_SIZE", "RANK"))


def getNumInstances() -> int:
    """The number of instances (processes) of this program; 1 by default."""
    total, local = _number(_TOTAL_REPLICAS), _number(_LOCAL_REPLICAS)
    by_replicas = None if total is None or local is None else _share(total, local, _LOCAL_REPLICAS)
    return _first(*map(_number, _INSTANCES), by_replicas, 1)


def getInstanceIndex() -> int:
    """This instance's index, from 0."""
    offset = _number(_REPLICA_OFFSET, least=0)
    by_replicas = None if offset is None else offset // getNumLocalReplicas()
    return _first(*(_number(name, least=0) for name in _INSTANCE), by_replicas, 0)


def getNumTotalReplicas() -> int:
    """The number of replicas of all instances."""
    return _first(_number(_TOTAL_REPLICAS), getNumInstances() * getNumLocalReplicas())


def getNumLocalReplicas() -> int:
    """The number of replicas of this instance. ValueError if the instances don't divide all replicas."""
    local, total = _number(_LOCAL_REPLICAS), _number(_TOTAL_REPLICAS)
    if local is not None or total is None:
        return _first(local, 1)
    return _share(total, getNumInstances(), "the number of instances")


def getReplicaIndexOffset() -> int:
    """The global index of this instance's first replica."""
    return _first(_number(_REPLICA_OFFSET, least=0), getInstanceIndex() * getNumLocalReplicas())


def getNumIpusPerReplica() -> int:
    """The number of IPUs per replica; 1 by default."""
    return _first(_number(_IPUS_PER_REPLICA), 1)


def checkNumIpusPerReplica(num_ipus_per_replica: int) -> bool:
    """Whether PopRun reserved this number of IPUs per replica, or none in particular."""
    return _number(_IPUS_PER_REPLICA) in (None, num_ipus_per_replica)


def getDeviceId(num_ipus_per_replica: int | None = None) -> int:
    """The id, for Options.useIpuId, of the device with the IPUs of all replicas of this instance.

    Each instance has the next device. Raises RuntimeError if the machine has too few IPUs.
    """
    ipus = getNumLocalReplicas() * (num_ipus_per_replica or getNumIpusPerReplica())
    size = 1 << (ipus - 1).bit_length()
    machine, index = _target(), getInstanceIndex()
    if (index + 1) * size > machine.num_ipus:
        raise RuntimeError(
            f"instance {index} has no device: with {size} IPUs for each instance it would need the IPUs from "
            f"{index * size} on, and {machine.name} has {machine.num_ipus}"
        )
    return machine.device_id(size, index)


def execute_on_instances(
    set_of_instances: _typing.Collection[int],
    function: _typing.Callable[..., _T],
    *args: _typing.Any,
    **kwargs: _typing.Any,
) -> _T | None:
    """Calls `function(*args, **kwargs)` if this instance's index is in the set; otherwise returns None.

    The other instances don't wait for it.
    """
    return function(*args, **kwargs) if getInstanceIndex() in set_of_instances else None


def _number(name: str, least: int = 1) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}; a whole number of at least {least} is expected")
    return int(text)


def _first(*candidates: int | None) -> int:
    return next(number for number in candidates if number is not None)


def _share(total: int, parts: int, of: str) -> int:
    if total % parts:
        raise ValueError(f"{_TOTAL_REPLICAS} is {total}, which is not a multiple of {of} ({parts})")
    return total // parts


__all__ = [
    "checkNumIpusPerReplica",
    "execute_on_instances",
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
    """No-op: a training executor connects to the other instances when it is compiled."""


def finalize() -> None:
    """No-op: there is nothing to release."""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"module 'popdist' has no attribute {name!r} on the simulator, which has {', '.join(__all__)} and "
        "popdist.poptorch.Options"
    )
