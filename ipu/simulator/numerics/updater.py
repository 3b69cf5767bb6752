"""The optimizer's state on the device, and its step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from . import update_rules
from .update_rules import GroupSettings


class Rule(Enum):
    """Which update is made."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    LAMB = "lamb"
    LAMB_NO_BIAS = "lamb_no_bias"
    RMSPROP = "rmsprop"
    RMSPROP_CENTERED = "rmsprop_centered"


@dataclass(frozen=True)
class OptimizerSettings:
    """A rule, its groups, and what holds for all groups.

    `with_momentum`: SGD and RMSprop keep a velocity. `tf_variant`: TensorFlow's RMSprop.
    `combined_accumulator`: SGD's gradient accumulator is its velocity, which only names the state.
    """

    rule: Rule
    groups: Tuple[GroupSettings, ...]
    max_grad_norm: float = math.inf
    with_momentum: bool = False
    tf_variant: bool = False
    combined_accumulator: bool = False


class Updater:
    """Weights with their optimizer state.

    `weights` are float tensors that steps change in place, in their own dtype; the state is float32.
    `group_of[i]` is the index of weight i's group in the settings of each step, or None for a weight
    that isn't the optimizer's to change.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        names: Sequence[str],
        weights: Sequence[torch.Tensor],
        group_of: Sequence[Optional[int]],
    ) -> None:
        self.rule = settings.rule
        self.group_of = list(group_of)
        self._names = list(names)
        self._weights = list(weights)
        self._steps = [0] * len(self._weights)
        self._slots: Dict[str, List[torch.Tensor]] = {
            slot: [torch.full_like(w, start, dtype=torch.float32) for w in self._weights]
            for slot, start in _slots(settings).items()
        }

    def step(self, gradients: Sequence[Optional[torch.Tensor]], settings: OptimizerSettings) -> None:
        """Update every weight that has a gradient; gradients are used up."""
        reached = [i for i, g in enumerate(gradients) if g is not None and self.group_of[i] is not None]
        g = {i: gradients[i].float() for i in reached}  # type: ignore[union-attr]
        if g and not math.isinf(settings.max_grad_norm):
            update_rules.clip_by_global_norm(list(g.values()), settings.max_grad_norm)
        for index, group in enumerate(settings.groups):
            members = [i for i in reached if self.group_of[i] == index]
            if not members:
                continue
            narrow = [i for i in members if self._weights[i].dtype != torch.float32]
            wide = {i: self._weights[i].float() for i in members}
            self._update_group(members, list(wide.values()), [g[i] for i in members], group, settings)
            for i in narrow:
                self._weights[i].copy_(wide[i])

    def _update_group(
        self,
        members: Sequence[int],
        w: List[torch.Tensor],
        g: List[torch.Tensor],
        group: GroupSettings,
        settings: OptimizerSettings,
    ) -> None:
        for i in members:
            self._steps[i] += 1
        t = [self._steps[i] for i in members]
        if self.rule is Rule.SGD:
            update_rules.sgd(w, g, self._of(members, "Accl", "Accl1"), group)
        elif self.rule in (Rule.RMSPROP, Rule.RMSPROP_CENTERED):
            averages = [self._of(members, slot) for slot in ("Accl1", "Accl2", "Accl3")]
            update_rules.rmsprop(w, g, averages[0], averages[1], averages[2], group, settings.tf_variant)
        else:
            m, v = self._of(members, "Accl1"), self._of(members, "Accl2")
            if self.rule in (Rule.ADAM, Rule.ADAMW):
                update_rules.adam(w, g, m, v, t, group, decoupled=self.rule is Rule.ADAMW)
            else:
                update_rules.lamb(w, g, m, v, t, group, corrected=self.rule is Rule.LAMB)

    def _of(self, members: Sequence[int], *slots: str) -> List[torch.Tensor]:
        for slot in slots:
            if slot in self._slots:
                return [self._slots[slot][i] for i in members]
        return []

    def state(self) -> Dict[str, torch.Tensor]:
        """Copies of all state by PopART's names, e.g. Accl1___encoder.weight; Step___ is a 0-d float32."""
        state = {
            f"{slot}___{name}": tensor.clone()
            for slot, tensors in self._slots.items()
            for name, tensor in zip(self._names, tensors)
        }
        if self._counts_steps:
            for name, steps in zip(self._names, self._steps):
                state[f"Step___{name}"] = torch.tensor(float(steps))
        return state

    def load_state(self, state: Mapping[str, torch.Tensor]) -> List[str]:
        """Take over the entries of `state`; returns the names it lacks, whose values stay.

        Raises ValueError where a tensor's shape differs.
        """
        missing = []
        for slot, tensors in self._slots.items():
            for name, tensor in zip(self._names, tensors):
                key = f"{slot}___{name}"
                if key not in state:
                    missing.append(key)
                    continue
                if state[key].shape != tensor.shape:
                    raise ValueError(
                        f"Optimizer state {key} has shape {tuple(state[key].shape)}, "
                        f"the weight has {tuple(tensor.shape)}."
                    )
                tensor.copy_(state[key])
        if self._counts_steps:
            for i, name in enumerate(self._names):
                key = f"Step___{name}"
                if key in state:
                    self._steps[i] = round(float(state[key]))
                else:
                    missing.append(key)
        return missing

    @property
    def _counts_steps(self) -> bool:
        return self.rule in (Rule.ADAM, Rule.ADAMW, Rule.LAMB)


def _slots(settings: OptimizerSettings) -> Dict[str, float]:
    """The state tensors that a rule keeps for each weight, by PopART's prefix, with their first value."""
    if settings.rule is Rule.SGD:
        if not settings.with_momentum:
            return {}
        return {"Accl" if settings.combined_accumulator else "Accl1": 0.0}
    if settings.rule in (Rule.RMSPROP, Rule.RMSPROP_CENTERED):
        slots = {"Accl1": 1.0 if settings.tf_variant else 0.0}
        if settings.rule is Rule.RMSPROP_CENTERED:
            slots["Accl2"] = 0.0
        if settings.with_momentum:
            slots["Accl3"] = 0.0
        return slots
    return {"Accl1": 0.0, "Accl2": 0.0}
