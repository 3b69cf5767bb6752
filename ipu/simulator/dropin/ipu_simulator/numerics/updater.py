"""The optimizer's state on the device, and its step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from . import update_rules
from .rounding import StateRounding
from .update_rules import GroupSettings, Tensors


class Rule(Enum):
    """The update rule."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    LAMB = "lamb"
    LAMB_NO_BIAS = "lamb_no_bias"
    RMSPROP = "rmsprop"
    RMSPROP_CENTERED = "rmsprop_centered"


_RMSPROPS = (Rule.RMSPROP, Rule.RMSPROP_CENTERED)
_COUNTING = (Rule.ADAM, Rule.ADAMW, Rule.LAMB)


@dataclass(frozen=True)
class UpdateSettings:
    """A rule, its groups, and settings common to all groups.

    `with_momentum`: SGD and RMSprop keep a velocity. `tf_variant`: TensorFlow's RMSprop.
    `max_grad_norm`: SGD clips the term that the learning rate multiplies, the other rules clip the gradient.
    `combined_accumulator`: SGD's gradient accumulator is its velocity: one name, the weight's type, stored
    times `velocity_scaling`. Types apply to an IPU's arithmetic only; SGD's velocity counts as a first
    moment.
    """

    rule: Rule
    groups: Tuple[GroupSettings, ...]
    max_grad_norm: float = math.inf
    with_momentum: bool = False
    tf_variant: bool = False
    combined_accumulator: bool = False
    velocity_scaling: float = 1.0
    accumulator_type: torch.dtype = torch.float32
    first_moment_type: torch.dtype = torch.float32
    second_moment_type: torch.dtype = torch.float32


