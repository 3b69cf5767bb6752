"""Inputs of the cost model besides the graph: the options and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerSettings:
    """The weight update.

    :param name: "sgd", "adam", "lamb", ...: determines the elementwise and norm work.
    :param state_bytes_per_element: bytes per trained weight of each state tensor, such as (4, 4) for
        Adam's float32 moments, (2, 4) with a float16 first moment, () for plain SGD.
    :param location: where the state is stored between updates.
    :param sharded: replicated tensor sharding: each replica stores and updates its shard (see
        `Settings.shards`).
    """

    name: str
    state_bytes_per_element: tuple[int, ...]
    location: Literal["on_chip", "off_chip"] = "on_chip"
    sharded: bool = False


@dataclass(frozen=True)
class Settings:
    """A program's options.

    :param matmul_proportions: available memory proportion of each IPU of a replica.
    :param execution: "pipelined", or "sharded" (one IPU at a time; phased execution is costed as this).
    :param recompute: recompute activations except checkpoints (PopTorch's default in pipelines).
    :param accumulator_bytes: bytes per element of a gradient accumulator.
    :param stash_bytes_per_element: None: as in the tensor; 1 for stashes in 8 bits.
    :param instances: processes that drive the replicas, an equal share each.
    :param framework: the framework that compiled the program: "PopTorch", "PopART", "TF1", "TF2", "Paddle".
    :param updates_overlap: the IPUs of a replica update their weights at once, except `updates_apart`
        (PopART's accumulateOuterFragmentSettings); by default one after another.
    :param off_chip: what else than optimiser state is kept in streaming memory: "weights",
        "gradient_accumulators", "stashes".
    :param off_chip_sharded: those of which each replica has a shard.
    :param samples_per_sequence: mean number of sequences in a packed sample; 1 without packing.
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
    instances: int = 1
    updates_overlap: bool = False
    updates_apart: frozenset[int] = frozenset()
    off_chip: frozenset[str] = frozenset()
    off_chip_sharded: frozenset[str] = frozenset()

    @property
    def shards(self) -> int:
        """Replicas that share one copy of the optimiser state: those of one instance (Poplar), or 1."""
        return self.replicas // self.instances if self.optimizer and self.optimizer.sharded else 1

    def ipus_that_update_at_once(self, num_ipus: int) -> frozenset[int]:
        return frozenset(range(num_ipus)) - self.updates_apart if self.updates_overlap else frozenset()
