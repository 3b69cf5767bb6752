"""From micro batches' gradients to one weight update's: accumulation, and reduction over replicas.

In float32, backward passes add up in the weights' own `.grad` (`BackwardSums`). `TypedAccumulators` does what
an IPU does: each replica's accumulators have a type of their own and hold gradients of the scaled loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Callable, Optional, Sequence

import torch

from .plan import MicroBatch, StepPlan
from .processes import Gradients, Processes
from .rounding import FLOAT16, StateRounding, fact, to_nearest

# For each weight the group of each replica; None where all replicas share one value. A weight with groups has
# a gradient [groups, ...], the sums over each group's replicas, divided as all others are.
ReplicaGroups = Sequence[Optional[Sequence[int]]]


class Reduction(Enum):
    """How the gradients of micro batches and replicas become one.

    Sum; or a mean by dividing after all sums (`MEAN_POST`), by dividing the loss by the accumulation steps
    and the sum over replicas by their number (`MEAN_POST_AND_LOSS`), or by running means (`MEAN_RUNNING`).
    """

    SUM = "sum"
    MEAN_POST = "mean_post"
    MEAN_POST_AND_LOSS = "mean_post_and_loss"
    MEAN_RUNNING = "mean_running"


class BackwardSums:
    """Sums in float32, in whatever order backward passes come; a mean divides at the end."""

    def __init__(
        self, plan: StepPlan, reduction: Reduction, processes: Processes, groups: ReplicaGroups = ()
    ) -> None:
        self._divisor = 1 if reduction is Reduction.SUM else plan.micro_batches_per_update
        self._processes = processes
        self._of_groups = {i: _OfGroups(of_replica) for i, of_replica in enumerate(groups) if of_replica}

    def seed(self, loss: torch.Tensor) -> Optional[torch.Tensor]:
        """The gradient of a loss: that of its sum."""
        return None if loss.dim() == 0 else torch.ones_like(loss)

    def add(self, weights: Sequence[torch.Tensor], which: MicroBatch) -> None:
        """Backward passes have added already, but for weights that differ between replicas."""
        for i, of_groups in self._of_groups.items():
            (gradient,) = taken([weights[i]])
            of_groups.add(gradient, which.replica)

    def reduced(self, weights: Sequence[torch.Tensor]) -> Gradients:
        """Take the sums off `weights`; None for a weight that no loss reached."""
        gradients = self._processes.sum_gradients(weights, taken(weights))
        for i, of_groups in self._of_groups.items():
            gradients[i] = of_groups.stacked()
        present = [gradient for gradient in gradients if gradient is not None]
        if self._divisor > 1 and present:
            torch._foreach_div_(present, float(self._divisor))
        return gradients


class _OfGroups:
    """Sums of one weight's gradients by group of replicas."""

    def __init__(self, of_replica: Sequence[int]) -> None:
        self._of_replica = of_replica
        self._sums: Gradients = [None] * (1 + max(of_replica))

    def add(self, gradient: Optional[torch.Tensor], replica: int) -> None:
        group = self._of_replica[replica]
        before = self._sums[group]
        if gradient is not None:
            self._sums[group] = gradient if before is None else before.add_(gradient)

    def stacked(self) -> Optional[torch.Tensor]:
        """[groups, ...]; None where no loss came. The sums begin anew."""
        sums, self._sums = self._sums, [None] * len(self._sums)
        present = [one for one in sums if one is not None]
        if not present:
            return None
        return torch.stack([torch.zeros_like(present[0]) if one is None else one for one in sums])


@dataclass(frozen=True)
class AccumulatorSettings:
    """`dtype` is what the optimizer asks for (None: each weight's own); gradients are those of the loss
    times `loss_scaling()`, which may change from update to update. `watch` sees each micro batch's.
    """

    dtype: Optional[torch.dtype]
    reduction: Reduction
    loss_scaling: Callable[[], float]
    watch: Optional[Callable[[Gradients], None]] = None


