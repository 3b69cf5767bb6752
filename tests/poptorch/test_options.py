"""Options: setters, defaults, type checks, freezing, copies, files."""

from __future__ import annotations

import copy
import json
import pickle
import re

import pytest
import torch

import ipu

ipu.select_device("simulator")
poptorch = ipu.poptorch


def test_defaults():
    options = poptorch.Options()
    assert options.replication_factor == options.device_iterations == options.output_return_period == 1
    assert options.output_mode is poptorch.OutputMode.Default and options.defaultOutputMode()
    assert options.Training.gradient_accumulation == 1
    assert options.Training.accumulation_and_replication_reduction_type is poptorch.ReductionType.Mean
    assert (options.log_dir, options.max_repeat_logs, options.broadcast_buffers) == (".", 4, True)
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (0, 1)
    assert options._Popart.options == {
        "instrumentWithHardwareCycleCounter": False,
        "rearrangeAnchorsOnHost": False,
    }


def test_setters_chain_and_namespaces_return_themselves():
    options = poptorch.Options()
    assert options.deviceIterations(2).replicationFactor(4).autoRoundNumIPUs(True) is options
    assert options.Training.gradientAccumulation(3) is options.Training
    assert options.Precision.enableStochasticRounding(True) is options.Precision
    assert options._Popart.set("outlineThreshold", 10.0).setPatterns({"TiedGather": True}) is options._Popart
    assert options("device_iterations") == options.device_iterations == 2
    assert options.setAvailableMemoryProportion({"IPU1": 0.3}) is None
    assert options.available_memory_proportion == {1: 0.3}
    assert options.anchorTensor("grad", "Gradient___w") is None
    assert "grad" in options.anchored_tensors


def test_values_keep_the_type_of_their_default():
    options = poptorch.Options()
    with pytest.raises(
        AssertionError, match=r"Unexpected type .*float.* for option device_iterations\. Expected"
    ):
        options.deviceIterations(2.0)
    options.deviceIterations(0)  # ranges aren't checked here
    options.replicationFactor(True)  # a bool is an int to isinstance
    with pytest.raises(AssertionError, match="Invalid option no_such, valid options are"):
        options.no_such = 1
    with pytest.raises(AttributeError, match=r"Invalid attribute no_such\."):
        _ = options.no_such
    with pytest.raises(AttributeError, match="Invalid private attribute _no_such"):
        setattr(options, "_" + "no_such", 1)
    options.device_iterations = 5
    assert options.device_iterations == 5


