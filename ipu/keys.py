"""How a configuration key is declared, and the keys of batch and device, which `config.Config` inherits.

They are in the lowest package because `ipu` reads them and can't import `config`. Nothing here imports torch,
so --help and errors about flags stay fast.
"""

# ruff: noqa: RUF009 (key() makes a dataclasses.field)
from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional, Tuple

from .placement import machine_ipus

AT_LEAST_0, AT_LEAST_1, ABOVE_0, BELOW_1 = "[0, inf)", "[1, inf)", "(0, inf)", "[0, 1)"
# Low enough that no product of sizes overflows 64 bits.
SEQUENCES, STEPS, TOKENS = "[1, 65536]", f"[1, {2**31})", "[8, 65535]"
Device = Literal["auto", "ipu", "ipu-model", "simulator"]
# What changing a key may alter, from least to most:
#   nothing     neither weights nor evaluations: logs, files, processes
#   evaluation  evaluations and answers, but not the weights
#   machine     where the program runs or is costed: weights differ only by the device's arithmetic
#   options     how the device stores and schedules the program, not its graph
#   weights     everything
Effect = Literal["nothing", "evaluation", "machine", "options", "weights"]


# Fields are ordered by meaning, so required ones may follow optional ones: this is their default.
REQUIRED: Any = object()


def key(alters: Effect, doc: str, default: Any = REQUIRED, bounds: str = "") -> Any:
    """One configuration key, required if it has no default. `bounds` is an interval such as "[0, 1)"."""
    return field(default=default, metadata={"alters": alters, "doc": doc, "bounds": bounds})


@dataclass(frozen=True)
class KeyGroup:
    """Keys that belong together. Raises TypeError if a required one is missing."""

    def __post_init__(self) -> None:
        missing = [entry.name for entry in fields(self) if getattr(self, entry.name) is REQUIRED]
        if missing:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")


@dataclass(frozen=True)
class BatchKeys(KeyGroup):
    """The sizes of micro batch, weight update and device call."""

    micro_batch_size: int = key(
        "weights", "sequences, or packed rows, that one replica processes at a time", bounds=SEQUENCES
    )
    gradient_accumulation: int = key("weights", "micro batches per replica in a weight update", bounds=STEPS)
    replication_factor: int = key("weights", "number of data-parallel replicas of the model", 1, AT_LEAST_1)
    device_iterations: int = key("weights", "weight updates per device call", 1, STEPS)
    reduction: Literal["mean", "sum"] = key(
        "weights", "reduction of gradients over accumulation and replicas", "mean"
    )

    @property
    def global_batch_size(self) -> int:
        """Sequences per weight update, or rows of packed data."""
        return self.micro_batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def samples_per_call(self) -> int:
        """Sequences per device call, or rows of packed data."""
        return self.global_batch_size * self.device_iterations


@dataclass(frozen=True)
class DeviceKeys(KeyGroup):
    """Placement and precision on IPUs."""

    device: Device = key(
        "machine", "where to run; auto: an IPU if available, otherwise the simulator", "auto"
    )
    target: str = key("machine", f"the machine: {' | '.join(machine_ipus())}", "pod16")
    precision: Literal["float16", "float32"] = key(
        "weights", "type in which an IPU stores and computes", "float16"
    )
    simulator_precision: Literal[
        "float32", "float32-onednn", "bfloat16", "fastest", "ipu-float16", "ipu-float16-fast"
    ] = key(
        "weights",
        "arithmetic of the simulator: float32; with oneDNN's products, which are faster on AMD; products in "
        "bfloat16; the faster one of float32 and bfloat16 here; as on an IPU; or the same without float16 "
        "partials, which is faster",
        "float32",
    )
    host_threads: Optional[int] = key(
        "weights",
        "threads that compute on the simulator, which change the last bits of sums; none: PyTorch's choice",
        None,
        "[1, 1024]",
    )
    ipus_per_replica: int = key("weights", "IPUs per pipeline", bounds=f"[1, {max(machine_ipus().values())}]")
    layers_per_ipu: Tuple[int, ...] = key(
        "weights", "encoder layers on each IPU; embeddings are on the first", bounds=AT_LEAST_0
    )
    matmul_proportion: Tuple[float, ...] = key(
        "options",
        "proportion of memory available to matmuls: one value, or one per IPU; 0: as little as possible",
        (0.25,),
        "[0, 1]",
    )
    embedding_serialization_factor: int = key(
        "weights", "number of slices in which the vocabulary projection is computed", 1, AT_LEAST_1
    )
    one_hot_masked_positions: bool = key(
        "weights", "pick the masked positions by a one-hot product, not by a gather", False
    )
    replicated_tensor_sharding: bool = key("options", "shard the optimizer state over replicas", False)
    optimizer_state: Literal["on_chip", "off_chip"] = key(
        "options", "where the optimizer state is stored", "on_chip"
    )
    recompute_checkpoint_every_layer: bool = key(
        "weights", "store each layer's output, recompute the rest", True
    )
    enable_half_partials: bool = key("weights", "accumulate matmuls in float16", True)
    enable_half_first_order_momentum: bool = key("weights", "store the first moment in float16", False)
    stochastic_rounding: bool = key(
        "weights", "round float16 stochastically, so that small updates aren't lost", True
    )
    floating_point_exceptions: bool = key(
        "nothing", "raise an exception on overflow, division by zero or NaN on an IPU", False
    )
    executable_cache: Optional[str] = key("nothing", "folder for compiled programs", None)
    compile_only: bool = key(
        "nothing", "compile into executable_cache without IPUs attached, then exit", False
    )
    synthetic_data: bool = key(
        "weights", "no transfers between host and IPUs: measures the IPUs alone", False
    )
    profile_folder: Optional[str] = key("nothing", "folder for PopVision's reports; none: no profile", None)
