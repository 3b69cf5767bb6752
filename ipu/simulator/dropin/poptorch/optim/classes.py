"""The optimizers: PyTorch's SGD, Adam, AdamW and RMSprop with the device's arguments, and LAMB."""

from __future__ import annotations

from typing import Any, Callable

import torch
from ipu_simulator.numerics import update_rules

from .._logging import logger
from .base import Betas, Optimizer, Params, device_arguments, without_none

# PyTorch's gradient ascent; the device's update rules only descend.
_NO_MAXIMIZE = "maximize=True is not supported: negate the loss instead."

_ADAM_GROUP = ["lr", "betas", "eps", "weight_decay"]
_ADAM_DEVICE = [
    "loss_scaling",
    "accum_type",
    "first_order_momentum_accum_type",
    "second_order_momentum_accum_type",
    "max_grad_norm",
]


class SGD(Optimizer, torch.optim.SGD):
    """w -= lr*v with v = momentum*v + (1 - dampening)*(g + weight_decay*w), from the first step on.

    Unlike PyTorch's, the first step is dampened too. Omitted arguments (None) have PyTorch's defaults and are
    compiled in as constants.

    :param loss_scaling: the loss is multiplied and the gradient divided by this factor.
    :param velocity_scaling: scales the combined accumulator; ignored with separate accumulators.
    :param use_combined_accum: one tensor for velocity and gradient accumulation.
    :param accum_type: of the gradient accumulator: float16 or float32; likewise velocity_accum_type.
    :param max_grad_norm: clip gradients to this global norm; infinity: no clipping.

    Raises ValueError for maximize=True, AssertionError for another accumulator type.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float | None = None,
        dampening: float | None = None,
        weight_decay: float | None = None,
        nesterov: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        velocity_scaling: float | None = None,
        use_combined_accum: bool | None = None,
        accum_type: torch.dtype | None = None,
        velocity_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
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
        device = ["loss_scaling", "velocity_scaling", "use_combined_accum"]
        device += ["accum_type", "velocity_accum_type", "max_grad_norm"]
        self._set_up(given, device, ["lr", "momentum", "dampening", "weight_decay", "nesterov"])
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning("velocity_scaling is ignored unless use_combined_accum is True")
        if use_combined_accum and (accum_type is not None or velocity_accum_type is not None):
            logger.warning(
                "accum_type and velocity_accum_type are ignored if use_combined_accum is True: the combined "
                "accumulator has its weight's type"
            )


class Adam(Optimizer, torch.optim.Adam):
    """Adam with L2 weight decay; see SGD for omitted arguments, the device's arguments and errors."""

    def __init__(
        self,
        params: Params,
        lr: float | None = None,
        betas: Betas | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
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
    """Adam with decoupled weight decay; see SGD for the arguments and errors.

    :param bias_correction: stored, but the device corrects the bias either way (see the package).
    """

    def __init__(
        self,
        params: Params,
        lr: float | None = None,
        betas: Betas | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        bias_correction: bool | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
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
        self._set_up(given, [*_ADAM_DEVICE, "bias_correction"], _ADAM_GROUP)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop with L2 weight decay; see SGD for the arguments and errors.

    :param use_tf_variant: epsilon inside the square root, and the mean square starts at 1.
    """

    def __init__(
        self,
        params: Params,
        lr: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        momentum: float | None = None,
        centered: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        use_tf_variant: bool | None = None,
    ) -> None:
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
        device = [*(name for name in _ADAM_DEVICE if name != "max_grad_norm"), "use_tf_variant"]
        self._set_up(given, device, ["lr", "alpha", "eps", "weight_decay", "momentum"])


# PopTorch's value for "no limit": the largest multiple of 100 in float16.
NO_WEIGHT_NORM_LIMIT = 65500.0


class LAMB(Optimizer, torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al., 2020), with weight decay inside the update term.

    See SGD for omitted arguments and the device's arguments.

    :param bias_correction: whether the moments are divided by 1 - beta**t.
    :param max_weight_norm: upper limit of the weight's norm in the trust ratio; None: no limit. Parameter
        groups may override it on the device; with 0 the ratio is 1 (plain AdamW).

    Raises ValueError for a negative lr, eps or weight_decay and for betas outside [0, 1), AssertionError for
    accumulator types other than float16 and float32.
    """

    def __init__(
        self,
        params: Params,
        lr: float | None = None,
        betas: Betas | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        bias_correction: bool | None = None,
        loss_scaling: float | None = None,
        max_weight_norm: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
    ) -> None:
        given = dict(locals())
        numbers = {
            "lr": 1e-3 if lr is None else lr,
            "eps": 1e-8 if eps is None else eps,
            "weight_decay": 0.0 if weight_decay is None else weight_decay,
        }
        decays = (0.9, 0.999) if betas is None else betas
        for name, value in numbers.items():
            if value < 0.0:
                raise ValueError(f"Invalid {name}: {value} is negative")
        if not all(0.0 <= beta < 1.0 for beta in decays):
            raise ValueError(f"Invalid betas: {decays} aren't both in [0, 1)")
        limit = NO_WEIGHT_NORM_LIMIT if max_weight_norm is None else max_weight_norm
        defaults = {"lr": numbers["lr"], "betas": decays, **numbers, "max_weight_norm": limit}
        Optimizer.__init__(self)
        torch.optim.Optimizer.__init__(self, params, defaults)
        device = ["loss_scaling", "bias_correction", "accum_type"]
        device += ["first_order_momentum_accum_type", "second_order_momentum_accum_type"]
        self._set_up(given, device, ["lr", "betas", "eps", "weight_decay", "max_weight_norm"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step on the host. As in PopTorch, all groups use the constructor's max_weight_norm."""
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
                corrected=device_arguments(self).bias_correction,
            )
        return loss
