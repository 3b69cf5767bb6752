"""SGD, Adam, AdamW and RMSprop: PyTorch's classes with the device's arguments."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from ipu_simulator.numerics import update_rules

from .._logging import logger

# Which of an optimizer's attributes the program may change while it runs.


class VariableAttributes:
    """The attributes that aren't compiled in as constants.

    :param variable_attributes: those that are variable to begin with.
    :param allowed_attributes: all that the optimizer has; any other name is an AssertionError.
    """

    def __init__(self, variable_attributes: list[str], allowed_attributes: list[str]) -> None:
        self._variable_attributes = set(variable_attributes)
        self._allowed_attributes = list(allowed_attributes)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed_attributes, (
            f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"
        )

    def isConstant(self, attr: str) -> bool:
        """Whether the value is fixed when the model is compiled."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Fix the value when the model is compiled."""
        self._check(attr)
        self._variable_attributes.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        """Let `setOptimizer` change the value later."""
        self._check(attr)
        self._variable_attributes.add(attr)


# What every optimizer of this package shares: attributes, and the state that lives on the device.

# Reads the device: tensors by state name and by hyperparameter name, the same objects until it runs again.
DeviceReader = Callable[[], "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]"]
DeviceWriter = Callable[["dict[str, torch.Tensor]"], None]


class Optimizer:
    """Base of the optimizers in this package.

    `state_dict()` is PyTorch's (whose `state` stays empty) with `ipu_state` and `ipu_param`: tensors by
    PopART's names, None before the model is compiled.
    """

    # What pickling and copying carry beside PyTorch's own state.
    _KEPT = (
        "variable_attrs",
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "velocity_accum_type",
        "use_combined_accum",
        "velocity_scaling",
        "bias_correction",
        "max_grad_norm",
        "use_tf_variant",
    )

    def __init__(self) -> None:
        self._ipu_state: dict[str, torch.Tensor] | None = None
        self._ipu_param: dict[str, torch.Tensor] | None = None
        self._reader: DeviceReader | None = None
        self._writer: DeviceWriter | None = None

    def _set_up(self, given: dict[str, Any], defaults: dict[str, Any], group_attributes: list[str]) -> None:
        """Keep the device's arguments. `given` holds all arguments, None for those left out.

        An argument that was given is variable, one left out is compiled in as a constant.
        """
        for name, default in defaults.items():
            setattr(self, name, default if given[name] is None else given[name])
        for name in defaults:
            if name.endswith("accum_type"):
                assert getattr(self, name) in (torch.float32, torch.float16), (
                    "Accumulation types must be either torch.float32 or torch.float16"
                )
        allowed = group_attributes + [
            name for name in ("loss_scaling", "velocity_scaling", "max_grad_norm") if name in defaults
        ]
        variable = [name for name in allowed if given.get(name) is not None]
        self.variable_attrs = VariableAttributes(variable, allowed)

    # Between device and host.
    def _connect(self, reader: DeviceReader, writer: DeviceWriter) -> None:
        """From now on the state is the device's; a state loaded before goes there first."""
        self._reader, self._writer = reader, writer
        if self._ipu_state is not None:
            writer(self._ipu_state)

    def _disconnect(self) -> None:
        """Keep the device's last values."""
        self._refresh()
        self._reader = self._writer = None

    def _refresh(self) -> None:
        if self._reader is not None:
            self._ipu_state, self._ipu_param = self._reader()

    def has_state(self) -> bool:
        """Whether there is a state, of the device or loaded for it."""
        return self._reader is not None or self._ipu_state is not None

    def get_state_dict(self) -> dict[str, Any]:
        """The device's part of `state_dict()`."""
        self._refresh()
        return {"ipu_state": self._ipu_state, "ipu_param": self._ipu_param}

    def set_state_dict(self, state: dict[str, Any]) -> None:
        """Load the device's part; before the model is compiled it waits here.

        Raises RuntimeError for an empty dictionary and for one that isn't from a device.
        """
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        if self._writer is None:
            self._ipu_state, self._ipu_param = state["ipu_state"], state["ipu_param"]
        elif state["ipu_state"] is not None:
            self._writer(state["ipu_state"])

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's state dictionary with the device's part."""
        return {**super().state_dict(), **self.get_state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict()` gave: hyperparameters into the groups, the rest to the device."""
        super().load_state_dict(state)
        self.set_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        """A copy isn't connected to the device, but has its last state."""
        self._refresh()
        kept = {name: getattr(self, name) for name in self._KEPT if hasattr(self, name)}
        disconnected = {"_reader": None, "_writer": None}
        state = {"_ipu_state": self._ipu_state, "_ipu_param": self._ipu_param}
        return {**super().__getstate__(), **kept, **state, **disconnected}


