"""How one call's combined batch is cut into micro batches.

Letters: D device iterations (weight updates in one call), A gradient accumulation, R replicas,
G input groups (R / input_group_size), b micro batch. Dim 0 of every input walks [D, A, G, b];
dim 0 of every output walks [D, A, R, b].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, NamedTuple, Sequence

import torch

from .rounding import to_device_dtype


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


# What a call returns: which micro batches' outputs, in which order, in which dtype.
#
# All: every one. EveryN: those of every N-th device iteration. Final: the last of each replica. Sum: over
# device iterations and accumulation, separately for each replica and without a division. Tensors are joined
# along dim 0 in [D, A, R] order (letters as in plan.py); scalars become 1-d unless there is only one.


class Returned(Enum):
    """Output modes of a step."""

    ALL = "all"
    EVERY_N = "every_n"
    FINAL = "final"
    SUM = "sum"


class OutputCollector:
    """Gathers the tensors that one call returns.

    `add` takes one micro batch's tensors, in any order of micro batches; `result` joins them.
    """

    def __init__(self, plan: StepPlan, returned: Returned, period: int = 1) -> None:
        self._plan = plan
        self._returned = returned
        self._period = period
        self._kept: Dict[MicroBatch, List[torch.Tensor]] = {}
        self._template: List[torch.Tensor] = []

    def add(self, which: MicroBatch, outputs: Sequence[torch.Tensor]) -> None:
        """Keep `outputs` (detached and copied here) if the mode returns them."""
        if not self._template:
            self._template = [tensor.detach() for tensor in outputs]
        if self._returned is Returned.SUM:
            self._add_to_sum(MicroBatch(0, 0, which.replica), outputs)
        elif self._wants(which):
            self._kept[which] = [_copied(tensor) for tensor in outputs]

    def result(self) -> List[torch.Tensor]:
        """One tensor for each output."""
        parts = [self._kept[which] for which in sorted(self._kept)]
        if not parts:  # a period longer than the call
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
    """A copy in the device's dtype: what comes back never aliases a weight or an input."""
    return to_device_dtype(tensor.detach(), integers=True, copy=True)


def _joined(parts: List[torch.Tensor]) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    if parts[0].dim() == 0:
        return torch.stack(parts)
    return torch.cat(parts)
