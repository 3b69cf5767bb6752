"""Gradients of a weight update: accumulation over micro batches, reduction over replicas, automatic loss
scaling.

In float32, backward passes add to the weights' `.grad` (`BackwardSums`). `TypedAccumulators` works as an IPU
does: each replica has accumulators with a separate dtype, which hold gradients of the scaled loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Callable, Optional, Sequence

import torch

from .plan import MicroBatch, StepPlan
from .processes import Gradients, Processes
from .rounding import FLOAT16, StateRounding, fact, to_nearest

# For each weight the group of each replica; None if all replicas share one value. The gradient of a weight
# with groups is [groups, ...]: sums over each group's replicas.
ReplicaGroups = Sequence[Optional[Sequence[int]]]


class Reduction(Enum):
    """How gradients are reduced over micro batches and replicas.

    Sum; or a mean by dividing after all sums (`MEAN_POST`), by dividing the loss by the accumulation steps
    and the sum over replicas by their number (`MEAN_POST_AND_LOSS`), or by running means (`MEAN_RUNNING`).

    Weights that differ between groups of replicas: a running mean is over the group's replicas; the divisions
    afterwards are by the number of all replicas, though the sum is over the group's.
    """

    SUM = "sum"
    MEAN_POST = "mean_post"
    MEAN_POST_AND_LOSS = "mean_post_and_loss"
    MEAN_RUNNING = "mean_running"


# Called with each micro batch's gradients and the part of their loss's scale that they lack because it is
# divided out later.
Watch = Callable[[Gradients, float], None]


class BackwardSums:
    """Sums in float32, in any order of backward passes; a mean divides at the end."""

    def __init__(
        self,
        plan: StepPlan,
        reduction: Reduction,
        processes: Processes,
        groups: ReplicaGroups = (),
        watch: Optional[Watch] = None,
    ) -> None:
        self._plan = plan
        self._reduction = reduction
        self._processes = processes
        self._of_groups = {i: _OfGroups(of_replica) for i, of_replica in enumerate(groups) if of_replica}
        self._watch = watch
        self._sums: Gradients = []  # of watched gradients

    def seed(self, loss: torch.Tensor) -> Optional[torch.Tensor]:
        """The gradient of a loss: ones, as for its sum."""
        return None if loss.dim() == 0 else torch.ones_like(loss)

    def add(self, weights: Sequence[torch.Tensor], which: MicroBatch) -> None:
        """Backward passes have added to `.grad` already, except for weights that differ between replicas.

        Watched gradients are taken out of `.grad` and added here.
        """
        if self._watch is not None:
            before = self._sums or [None] * len(weights)
            fresh = taken(weights)
            later = self._reduction is Reduction.MEAN_POST_AND_LOSS
            self._watch(fresh, 1 / self._plan.gradient_accumulation if later else 1.0)
            self._sums = [_added(old, new) for old, new in zip(before, fresh)]
            for i, of_groups in self._of_groups.items():
                of_groups.add(fresh[i], which.replica)
                self._sums[i] = None
            return
        for i, of_groups in self._of_groups.items():
            (gradient,) = taken([weights[i]])
            of_groups.add(gradient, which.replica)

    def reduced(self, weights: Sequence[torch.Tensor]) -> Gradients:
        """Removes the sums from `weights`; None for a weight that the loss doesn't depend on."""
        watched, self._sums = self._sums, []
        gradients = self._processes.sum_gradients(weights, watched or taken(weights))
        for i, of_groups in self._of_groups.items():
            gradients[i] = of_groups.stacked()
        by_divisor: dict[int, list[torch.Tensor]] = {}
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                by_divisor.setdefault(self._divisor(i), []).append(gradient)
        for divisor, present in by_divisor.items():
            if divisor > 1:
                torch._foreach_div_(present, float(divisor))
        return gradients

    def _divisor(self, i: int) -> int:
        """Of weight i's sum."""
        if self._reduction is Reduction.SUM:
            return 1
        if self._reduction is Reduction.MEAN_RUNNING and i in self._of_groups:
            return self._plan.gradient_accumulation * self._of_groups[i].size
        return self._plan.micro_batches_per_update


