"""LAMB, which PyTorch doesn't have."""

from __future__ import annotations

from typing import Any, Callable

import torch
from ipu_simulator.numerics import update_rules

from .base import Betas, Optimizer, Params, device_arguments

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
                corrected=device_arguments(self).bias_correction,
            )
        return loss
