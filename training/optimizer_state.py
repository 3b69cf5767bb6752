"""The optimiser state of a checkpoint, by PopART's names: held against the run that resumes it.

State is KIND___WEIGHT (Accl1 and Accl2 the moments, Step the number of updates, Accum the accumulated
gradient), a variable hyperparameter PREFIX___specific___WEIGHT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import torch

from .errors import CheckpointError
from .optimizer import OptimizerPlan

State = Mapping[str, Mapping[str, torch.Tensor]]

# Of automatic loss scaling; they belong to no weight.
_LOSS_SCALES = ("lossScaleUpdateFactor", "finalLossScale")
# Zero between updates, and not saved without gradient accumulation: a state may have them or not.
_ACCUMULATOR = "Accum"


def state_at_rate(state: Dict[str, Any], learning_rate: float, loss_scaling: float) -> Dict[str, Any]:
    """A saved optimizer state, by PopART's names, of a run that goes on at this learning rate.

    PopTorch brings a loaded `ipu_param` to the device after `setOptimizer` had its turn, so the first device
    call of a resumed run would use the learning rate of the call before. SGD's rate, with a momentum, is
    divided by the loss scaling.
    """
    rates = {"learningRate": learning_rate, "scaledLearningRate2": learning_rate / loss_scaling}
    parameters = dict(state["ipu_param"])
    for name in parameters:
        prefix = name.partition("___")[0]
        if prefix in rates:
            parameters[name] = torch.tensor(rates[prefix])
    return {**state, "ipu_param": parameters}


def check_state(
    folder: Path, saved: State, model: torch.nn.Module, plan: OptimizerPlan, step: int, *, as_ipu: bool
) -> None:
    """Raises CheckpointError unless the saved optimiser state of `folder` is this model's and optimiser's.

    Its names, shapes and types are those that the simulator saves after `step` updates, no number is NaN or
    infinite, and constant hyperparameters are the configuration's. `as_ipu`: the state has the types that it
    has on an IPU; else it is float32.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    problem = _state_problem(saved["ipu_state"], weights, _types(plan, as_ipu), step)
    problem = problem or _hyperparameter_problem(saved["ipu_param"], weights, plan)
    if problem:
        raise CheckpointError(
            f"{folder / 'optimizer.safetensors'} isn't the optimiser state of this run: {problem}. Take an "
            f"earlier checkpoint, or start a new run from the weights with --checkpoint {folder}"
        )


def _types(plan: OptimizerPlan, as_ipu: bool) -> Dict[str, torch.dtype]:
    """The type of each kind of state, as `build_optimizer` asks for it."""
    if plan.optimizer == "sgd":
        return {"Accl1": torch.float32}
    is_half = as_ipu and plan.precision == "float16" and plan.enable_half_first_order_momentum
    types = {"Accl1": torch.float16 if is_half else torch.float32, "Accl2": torch.float32}
    return types if plan.optimizer == "lamb_no_bias_correction" else {**types, "Step": torch.float32}


def _state_problem(
    state: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.nn.Parameter],
    types: Mapping[str, torch.dtype],
    step: int,
) -> Optional[str]:
    for key, tensor in state.items():
        kind, separator, name = key.partition("___")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            return f"{key[:80]} holds NaN, infinity or numbers of type {tensor.dtype}"
        if key in _LOSS_SCALES:
            if tensor.numel() != 1 or not float(tensor) > 0:
                return f"{key} is {_shown(tensor)}, not a number above 0"
            continue
        if not separator or name not in weights:
            return f"{key[:80]} belongs to no weight of the model"
        if kind not in types and kind != _ACCUMULATOR:
            return f"{key[:80]} isn't a tensor of this optimiser, which has {', '.join(types)}"
        shape = () if kind == "Step" else tuple(weights[name].shape)
        if tuple(tensor.shape) != shape:
            return f"{key} has shape {tuple(tensor.shape)}, not {shape}"
        if kind in types and tensor.dtype is not types[kind]:
            return f"{key} is of type {tensor.dtype}, not {types[kind]}"
        if kind == "Accl2" and bool((tensor < 0).any()):
            return f"{key} is an average of squares, but has numbers below 0"
    for kind in types:
        missing = [name for name in weights if f"{kind}___{name}" not in state]
        if missing:
            return f"{kind} is missing for the weight {missing[0]}"
    for name in weights if "Step" in types else ():
        # A weight that no loss depended on has seen no update.
        updated = any(bool(state[f"{kind}___{name}"].any()) for kind in types)
        if updated and float(state[f"Step___{name}"]) != step:
            return f"Step___{name} is {_shown(state[f'Step___{name}'])}, but the checkpoint's step is {step}"
    return None


def _hyperparameter_problem(
    found: Mapping[str, torch.Tensor], weights: Mapping[str, torch.nn.Parameter], plan: OptimizerPlan
) -> Optional[str]:
    if not found:
        return "it has no hyperparameter"
    prefixes = _prefixes(plan)
    fixed = {"eps": plan.optimizer_eps, "scaledMomentum2": plan.momentum}
    expected = [f"{prefix}___specific___{name}" for prefix in prefixes for name in weights]
    missing = [name for name in ("lossScaling_FLOAT", *expected) if name not in found]
    if missing:
        return f"the hyperparameter {missing[0]} is missing"
    known = {"lossScaling_FLOAT", *_LOSS_SCALES, *expected}
    for key, value in found.items():
        if key not in known:
            return f"this optimiser has no hyperparameter {key[:80]}"
        is_number = value.numel() == 1 and value.is_floating_point()
        if not is_number or not bool(torch.isfinite(value).all()):
            return f"the hyperparameter {key} is {_shown(value)}, not a finite number"
        own = plan.loss_scaling if key == "lossScaling_FLOAT" else fixed.get(key.partition("___")[0])
        if own is not None and float(value) != float(torch.tensor(own, dtype=torch.float32)):
            return f"the hyperparameter {key} is {_shown(value)}, but the configuration's is {own:g}"
    return None


def _prefixes(plan: OptimizerPlan) -> List[str]:
    """Of the hyperparameters that `build_optimizer` leaves variable."""
    if plan.optimizer == "sgd":
        return ["scaledLearningRate2", "weightDecayScaleFactor2", "scaledMomentum2"]
    return ["learningRate", "eps"]


def _shown(tensor: torch.Tensor) -> str:
    return str(tensor.flatten()[:3].tolist() if tensor.numel() != 1 else tensor.item())[:60]
