"""Parameter groups, PopTorch optimisers and learning rate schedules of the published recipes.

Groups (Graphcore's PyTorch BERT and optimum-graphcore): biases have neither weight decay nor LAMB's trust
ratio (`max_weight_norm` 0 switches it off); LayerNorm weights have no decay; all other weights decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import torch

import ipu
from config import OptimizerKeys
from ipu.keys import BatchKeys, DeviceKeys


@dataclass(frozen=True)
class OptimizerPlan(DeviceKeys, OptimizerKeys, BatchKeys):
    """The keys from which an optimizer is built."""


def parameter_groups(model: torch.nn.Module, weight_decay: float, *, lamb: bool) -> List[Dict[str, Any]]:
    """Three groups, with every trainable parameter in exactly one; a tied parameter counts once."""
    biases, norms, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        elif parameter.dim() == 1:
            norms.append(parameter)
        else:
            rest.append(parameter)
    without_ratio: Dict[str, Any] = {"max_weight_norm": 0} if lamb else {}
    return [
        {"params": rest, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0, **without_ratio},
    ]


def device_max_grad_norm(plan: OptimizerPlan) -> Optional[float]:
    """The clipping threshold for PopTorch, which clips the accumulated gradient.

    The configuration's `max_grad_norm` applies to the mean gradient, independent of accumulation and
    replicas. With `reduction: sum` the device has accumulation x replicas times the mean.
    """
    if plan.max_grad_norm is None:
        return None
    scale = plan.gradient_accumulation * plan.replication_factor if plan.reduction == "sum" else 1
    return plan.max_grad_norm * scale


def build_optimizer(model: torch.nn.Module, plan: OptimizerPlan) -> Any:
    """A `poptorch.optim` optimiser; weight decay and betas are compile-time constants as in the recipes."""
    optim = ipu.poptorch.optim
    half = plan.precision == "float16"
    lamb = plan.optimizer.startswith("lamb")
    groups = parameter_groups(model, plan.weight_decay, lamb=lamb)
    arguments: Dict[str, Any] = {"lr": plan.learning_rate, "loss_scaling": plan.loss_scaling}
    if not lamb and plan.max_grad_norm is not None:
        arguments["max_grad_norm"] = device_max_grad_norm(plan)
    if plan.optimizer == "sgd":
        arguments.update(momentum=plan.momentum, weight_decay=plan.weight_decay, use_combined_accum=False)
        if half:
            arguments.update(accum_type=torch.float16)
        return optim.SGD(groups, **arguments)
    first_moment = torch.float16 if half and plan.enable_half_first_order_momentum else torch.float32
    arguments.update(
        betas=(plan.adam_beta1, plan.adam_beta2),
        eps=plan.optimizer_eps,
        weight_decay=plan.weight_decay,
        accum_type=torch.float16 if half else torch.float32,
        first_order_momentum_accum_type=first_moment,
        second_order_momentum_accum_type=torch.float32,
    )
    if plan.optimizer == "adam":
        optimizer = optim.Adam(groups, **arguments)
    elif plan.optimizer == "adamw":
        # PopTorch 3.4 corrects the bias regardless of this argument; True states what the device does.
        optimizer = optim.AdamW(groups, bias_correction=True, **arguments)
    else:
        optimizer = optim.LAMB(groups, bias_correction=plan.optimizer == "lamb", **arguments)
        optimizer.variable_attrs.markAsConstant("max_weight_norm")
    for attribute in ("weight_decay", "betas"):
        optimizer.variable_attrs.markAsConstant(attribute)
    return optimizer


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Sets it for every group; takes effect at the executor's next `setOptimizer`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each update, a pure function of the s updates done before it.

    W warm-up updates, T updates in total, p warm-up power:

        warm-up   lr = peak * ((s + 1) / W) ** p               for s < W
        decay     lr = end + (peak - end) * (T - s) / (T - W)  for s >= W (linear: end = 0)

    So the first update already changes the weights (the reference applications waste it at rate 0), the
    update at s = W uses the peak, and the last, s = T - 1, is one decrement above `lr_end`. p = 1 is the
    usual linear warm-up, p = 0.5 GroupBERT's square root (`lr_power [.5, 1]` in its TensorFlow 1 recipes).
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
