"""What a program's cost depends on beside its graph: the options and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerSettings:
    """The weight update.

    :param name: "sgd", "adam", "lamb", ...: which elementwise and norm work it does.
    :param state_bytes_per_element: bytes of each state tensor for each trained weight, such as (4, 4) for
        Adam's float32 moments, (2, 4) with a float16 first moment, () for plain SGD.
    :param location: where the state is kept between updates.
    :param sharded: replicated tensor sharding: each replica keeps and updates its share.
    """

    name: str
    state_bytes_per_element: tuple[int, ...]
    location: Literal["on_chip", "off_chip"] = "on_chip"
    sharded: bool = False


@dataclass(frozen=True)
class Settings:
    """A program's options.

    :param matmul_proportions: available memory proportion of each IPU of a replica.
    :param execution: "pipelined", or "sharded" (one IPU at a time; phased programs are costed as this).
    :param recompute: activations are computed again but for checkpoints (PopTorch's default in pipelines).
    :param accumulator_bytes: of a gradient accumulator's element.
    :param stash_bytes_per_element: None: as the tensor is; 1 where stashes are kept in 8 bits.
    :param framework: who compiled the program: "PopTorch", "PopART", "TF1", "TF2", "Paddle".
    :param samples_per_sequence: mean sequences of a packed sample; 1 without packing.
    """

    micro_batch_size: int
    gradient_accumulation: int
    replicas: int
    device_iterations: int
    matmul_proportions: tuple[float, ...]
    half_partials: bool
    execution: Literal["pipelined", "sharded"]
    recompute: bool
    optimizer: OptimizerSettings | None
    accumulator_bytes: int = 2
    stash_bytes_per_element: int | None = None
    framework: str = "PopTorch"
    samples_per_sequence: float = 1.0
