"""Hyperparameters by PopART's names, as `ipu_param` holds them: read from an optimizer, and loaded again.

SGD's are compound scalars, from which PopART's update is computed (`popart::SGD`): ls loss scaling, vs
velocity scaling, lr, wd weight decay, dm dampening.

    no momentum     scaledLearningRate0 = lr*(1 - dm)/ls    weightDecayScaleFactor0 = 1 - lr*(1 - dm)*wd
    combined        scaledLearningRate1 = lr/vs
    separate        scaledLearningRate2 = lr/ls: the velocity scaling is the loss scaling
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Mapping, Sequence

import torch
from ipu_simulator import numerics

from .settings import Extracted

LOSS_SCALING = "lossScaling_FLOAT"
# Automatic loss scaling's factor, and its product with the program's loss scaling, by PopART's names.
SCALE_FACTOR, FINAL_LOSS_SCALE = "lossScaleUpdateFactor", "finalLossScale"
LOSS_SCALES = (LOSS_SCALING, SCALE_FACTOR, FINAL_LOSS_SCALE)
# Values of one weight, by PopART's prefix.
Values = Dict[str, float]

_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "eps": "eps",
    "alpha": "alpha",
    "momentum": "momentum",
    "max_weight_norm": "maxWeightNorm",
}
_ATTRIBUTES = {popart: attribute for attribute, popart in _NAMES.items()}


def full_name(prefix: str, weight: str) -> str:
    """The name of a weight's hyperparameter."""
    return f"{prefix}___specific___{weight}"


def variable_values(found: Extracted, index: int) -> Values:
    """The variable hyperparameters of a weight in the optimizer's group `index`, by PopART's prefix."""
    group, variable = found.settings.groups[index], found.variable(index)
    if found.settings.rule is not numerics.Rule.SGD:
        named = {_NAMES[name]: getattr(group, name) for name in variable if name in _NAMES}
        if "betas" in variable:
            named.update(beta1=group.beta1, beta2=group.beta2)
        return named
    kind = _sgd_kind(found)
    undamped = 1 - group.dampening
    rate = group.lr * undamped if kind == 0 else group.lr
    decay = 1 - rate * group.weight_decay if kind == 0 else group.weight_decay
    named = {}
    if {"lr", "dampening"} & {*variable}:
        named[f"scaledLearningRate{kind}"] = rate / _velocity_scale(found, found.loss_scaling)
    if {"weight_decay", "lr", "dampening"} & {*variable}:
        named[f"weightDecayScaleFactor{kind}"] = decay
    if kind and "momentum" in variable:
        named[f"scaledMomentum{kind}"] = group.momentum
    if kind and "dampening" in variable:
        named[f"dampeningScaleFactor{kind}"] = undamped
    return named


def _sgd_kind(found: Extracted) -> int:
    """The digit at the end of SGD's names: 0 no momentum, 1 combined accumulator, 2 separate ones."""
    if not found.settings.with_momentum:
        return 0
    return 1 if found.settings.combined_accumulator else 2


def _velocity_scale(found: Extracted, loss_scaling: float) -> float:
    return found.settings.velocity_scaling if _sgd_kind(found) == 1 else loss_scaling


def tensor_names(found: Extracted, weights: Mapping[str, torch.Tensor], scales_loss: bool) -> list[str]:
    """The tensors of an optimizer of these parameters: state, variable hyperparameters, loss scales.

    `scales_loss`: whether the loss scale is automatic.
    """
    groups = [found.group_of.get(id(weight)) for weight in weights.values()]
    names = numerics.state_names(found.settings, [*weights])
    names += Hyperparameters(found, [*weights], groups).values()
    return names + [name for name in LOSS_SCALES if scales_loss and name not in names]


