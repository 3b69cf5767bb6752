"""PopART's enumerations, for programs that pass them to `Options._Popart.set`, without PopART itself.

Names and order follow PopART's session options.
"""

from __future__ import annotations

from enum import IntEnum

from ipu_simulator.host import refuse_to_replace_another_poptorch as _refuse_to_replace

_refuse_to_replace()


def _constants(name: str, members: str) -> type[IntEnum]:
    # mypy supports this functional API of enumerations only with a literal name.
    return IntEnum(  # type: ignore[return-value]
        name, members.split(), start=0, module=__name__
    )


AccumulateOuterFragmentSchedule = _constants(
    "AccumulateOuterFragmentSchedule", "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized"
)
AutodiffStitchStrategy = _constants(
    "AutodiffStitchStrategy", "RecomputeMinimal RecomputeAllNonInputs AddFwdOutputs SafeAddFwdOutputs"
)
BatchSerializationBatchSchedule = _constants(
    "BatchSerializationBatchSchedule", "Scheduler Isomorphic OverlapOnIo OverlapOnCompute"
)
BatchSerializationMethod = _constants("BatchSerializationMethod", "UnrollDynamic UnrollStatic Loop")
BatchSerializationTransformContext = _constants("BatchSerializationTransformContext", "Fwd Bwd")
ExecutionPhaseIOSchedule = _constants("ExecutionPhaseIOSchedule", "Preload OnDemand")
ExecutionPhaseSchedule = _constants("ExecutionPhaseSchedule", "Interleaving Batch BatchClusteredIO")
GradientTensorTrackingMethod = _constants(
    "GradientTensorTrackingMethod",
    "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors",
)
Instrumentation = _constants("Instrumentation", "Outer Inner")
MeanReductionStrategy = _constants("MeanReductionStrategy", "Running Post PostAndLoss")
MergeVarUpdateType = _constants("MergeVarUpdateType", "Off All AutoLoose AutoTight")
RecomputationType = _constants("RecomputationType", "NoRecompute Standard NormOnly Pipeline RecomputeAll")
ReplicatedTensorSharding = _constants("ReplicatedTensorSharding", "Off On")
SubgraphCopyingStrategy = _constants("SubgraphCopyingStrategy", "OnEnterAndExit JustInTime")
SyntheticDataMode = _constants("SyntheticDataMode", "Off Zeros RandomNormal RandomUniform")
TensorStorage = _constants("TensorStorage", "OffChip OnChip")
TileSet = _constants("TileSet", "Compute IO")
VirtualGraphMode = _constants("VirtualGraphMode", "Off Manual Auto ExecutionPhases")


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"module 'popart' has no attribute {name!r} on the simulator: it holds only the constants that "
        "PopTorch programs use; programs for PopART itself need Graphcore's SDK"
    )
