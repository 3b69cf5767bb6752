"""Weight updates as PopART computes them, on lists of float32 tensors, in place.

Letters: w weight, g gradient, m and v first and second moment, u update term, t steps done with this one.
Every function updates the tensors of one parameter group, which share their settings.
Sources: the update rules of PopART's optimizer documentation (SGD, Adam, LAMB, RMSProp);
LAMB: You et al., "Large Batch Optimization for Deep Learning" (2020), algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

import torch
from torch.optim.adam import adam as l2_adam
from torch.optim.adamw import adamw

Tensors = List[torch.Tensor]

# PyTorch's fused Adam runs on CPUs from 2.4 on.
HAS_FUSED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4)


@dataclass(frozen=True)
class GroupSettings:
    """Settings of one parameter group's update; a rule reads only those that it needs."""

    lr: float
    weight_decay: float = 0.0
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    alpha: float = 0.99
    max_weight_norm: float = 65500.0


def sgd(w: Tensors, g: Tensors, velocity: Tensors, group: GroupSettings, clipped: float = 1.0) -> None:
    """v = momentum*v + (1 - dampening)*(g + decay*w), from the first step on; w -= lr*v.

    Nesterov: w -= lr*(g + decay*w + momentum*v). `velocity` is empty for SGD without momentum. `clipped`
    multiplies what the learning rate multiplies (`sgd_terms`), but not the velocity that is kept.
    """
    if not velocity:
        rate = group.lr * (1 - group.dampening)
        if clipped != 1.0:
            torch._foreach_mul_(w, 1 - rate * group.weight_decay)
        elif group.weight_decay:
            torch._foreach_add_(g, w, alpha=group.weight_decay)
        torch._foreach_add_(w, g, alpha=-rate * clipped)
        return
    if group.weight_decay:
        torch._foreach_add_(g, w, alpha=group.weight_decay)
    torch._foreach_mul_(velocity, group.momentum)
    torch._foreach_add_(velocity, g, alpha=1 - group.dampening)
    rate = group.lr * clipped
    if group.nesterov:
        torch._foreach_add_(w, g, alpha=-rate)
        torch._foreach_add_(w, velocity, alpha=-rate * group.momentum)
    else:
        torch._foreach_add_(w, velocity, alpha=-rate)


def sgd_terms(w: Tensors, g: Tensors, velocity: Tensors, group: GroupSettings) -> Tensors:
    """The input of PopART's variable update, whose norm its clipping takes; nothing is changed.

    With momentum: the new velocity, or Nesterov's sum. Without: the gradient; weight decay stays outside.
    """
    if not velocity:
        return list(g)
    decayed = torch._foreach_add(g, w, alpha=group.weight_decay)
    updated = torch._foreach_mul(velocity, group.momentum)
    torch._foreach_add_(updated, decayed, alpha=1 - group.dampening)
    if group.nesterov:
        return list(torch._foreach_add(decayed, updated, alpha=group.momentum))
    return list(updated)


def adam(
    w: Tensors, g: Tensors, m: Tensors, v: Tensors, t: Sequence[int], group: GroupSettings, decoupled: bool
) -> None:
    """w -= lr * mhat / (sqrt(vhat) + eps); decay is added to g, or decoupled (AdamW).

    Contiguous tensors use PyTorch's fused kernel, which reads memory once; separate operations read it ten
    times. The two differ in the last bit of a weight.
    """
    dense = [HAS_FUSED and all(tensor.is_contiguous() for tensor in four) for four in zip(w, g, m, v)]
    for is_dense, update in ((True, fused_adam), (False, adam_by_operations)):
        chosen = [i for i, found in enumerate(dense) if found is is_dense]
        if chosen:
            own_w, own_g, own_m, own_v = ([tensors[i] for i in chosen] for tensors in (w, g, m, v))
            update(own_w, own_g, own_m, own_v, [t[i] for i in chosen], group, decoupled)


def fused_adam(
    w: Tensors, g: Tensors, m: Tensors, v: Tensors, t: Sequence[int], group: GroupSettings, decoupled: bool
) -> None:
    (adamw if decoupled else l2_adam)(
        w,
        g,
        m,
        v,
        [],
        [torch.tensor(float(step - 1)) for step in t],
        fused=True,
        amsgrad=False,
        beta1=group.beta1,
        beta2=group.beta2,
        lr=group.lr,
        weight_decay=group.weight_decay,
        eps=group.eps,
        maximize=False,
    )


