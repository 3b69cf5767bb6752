"""PopTorch's enumerations: names and values are those of PopTorch 3.4."""

from __future__ import annotations

import enum

__all__ = [
    "AutoStage",
    "CommGroupType",
    "ConnectionType",
    "DataLoaderMode",
    "HalfFloatCastingBehavior",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConvPlanType",
    "OutputMode",
    "OverlapMode",
    "ReductionType",
    "SharingStrategy",
    "SyncPattern",
    "VariableRetrievalMode",
]


class DataLoaderMode(enum.Enum):
    """Sync: batches are loaded on demand. Async: prefetched by a background worker. AsyncRebatched: likewise,
    and the workers' partial batches are combined instead of dropped."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class SharingStrategy(enum.Enum):
    """How an asynchronous accessor passes tensors to its consumer."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class OverlapMode(enum.Enum):
    """The loop with which a host transfer may overlap on the device."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class MatMulSerializationMode(enum.Enum):
    """The dimension along which a matmul is serialised."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class OutputMode(enum.Enum):
    """Which micro batches' outputs a call returns. Default: Final for training, All for inference."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ConnectionType(enum.Enum):
    """When an executor attaches to the device."""

    Always = 0
    OnDemand = 1
    Never = 2


class HalfFloatCastingBehavior(enum.Enum):
    """Deprecated in PopTorch, no effect: mixed operands become float32."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2


class ReductionType(enum.Enum):
    """How gradients are reduced over accumulation steps and replicas."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(enum.Enum):
    """When a mean is divided. Running: at each accumulation step. Post: after the last. PostAndLoss: by the
    accumulation on the loss, by the replicas after the last step.
    """

    Running = 0
    Post = 1
    PostAndLoss = 2


class SyncPattern(enum.Enum):
    """How IPUs synchronise."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class Liveness(enum.Enum):
    """When a phase's tensors leave the chip."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class AutoStage(enum.Enum):
    """How blocks form pipeline stages: one stage per IPU, or one per block in order of first use."""

    SameAsIpu = 0
    AutoIncrement = 1


class MultiConvPlanType(enum.Enum):
    """Whether the convolutions of a MultiConv run in parallel or one after another."""

    Parallel = 0
    Serial = 1


class CommGroupType(enum.Enum):
    """How replicas form groups."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(enum.Enum):
    """Which replicas' values of a weight are downloaded."""

    OnePerGroup = 0
    AllReplicas = 2
