"""Options of one of PopRun's instances: its replicas, its place among all, and the device reserved for it."""

import poptorch

import popdist


class Options(poptorch.Options):
    def __init__(self, ipus_per_replica=None):
        super().__init__()
        if ipus_per_replica is not None and not popdist.checkNumIpusPerReplica(ipus_per_replica):
            raise RuntimeError("Unexpected number of IPUs per replica")
        self.replicationFactor(popdist.getNumLocalReplicas())
        self.useIpuId(popdist.getDeviceId())
        self.Distributed.configureProcessId(popdist.getInstanceIndex(), popdist.getNumInstances())
