"""How one call's combined batch is cut into micro batches.

Letters: D device iterations (weight updates in one call), A gradient accumulation, R replicas,
G input groups (R / input_group_size), b micro batch. Dim 0 of every input walks [D, A, G, b];
dim 0 of every output walks [D, A, R, b].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class MicroBatch(NamedTuple):
    """Which micro batch: device iteration, accumulation step and replica, each counted from 0."""

    iteration: int
    step: int
    replica: int


@dataclass(frozen=True)
class StepPlan:
    """The counts that cut a combined batch; all at least 1, `input_group_size` divides `replicas`.

    A batch is one process's; `replicas` counts those of one process.
    """

    device_iterations: int = 1
    gradient_accumulation: int = 1
    replicas: int = 1
    input_group_size: int = 1
    groups_are_orthogonal: bool = False
    processes: int = 1

    @property
    def input_groups(self) -> int:
        """How many different micro batches the replicas see at once."""
        return self.replicas // self.input_group_size

    @property
    def input_slices(self) -> int:
        """Into how many equal parts dim 0 of an input is cut."""
        return self.device_iterations * self.gradient_accumulation * self.input_groups

    @property
    def micro_batches_per_update(self) -> int:
        """Forward and backward passes, in all processes, whose gradients make one weight update."""
        return self.gradient_accumulation * self.replicas * self.processes

    def slice_index(self, which: MicroBatch) -> int:
        """The input slice that a micro batch reads; replicas of one group read the same slice."""
        if self.groups_are_orthogonal:
            group = which.replica % self.input_groups
        else:
            group = which.replica // self.input_group_size
        return (which.iteration * self.gradient_accumulation + which.step) * self.input_groups + group

    def micro_input(self, tensor: torch.Tensor, which: MicroBatch) -> torch.Tensor:
        """The view of `tensor` (dim 0 a multiple of `input_slices`) that one micro batch reads."""
        if tensor.dim() == 0:
            return tensor
        size = tensor.shape[0] // self.input_slices
        return tensor.narrow(0, self.slice_index(which) * size, size)
