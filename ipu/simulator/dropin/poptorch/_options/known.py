"""Validates option names and value types at compilation.

PopART's names are those of SessionOptions in its user guide.
"""

from __future__ import annotations

from typing import Any

from ipu_simulator import variables

from ..poptorch_core import createBackendError, usesIpuModel
from . import popart, sections
from .strategies import STRATEGY_OPTIONS

# In addition to those that Options and its sections declare.
_POPTORCH = frozenset({"numIOTiles", "patterns", "patterns_level", *STRATEGY_OPTIONS})

_POPART = frozenset(
    """
    accumulationAndReplicationReductionType accumulationFactor accumulationReductionType aliasZeroCopy
    autoRecomputation autodiffSettings cachePath compilationProgressTotal compileEngine constantWeights
    convolutionOptions createHostTransferableTensorWithOffset createImplicitPipeliningFwdOnlyProgram
    customCodeletCompileFlags customCodelets debugInfo decomposeGradSum defaultBufferingDepth
    defaultPrefetchBufferingDepth delayVarUpdates developerSettings disableGradAccumulationTensorStreams
    disableOptimizerStateTensorStreams dotChecks dotOpNames enableConstantFoldingOfMultipleConsumers
    enableDistributedReplicatedGraphs enableEngineCaching enableExplicitIR enableExplicitMainLoops
    enableFloatingPointChecks enableFullyConnectedPass enableGradientAccumulation enableGroupedMatmuls
    enableInplaceAmbiguityChecking enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax
    enableOutlining enableOutliningCopyCostPruning enablePipelining enablePrefetchDatastreams
    enableReplicatedGraphs enableRngStateManagement enableSerializedMatmuls enableStableNorm
    enableStochasticRounding enableSupportedDataTypeCasting enableVariablesCaching engineOptions
    ensureFp32LossScaleTensor explicitPipeliningEnabled explicitRecomputation exportPoplarComputationGraph
    exportPoplarVertexGraph finalDotOp firstDotOp gclOptions globalReplicaOffset globalReplicationFactor
    groupHostSync groupNormStridedChannelGrouping hardwareInstrumentations
    instrumentWithHardwareCycleCounter kahnTieBreaker logDir looseThresholdAtPeak lstmOptions
    matmulOptions mergeVarUpdate mergeVarUpdateMemThreshold opxAliasChecking opxModifyChecking
    outlineSequenceBreakCost outlineThreshold partialsTypeMatMuls prefetchBufferingDepthMap
    bufferingDepthMap printDotOps rearrangeAnchorsOnHost rearrangeStreamsOnHost replicatedGraphCount
    reportOptions saveInitializersToFile scheduleNonWeightUpdateGradientConsumersEarly separateCallOpPdfs
    shouldDelayVarUpdates stashAllTensorsInferencePipeline strictOpVersions subgraphCopyingStrategy
    swapLimitScheduler syntheticDataMode throwIfLog2ScaleFactorNotExact timeLimitScheduler
    timePartitionLogger transitiveClosureOptimizationThreshold updatableNamedBuffers useHostCopyOps
    useLoopCandidateCreator virtualGraphMode
    """.split()
)

# Groups of settings, named "group.name".
_POPART_GROUPS = frozenset(
    """
    accumulateOuterFragmentSettings activationTensorLocationSettings weightTensorLocationSettings
    optimizerStateTensorLocationSettings accumulatorTensorLocationSettings automaticLossScalingSettings
    autodiffSettings batchSerializationSettings developerSettings executionPhaseSettings
    experimentalSettings replicatedCollectivesSettings tensorLocationSettingsOverride
    """.split()
)

# POPTORCH_IPU_MODEL_VERSION: 1216, 1472 and 1472 tiles.
_IPU_MODELS = ("ipu1", "ipu2", "ipu21")

# PopART's options of Training and Precision that PopTorch hands on as they were given.
_BOOLS = (popart.AUTOMATIC_LOSS_SCALING, popart.STOCHASTIC_ROUNDING, popart.FLOATING_POINT_CHECKS)
_VALUE_TYPES = (bool, float, int, str, list, tuple, set, dict)


def _declared() -> frozenset[str]:
    from ..options import Options

    kinds = (
        Options,
        sections.TrainingOptions,
        sections.PrecisionOptions,
        sections.JitOptions,
        sections.TensorLocationOptions,
        sections.DistributedOptions,
    )
    return frozenset().union(*(kind._declared for kind in kinds))


def validate(options: dict[str, Any]) -> None:
    """Raises poptorch.Error for an unknown option name or value type, and for an unknown version of the IPU
    model, if that is used.
    """
    if usesIpuModel(options) and variables.text(variables.IPU_MODEL_VERSION, "ipu2") not in _IPU_MODELS:
        raise createBackendError(f"Invalid IPU model version. Valid versions: {', '.join(_IPU_MODELS)}.")
    known = _declared() | _POPTORCH | _POPART
    for name, value in options.items():
        if not isinstance(value, _VALUE_TYPES):
            raise createBackendError(f"Unknown value type {type(value)} for option {name}")
        if name in _BOOLS and not isinstance(value, bool):
            raise createBackendError(
                f"Unknown {type(value).__name__} option '{name}' for value {value!r}: it is a bool"
            )
        if name in known or name.split(".")[0] in _POPART_GROUPS:
            continue
        raise createBackendError(f"Unknown {type(value).__name__} option '{name}' for value {value!r}")