def without_none(**arguments: Any) -> dict[str, Any]:
    """Only the arguments that were given: PyTorch's own defaults hold for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


# PyTorch ascends along the gradient with it; the device's update rules have no such sign.
_NO_MAXIMIZE = "maximize=True is not supported: negate the loss instead."

_ADAM_GROUP = ["lr", "betas", "eps", "weight_decay"]
_ADAM_DEVICE = {
    "loss_scaling": 1.0,
    "accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
    "max_grad_norm": math.inf,
}


class SGD(Optimizer, torch.optim.SGD):
    """w -= lr*v with v = momentum*v + (1 - dampening)*(g + weight_decay*w), from the first step on.

    PyTorch leaves the first step undampened. Arguments left out (None) have PyTorch's defaults and are
    compiled in as constants.

    :param loss_scaling: the loss is multiplied and the gradient divided by it.
    :param velocity_scaling: only with the combined accumulator, where it scales what is kept.
    :param use_combined_accum: one tensor for velocity and gradient accumulation.
    :param accum_type: float16 or float32, of the gradient accumulator; likewise velocity_accum_type.
    :param max_grad_norm: gradients are clipped by their global norm; infinity for not at all.
    """

    def __init__(
        self,
        params,
        lr,
        momentum=None,
        dampening=None,
        weight_decay=None,
        nesterov=None,
        maximize=None,
        foreach=None,
        differentiable=None,
        loss_scaling=None,
        velocity_scaling=None,
        use_combined_accum=None,
        accum_type=None,
        velocity_accum_type=None,
        max_grad_norm=None,
    ):
        given = dict(locals())
        if maximize:
            raise ValueError(_NO_MAXIMIZE)
        Optimizer.__init__(self)
        torch.optim.SGD.__init__(
            self,
            params,
            lr,
            **without_none(
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
                foreach=foreach,
                differentiable=differentiable,
            ),
        )
        device = {
            "loss_scaling": 1.0,
            "velocity_scaling": 1.0,
            "use_combined_accum": False,
            "accum_type": torch.float32,
            "velocity_accum_type": torch.float32,
            "max_grad_norm": math.inf,
        }
        self._set_up(given, device, ["lr", "momentum", "dampening", "weight_decay", "nesterov"])
        if velocity_scaling is not None and not self.use_combined_accum:
            logger.warning("velocity_scaling is ignored unless use_combined_accum is True")


class Adam(Optimizer, torch.optim.Adam):
    """Adam with L2 weight decay; see SGD on what an argument left out means and on the device's arguments."""

    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        amsgrad=None,
        foreach=None,
        maximize=None,
        capturable=None,
        differentiable=None,
        fused=None,
        loss_scaling=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        max_grad_norm=None,
    ):
        given = dict(locals())
        if maximize:
            raise ValueError(_NO_MAXIMIZE)
        Optimizer.__init__(self)
        torch.optim.Adam.__init__(
            self,
            params,
            **without_none(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                foreach=foreach,
                capturable=capturable,
                differentiable=differentiable,
                fused=fused,
            ),
        )
        self._set_up(given, _ADAM_DEVICE, _ADAM_GROUP)


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay; see SGD on the arguments.

    :param bias_correction: kept, but the device corrects the bias either way (see the package).
    """

    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        amsgrad=None,
        maximize=None,
        foreach=None,
        capturable=None,
        differentiable=None,
        fused=None,
        loss_scaling=None,
        bias_correction=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        max_grad_norm=None,
    ):
        given = dict(locals())
        if maximize:
            raise ValueError(_NO_MAXIMIZE)
        Optimizer.__init__(self)
        torch.optim.AdamW.__init__(
            self,
            params,
            **without_none(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                foreach=foreach,
                capturable=capturable,
                differentiable=differentiable,
                fused=fused,
            ),
        )
        self._set_up(given, {**_ADAM_DEVICE, "bias_correction": True}, _ADAM_GROUP)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop with L2 weight decay; see SGD on the arguments.

    :param use_tf_variant: epsilon inside the root, and the average of squares starts at 1.
    """

    def __init__(
        self,
        params,
        lr=None,
        alpha=None,
        eps=None,
        weight_decay=None,
        momentum=None,
        centered=None,
        foreach=None,
        maximize=None,
        differentiable=None,
        loss_scaling=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        use_tf_variant=None,
    ):
        given = dict(locals())
        if maximize:
            raise ValueError(_NO_MAXIMIZE)
        Optimizer.__init__(self)
        torch.optim.RMSprop.__init__(
            self,
            params,
            **without_none(
                lr=lr,
                alpha=alpha,
                eps=eps,
                weight_decay=weight_decay,
                momentum=momentum,
                centered=centered,
                foreach=foreach,
                differentiable=differentiable,
            ),
        )
        device = {name: value for name, value in _ADAM_DEVICE.items() if name != "max_grad_norm"}
        self._set_up(
            given, {**device, "use_tf_variant": False}, ["lr", "alpha", "eps", "weight_decay", "momentum"]
        )


