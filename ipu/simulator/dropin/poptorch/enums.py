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
    """Sync: batches are made when asked for. Async: by a background worker. AsyncRebatched: the same, and the
    workers' partial batches are joined instead of dropped."""

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
    """What a host transfer may overlap with on the device."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class MatMulSerializationMode(enum.Enum):
    """The dimension along which a matrix product is split in time."""

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
    """When a program attaches to the device."""

    Always = 0
    OnDemand = 1
    Never = 2


class HalfFloatCastingBehavior(enum.Enum):
    """Deprecated upstream and without effect: mixed operands become float32."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2


class ReductionType(enum.Enum):
    """How gradients are joined over accumulation steps and replicas."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(enum.Enum):
    """When a mean's division happens: at each accumulation step, after the last, or half before and half
    after.
    """

    Running = 0
    Post = 1
    PostAndLoss = 2


class SyncPattern(enum.Enum):
    """How IPUs wait for each other."""

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
    """How blocks become pipeline stages: one stage an IPU, or one a block in the order of first use."""

    SameAsIpu = 0
    AutoIncrement = 1


class MultiConvPlanType(enum.Enum):
    """Whether the convolutions of a MultiConv run side by side or one after another."""

    Parallel = 0
    Serial = 1


class CommGroupType(enum.Enum):
    """How replicas form groups."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(enum.Enum):
    """Which replicas' copies of a variable come back to the host."""

    OnePerGroup = 0
    AllReplicas = 2