CHANGES = [
    lambda o: o.deviceIterations(2),
    lambda o: o.randomSeed(1),
    lambda o: o.setExecutionStrategy(poptorch.ShardedExecution()),
    lambda o: o.anchorTensor("a", "b"),
    lambda o: o.setAvailableMemoryProportion({"IPU0": 0.1}),
    lambda o: o.useOfflineIpuTarget(),
    lambda o: o.enableExecutableCaching("cache"),
    lambda o: o.Training.gradientAccumulation(2),
    lambda o: o.Training.setAutomaticLossScaling(True),
    lambda o: o.Precision.setPartialsType(torch.half),
    lambda o: o.TensorLocations.numIOTiles(32),
    lambda o: o.TensorLocations.setWeightLocation(poptorch.TensorLocationSettings()),
    lambda o: o.Distributed.configureProcessId(0, 2),
    lambda o: o._Popart.set("a", 1),
    lambda o: o._Popart.setPatterns({}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_frozen_options_refuse_every_change_and_copies_take_it(change):
    options = poptorch.Options()
    poptorch.DataLoader(options, torch.zeros(4, 1))
    before = repr(options)
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        change(options)
    for unfrozen in (options.clone(), copy.deepcopy(options)):
        change(unfrozen)
    assert repr(options) == before


def test_a_copy_shares_nothing():
    options = poptorch.Options()
    other = options.clone()
    other.Training.gradientAccumulation(7)
    other.Precision.enableStochasticRounding(True)
    other._Popart.set("engineOptions", {"a": "b"})
    other.setAvailableMemoryProportion({"IPU0": 0.5})
    other.anchorTensor("x", "y")
    assert repr(options) == repr(poptorch.Options())
    # The copy's sub-namespaces write to the copy's PopART options.
    assert other._Popart.options["enableStochasticRounding"] is True
    assert repr(pickle.loads(pickle.dumps(other))) == repr(other)


def test_output_modes():
    options = poptorch.Options()
    options.outputMode(poptorch.OutputMode.EveryN, 4)
    assert (options.output_mode, options.output_return_period) == (poptorch.OutputMode.EveryN, 4)
    for period in (None, 0, -1):
        with pytest.raises(AssertionError, match="EveryN anchor must have output_return_period"):
            options.outputMode(poptorch.OutputMode.EveryN, period)
    with pytest.raises(AssertionError):
        options.outputMode("All")


def test_random_seed_seeds_the_host_too():
    poptorch.Options().randomSeed(42)
    first = torch.rand(3)
    torch.manual_seed(42)
    assert torch.equal(first, torch.rand(3))


def test_replica_grouping_has_to_fit():
    options = poptorch.Options().replicationFactor(4)
    kinds = poptorch.CommGroupType
    for size, kind, text in [
        (2, kinds.All, "cannot be All"),
        (8, kinds.Consecutive, "cannot be larger than replication_factor"),
        (3, kinds.Consecutive, "must be a factor of replication_factor"),
    ]:
        with pytest.raises(ValueError, match=text):
            options.inputReplicaGrouping(size, kind)
    options.inputReplicaGrouping(4, kinds.NoGrouping)
    assert (options.input_group_size, options.input_cgt) == (1, kinds.Consecutive)


def test_refusals_keep_their_kinds():
    options = poptorch.Options()
    with pytest.raises(ValueError, match=r"must be set to poptorch\.ReductionType\.Mean or"):
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.NoReduction)
    with pytest.raises(ValueError):
        options.Precision.setPartialsType(torch.int32)
    with pytest.raises(AssertionError):
        options.Precision.enableFloatingPointExceptions(1)
    with pytest.raises(ValueError, match=r"traceModel\(True\) is no longer supported"):
        options.Jit.traceModel(True)
    with pytest.raises(AssertionError, match=r'\{"IPU0": 0.5\}.*Invalid key: 0'):
        options.setAvailableMemoryProportion({"0": 0.3})
    for tiles in (31, 33, 194):
        with pytest.raises(AssertionError, match="even number between 32 and 192"):
            options.TensorLocations.numIOTiles(tiles)


def test_locations_are_snapshots():
    options = poptorch.Options()
    settings = poptorch.TensorLocationSettings().useOnChipStorage(True).useReplicatedTensorSharding(True)
    options.TensorLocations.setOptimizerLocation(settings)
    settings.useOnChipStorage(None)
    assert not settings.exists("onChip")
    assert options.TensorLocations.location_optimizer == {"onChip": 1, "useReplicatedTensorSharding": 1}


def test_popart_settings_end_where_popart_looks():
    options = poptorch.Options().enableSyntheticData(2).enableExecutableCaching("folder").logCycleCount(True)
    options.Precision.setPartialsType(torch.half)
    assert options._Popart.options == {
        "instrumentWithHardwareCycleCounter": True,
        "rearrangeAnchorsOnHost": False,
        "syntheticDataMode": 2,
        "enableEngineCaching": True,
        "cachePath": "folder",
        "partialsTypeMatMuls": "half",
        "convolutionOptions": {"partialsType": "half"},
    }
    options.Training.setConvolutionDithering(True)  # replaces the convolution options
    assert "partialsType" not in options._Popart.options["convolutionOptions"]
    assert options.enableExecutableCaching(None)._Popart.options["enableEngineCaching"] is False


def test_to_dict_needs_an_output_mode_and_is_checked_by_the_compilation():
    options = poptorch.Options()
    with pytest.raises(AssertionError, match="An output mode must be picked before serialisation"):
        options.toDict()
    options.outputMode(poptorch.OutputMode.All)
    options._Popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
    poptorch.poptorch_core._validateOptions(options.toDict())
    for key, value, text in [
        ("noSuchThing", True, "Unknown .* option .*noSuchThing"),
        ("engineOptions", None, "Unknown value type .*NoneType.* for option engineOptions"),
    ]:
        broken = options.clone()
        broken._Popart.set(key, value)
        with pytest.raises(poptorch.Error, match=text):
            poptorch.poptorch_core._validateOptions(broken.toDict())
    clash = options.clone()
    clash._Popart.set("device_iterations", 1)
    with pytest.raises(AssertionError, match="keys in common"):
        clash.toDict()


def test_repr_names_everything():
    text = repr(poptorch.Options())
    for name in poptorch.Options()._values:
        assert f"{name}:" in text
    for name, member in vars(poptorch.Options).items():
        if isinstance(member, property):
            assert f"{name}:" in text


def test_load_from_file(tmp_path):
    path = tmp_path / "options.conf"
    path.write_text(
        "# a comment\n\ndeviceIterations(4)\n"
        "setExecutionStrategy(poptorch.ShardedExecution())\nTraining.gradientAccumulation(8)\n"
    )
    options = poptorch.Options()
    options.loadFromFile(str(path))
    assert (options.device_iterations, options.Training.gradient_accumulation) == (4, 8)
    assert isinstance(options._execution_strategy, poptorch.ShardedExecution)
    path.write_text("deviceIterations(1)\nthis is no call\n")
    with pytest.raises(poptorch.ConfigFileError) as caught:
        options.loadFromFile(str(path))
    assert re.match(r"SyntaxError at line 2 of options\.conf: .*\n> this is no call", str(caught.value))
    path.write_text("noSuchOption(1)\n")
    with pytest.raises(AttributeError):
        options.loadFromFile(str(path))


def test_json_and_the_environment(monkeypatch):
    settings = {
        "outputMode": ["OutputMode.EveryN", 3],
        "Training.gradientAccumulation": 4,
        "_Popart.set": ["outlineThreshold", 10.0],
    }
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", json.dumps(settings))
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "some/where")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    options = poptorch.Options()
    assert (options.output_mode, options.output_return_period) == (poptorch.OutputMode.EveryN, 3)
    assert options.Training.gradient_accumulation == 4
    assert options._Popart.options["outlineThreshold"] == 10.0
    assert options._Popart.options["cachePath"] == "some/where"
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (3, 4)
    assert options.Distributed.disable().numProcesses == 1


