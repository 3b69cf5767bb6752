"""How the combined batch of one call is split into micro batches, and how their outputs are collected.

Letters: D device iterations (weight updates in one call), A gradient accumulation, R replicas,
G input groups (R / input_group_size), b micro batch. Dim 0 of every input is [D, A, G, b];
dim 0 of every output is [D, A, R, b].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, NamedTuple, Sequence

import torch

from .rounding import to_device_dtype


class MicroBatch(NamedTuple):
    """A micro batch: indices of device iteration, accumulation step and replica, from 0."""

    iteration: int
    step: int
    replica: int


@dataclass(frozen=True)
class StepPlan:
    """The counts that split a combined batch; all at least 1, `input_group_size` divides `replicas`.

    Batch and `replicas` are those of one process.
    """

    device_iterations: int = 1
    gradient_accumulation: int = 1
    replicas: int = 1
    input_group_size: int = 1
    groups_are_orthogonal: bool = False
    processes: int = 1

    @property
    def input_groups(self) -> int:
        """Number of different micro batches that the replicas receive at a time."""
        return self.replicas // self.input_group_size

    @property
    def input_slices(self) -> int:
        """Number of equal parts into which dim 0 of an input is split."""
        return self.device_iterations * self.gradient_accumulation * self.input_groups

    @property
    def micro_batches_per_update(self) -> int:
        """Forward and backward passes per weight update, in all processes."""
        return self.gradient_accumulation * self.replicas * self.processes

    def slice_index(self, which: MicroBatch) -> int:
        """Index of the input slice of a micro batch; replicas of one group share a slice."""
        if self.groups_are_orthogonal:
            group = which.replica % self.input_groups
        else:
            group = which.replica // self.input_group_size
        return (which.iteration * self.gradient_accumulation + which.step) * self.input_groups + group

    def micro_input(self, tensor: torch.Tensor, which: MicroBatch) -> torch.Tensor:
        """View of one micro batch in `tensor` (dim 0 a multiple of `input_slices`)."""
        if tensor.dim() == 0:
            return tensor
        size = tensor.shape[0] // self.input_slices
        return tensor.narrow(0, self.slice_index(which) * size, size)

    def micro_inputs(self, tensor: torch.Tensor, first: MicroBatch, count: int) -> torch.Tensor:
        """View of `count` consecutive micro batches of a replica: [count, b, ...]; a 0-d tensor itself."""
        if tensor.dim() == 0:
            return tensor
        start, stride = self.slice_index(first), self.input_groups
        slices: torch.Tensor = tensor.unflatten(0, (self.input_slices, tensor.shape[0] // self.input_slices))
        return slices[start : start + (count - 1) * stride + 1 : stride]


class Returned(Enum):
    """Output modes of a step.

    All: every micro batch. EveryN: those of every N-th device iteration. Final: the last one of each replica.
    Sum: over device iterations and accumulation, per replica, without a division. Tensors are concatenated
    along dim 0 in [D, A, R] order; scalars become 1-d unless there is only one.
    """

    ALL = "all"
    EVERY_N = "every_n"
    FINAL = "final"
    SUM = "sum"


class OutputCollector:
    """Collects the tensors that one call returns.

    `add` accepts one micro batch's tensors, in any order of micro batches; `result` concatenates them.
    """

    def __init__(self, plan: StepPlan, returned: Returned, period: int = 1) -> None:
        self._plan = plan
        self._returned = returned
        self._period = period
        self._kept: Dict[MicroBatch, List[torch.Tensor]] = {}
        self._template: List[torch.Tensor] = []

    def add(self, which: MicroBatch, outputs: Sequence[torch.Tensor]) -> None:
        """Stores `outputs` (detached and copied) if the mode returns them."""
        if not self._template:
            self._template = [tensor.detach() for tensor in outputs]
        if self._returned is Returned.SUM:
            self._add_to_sum(MicroBatch(0, 0, which.replica), outputs)
        elif self._wants(which):
            self._kept[which] = [_copied(tensor) for tensor in outputs]

    def result(self) -> List[torch.Tensor]:
        """One tensor per output."""
        parts = [self._kept[which] for which in sorted(self._kept)]
        if not parts:  # N of EveryN is larger than the number of device iterations
            return [_copied(t).new_empty((0, *t.shape[1:])) for t in self._template]
        return [_joined([part[i] for part in parts]) for i in range(len(self._template))]

    def _wants(self, which: MicroBatch) -> bool:
        if self._returned is Returned.ALL:
            return True
        if self._returned is Returned.EVERY_N:
            return (which.iteration + 1) % self._period == 0
        return (
            which.iteration == self._plan.device_iterations - 1
            and which.step == self._plan.gradient_accumulation - 1
        )

    def _add_to_sum(self, slot: MicroBatch, outputs: Sequence[torch.Tensor]) -> None:
        sums = self._kept.get(slot)
        if sums is None:
            self._kept[slot] = [_copied(tensor) for tensor in outputs]
            return
        for total, tensor in zip(sums, outputs):
            total.add_(tensor.detach())


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the device's dtype, so that outputs never alias a weight or an input."""
    return to_device_dtype(tensor.detach(), integers=True, copy=True)


def _joined(parts: List[torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    if parts[0].dim() == 0:
        return torch.stack(parts)
    return torch.cat(parts)