class Hyperparameters:
    """An optimizer's hyperparameters as the device has them: loaded values replace the optimizer's.

    A loaded value that equals the optimizer's, rounded to float32, changes nothing.

    :param group_of: the index of each weight's group; None for a weight that the optimizer doesn't update.
    :param loaded: `ipu_param` of a loaded state, if it has one.

    :ivar settings: the optimizer's, followed by a group for each weight whose values were loaded.
    :ivar group_of: indices into the groups of `settings`.
    :ivar missing: names that `loaded` lacks; they keep the optimizer's values.
    :ivar ignored: names in `loaded` that aren't variable hyperparameters of this optimizer.
    """

    def __init__(
        self,
        found: Extracted,
        names: Sequence[str],
        group_of: Sequence[int | None],
        loaded: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._found = found
        self._weights = [(name, index) for name, index in zip(names, group_of) if index is not None]
        self.settings, self.group_of = found.settings, list(group_of)
        self.loss_scaling = found.loss_scaling
        self.missing: list[str] = []
        self.ignored: list[str] = []
        self._loaded: Values = {}
        if loaded is None:
            return
        own = self._own()
        self.missing = [name for name in own if name not in loaded]
        self.ignored = [name for name in loaded if name not in own]
        self._loaded = {name: float(value) for name, value in loaded.items() if name in own}
        self.loss_scaling = self._loaded_or(LOSS_SCALING, found.loss_scaling)
        settings = {name: self._settings_of(name, index) for name, index in self._weights}
        groups = list(found.settings.groups)
        groups += [group for group in dict.fromkeys(settings.values()) if group not in groups]
        self.settings = replace(found.settings, groups=tuple(groups))
        for i, (name, index) in enumerate(zip(names, group_of)):
            if index is not None and settings[name] != groups[index]:
                self.group_of[i] = groups.index(settings[name])

    def _own(self) -> Values:
        """The optimizer's values by their full names."""
        found = self._found
        values: Values = {}
        for name, index in self._weights:
            for prefix, value in variable_values(found, index).items():
                values[full_name(prefix, name)] = value
        if found.loss_scaling_is_variable:
            values[LOSS_SCALING] = found.loss_scaling
        return values

    def _loaded_or(self, name: str, own: float) -> float:
        """The loaded value, unless there is none or it is the optimizer's."""
        loaded = self._loaded.get(name, own)
        return own if loaded == _float32(own) else loaded

    def _settings_of(self, name: str, index: int) -> numerics.GroupSettings:
        found, group = self._found, self._found.settings.groups[index]
        own = variable_values(found, index)
        values = {prefix: self._loaded_or(full_name(prefix, name), value) for prefix, value in own.items()}
        changed = {prefix: value for prefix, value in values.items() if value != own[prefix]}
        if found.settings.rule is not numerics.Rule.SGD:
            attributes: dict[str, Any] = {_ATTRIBUTES.get(prefix, prefix): v for prefix, v in changed.items()}
            return replace(group, **attributes)
        if not changed and self.loss_scaling == found.loss_scaling:
            return group
        return self._sgd_settings(group, values)

    def _sgd_settings(self, group: numerics.GroupSettings, values: Values) -> numerics.GroupSettings:
        """The settings from which SGD's update computes with these values."""
        kind = _sgd_kind(self._found)
        dampening, momentum = f"dampeningScaleFactor{kind}", f"scaledMomentum{kind}"
        if dampening in values:
            group = replace(group, dampening=1 - values[dampening])
        if momentum in values:
            group = replace(group, momentum=values[momentum])
        undamped = 1 - group.dampening if kind == 0 else 1.0
        scaled_rate = values.get(f"scaledLearningRate{kind}")
        if scaled_rate is not None and undamped:
            rate = scaled_rate * _velocity_scale(self._found, self.loss_scaling)
            group = replace(group, lr=rate / undamped)
        decay = values.get(f"weightDecayScaleFactor{kind}")
        if decay is None:
            return group
        if kind:
            return replace(group, weight_decay=decay)
        # 1 - decay has lost digits: the optimizer's decay is more precise where it gives the same factor.
        rate = group.lr * undamped
        if not rate or _float32(1 - rate * group.weight_decay) == _float32(decay):
            return group
        return replace(group, weight_decay=(1 - decay) / rate)

    def values(self) -> dict[str, torch.Tensor]:
        """The variable hyperparameters by their full names, loaded ones as they were loaded: float32, 0-d."""
        values = {**self._own(), **self._loaded}
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
