"""The options of Graphcore's pretraining recipes, as PopTorch gets them; compiling ahead of a run."""

import json
import os
import zipfile
from dataclasses import replace

import pytest
import torch

import config as configuration
import ipu
import run_pretraining
from ipu.options import DevicePlan, inference_options, training_options


@pytest.fixture(autouse=True)
def simulator():
    ipu.select_device("simulator")


def options_of(recipe, make=training_options, **overrides):
    plan = configuration.load(recipe, overrides=overrides).section(DevicePlan)
    options = make(plan)
    return options, options.toDict()


# Source: configs_pretraining.yml and options of graphcore/examples nlp/bert/pytorch, SDK 3.4.
SETTINGS = {
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "accumulateOuterFragmentSettings.schedule": 3,  # OverlapMemoryOptimized
    "auto_round_num_ipus": True,
    "convolutionOptions": {"partialsType": "half"},
    "device_iterations": 1,
    "disableGradAccumulationTensorStreams": True,
    "enableFloatingPointChecks": False,
    "enableStochasticRounding": True,
    "engineOptions": {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"},
    "gradient_accumulation": 2048,
    "location_optimizer": {"onChip": 0, "useReplicatedTensorSharding": 1},
    "partialsTypeMatMuls": "half",
    "patterns": {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True},
    "random_seed": 5,
    "replication_factor": 4,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
    "subgraphCopyingStrategy": 1,  # JustInTime
}


def test_every_option_of_the_reference_recipe_is_set():
    options, values = options_of("bert_large_128_pod16")
    assert {name: values[name] for name in SETTINGS} == SETTINGS
    assert values["available_memory_proportion"] == {0: 0.15, 1: 0.25, 2: 0.25, 3: 0.25}
    assert options.output_mode == ipu.poptorch.OutputMode.Sum
    reduction = options.Training.accumulation_and_replication_reduction_type
    assert reduction == ipu.poptorch.ReductionType.Mean
    absent = {"syntheticDataMode", "cachePath", "ipu_version"}
    assert absent.isdisjoint(values) and values["connection_type"] == 0
    # In training only: two evaluations of the same weights agree.
    assert options_of("bert_large_128_pod16", inference_options)[1]["enableStochasticRounding"] is False
    # What a compilation checks: names and types.
    ipu.poptorch.poptorch_core._validateOptions(values)


@pytest.mark.parametrize("make", [training_options, inference_options])
def test_what_a_user_decides(tmp_path, make):
    _, values = options_of(
        "bert_large_128_pod16",
        make,
        profile_folder=str(tmp_path),
        synthetic_data=True,
        compile_only=True,
        executable_cache="executables",
        floating_point_exceptions=True,
        stochastic_rounding=False,
        enable_half_partials=False,
    )
    assert values["engineOptions"]["autoReport.directory"] == str(tmp_path)
    assert values["engineOptions"]["opt.useAutoloader"] == "true"
    assert values["syntheticDataMode"] == 2 and values["cachePath"] == "executables"
    assert values["connection_type"] == ipu.poptorch.ConnectionType.Never.value and values["ipu_version"] == 2
    assert values["enableFloatingPointChecks"] and not values["enableStochasticRounding"]
    assert values["partialsTypeMatMuls"] == "float"


def test_an_instance_has_its_share_of_the_replicas(monkeypatch):
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "4")
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", "2")
    monkeypatch.setenv("POPDIST_REPLICA_INDEX_OFFSET", "2")
    plan = configuration.load("bert_large_128_pod16").section(DevicePlan)
    poprun = ipu.Instances(1, 2, launched=True, from_poprun=True)
    options = training_options(plan, poprun)
    assert options.replication_factor == 2
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    # What PopRun has set up for this instance holds for all of its programs.
    evaluation = inference_options(plan, poprun)
    assert (evaluation.replication_factor, evaluation.Distributed.numProcesses) == (2, 2)