def adam_by_operations(
    w: Tensors, g: Tensors, m: Tensors, v: Tensors, t: Sequence[int], group: GroupSettings, decoupled: bool
) -> None:
    if group.weight_decay:
        if decoupled:
            torch._foreach_mul_(w, 1 - group.lr * group.weight_decay)
        else:
            torch._foreach_add_(g, w, alpha=group.weight_decay)
    _moments(g, m, v, group)
    denominators = _root_second_moments(v, t, group, corrected=True)
    scales = [-group.lr / (1 - group.beta1**step) for step in t]
    torch._foreach_addcdiv_(w, m, denominators, scales)


def lamb(
    w: Tensors, g: Tensors, m: Tensors, v: Tensors, t: Sequence[int], group: GroupSettings, corrected: bool
) -> None:
    """w -= lr * min(|w|, max_weight_norm) / |u| * u, with u = mhat / (sqrt(vhat) + eps) + decay*w.

    The trust ratio is per tensor, and 1 where |w|, |u| or max_weight_norm is 0.
    """
    _moments(g, m, v, group)
    u = list(torch._foreach_div(m, _root_second_moments(v, t, group, corrected)))
    if corrected:
        torch._foreach_div_(u, [1 - group.beta1**step for step in t])
    if group.weight_decay:
        torch._foreach_add_(u, w, alpha=group.weight_decay)
    if group.max_weight_norm:
        w_norms = torch.stack(torch._foreach_norm(w)).clamp(max=group.max_weight_norm)
        u_norms = torch.stack(torch._foreach_norm(u))
        ratios = torch.where((w_norms == 0) | (u_norms == 0), torch.ones_like(w_norms), w_norms / u_norms)
        torch._foreach_mul_(u, ratios.tolist())
    torch._foreach_add_(w, u, alpha=-group.lr)


def rmsprop(
    w: Tensors,
    g: Tensors,
    square_average: Tensors,
    average: Tensors,
    momentum: Tensors,
    group: GroupSettings,
    eps_inside_root: bool,
) -> None:
    """w -= lr * g / (sqrt(v) + eps), or / sqrt(v + eps) in TensorFlow's variant.

    v is the running average of g*g, minus the square of g's running average if `average` isn't empty
    (centred). `momentum` isn't empty if the quotient goes through a velocity.
    """
    if group.weight_decay:
        torch._foreach_add_(g, w, alpha=group.weight_decay)
    torch._foreach_mul_(square_average, group.alpha)
    torch._foreach_addcmul_(square_average, g, g, 1 - group.alpha)
    variance = square_average
    if average:
        torch._foreach_mul_(average, group.alpha)
        torch._foreach_add_(average, g, alpha=1 - group.alpha)
        variance = list(torch._foreach_addcmul(square_average, average, average, -1))
    if eps_inside_root:
        denominators = list(torch._foreach_sqrt(torch._foreach_add(variance, group.eps)))
    else:
        denominators = list(torch._foreach_sqrt(variance))
        torch._foreach_add_(denominators, group.eps)
    if not momentum:
        torch._foreach_addcdiv_(w, g, denominators, -group.lr)
        return
    torch._foreach_mul_(momentum, group.momentum)
    torch._foreach_addcdiv_(momentum, g, denominators, 1)
    torch._foreach_add_(w, momentum, alpha=-group.lr)


def clip_by_global_norm(g: Tensors, max_norm: float) -> None:
    """Scales all gradients by max_norm / max(global norm, max_norm)."""
    torch._foreach_mul_(g, clipping_factor(g, max_norm))


def clipping_factor(tensors: Tensors, max_norm: float) -> torch.Tensor:
    """max_norm / max(global norm, max_norm): 0-d."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    factor: torch.Tensor = max_norm / norm.clamp(min=max_norm)
    return factor


def _moments(g: Tensors, m: Tensors, v: Tensors, group: GroupSettings) -> None:
    torch._foreach_lerp_(m, g, 1 - group.beta1)
    torch._foreach_mul_(v, group.beta2)
    torch._foreach_addcmul_(v, g, g, 1 - group.beta2)


def _root_second_moments(v: Tensors, t: Sequence[int], group: GroupSettings, corrected: bool) -> Tensors:
    roots = list(torch._foreach_sqrt(v))
    if corrected:
        torch._foreach_div_(roots, [(1 - group.beta2**step) ** 0.5 for step in t])
    torch._foreach_add_(roots, group.eps)
    return roots
