"""SGD, Adam, AdamW and RMSprop: PyTorch's classes with the device's arguments."""

from __future__ import annotations

import math

import torch

from .._logging import logger
from ._optimizer import Optimizer, without_none

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