def test_the_ipu_model_is_no_hardware(monkeypatch):
    assert poptorch.ipuHardwareIsAvailable() and poptorch.ipuHardwareVersion() == 2
    assert not poptorch.ipuHardwareIsAvailable(65)
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    assert not poptorch.ipuHardwareIsAvailable()
    with pytest.raises(AssertionError, match="No IPU hardware available on this system"):
        poptorch.ipuHardwareVersion()


def test_errors_say_who_speaks():
    error = poptorch.createPoptorchError("it broke")
    assert str(error) == "'poptorch_py_error': it broke"
    assert (error.type, error.message, error.location) == ("poptorch_py_error", "it broke", "")
    assert issubclass(poptorch.RecoverableError, poptorch.Error)
    with pytest.raises(ValueError, match="Invalid log level integer"):
        poptorch.setLogLevel(5)
    with pytest.raises(
        ValueError, match=r"Unknown log level: LOUD\. Valid values are DEBUG, ERR, INFO, OFF, TRACE"
    ):
        poptorch.setLogLevel("LOUD")
    with pytest.raises(ValueError, match="Level must be one of"):
        poptorch._logging.setPopartLogLevel("LOUD")


def test_options_are_declared_once_and_each_object_has_its_own():
    one, two = poptorch.Options(), poptorch.Options()
    one.anchorTensor("x", "long")
    one.source_location_excludes.append("here")
    assert two.anchored_tensors == {} and "here" not in two.source_location_excludes
    # Declared without a default: doesn't exist until it is set; compilation knows it.
    assert not one.exists("random_seed")
    with pytest.raises(AttributeError, match="Invalid attribute random_seed"):
        _ = one.random_seed
    one.outputMode(poptorch.OutputMode.All).modelName("named").useIpuId(3)
    one.TensorLocations.numIOTiles(32).setWeightLocation(poptorch.TensorLocationSettings())
    poptorch.poptorch_core._validateOptions(one.toDict())


@pytest.mark.parametrize("value", [1, "on"])
@pytest.mark.parametrize(
    ("section", "setter"),
    [("Training", "setAutomaticLossScaling"), ("Precision", "enableStochasticRounding")],
)
def test_a_switch_of_popart_takes_a_bool(section, setter, value):
    options = poptorch.Options()
    getattr(getattr(options, section), setter)(value)
    executor = poptorch.inferenceModel(torch.nn.Linear(1, 1), options)
    with pytest.raises(
        poptorch.Error, match=rf"Unknown {type(value).__name__} option '.*' for value .*a bool"
    ):
        executor(torch.ones(1, 1))