def test_torchrun_says_nothing_of_replicas_so_the_configuration_does(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("POPDIST_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in {"WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    simulator = ipu.DeviceChoice("simulator", "", "", "")
    joined = ipu.join_instances(simulator, replication_factor=4, ipus_per_replica=4)
    assert (joined.index, joined.count, joined.launched, joined.from_poprun) == (0, 1, True, False)
    assert dict(os.environ) == before
    plan = configuration.load("bert_large_128_pod16").section(DevicePlan)
    options = training_options(plan, replace(joined, index=1, count=2))
    assert options.replication_factor == plan.replication_factor // 2 == 2
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)


POPRUN = {"POPDIST_NUM_TOTAL_REPLICAS": "4", "POPDIST_NUM_IPUS_PER_REPLICA": "4"}


def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("POPDIST_", "OMPI_", "MASTER_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("device", "count", "refused"), [("ipu", 4, True), ("ipu", 2, False), ("simulator", 4, False)]
)
def test_sharding_over_a_single_replica_of_an_instance(monkeypatch, capsys, device, count, refused):
    """Poplar shards over the replicas of an instance; with one it would silently keep all of the state."""
    no_launcher(monkeypatch)
    variables = {**POPRUN, "OMPI_COMM_WORLD_SIZE": str(count), "OMPI_COMM_WORLD_LOCAL_SIZE": str(count)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    choice, sizes = ipu.DeviceChoice(device, "", "", ""), {"replication_factor": 4, "ipus_per_replica": 4}
    assert ipu.join_instances(choice, **sizes).count == count
    assert capsys.readouterr().err == ""
    if refused:
        with pytest.raises(ipu.DeviceError, match="each of the 4 instances has 1 of the 4 replicas"):
            ipu.join_instances(choice, **sizes, replicated_tensor_sharding=True)
    else:
        ipu.join_instances(choice, **sizes, replicated_tensor_sharding=True)
        said = capsys.readouterr().err
        assert f"replicas of one instance ({4 // count}), not over all 4" in said
        assert f"--dry-run --instances {count}" in said


@pytest.mark.parametrize(
    ("device", "variables", "replicas", "words"),
    [
        ("simulator", POPRUN, 8, "PopRun started 4 replicas.*replication_factor 8.*--num-replicas 8"),
        ("simulator", {"WORLD_SIZE": "2", "RANK": "0"}, 3, "can't be split equally among 2 instances"),
        ("simulator", {**POPRUN, "POPDIST_NUM_IPUS_PER_REPLICA": "2"}, 4, "--ipus-per-replica 4"),
        (
            "simulator",
            {**POPRUN, "OMPI_COMM_WORLD_SIZE": "4"},
            4,
            "without a rendezvous address: set MASTER_ADDR",
        ),
        ("ipu", {"WORLD_SIZE": "2", "RANK": "0"}, 2, "PopRun assigns the IPUs"),
        ("ipu-model", POPRUN, 4, "IPU model has no replicas"),
    ],
)
def test_instances_that_do_not_fit_are_refused(monkeypatch, device, variables, replicas, words):
    no_launcher(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    choice = ipu.DeviceChoice(device, "", "", "")
    with pytest.raises(ipu.DeviceError, match=words):
        ipu.join_instances(choice, replication_factor=replicas, ipus_per_replica=4)


def test_the_launcher_is_known_as_far_as_it_can_be(monkeypatch):
    no_launcher(monkeypatch)
    for name, value in POPRUN.items():
        monkeypatch.setenv(name, value)
    joined = ipu.join_instances(ipu.DeviceChoice("ipu", "", "", ""), replication_factor=4, ipus_per_replica=4)
    assert joined.launcher == "poprun --num-instances 1 --num-replicas 4 --ipus-per-replica 4"


def test_compiling_ahead_needs_no_data_and_leaves_executables(tmp_path, capsys):
    arguments = [
        *("--config", "test_groupbert", "--device", "simulator", "--corpus", str(tmp_path / "absent.txt")),
        *("--output", str(tmp_path / "run"), "--compile-only"),
        *("--executable-cache", str(tmp_path / "executables")),
    ]
    result = run_pretraining.main(arguments)
    assert result.step == 0 and not (tmp_path / "run" / "checkpoints").exists()
    files = sorted((tmp_path / "executables").glob("*.poptorch"))
    assert [file.name for file in files] == [
        "test_groupbert-evaluation.poptorch",
        "test_groupbert-training.poptorch",
    ]
    for file, training in zip(files, (False, True)):
        header = json.loads(zipfile.ZipFile(file).read("header.json"))
        assert header["training"] == training and not header["has_model"]
    assert str(files[1]) in capsys.readouterr().out
