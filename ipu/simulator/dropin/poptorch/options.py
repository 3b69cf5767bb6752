"""Options: how a model is compiled and run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from ipu_simulator import variables

from . import enums
from ._logging import logger
from ._options import base, popart
from ._options.base import ConfigFileError, OptionsDict, option
from ._options.popart import PopartOptions
from ._options.sections import (
    DistributedOptions,
    JitOptions,
    PrecisionOptions,
    TensorLocationOptions,
    TensorLocationSettings,
    TrainingOptions,
)
from ._options.strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    _IExecutionStrategy,
)
from .poptorch_core import usesIpuModel

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
]

# PopTorch's private names, from which Graphcore's popdist derives classes.
_DistributedOptions, _JitOptions, _PopartOptions = DistributedOptions, JitOptions, PopartOptions
_PrecisionOptions, _TensorLocationOptions = PrecisionOptions, TensorLocationOptions
_TrainingOptions = TrainingOptions

# PopTorch's C++ side has a 64-bit count; this means "no limit".
_UNLIMITED = 2**64 - 1


class Options(OptionsDict):
    """How a model is compiled and run. Setters change this object and return it, so that calls chain.

    Wrapping a model or creating a DataLoader freezes the options: later changes raise AttributeError. A
    clone() isn't frozen. Setters only check types; ranges are checked when a model is compiled.
    """

    # Documented at their setters below.
    replication_factor: int = option(1)
    input_group_size: int = option(1)
    input_cgt: enums.CommGroupType = option(enums.CommGroupType.Consecutive)
    broadcast_buffers: bool = option(True)
    device_iterations: int = option(1)
    log_dir: str = option(".")
    max_repeat_logs: int = option(4)
    auto_round_num_ipus: bool = option(False)
    # By short name: [long name, mode or None, period].
    anchored_tensors: dict[str, list[Any]] = option({})
    output_mode: enums.OutputMode = option(enums.OutputMode.Default)
    output_return_period: int = option(1)
    connection_type: int = option(enums.ConnectionType.Always.value)
    sync_pattern: int = option(enums.SyncPattern.Full.value)
    available_memory_proportion: dict[int, float] = option({})  # by IPU
    source_location_excludes: list[str] = option(["site-packages/torch", "site-packages/poptorch"])
    module_namescope_enabled: bool = option(True)
    show_compilation_progress_bar: bool = option(True)
    relax_optimizer_checks: bool = option(False)
    updatable_named_buffers: list[str] = option([])
    # Without a default.
    random_seed: int
    use_model: bool
    ipu_id: int
    ipu_version: int
    model_name: str

    def __init__(self) -> None:
        super().__init__()
        self._popart = PopartOptions()
        self._training = TrainingOptions(self._popart)
        self._precision = PrecisionOptions(self._popart)
        self._jit = JitOptions()
        self._tensor_locations = TensorLocationOptions()
        self._distributed = DistributedOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        cache_folder = variables.text(variables.CACHE_FOLDER)
        if cache_folder:
            self.enableExecutableCaching(cache_folder)
        defaults = variables.text(variables.DEFAULT_OPTIONS)
        if defaults:
            self.from_json(defaults)

    @property
    def Training(self) -> TrainingOptions:
        """Options of training models."""
        return self._training

    @property
    def Precision(self) -> PrecisionOptions:
        """Options of number formats, rounding and floating-point exceptions."""
        return self._precision

    @property
    def Jit(self) -> JitOptions:
        """Deprecated options of tracing."""
        return self._jit

    @property
    def TensorLocations(self) -> TensorLocationOptions:
        """Where tensors are stored."""
        return self._tensor_locations

    @property
    def Distributed(self) -> DistributedOptions:
        """Number of processes and this process's id."""
        return self._distributed

    @property
    def _Popart(self) -> PopartOptions:
        """PopART's session options by name."""
        return self._popart

    def _namespaces(self) -> dict[str, Any]:
        return {
            "Training": self._training,
            "Precision": self._precision,
            "Jit": self._jit,
            "TensorLocations": self._tensor_locations,
            "Distributed": self._distributed,
            "_Popart": self._popart,
        }

    def _freeze(self) -> None:
        super()._freeze()
        for namespace in self._namespaces().values():
            namespace._freeze()

    def __repr__(self) -> str:
        values = [*self._values.items(), ("execution_strategy", type(self._execution_strategy).__name__)]
        lines = [f"{name}: {value!r}" for name, value in [*values, *self._namespaces().items()]]
        return "\n".join(["Options:", *(f"  {line}" for line in lines)])

    def clone(self) -> Options:
        """An unfrozen copy."""
        return copy.deepcopy(self)

    def toDict(self) -> dict[str, Any]:
        """All options in a flat dictionary. Raises AssertionError if the output mode is still Default."""
        assert not self.defaultOutputMode(), "An output mode must be picked before serialisation"
        merged = self.update(dict(self._popart.options))
        for namespace in (self._training, self._precision, self._jit, self._tensor_locations):
            merged = namespace.update(merged)
        merged = self._distributed.update(merged)
        strategy = self._execution_strategy.backendOptions()
        shared = set(merged) & set(strategy)
        assert not shared, f"Can't merge dictionaries, they have keys in common: {sorted(shared)}"
        return {**merged, **strategy}

    def loadFromFile(self, filepath: str) -> Self:
        """Applies a file of setter calls, one per line: `deviceIterations(4)`; `#` starts a comment line.

        Raises ConfigFileError for a syntax error, and whatever the setters raise.
        """
        base.apply_file(self, filepath)
        return self

    def from_json(self, string: str) -> Self:
        """Applies a JSON object of setters and arguments; a list holds several arguments. For example
        {"deviceIterations": 4, "Training.gradientAccumulation": 8, "outputMode": "OutputMode.All"}.
        """
        base.apply_json(self, string)
        return self

    # ---- batches, replicas, outputs

    def deviceIterations(self, device_iterations: int) -> Self:
        """Device iterations per call: in training, weight updates."""
        return self.set(device_iterations=device_iterations)

    def replicationFactor(self, replication_factor: int) -> Self:
        """The number of replicas of the model (data parallelism)."""
        return self.set(replication_factor=replication_factor)

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> Self:
        """Groups of replicas read the same input. Raises ValueError if the groups don't fit the replicas."""
        if input_group_type == enums.CommGroupType.All:
            raise ValueError("input_group_type cannot be All")
        if input_group_size > self.replication_factor:
            raise ValueError("input_group_size cannot be larger than replication_factor")
        if self.replication_factor % input_group_size:
            raise ValueError("input_group_size must be a factor of replication_factor")
        if input_group_type == enums.CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, enums.CommGroupType.Consecutive
        return self.set(input_group_size=input_group_size, input_cgt=input_group_type)

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Self:
        """True: all replicas start with the same buffers; False: buffers may be [replicas, ...]."""
        return self.set(broadcast_buffers=broadcast_buffers)

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: int | None = None) -> Self:
        """Which micro batches' outputs a call returns. AssertionError for EveryN without a valid period."""
        period = _checked_period(output_mode, output_return_period)
        return self.set(output_mode=output_mode, output_return_period=period)

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is still Default."""
        return self.output_mode == enums.OutputMode.Default

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: enums.OutputMode | None = None,
        output_return_period: int | None = 1,
    ) -> None:
        """Keeps the device's tensor `long_name` for getAnchoredTensor(short_name); mode None: the model's."""
        self.checkIsFrozen("anchored_tensors")
        if output_mode is not None:
            output_return_period = _checked_period(output_mode, output_return_period)
        self.anchored_tensors[short_name] = [long_name, output_mode, output_return_period]

    def randomSeed(self, random_seed: int) -> Self:
        """Seeds the device's random numbers, and immediately the host's (torch.manual_seed)."""
        assert isinstance(random_seed, int), "random_seed must be an int"
        self.createOrSet(random_seed=random_seed)
        torch.manual_seed(random_seed)
        return self

    def updatableNamedBuffers(self, buffers: list[str]) -> Self:
        """Names of the buffers that copyNamedBuffersToDevice uploads."""
        return self.set(updatable_named_buffers=buffers)

    # ---- the device

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Self:
        """Sets how blocks form pipeline stages or phases."""
        self.checkIsFrozen("execution_strategy")
        assert isinstance(strategy, _IExecutionStrategy), (
            f"Invalid type {type(strategy)}: an execution strategy is expected"
        )
        self._execution_strategy = strategy
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Self:
        """Rounds the number of reserved IPUs up to a power of two."""
        return self.set(auto_round_num_ipus=auto_round_num_ipus)

    def setAvailableMemoryProportion(self, available_memory_proportion: dict[str, float]) -> None:
        """The proportion of memory available to matmuls and convolutions (0 to 1), by IPU: {"IPU0": 0.3}."""
        shares = {}
        for key, share in available_memory_proportion.items():
            assert key.startswith("IPU"), (
                "Available memory proportions are expected to be in a dictionary of "
                '{"IPU0": 0.5} where the 0 in IPU is the index of the IPU. '
                f"Invalid key: {key}"
            )
            shares[int(key[len("IPU") :])] = share
        self.set(available_memory_proportion=shares)

    def connectionType(self, connection_type: enums.ConnectionType) -> Self:
        """When the executor attaches to the device."""
        assert isinstance(connection_type, enums.ConnectionType), "a poptorch.ConnectionType is expected"
        return self.set(connection_type=connection_type.value)

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Self:
        """How IPUs synchronise."""
        assert isinstance(sync_pattern, enums.SyncPattern), "a poptorch.SyncPattern is expected"
        return self.set(sync_pattern=sync_pattern.value)

    def useIpuModel(self, use_model: bool) -> Self:
        """Whether to use Poplar's IPU model instead of IPUs; overrides POPTORCH_IPU_MODEL."""
        return self.createOrSet(use_model=use_model)

    def useIpuId(self, ipu_id: int) -> Self:
        """The device to use, by Poplar's id."""
        assert isinstance(ipu_id, int), "ipu_id must be an int"
        return self.createOrSet(ipu_id=ipu_id)

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Self:
        """Compiles for IPUs of this version without IPUs attached; the model can't be run."""
        self.connectionType(enums.ConnectionType.Never)
        return self.createOrSet(ipu_version=ipu_version)

    def enableExecutableCaching(self, path: str | None) -> Self:
        """Caches executables in this folder; None turns caching off. No effect with the IPU model."""
        if path is not None and usesIpuModel(self._values):
            logger.warning("enableExecutableCaching has no effect with the IPU model")
        self._popart.set(popart.ENGINE_CACHING, path is not None)
        if path is not None:
            self._popart.set(popart.CACHE_PATH, path)
        return self

    def enableSyntheticData(self, enabled: bool | int) -> Self:
        """Runs on synthetic data, without transfers between host and device."""
        # PopART's modes: 0 off, 1 zeros, 2 normally distributed.
        self._popart.set(popart.SYNTHETIC_DATA, 2 if enabled else 0)
        return self

    def enableStableNorm(self, enabled: bool) -> Self:
        """Numerically more stable normalisations, which are slower."""
        self._popart.set("enableStableNorm", enabled)
        return self

    # ---- names, logs and reports

    def logDir(self, log_dir: str) -> Self:
        """The folder for logs."""
        return self.set(log_dir=log_dir)

    def logCycleCount(self, log_cycle_count: bool) -> Self:
        """Counts the cycles of a call, for cycleCount()."""
        self._popart.set(popart.COUNT_CYCLES, log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: str | None = None) -> Self:
        """Writes Poplar's reports; POPLAR_ENGINE_OPTIONS, if set, overrides this."""
        if variables.is_set(variables.ENGINE_OPTIONS):
            logger.warning("POPLAR_ENGINE_OPTIONS is set and overrides the options of enableProfiling")
        self._popart.setEngineOptions(
            {
                "autoReport.directory": self.log_dir if profile_dir is None else profile_dir,
                "autoReport.all": "true",
                "debug.allowOutOfMemory": "true",
            }
        )
        return self

    def maxRepeatLogs(self, max_lines: int | None) -> Self:
        """How often the same text is logged; None: no limit."""
        return self.set(max_repeat_logs=_UNLIMITED if max_lines is None else max_lines)

    def modelName(self, name: str) -> Self:
        """The model's name in reports."""
        assert isinstance(name, str), "name must be a string"
        return self.createOrSet(model_name=name)

    def disableModuleNamescope(self) -> Self:
        """Omits module names from operation names."""
        return self.set(module_namescope_enabled=False)

    def showCompilationProgressBar(self, show: bool = True) -> Self:
        """Whether to show a progress bar during compilation."""
        return self.set(show_compilation_progress_bar=show)

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Self:
        """Logs unexpected attributes of an optimizer at debug level instead of warning."""
        return self.set(relax_optimizer_checks=relax)

    def sourceLocationExcludes(self, excludes: list[str]) -> Self:
        """Paths to skip when looking up an operation's source location."""
        return self.set(source_location_excludes=excludes)

    def appendToLocationExcludes(self, *excludes: str) -> Self:
        """Adds paths to sourceLocationExcludes."""
        return self.set(source_location_excludes=[*self.source_location_excludes, *excludes])


def _checked_period(output_mode: enums.OutputMode, period: int | None) -> int:
    """The period to store. AssertionError unless positive for EveryN; ignored for other modes."""
    assert isinstance(output_mode, enums.OutputMode), "a poptorch.OutputMode is expected"
    if output_mode == enums.OutputMode.EveryN:
        valid = isinstance(period, int) and period > 0
        assert valid, "EveryN anchor must have output_return_period set to valid positive integer"
    elif period is not None and period != 1:
        logger.info("output_return_period %s is ignored: the output mode is %s", period, output_mode)
    return 1 if period is None else period
