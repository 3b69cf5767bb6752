"""Options of a program with several instances."""

from __future__ import annotations

import poptorch

import popdist


class Options(poptorch.Options):
    """poptorch.Options with this instance's number of replicas, its index, and the number of instances.

    :param ipus_per_replica: the number of IPUs per replica; RuntimeError if PopRun reserved another number.
    """

    def __init__(self, ipus_per_replica: int | None = None) -> None:
        super().__init__()
        if ipus_per_replica is not None:
            popdist.checkNumIpusPerReplica(ipus_per_replica)
        self.replicationFactor(popdist.getNumLocalReplicas())
        self.Distributed.configureProcessId(popdist.getInstanceIndex(), popdist.getNumInstances())