class Updater:
    """Weights with their optimizer state.

    `weights` are float tensors that steps change in place, in their dtype. `group_of[i]` is the index of
    weight i's group in the settings of each step, or None for a weight that the optimizer doesn't update.

    Without `rounding` the state is float32 and float16 weights are rounded to nearest. With it, state has the
    types of the settings, and float16 values are rounded by it.

    `differing[i]`: weight i is [groups, ...], one for each group of replicas, each with a separate norm.
    """

    def __init__(
        self,
        settings: UpdateSettings,
        names: Sequence[str],
        weights: Sequence[torch.Tensor],
        group_of: Sequence[Optional[int]],
        rounding: Optional[StateRounding] = None,
        differing: Sequence[bool] = (),
    ) -> None:
        self._rounding = rounding
        self._differing = list(differing) or [False] * len(weights)
        self.rule = settings.rule
        self.group_of = list(group_of)
        self._names = list(names)
        self._weights = list(weights)
        self._steps = [0] * len(self._weights)
        self._slots: Dict[str, List[torch.Tensor]] = {
            slot: [torch.full_like(w, start, dtype=self._slot_type(slot, w, settings)) for w in self._weights]
            for slot, start in _slots(settings).items()
        }

    def _slot_type(self, slot: str, weight: torch.Tensor, settings: UpdateSettings) -> torch.dtype:
        if self._rounding is None:
            return torch.float32
        if settings.combined_accumulator:
            return weight.dtype
        # RMSprop's first slot is the average of squares; the others are Adam's, or a velocity.
        second = "Accl1" if settings.rule in _RMSPROPS else "Accl2"
        return settings.second_moment_type if slot == second else settings.first_moment_type

    def step(
        self,
        gradients: Sequence[Optional[torch.Tensor]],
        settings: UpdateSettings,
        loss_scaling: float = 1.0,
    ) -> None:
        """Updates every weight that has a gradient; the gradients are consumed.

        They are those of the loss times `loss_scaling`.
        """
        reached = [i for i, g in enumerate(gradients) if g is not None and self.group_of[i] is not None]
        g = {i: gradients[i].float() for i in reached}  # type: ignore[union-attr]
        if loss_scaling != 1.0:
            g = {i: self._unscaled(i, gradient, settings, loss_scaling) for i, gradient in g.items()}
        clips = bool(g) and not math.isinf(settings.max_grad_norm)
        clipped = 1.0
        if clips and self.rule is Rule.SGD:
            clipped = self._clipped_share(g, settings)
        elif clips:
            update_rules.clip_by_global_norm(list(g.values()), settings.max_grad_norm)
        for index, group in enumerate(settings.groups):
            members = [i for i in reached if self.group_of[i] == index]
            if not members:
                continue
            narrow = [i for i in members if self._weights[i].dtype != torch.float32]
            wide = {i: self._weights[i].float() for i in members}
            self._update_group(
                members, list(wide.values()), [g[i] for i in members], group, settings, clipped
            )
            for i in narrow:
                self._weights[i].copy_(self._stored(wide[i], self._weights[i].dtype, self._names[i]))

    def _clipped_share(self, g: Mapping[int, torch.Tensor], settings: UpdateSettings) -> float:
        """The factor by which SGD's clipping multiplies the terms of all weights."""
        terms: Tensors = []
        for index, group in enumerate(settings.groups):
            members = [i for i in g if self.group_of[i] == index]
            if not members:
                continue
            state = self._float32_state(members, settings)
            weights = [self._weights[i].float() for i in members]
            velocity = state.get("Accl", state.get("Accl1", []))
            terms += update_rules.sgd_terms(weights, [g[i] for i in members], velocity, group)
        return float(update_rules.clipping_factor(terms, settings.max_grad_norm))

    def _unscaled(
        self, i: int, gradient: torch.Tensor, settings: UpdateSettings, loss_scaling: float
    ) -> torch.Tensor:
        """In float32 if both moments are, otherwise in float16, where it may underflow."""
        gradient = gradient / loss_scaling
        if torch.float16 in (settings.first_moment_type, settings.second_moment_type):
            gradient = self._stored(gradient, torch.float16, f"Unscaled___{self._names[i]}").float()
        return gradient

    def _stored(self, values: torch.Tensor, dtype: torch.dtype, tensor: str) -> torch.Tensor:
        return values if self._rounding is None else self._rounding.store(values, dtype, tensor)

    def _update_group(
        self,
        members: Sequence[int],
        w: List[torch.Tensor],
        g: List[torch.Tensor],
        group: GroupSettings,
        settings: UpdateSettings,
        clipped: float,
    ) -> None:
        for i in members:
            self._steps[i] += 1
        t = [self._steps[i] for i in members]
        state = self._float32_state(members, settings)
        if self.rule is Rule.SGD:
            update_rules.sgd(w, g, state.get("Accl", state.get("Accl1", [])), group, clipped)
        elif self.rule in _RMSPROPS:
            averages = [state.get(slot, []) for slot in ("Accl1", "Accl2", "Accl3")]
            update_rules.rmsprop(w, g, averages[0], averages[1], averages[2], group, settings.tf_variant)
        elif self.rule in (Rule.ADAM, Rule.ADAMW):
            decoupled = self.rule is Rule.ADAMW
            update_rules.adam(w, g, state["Accl1"], state["Accl2"], t, group, decoupled=decoupled)
        else:
            corrected = self.rule is Rule.LAMB
            parts = [self._differing[i] for i in members]
            t = [step for step, tensor, differs in zip(t, w, parts) for _ in (tensor if differs else [None])]
            m, v = (_by_group(state[slot], parts) for slot in ("Accl1", "Accl2"))
            update_rules.lamb(_by_group(w, parts), _by_group(g, parts), m, v, t, group, corrected=corrected)
        self._store_state(state, members, settings)

    def _float32_state(self, members: Sequence[int], settings: UpdateSettings) -> Dict[str, Tensors]:
        """By slot: float32 state itself, and float32 copies of float16 state."""
        scale = settings.velocity_scaling
        return {slot: [_float32(tensors[i], scale) for i in members] for slot, tensors in self._slots.items()}

    def _store_state(
        self, state: Mapping[str, Tensors], members: Sequence[int], settings: UpdateSettings
    ) -> None:
        """Stores the copies of `_float32_state` back, rounded."""
        for slot, tensors in state.items():
            for i, values in zip(members, tensors):
                kept = self._slots[slot][i]
                if kept is not values:
                    scaled = values * settings.velocity_scaling
                    kept.copy_(self._stored(scaled, kept.dtype, f"{slot}___{self._names[i]}"))

    def state(self) -> Dict[str, torch.Tensor]:
        """Copies of all state by PopART's names, e.g. Accl1___encoder.weight.

        Step___ is a float32: 0-d, or [groups] for a weight that differs between replicas.
        """
        state = {
            f"{slot}___{name}": tensor.clone()
            for slot, tensors in self._slots.items()
            for name, tensor in zip(self._names, tensors)
        }
        if self._counts_steps:
            for i, (name, steps) in enumerate(zip(self._names, self._steps)):
                shape = self._weights[i].shape[:1] if self._differing[i] else ()
                state[f"Step___{name}"] = torch.full(shape, float(steps))
        return state

    def load_state(self, state: Mapping[str, torch.Tensor]) -> List[str]:
        """Loads the entries of `state`; returns the names that it lacks, whose values are unchanged.

        Raises ValueError if a tensor's shape differs.
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
                    self._steps[i] = round(float(state[key].flatten()[0]))
                else:
                    missing.append(key)
        return missing

    @property
    def _counts_steps(self) -> bool:
        return self.rule in _COUNTING


def state_names(settings: UpdateSettings, weights: Sequence[str]) -> List[str]:
    """The names of the state that an updater with these settings keeps."""
    prefixes = [*_slots(settings), *(["Step"] if settings.rule in _COUNTING else [])]
    return [f"{prefix}___{weight}" for prefix in prefixes for weight in weights]


def _by_group(tensors: Tensors, differing: Sequence[bool]) -> Tensors:
    """Splits those that differ into each replica group's part, as views."""
    return [part for tensor, differs in zip(tensors, differing) for part in (tensor if differs else [tensor])]


def _float32(kept: torch.Tensor, scale: float) -> torch.Tensor:
    return kept if kept.dtype is torch.float32 else kept.float() / scale


def _slots(settings: UpdateSettings) -> Dict[str, float]:
    """The state tensors that a rule keeps per weight, by PopART's prefix, with their initial value."""
    if settings.rule is Rule.SGD:
        if not settings.with_momentum:
            return {}
        return {"Accl" if settings.combined_accumulator else "Accl1": 0.0}
    if settings.rule in _RMSPROPS:
        slots = {"Accl1": 1.0 if settings.tf_variant else 0.0}
        if settings.rule is Rule.RMSPROP_CENTERED:
            slots["Accl2"] = 0.0
        if settings.with_momentum:
            slots["Accl3"] = 0.0
        return slots
    return {"Accl1": 0.0, "Accl2": 0.0}