# LAMB, which PyTorch doesn't have.

# PopTorch's stand-in for "no limit": the largest multiple of 100 that float16 holds.
NO_WEIGHT_NORM_LIMIT = 65500.0


class LAMB(Optimizer, torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al., 2020), weight decay inside the update term.

    See SGD on what an argument left out means and on the device's arguments.

    :param bias_correction: whether the moments are divided by 1 - beta**t.
    :param max_weight_norm: the weight's norm counts for no more than this in the trust ratio; None for
        no limit. A parameter group's own value holds on the device; with 0 the ratio is 1 (plain AdamW).
    """

    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        bias_correction=None,
        loss_scaling=None,
        max_weight_norm=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
    ):
        given = dict(locals())
        defaults = {
            "lr": 1e-3 if lr is None else lr,
            "betas": (0.9, 0.999) if betas is None else betas,
            "eps": 1e-8 if eps is None else eps,
            "weight_decay": 0.0 if weight_decay is None else weight_decay,
            "max_weight_norm": NO_WEIGHT_NORM_LIMIT if max_weight_norm is None else max_weight_norm,
        }
        for name in ("lr", "eps", "weight_decay"):
            if defaults[name] < 0.0:
                raise ValueError(f"Invalid {name}: {defaults[name]} is negative")
        if not all(0.0 <= beta < 1.0 for beta in defaults["betas"]):
            raise ValueError(f"Invalid betas: {defaults['betas']} aren't both in [0, 1)")
        Optimizer.__init__(self)
        torch.optim.Optimizer.__init__(self, params, defaults)
        device = {
            "loss_scaling": 1.0,
            "bias_correction": True,
            "accum_type": torch.float32,
            "first_order_momentum_accum_type": torch.float32,
            "second_order_momentum_accum_type": torch.float32,
        }
        self._set_up(given, device, ["lr", "betas", "eps", "weight_decay", "max_weight_norm"])

    @torch.no_grad()
    def step(self, closure=None):
        """One step on the host, with the constructor's max_weight_norm for every group, as PopTorch's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
            update_rules.lamb(
                weights,
                [weight.grad for weight in weights],
                [self.state[weight]["exp_avg"] for weight in weights],
                [self.state[weight]["exp_avg_sq"] for weight in weights],
                [self.state[weight]["step"] for weight in weights],
                update_rules.GroupSettings(
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    max_weight_norm=self.defaults["max_weight_norm"],
                ),
                corrected=self.bias_correction,
            )
        return loss
