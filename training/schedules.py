"""Learning-rate schedules as pure functions of the number of updates already done.

Letters: s updates done, W warm-up updates, T updates in all, p warm-up power.

Warm-up   lr = peak * ((s + 1) / W) ** p           for s < W
Decay     lr = end + (peak - end) * (T - s) / (T - W)   for s >= W (linear: end = 0)

So the first update already moves the weights (the reference applications waste it at zero), the update
at s = W uses the peak, and the last one, s = T - 1, is one decrement above `lr_end`.
p = 1 is the usual linear warm-up; p = 0.5 is GroupBERT's square root
(`lr_power [.5, 1]` in its TensorFlow 1 recipes).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What decides the learning rate of an update.

    `lr_warmup_power` and `lr_end` belong to the polynomial schedule; the others warm up linearly, and the
    linear one ends at 0.
    """

    learning_rate: float
    lr_schedule: str
    warmup_steps: int
    lr_warmup_power: float
    lr_end: float
    training_steps: int

    def at(self, step: int) -> float:
        """The learning rate of the update that follows `step` updates."""
        polynomial = self.lr_schedule == "polynomial"
        if step < self.warmup_steps:
            power = self.lr_warmup_power if polynomial else 1.0
            return float(self.learning_rate * ((step + 1) / self.warmup_steps) ** power)
        if self.lr_schedule == "constant":
            return self.learning_rate
        end = self.lr_end if polynomial else 0.0
        remaining = max(self.training_steps - step, 0) / max(self.training_steps - self.warmup_steps, 1)
        return end + (self.learning_rate - end) * remaining