class TypedAccumulators:
    """Accumulators as on an IPU.

    Without gradient accumulation there are none: a gradient keeps its weight's type. A sum over replicas is
    exact before it is rounded to the accumulators' type (float16: in float64, so that no order of replicas
    shows), which is an assumption: how Graphcore's collectives round isn't published.
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
        """The loss scale, in the loss's type; divided by the accumulation steps where the loss is."""
        scale = self._settings.loss_scaling()
        if self._settings.reduction is Reduction.MEAN_POST_AND_LOSS:
            scale /= self._plan.gradient_accumulation
        seed = torch.full_like(loss, scale, dtype=torch.float32)
        return to_nearest(seed) if loss.dtype is torch.float16 else seed

    def add(self, weights: Sequence[torch.Tensor], which: MicroBatch) -> None:
        """Take one micro batch's gradients off `weights` into the replica's accumulators."""
        last = which.step == self._plan.gradient_accumulation - 1
        gradients = taken(weights)
        if self._settings.watch is not None:
            self._settings.watch(gradients)
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
        # As in one multiply-add on the device: exact to float32, then rounded once.
        value = torch.zeros(()) if gradient is None else gradient.float()
        if running:
            value = value / (which.step + 1)
        if before is not None:
            value = value + before.float() * (which.step / (which.step + 1) if running else 1.0)
        name = f"Accum___{self._names[i]}"
        return self._rounding.store(value, self._dtype(known), name, which.replica, which.step)

    def _dtype(self, tensor: torch.Tensor) -> torch.dtype:
        """Of the accumulator of a weight, or of that weight's gradient."""
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
        total = self._totals[i]
        self._totals[i] = accumulator if total is None else total.add_(accumulator)

    @property
    def _replicas(self) -> int:
        return self._plan.replicas * self._plan.processes

    def reduced(self, weights: Sequence[torch.Tensor]) -> Gradients:
        """Every weight's gradient, still loss-scaled, in its accumulator's type; None where no loss came."""
        totals, self._totals = self._totals, [None] * len(self._names)
        for i, of_groups in self._of_groups.items():
            totals[i] = of_groups.stacked()
        dtypes = [self._dtype(weight) for weight in weights]
        if self._plan.processes > 1:
            wide = {torch.float16: torch.float64}
            like = [torch.zeros(w.shape, dtype=wide.get(d, d)) for w, d in zip(weights, dtypes)]
            totals = self._processes.sum_gradients(like, totals)
        return [
            None if total is None else self._over_replicas(name, total, dtype)
            for name, total, dtype in zip(self._names, totals, dtypes)
        ]

    def _over_replicas(self, name: str, total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        reduction = self._settings.reduction
        if self._replicas > 1:
            if reduction in (Reduction.MEAN_RUNNING, Reduction.MEAN_POST_AND_LOSS):
                total = total / self._replicas
            total = self._rounding.store(total.float(), dtype, f"Reduced___{name}")
        divisor = self._plan.micro_batches_per_update
        if reduction is Reduction.MEAN_POST and divisor > 1:
            total = self._rounding.store(total.float() / divisor, dtype, f"Divided___{name}")
        return total


def taken(weights: Sequence[torch.Tensor]) -> Gradients:
    """The gradients of `weights`, dense, which have none afterwards."""
    gradients: Gradients = []
    for weight in weights:
        gradient = weight.grad
        weight.grad = None
        gradients.append(gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient)
    return gradients


# Automatic loss scaling: as large a scale as gradients bear in float16 (`facts.json`).

_FACT = fact("automatic_loss_scaling")


class AutomaticLossScale:
    """A power of two, `factor`, with which a program's own loss scale is multiplied.

    Gradients of weights are what is watched; PopART watches those of activations too.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._counts = torch.zeros(2, dtype=torch.float64)  # above the edge, all

    def watch(self, gradients: Gradients) -> None:
        """Count one micro batch's scaled gradients."""
        edge = _FACT["edge_share"] * FLOAT16.largest
        for gradient in gradients:
            if gradient is not None:
                above = int((gradient.abs() > edge).sum())
                self._counts += torch.tensor([above, gradient.numel()], dtype=torch.float64)

    def update(self, scale: float, processes: Processes) -> None:
        """After a weight update with all of `scale`: the next one's factor."""
        (counts,) = processes.sum_gradients([self._counts], [self._counts])
        assert counts is not None
        above, count = counts.tolist()
        self._counts = torch.zeros_like(self._counts)
        if above > count * _FACT["largest_share_above"]:
            self.factor /= _FACT["factor"]
        elif scale * _FACT["factor"] <= 2.0 ** _FACT["largest_exponent"]:
            self.factor *= _FACT["factor"]
