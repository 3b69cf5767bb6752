"""Extracts an optimizer's attributes for the device: update rule, settings, constants and variables."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from typing import Any

import torch
from ipu_simulator import numerics

from . import classes
from .base import DEVICE_ARGUMENTS, MAY_VARY, DeviceArguments, Optimizer, device_arguments
from .classes import LAMB, NO_WEIGHT_NORM_LIMIT

Rule = numerics.Rule

# Subclasses first: PyTorch's AdamW is an Adam since 2.7.
_KINDS = (
    (LAMB, Rule.LAMB, ("lr", "betas", "eps", "weight_decay", "max_weight_norm")),
    (torch.optim.AdamW, Rule.ADAMW, ("lr", "betas", "eps", "weight_decay")),
    (torch.optim.Adam, Rule.ADAM, ("lr", "betas", "eps", "weight_decay")),
    (torch.optim.RMSprop, Rule.RMSPROP, ("lr", "alpha", "eps", "weight_decay", "momentum")),
    (torch.optim.SGD, Rule.SGD, ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
)
_KNOWN_CLASSES = tuple(kind[0] for kind in _KINDS) + (
    classes.SGD,
    classes.Adam,
    classes.AdamW,
    classes.RMSprop,
)
# PyTorch's optimizers: an attribute with this value is compiled in as a constant; lr never is.
_CONSTANT_AT = {"momentum": 0, "dampening": 0, "eps": 1e-8, "weight_decay": 0}
_ALWAYS_CONSTANT = ("betas", "alpha", "nesterov")
# PyTorch's keys that the device ignores.
_IGNORED_KEYS = {
    "params",
    "initial_lr",
    "amsgrad",
    "foreach",
    "maximize",
    "capturable",
    "differentiable",
    "fused",
    "centered",
    "decoupled_weight_decay",
    "param_names",
}


_ADAM = ("Accumulate", "Accumulate", "AdamUpdater", "AdamVarUpdate")
_LAMB = (*_ADAM[:-1], "LambSquare", "LambSquare", "AdamVarUpdate")
_UPDATE_TYPES = {
    Rule.ADAM: _ADAM,
    Rule.ADAMW: _ADAM,
    Rule.LAMB: _LAMB,
    Rule.LAMB_NO_BIAS: _LAMB,
    Rule.RMSPROP: ("Accumulate", "RMSPropUpdater", "ScaledVarUpdate"),
    Rule.RMSPROP_CENTERED: ("Accumulate", "Accumulate", "RMSPropUpdater", "ScaledVarUpdate"),
}


@dataclass(frozen=True)
class Extracted:
    """An optimizer's attributes at one time."""

    settings: numerics.UpdateSettings
    values: dict[tuple[int, str], Any]  # (group, attribute) -> value
    device: DeviceArguments
    device_constants: tuple[str, ...]  # names of device arguments that are compiled in
    group_of: dict[int, int]  # id of parameter -> index of its group
    constants: dict[tuple[int, str], Any]  # (group, attribute) -> compiled-in value
    needs_running_mean: bool
    extra_keys: frozenset[tuple[str, str]]  # (where, name) of attributes unknown to the device
    warning: str | None  # for a subclass, whose step() the device doesn't run

    @property
    def loss_scaling(self) -> float:
        """The factor on the loss."""
        return float(self.device.loss_scaling)

    @property
    def loss_scaling_is_variable(self) -> bool:
        """Whether the loss scaling may change after compilation."""
        return "loss_scaling" not in self.device_constants

    def value(self, group: int, name: str) -> Any:
        """The value of a group's attribute."""
        return self.values[group, name]

    def variable(self, group: int) -> list[str]:
        """The variable attributes of a group, in the rule's order."""
        return [name for index, name in self.values if index == group and (index, name) not in self.constants]

    def with_constants_of(self, compiled: Extracted) -> Extracted:
        """These values, of which those are constants that `compiled` has as constants; its state tensors."""
        constants = {key: value for key, value in self.values.items() if key in compiled.constants}
        settings = replace(self.settings, with_momentum=compiled.settings.with_momentum)
        return replace(
            self, settings=settings, constants=constants, device_constants=compiled.device_constants
        )

    def invalid(self) -> list[str]:
        """The values that PopART refuses, e.g. 'lr of group 0 is -0.1'."""
        named = [(f"{name} of group {i}", name, value) for (i, name), value in self.values.items()]
        named += [(name, name, getattr(self.device, name)) for name in MAY_VARY]
        found = []
        for what, name, value in named:
            if name == "betas":
                valid = all(0 <= beta < 1 for beta in value)
            elif name in ("loss_scaling", "velocity_scaling"):
                valid = value > 0
            else:
                valid = value >= 0
            if not valid:
                found.append(f"{what} is {value}")
        return found

    def unexpected(self, first: Extracted) -> list[str]:
        """Warnings about attributes that the program's `first` optimizer didn't have."""
        new = self.extra_keys - first.extra_keys
        return [
            f"Ignoring unexpected {place} in {self.type_name} optimizer: "
            f"{sorted(name for where, name in new if where == place)}"
            for place in sorted({where for where, _ in new})
        ]

    @property
    def update_types(self) -> tuple[str, ...]:
        """PopART's types of the operations in one weight's update."""
        rule, settings = self.settings.rule, self.settings
        if rule is not Rule.SGD:
            return _UPDATE_TYPES[rule]
        if not settings.with_momentum:
            return ("SGD0VarUpdate",)
        if settings.combined_accumulator:
            return ("Accumulate", "SGD1VarUpdate", "SGD1AcclUpdate")
        return ("Accumulate", "SGD2PartialAcclUpdate", "SGD2VarUpdate")

    @property
    def type_name(self) -> str:
        """The optimizer's name in messages."""
        if self.settings.rule is Rule.SGD:
            return "SGD1" if self.settings.combined_accumulator else "SGD2"
        return self.settings.rule.name


