"""Options of a program with several instances."""

from __future__ import annotations

from typing import NoReturn as _NoReturn

import poptorch
from poptorch._options.base import OptionsDict as _OptionsDict
from poptorch._options.sections import DistributedOptions as _DistributedOptions

import popdist


def _managed(setter: str) -> RuntimeError:
    return RuntimeError(
        f"popdist.poptorch.Options().{setter} can't be called: PopRun sets it for each instance. Use "
        "poprun's flags, or poptorch.Options for a program that isn't distributed."
    )


class _Distributed(_DistributedOptions):
    """The number of instances and this one's index, which PopRun sets: the setters raise RuntimeError."""

    def __init__(self, process_id: int, num_processes: int) -> None:
        _OptionsDict.__init__(self)  # not from the environment
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)

    def disable(self) -> _NoReturn:
        """Raises RuntimeError."""
        raise _managed("Distributed.disable")

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _NoReturn:
        """Raises RuntimeError."""
        raise _managed("Distributed.setEnvVarNames")

    def configureProcessId(self, process_id: int, num_processes: int) -> _NoReturn:
        """Raises RuntimeError."""
        raise _managed("Distributed.configureProcessId")


class Options(poptorch.Options):
    """poptorch.Options with this instance's number of replicas, its index, and the number of instances.

    PopRun sets these and the IPUs: their setters raise RuntimeError.

    :param ipus_per_replica: the number of IPUs per replica; RuntimeError if PopRun reserved another number.
    """

    def __init__(self, ipus_per_replica: int | None = None) -> None:
        super().__init__()
        if ipus_per_replica is not None and not popdist.checkNumIpusPerReplica(ipus_per_replica):
            raise RuntimeError(
                f"The model needs {ipus_per_replica} IPUs per replica, but {popdist.getNumIpusPerReplica()} "
                f"are reserved: start it with poprun --ipus-per-replica {ipus_per_replica}"
            )
        super().replicationFactor(popdist.getNumLocalReplicas())
        self._distributed = _Distributed(popdist.getInstanceIndex(), popdist.getNumInstances())

    def replicationFactor(self, replication_factor: int) -> _NoReturn:
        """Raises RuntimeError."""
        raise _managed("replicationFactor")

    def useIpuId(self, ipu_id: int) -> _NoReturn:
        """Raises RuntimeError."""
        raise _managed("useIpuId")