class _OfGroups:
    """Sums of one weight's gradients by group of replicas."""

    def __init__(self, of_replica: Sequence[int]) -> None:
        self._of_replica = of_replica
        self._sums: Gradients = [None] * (1 + max(of_replica))

    def add(self, gradient: Optional[torch.Tensor], replica: int) -> None:
        group = self._of_replica[replica]
        self._sums[group] = _added(self._sums[group], gradient)

    @property
    def size(self) -> int:
        """Replicas per group."""
        return len(self._of_replica) // len(self._sums)

    def stacked(self) -> Optional[torch.Tensor]:
        """[groups, ...]; None without gradients. Resets the sums."""
        sums, self._sums = self._sums, [None] * len(self._sums)
        present = [one for one in sums if one is not None]
        if not present:
            return None
        return torch.stack([torch.zeros_like(present[0]) if one is None else one for one in sums])


def _added(total: Optional[torch.Tensor], gradient: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    """Their sum, in `total` if there is one."""
    return gradient if total is None else total if gradient is None else total.add_(gradient)


@dataclass(frozen=True)
class AccumulatorSettings:
    """`dtype` as set in the optimizer (None: that of each weight); gradients are those of the loss times
    `loss_scaling()`, which may change between updates.
    """

    dtype: Optional[torch.dtype]
    reduction: Reduction
    loss_scaling: Callable[[], float]
    watch: Optional[Watch] = None


class TypedAccumulators:
    """Accumulators as on an IPU.

    Without gradient accumulation there are none: a gradient has its weight's type. A sum over replicas is
    exact before it is rounded to the accumulators' type (float16: summed in float64, so the order of replicas
    doesn't matter). That is an assumption: the rounding of Graphcore's collectives isn't published.
    """

    def __init__(
        self,
        plan: StepPlan,
        settings: AccumulatorSettings,
        processes: Processes,
        rounding: StateRounding,
        names: Sequence[str],
        groups: ReplicaGroups = (),
    ) -> None:
        self._of_groups = {i: _OfGroups(of_replica) for i, of_replica in enumerate(groups) if of_replica}
        self._plan = plan
        self._settings = settings
        self._processes = processes
        self._rounding = rounding
        self._names = list(names)
        self._accumulators: Gradients = [None] * len(self._names)
        self._totals: Gradients = [None] * len(self._names)

    def seed(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss scale in the loss's type, divided by the accumulation steps if the reduction says so."""
        scale = self._settings.loss_scaling()
        if self._settings.reduction is Reduction.MEAN_POST_AND_LOSS:
            scale /= self._plan.gradient_accumulation
        seed = torch.full_like(loss, scale, dtype=torch.float32)
        return to_nearest(seed) if loss.dtype is torch.float16 else seed

    def add(self, weights: Sequence[torch.Tensor], which: MicroBatch) -> None:
        """Moves one micro batch's gradients from `weights` into the replica's accumulators."""
        last = which.step == self._plan.gradient_accumulation - 1
        gradients = taken(weights)
        if self._settings.watch is not None:
            self._settings.watch(gradients, 1.0)
        for i, gradient in enumerate(gradients):
            self._accumulators[i] = self._accumulated(i, gradient, which)
            if last:
                self._to_total(i, which.replica)

    def _accumulated(
        self, i: int, gradient: Optional[torch.Tensor], which: MicroBatch
    ) -> Optional[torch.Tensor]:
        before = self._accumulators[i]
        known = gradient if before is None else before
        if self._plan.gradient_accumulation == 1 or known is None:
            return gradient
        running = self._settings.reduction is Reduction.MEAN_RUNNING
        # As in the device's fused multiply-add: exact in float32, then rounded once.
        value = torch.zeros(()) if gradient is None else gradient.float()
        if running:
            value = value / (which.step + 1)
        if before is not None:
            value = value + before.float() * (which.step / (which.step + 1) if running else 1.0)
        name = f"Accum___{self._names[i]}"
        return self._rounding.store(value, self._dtype(known), name, which.replica, which.step)

    def _dtype(self, tensor: torch.Tensor) -> torch.dtype:
        """The dtype of a weight's accumulator, or of its gradient without accumulation."""
        if self._plan.gradient_accumulation == 1 or self._settings.dtype is None:
            return tensor.dtype
        return self._settings.dtype

    def _to_total(self, i: int, replica: int) -> None:
        accumulator, self._accumulators[i] = self._accumulators[i], None
        if accumulator is None:
            return
        if self._replicas > 1 and accumulator.dtype is torch.float16:
            accumulator = accumulator.double()
        if i in self._of_groups:
            self._of_groups[i].add(accumulator, replica)
            return
        self._totals[i] = _added(self._totals[i], accumulator)

    @property
    def _replicas(self) -> int:
        return self._plan.replicas * self._plan.processes

    def reduced(self, weights: Sequence[torch.Tensor]) -> Gradients:
        """Every weight's gradient, still loss-scaled, in its accumulator's type; None without gradients."""
        totals, self._totals = self._totals, [None] * len(self._names)
        for i, of_groups in self._of_groups.items():
            totals[i] = of_groups.stacked()
        dtypes = [self._dtype(weight) for weight in weights]
        if self._plan.processes > 1:
            wide = {torch.float16: torch.float64}
            like = [torch.zeros(w.shape, dtype=wide.get(d, d)) for w, d in zip(weights, dtypes)]
            totals = self._processes.sum_gradients(like, totals)
        return [
            None if total is None else self._over_replicas(i, total, dtype)
            for i, (total, dtype) in enumerate(zip(totals, dtypes))
        ]

    def _over_replicas(self, i: int, total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        reduction, name = self._settings.reduction, self._names[i]
        if self._replicas > 1:
            if reduction is Reduction.MEAN_RUNNING and i in self._of_groups:
                total = total / self._of_groups[i].size
            elif reduction in (Reduction.MEAN_RUNNING, Reduction.MEAN_POST_AND_LOSS):
                total = total / self._replicas
            total = self._rounding.store(total.float(), dtype, f"Reduced___{name}")
        divisor = self._plan.micro_batches_per_update
        if reduction is Reduction.MEAN_POST and divisor > 1:
            total = self._rounding.store(total.float() / divisor, dtype, f"Divided___{name}")
        return total


def taken(weights: Sequence[torch.Tensor]) -> Gradients:
    """Removes the gradients from `weights` and returns them, dense."""
    gradients: Gradients = []
    for weight in weights:
        gradient = weight.grad
        weight.grad = None
        gradients.append(gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient)
    return gradients


_FACT = fact("automatic_loss_scaling")


class AutomaticLossScale:
    """A power of two, `factor`, that multiplies the program's loss scale (constants in `facts.json`).

    It is raised and lowered so that few gradients reach the top of float16's range. Only gradients of weights
    are counted; PopART also counts those of activations.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._counts = torch.zeros(2, dtype=torch.float64)  # above the edge, all

    def watch(self, gradients: Gradients, scale: float) -> None:
        """Counts one micro batch's gradients, which times `scale` are those of the scaled loss."""
        edge = _FACT["edge_share"] * FLOAT16.largest / scale
        for gradient in gradients:
            if gradient is not None:
                above = int((gradient.abs() > edge).sum())
                self._counts += torch.tensor([above, gradient.numel()], dtype=torch.float64)

    def update(self, scale: float, processes: Processes) -> None:
        """After a weight update, whose whole loss scale is `scale`: sets the factor of the next one."""
        (counts,) = processes.sum_gradients([self._counts], [self._counts])
        assert counts is not None
        above, count = counts.tolist()
        self._counts = torch.zeros_like(self._counts)
        if above > count * _FACT["largest_share_above"]:
            self.factor /= _FACT["factor"]
        elif scale * _FACT["factor"] <= 2.0 ** _FACT["largest_exponent"]:
            self.factor *= _FACT["factor"]
