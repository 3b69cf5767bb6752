"""popdist's functions by environment, its Options, and popart's constants."""

from __future__ import annotations

import enum
import importlib
import pickle

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch
popart = importlib.import_module("popart")
popdist = importlib.import_module("popdist")
popdist_poptorch = importlib.import_module("popdist.poptorch")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def answers():
    return {
        "set": popdist.isPopdistEnvSet(),
        "instances": (popdist.getInstanceIndex(), popdist.getNumInstances()),
        "replicas": (
            popdist.getReplicaIndexOffset(),
            popdist.getNumLocalReplicas(),
            popdist.getNumTotalReplicas(),
        ),
        "ipus": popdist.getNumIpusPerReplica(),
    }


def test_alone():
    popdist.init()
    assert answers() == {"set": False, "instances": (0, 1), "replicas": (0, 1, 1), "ipus": 1}
    assert popdist.getDeviceId() == 0
    options = popdist_poptorch.Options()
    assert (options.replication_factor, options.Distributed.numProcesses) == (1, 1)
    popdist.finalize()


POPRUN = {
    "POPDIST_NUM_TOTAL_REPLICAS": "8",
    "POPDIST_NUM_LOCAL_REPLICAS": "4",
    "POPDIST_REPLICA_INDEX_OFFSET": "4",
    "POPDIST_NUM_IPUS_PER_REPLICA": "2",
}


@pytest.mark.parametrize("mpi", [{}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}])
def test_by_poprun(monkeypatch, mpi):
    for name, value in {**POPRUN, **mpi}.items():
        monkeypatch.setenv(name, value)
    assert answers() == {"set": True, "instances": (1, 2), "replicas": (4, 4, 8), "ipus": 2}
    options = popdist_poptorch.Options(ipus_per_replica=2)
    assert options.replication_factor == 4
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    with pytest.raises(RuntimeError, match="poprun --ipus-per-replica 4"):
        popdist_poptorch.Options(ipus_per_replica=4)


@pytest.mark.parametrize("reserved", [None, "2"])
def test_ipus_per_replica_are_checked_by_the_caller(monkeypatch, reserved):
    if reserved is not None:
        monkeypatch.setenv("POPDIST_NUM_IPUS_PER_REPLICA", reserved)
    assert popdist.checkNumIpusPerReplica(2) is True
    assert popdist.checkNumIpusPerReplica(4) is (reserved is None)


def test_devices_of_instances_hold_all_their_replicas(monkeypatch):
    for name, value in {**POPRUN, "IPU_SIMULATOR_TARGET": "pod16"}.items():
        monkeypatch.setenv(name, value)
    # pod16's ids: 0 to 15 have one IPU, 16 to 23 two, 24 to 27 four, 28 and 29 eight, 30 all.
    assert popdist.getDeviceId() == popdist.getDeviceId(2) == 29
    assert popdist.getDeviceId(1) == 25
    options = poptorch.Options().replicationFactor(4).useIpuId(popdist.getDeviceId())
    poptorch.inferenceModel(torch.nn.Linear(1, 1), options)(torch.ones(4, 1))
    with pytest.raises(RuntimeError, match=r"instance 1 has no device: .* 16 IPUs .* from 16 on, .* has 16"):
        popdist.getDeviceId(4)


def test_a_function_is_executed_on_some_instances(monkeypatch):
    calls = []

    def note(*args, **kwargs):
        calls.append((args, kwargs))
        return "noted"

    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        result = popdist.execute_on_instances({0, 2}, note, rank, of=4)
        assert result == ("noted" if rank in (0, 2) else None)
    assert calls == [((0,), {"of": 4}), ((2,), {"of": 4})]


def test_by_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert answers() == {"set": True, "instances": (3, 4), "replicas": (3, 1, 4), "ipus": 1}
    # The environment is read at each call, not at import.
    monkeypatch.setenv("RANK", "2")
    assert popdist.getInstanceIndex() == 2
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "8")
    assert popdist.getNumLocalReplicas() == 2 and popdist.getReplicaIndexOffset() == 4


def test_impossible_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "8")
    with pytest.raises(ValueError, match=r"8, which is not a multiple of the number of instances \(3\)"):
        popdist.getNumLocalReplicas()
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "many")
    with pytest.raises(ValueError, match="POPDIST_NUM_TOTAL_REPLICAS is 'many'"):
        popdist.getNumTotalReplicas()


def test_its_options_are_poptorch_s():
    options = popdist_poptorch.Options()
    assert isinstance(options, poptorch.Options)
    assert type(options.clone()) is type(options) is popdist_poptorch.Options
    assert pickle.loads(pickle.dumps(options)).replication_factor == 1
    assert options.deviceIterations(3) is options


@pytest.mark.parametrize(
    "copied", [lambda o: o, lambda o: o.clone(), lambda o: pickle.loads(pickle.dumps(o))]
)
def test_what_poprun_sets_can_t_be_set(monkeypatch, copied):
    for name, value in POPRUN.items():
        monkeypatch.setenv(name, value)
    options = copied(popdist_poptorch.Options())
    for setter, change in {
        "replicationFactor": lambda: options.replicationFactor(4),
        "useIpuId": lambda: options.useIpuId(0),
        "Distributed.configureProcessId": lambda: options.Distributed.configureProcessId(1, 2),
        "Distributed.setEnvVarNames": lambda: options.Distributed.setEnvVarNames("WORLD_SIZE", "RANK"),
        "Distributed.disable": options.Distributed.disable,
    }.items():
        with pytest.raises(RuntimeError, match=rf"Options\(\)\.{setter} can't be called: PopRun sets it"):
            change()
    with pytest.raises(RuntimeError, match="PopRun sets it"):
        options.from_json('{"replicationFactor": 2}')
    assert options.replication_factor == 4
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    options.Training.gradientAccumulation(2)
    options.outputMode(poptorch.OutputMode.All)
    assert options.toDict()["num_distributed_processes"] == 2


def test_popart_s_constants_go_where_options_take_them():
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    for name, value in (
        (
            "accumulateOuterFragmentSettings.schedule",
            popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized,
        ),
        ("subgraphCopyingStrategy", popart.SubgraphCopyingStrategy.JustInTime),
        ("syntheticDataMode", int(popart.SyntheticDataMode.RandomNormal)),
    ):
        options._Popart.set(name, value)
    poptorch.poptorch_core._validateOptions(options.toDict())
    assert options.clone()._Popart.options["subgraphCopyingStrategy"] == 1
    # What enableSyntheticData(True) means by PopTorch's contract.
    assert popart.SyntheticDataMode.RandomNormal == 2
    assert pickle.loads(pickle.dumps(popart.TensorStorage.OnChip)) is popart.TensorStorage.OnChip
    kinds = [value for value in vars(popart).values() if isinstance(value, enum.EnumMeta)]
    assert len(kinds) > 10
    assert all(
        member.value == place
        for kind in kinds
        if kind.__module__ == "popart"
        for place, member in enumerate(kind)
    )


def test_what_is_missing_is_named():
    with pytest.raises(AttributeError, match=r"'Builder' on the simulator.*Graphcore's SDK"):
        _ = popart.Builder
    with pytest.raises(AttributeError, match="'execute' on the simulator"):
        _ = popdist.execute
