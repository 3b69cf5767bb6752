"""popdist in PopRun's environment; elsewhere every function but isPopdistEnvSet fails."""

import os


def isPopdistEnvSet():
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def _number(name):
    if name not in os.environ:
        raise RuntimeError(f"{name} is not set: start the program with poprun")
    return int(os.environ[name])


def init():
    _number("POPDIST_NUM_TOTAL_REPLICAS")


def getNumInstances():
    return getNumTotalReplicas() // getNumLocalReplicas()


def getInstanceIndex():
    return _number("POPDIST_REPLICA_INDEX_OFFSET") // getNumLocalReplicas()


def getNumTotalReplicas():
    return _number("POPDIST_NUM_TOTAL_REPLICAS")


def getNumLocalReplicas():
    return _number("POPDIST_NUM_LOCAL_REPLICAS")


def getNumIpusPerReplica():
    return _number("POPDIST_NUM_IPUS_PER_REPLICA")


def checkNumIpusPerReplica(num_ipus_per_replica):
    return getNumIpusPerReplica() == num_ipus_per_replica


def getDeviceId(num_ipus_per_replica=None):
    return getInstanceIndex()