def extract(optimizer: torch.optim.Optimizer) -> Extracted:
    """Reads an optimizer's current attributes.

    Raises AssertionError for an unsupported class, ValueError for amsgrad, maximize, and an attribute that is
    missing or no number.
    """
    kind, rule, attributes = _kind(optimizer)
    groups = optimizer.param_groups
    if any(group.get("amsgrad") for group in groups):
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
    if any(group.get("maximize") for group in groups):
        raise ValueError("maximize=True is not supported: negate the loss instead.")
    device = device_arguments(optimizer)
    for name in MAY_VARY:
        _checked_number(name, getattr(device, name))
    if rule is Rule.LAMB and not device.bias_correction:
        rule = Rule.LAMB_NO_BIAS
    if rule is Rule.RMSPROP and any(group["centered"] for group in groups):
        rule = Rule.RMSPROP_CENTERED
    values = {(i, name): _value(i, group, name) for i, group in enumerate(groups) for name in attributes}
    constants = {
        (i, name): value for (i, name), value in values.items() if _is_constant(optimizer, groups[i], name)
    }
    settings = numerics.UpdateSettings(
        rule=rule,
        groups=tuple(_group_settings(i, group, attributes) for i, group in enumerate(groups)),
        max_grad_norm=device.max_grad_norm,
        with_momentum="momentum" in attributes
        and any(group["momentum"] or (i, "momentum") not in constants for i, group in enumerate(groups)),
        tf_variant=device.use_tf_variant,
        combined_accumulator=device.use_combined_accum,
        velocity_scaling=float(device.velocity_scaling) if device.use_combined_accum else 1.0,
        accumulator_type=device.accum_type,
        # SGD's velocity is its first moment.
        first_moment_type=device.velocity_accum_type
        if rule is Rule.SGD
        else device.first_order_momentum_accum_type,
        second_moment_type=device.second_order_momentum_accum_type,
    )
    half = settings.accumulator_type is torch.float16
    return Extracted(
        settings=settings,
        values=values,
        device=device,
        device_constants=tuple(name for name in MAY_VARY if _is_device_constant(optimizer, name)),
        group_of={id(weight): i for i, group in enumerate(groups) for weight in group["params"]},
        constants=constants,
        needs_running_mean=half and not settings.combined_accumulator,
        extra_keys=_extra_keys(optimizer, attributes),
        warning=None if type(optimizer) in _KNOWN_CLASSES else _subclass_warning(type(optimizer), kind),
    )


def _kind(optimizer: torch.optim.Optimizer) -> tuple[type, Rule, tuple[str, ...]]:
    for kind, rule, attributes in _KINDS:
        if isinstance(optimizer, kind):
            return kind, rule, attributes
    raise AssertionError(
        "Unsupported optimizer type. Types supported "
        f"{[f'{known.__module__}.{known.__name__}' for known in _KNOWN_CLASSES]}"
    )


def _subclass_warning(subclass: type, kind: type) -> str:
    return (
        f"Optimizer `{subclass.__name__}` subclassed from classes in poptorch.optim or torch.optim are "
        f"unlikely to behave as intended. The device runs the update rule of {kind.__name__}, and no step()."
    )


def _value(index: int, group: dict[str, Any], name: str) -> Any:
    if name == "max_weight_norm" and group.get(name) is None:
        return NO_WEIGHT_NORM_LIMIT
    if name not in group:
        raise ValueError(f"Parameter group {index} lacks {name}.")
    value = group[name]
    if name == "betas":
        return tuple(value)
    # A learning rate may be a 0-d tensor.
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value
    return _checked_number(f"{name} of parameter group {index}", value)


def _checked_number(what: str, value: Any) -> Any:
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{what} must be a number, it is {value!r}.")
    return value


def _group_settings(index: int, group: dict[str, Any], attributes: tuple[str, ...]) -> numerics.GroupSettings:
    values = {name: _value(index, group, name) for name in attributes}
    if "betas" in values:
        values["beta1"], values["beta2"] = values.pop("betas")
    plain: dict[str, Any] = {
        name: value if isinstance(value, bool) else float(value) for name, value in values.items()
    }
    return numerics.GroupSettings(**plain)


def _is_device_constant(optimizer: torch.optim.Optimizer, name: str) -> bool:
    return not isinstance(optimizer, Optimizer) or optimizer.variable_attrs.isConstant(name)


def _is_constant(optimizer: torch.optim.Optimizer, group: dict[str, Any], name: str) -> bool:
    if isinstance(optimizer, Optimizer):
        return optimizer.variable_attrs.isConstant(name)
    if name in _ALWAYS_CONSTANT:
        return True
    if name == "weight_decay" and isinstance(optimizer, torch.optim.AdamW):
        return bool(group[name] == 0.01)
    return name in _CONSTANT_AT and group[name] == _CONSTANT_AT[name]


def _extra_keys(optimizer: torch.optim.Optimizer, attributes: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    known = _IGNORED_KEYS | set(attributes)
    extra = {("default group variable", name) for name in optimizer.defaults if name not in known}
    for index, group in enumerate(optimizer.param_groups):
        extra |= {(f"group {index} attribute", name) for name in group if name not in known}
    known_attributes = {"defaults", "param_groups", "state", "step", "variable_attrs", *DEVICE_ARGUMENTS}
    extra |= {
        ("optimizer attribute", name)
        for name in vars(optimizer)
        if not name.startswith("_") and name not in known_attributes
    }
    return frozenset(extra)
