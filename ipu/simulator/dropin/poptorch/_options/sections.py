"""The sub-namespaces of Options: Training, Precision, Jit, TensorLocations, Distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ipu_simulator import variables

from .. import enums
from .._logging import logger
from . import popart
from .base import OptionsDict, option
from .popart import PopartOptions

if TYPE_CHECKING:
    from typing_extensions import Self


class TrainingOptions(OptionsDict):
    """Options of training models."""

    gradient_accumulation: int = option(1)
    accumulation_and_replication_reduction_type: enums.ReductionType = option(enums.ReductionType.Mean)
    meanAccumulationAndReplicationReductionStrategy: enums.MeanReductionStrategy = option(
        enums.MeanReductionStrategy.Post
    )

    def __init__(self, popart_options: PopartOptions):
        super().__init__()
        self._popart_options = popart_options

    def gradientAccumulation(self, gradient_accumulation: int) -> Self:
        """Micro batches per replica and weight update."""
        return self.set(gradient_accumulation=gradient_accumulation)

    def accumulationAndReplicationReductionType(self, reduction_type: enums.ReductionType) -> Self:
        """How gradients are reduced over accumulation and replicas: Sum or Mean, otherwise ValueError."""
        if reduction_type not in (enums.ReductionType.Sum, enums.ReductionType.Mean):
            raise ValueError(
                "accumulationAndReplicationReductionType must be set to poptorch.ReductionType.Mean or "
                "poptorch.ReductionType.Sum"
            )
        return self.set(accumulation_and_replication_reduction_type=reduction_type)

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: enums.MeanReductionStrategy
    ) -> Self:
        """When the division of a mean takes place: see MeanReductionStrategy."""
        return self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)

    def setAutomaticLossScaling(self, enabled: bool) -> Self:
        """Turns automatic loss scaling on or off; on, the optimizer's `loss_scaling` becomes variable."""
        self._popart_options.set(popart.AUTOMATIC_LOSS_SCALING, enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> Self:
        """Starts convolutions on pseudorandom tiles. Overwrites other convolution options."""
        self._popart_options.set(
            popart.CONVOLUTION_OPTIONS, {"enableConvDithering": "true" if enabled else "false"}
        )
        return self


class PrecisionOptions(OptionsDict):
    """Options of number formats, rounding and floating-point exceptions."""

    def __init__(self, popart_options: PopartOptions):
        super().__init__()
        self._popart_options = popart_options

    def enableFloatingPointExceptions(self, enabled: bool) -> Self:
        """Stops the program at a floating-point exception: a NaN or an overflow."""
        assert isinstance(enabled, bool), "You must provide a bool value"
        self._popart_options.set(popart.FLOATING_POINT_CHECKS, enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> Self:
        """Rounds float16 results stochastically: the expected value is the exact one."""
        self._popart_options.set(popart.STOCHASTIC_ROUNDING, enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> Self:
        """The type of matmul and convolution partials: torch.float or torch.half, otherwise ValueError.

        Overwrites other convolution options.
        """
        names = {torch.float: "float", torch.half: "half"}
        if dtype not in names:
            raise ValueError("partialsType must be one of torch.float, torch.half")
        self._popart_options.set(popart.MATMUL_PARTIALS, names[dtype])
        self._popart_options.set(popart.CONVOLUTION_OPTIONS, {"partialsType": names[dtype]})
        return self

    def halfFloatCasting(self, half_float_casting: enums.HalfFloatCastingBehavior) -> Self:
        """Deprecated, no effect."""
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect: operands become float32")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> Self:
        """Deprecated, no effect."""
        logger.warning("Precision.runningStatisticsAlwaysFloat is deprecated and has no effect")
        return self


class JitOptions(OptionsDict):
    """Deprecated options of tracing."""

    def traceModel(self, trace_model: bool) -> Self:
        """Deprecated: False has no effect, True raises ValueError."""
        if trace_model:
            raise ValueError("options.Jit.traceModel(True) is no longer supported")
        logger.warning("Jit.traceModel is deprecated and has no effect")
        return self


class TensorLocationSettings(OptionsDict):
    """Where one kind of tensor is stored; PopART decides about options that aren't set."""

    def _store(self, **kwargs: bool | int | None) -> Self:
        for name, value in kwargs.items():
            if value is None:
                self.deleteIfExists(name)
            else:
                self.createOrSet(**{name: int(value)})
        return self

    def minElementsForOffChip(self, min_elements: int) -> Self:
        """Tensors with fewer elements stay on chip."""
        assert isinstance(min_elements, int), "min_elements must be an int"
        return self._store(minElementsForOffChip=min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> Self:
        """Tensors with fewer elements aren't sharded."""
        assert isinstance(min_elements, int), "min_elements must be an int"
        return self._store(minElementsForReplicatedTensorSharding=min_elements)

    def useOnChipStorage(self, use: bool = True) -> Self:
        """True: on chip; False: off chip; None: PopART decides."""
        assert use is None or isinstance(use, bool), "use must be a bool or None"
        return self._store(onChip=use)

    def useReplicatedTensorSharding(self, use: bool = True) -> Self:
        """Shards the tensor over the replicas."""
        assert isinstance(use, bool), "use must be a bool"
        return self._store(useReplicatedTensorSharding=use)

    def useIOTilesToLoad(self, use: bool = True) -> Self:
        """Loads through the I/O tiles."""
        assert isinstance(use, bool), "use must be a bool"
        return self._store(useIOTilesToLoad=use)

    def useIOTilesToStore(self, use: bool = True) -> Self:
        """Stores through the I/O tiles."""
        assert isinstance(use, bool), "use must be a bool"
        return self._store(useIOTilesToStore=use)


class TensorLocationOptions(OptionsDict):
    """Where activations, weights, optimizer states and accumulators are stored. Setters store a snapshot."""

    location_activation: dict[str, Any]
    location_weight: dict[str, Any]
    location_optimizer: dict[str, Any]
    location_accumulator: dict[str, Any]

    def numIOTiles(self, num_tiles: int) -> Self:
        """Tiles reserved for I/O. Raises AssertionError unless even and from 32 to 192."""
        valid = isinstance(num_tiles, int) and 32 <= num_tiles <= 192 and num_tiles % 2 == 0
        assert valid, "numIOTiles must be an even number between 32 and 192."
        return self.createOrSet(numIOTiles=num_tiles)

    def _store(self, kind: str, location: TensorLocationSettings) -> Self:
        assert isinstance(location, TensorLocationSettings), (
            f"Invalid type {type(location)}: a poptorch.TensorLocationSettings is expected"
        )
        return self.createOrSet(**{kind: location.toDict()})

    def setActivationLocation(self, location: TensorLocationSettings) -> Self:
        """Where activations are stored."""
        return self._store("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> Self:
        """Where weights are stored."""
        return self._store("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> Self:
        """Where optimizer states are stored."""
        return self._store("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> Self:
        """Where gradient accumulators are stored."""
        return self._store("location_accumulator", location)


class DistributedOptions(OptionsDict):
    """Number of processes and this process's id, by default from OpenMPI's environment variables."""

    num_distributed_processes: int = option(1)
    distributed_process_id: int = option(0)

    def __init__(self) -> None:
        super().__init__()
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> Self:
        """Sets a single process, ignoring the environment."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> Self:
        """Reads number of processes and process id from these variables. ValueError if one isn't a number."""
        num_processes = variables.whole_number(var_num_processes, 1)
        process_id = variables.whole_number(var_process_id, 0)
        return self.configureProcessId(process_id, num_processes)

    def configureProcessId(self, process_id: int, num_processes: int) -> Self:
        """Sets this process's id, from 0, and the number of processes."""
        return self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)

    @property
    def processId(self) -> int:
        """This process's id, from 0."""
        return self.distributed_process_id

    @property
    def numProcesses(self) -> int:
        """The number of processes."""
        return self.num_distributed_processes
