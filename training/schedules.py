"""Learning-rate schedules as pure functions of the number of updates already done.

Letters: s updates done, W warm-up updates, T updates in all, p warm-up power.

Warm-up   lr = peak * ((s + 1) / W) ** p           for s < W
Decay     lr = end + (peak - end) * (T - s) / (T - W)   for s >= W (linear and polynomial)

So the first update already moves the weights (the reference applications waste it at zero), the update
at s = W uses the peak, and the last one, s = T - 1, is one decrement above `lr_end`.
p = 1 is the usual linear warm-up; p = 0.5 is GroupBERT's square root
(`lr_power [.5, 1]` in its TensorFlow 1 recipes).
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("constant", "linear", "polynomial")


@dataclass(frozen=True)
class Schedule:
    """What decides the learning rate of an update.

    `lr_warmup` below 1 is a fraction of `training_steps`, otherwise a number of updates.
    `linear` and `polynomial` have the same decay; `constant` has none.
    `lr_warmup_power` belongs to the polynomial schedule; the others warm up linearly.
    """

    learning_rate: float
    lr_schedule: str
    lr_warmup: float
    lr_warmup_power: float
    lr_end: float
    training_steps: int

    @property
    def warmup_steps(self) -> int:
        if self.lr_warmup < 1:
            return round(self.lr_warmup * self.training_steps)
        return int(self.lr_warmup)

    def at(self, step: int) -> float:
        """The learning rate of the update that follows `step` updates."""
        warmup = self.warmup_steps
        if step < warmup:
            power = self.lr_warmup_power if self.lr_schedule == "polynomial" else 1.0
            return float(self.learning_rate * ((step + 1) / warmup) ** power)
        if self.lr_schedule == "constant":
            return self.learning_rate
        remaining = max(self.training_steps - step, 0) / max(self.training_steps - warmup, 1)
        return self.lr_end + (self.learning_rate - self.lr_end) * remaining
