"""The optimizer of a compiled model: runs updates, accepts changes, and reports its state."""

from __future__ import annotations

from typing import Callable

import torch
from ipu_simulator import numerics

from .._logging import logger
from .._run.device_weights import DeviceWeights
from ..poptorch_core import createBackendError
from .base import Optimizer
from .settings import Extracted

Rule = numerics.Rule
_SCALE_FACTOR = "lossScaleUpdateFactor"
_PARAM_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "eps": "eps",
    "alpha": "alpha",
    "momentum": "momentum",
    "max_weight_norm": "maxWeightNorm",
}


class OptimizerOnDevice:
    """One executable's updater, and the optimizer whose attributes it uses.

    :param accumulators: whether the state on the host includes gradient accumulators.
    :param rounding: of the state, in ipu-float16; None in float32.
    :param automatic_scale: automatic loss scaling by the gradients of all `processes`; needs `rounding`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        found: Extracted,
        weights: DeviceWeights,
        accumulators: bool,
        rounding: numerics.StateRounding | None = None,
        automatic_scale: bool = False,
        processes: numerics.Processes | None = None,
    ) -> None:
        self._ids = [id(weights.parameters[i]) for i in weights.trainable]
        self._names = [weights.names[i] for i in weights.trainable]
        self._weights = [weights.device_parameters[i] for i in weights.trainable]
        self._accumulators = accumulators
        self._compiled = found
        self._found = found
        self._as_ipu = rounding is not None
        self._automatic = numerics.AutomaticLossScale() if self._as_ipu and automatic_scale else None
        self._processes = numerics.Processes(0, 1) if processes is None else processes
        self._updater = numerics.Updater(
            found.settings,
            self._names,
            self._weights,
            self._groups(found),
            rounding,
            [i in weights.groups for i in weights.trainable],
        )
        self._report: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
        self._optimizer = optimizer
        self._connect(optimizer)

    def _groups(self, found: Extracted) -> list[int | None]:
        return [found.group_of.get(identity) for identity in self._ids]

    def _connect(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, Optimizer):
            optimizer._connect(self._read, self._write)

    def update(self, gradients: list[torch.Tensor | None]) -> None:
        """Applies one weight update; a gradient is None for a weight that the loss doesn't depend on."""
        self._report = None
        scale = self.loss_scaling()
        self._updater.step(gradients, self._found.settings, scale)
        if self._automatic is not None:
            self._automatic.update(scale, self._processes)

    def loss_scaling(self) -> float:
        """The factor on the loss whose gradients `update` takes: 1 in float32, where it has no effect."""
        if not self._as_ipu:
            return 1.0
        return self._found.loss_scaling * (self._automatic.factor if self._automatic is not None else 1.0)

    @property
    def watch(self) -> Callable[[list[torch.Tensor | None]], None] | None:
        """Called with each micro batch's gradients for automatic loss scaling; None without it."""
        return None if self._automatic is None else self._automatic.watch

    @property
    def accumulator_type(self) -> torch.dtype | None:
        """The type of gradient accumulators; None: each weight's type (SGD's combined accumulator)."""
        settings = self._found.settings
        return None if settings.combined_accumulator else settings.accumulator_type

    def follow(self, optimizer: torch.optim.Optimizer, found: Extracted) -> None:
        """Applies an optimizer's attributes. A new optimizer object continues with the device's state.

        Raises poptorch.Error if the update rule or a compiled-in constant would change.
        """
        self._check_replacement(found)
        if optimizer is not self._optimizer:
            self.release()
            self._optimizer = optimizer
            self._connect(optimizer)
        if found != self._found:
            self._found = found
            self._updater.group_of = self._groups(found)
            self._report = None

    def release(self) -> None:
        """Disconnects the optimizer, which keeps the device's last state."""
        if isinstance(self._optimizer, Optimizer):
            self._optimizer._disconnect()

    def refresh(self) -> None:
        """Downloads the device's current state into the optimizer."""
        if isinstance(self._optimizer, Optimizer):
            self._optimizer._refresh()

    def _check_replacement(self, found: Extracted) -> None:
        compiled = self._compiled
        if found.type_name != compiled.type_name:
            raise createBackendError(
                f"Can't replace the compiled optimizer: it is {compiled.type_name}, the new one is "
                f"{found.type_name}. Call destroy() and wrap the model again.",
                "popart_exception",
            )
        for (group, name), value in compiled.constants.items():
            if group < len(found.settings.groups) and found.value(group, name) != value:
                raise createBackendError(
                    f"Can't replace the compiled optimizer: {name} of group {group} was compiled in as the "
                    f"constant {value}, the new one has {found.value(group, name)}. Mark it with "
                    "variable_attrs.markAsVariable before the model is compiled.",
                    "popart_exception",
                )

    def _read(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        if self._report is None:
            state = self._updater.state()
            if self._accumulators:
                # Zero between updates.
                dtype = self.accumulator_type if self._as_ipu else torch.float32
                state.update(
                    (f"Accum___{name}", torch.zeros_like(weight, dtype=dtype))
                    for name, weight in zip(self._names, self._weights)
                )
            if self._automatic is not None:
                state[_SCALE_FACTOR] = torch.tensor(self._automatic.factor)
            self._report = state, self._hyperparameters()
        return self._report

    def _write(self, state: dict[str, torch.Tensor]) -> None:
        missing = self._updater.load_state(state)
        if self._automatic is not None and _SCALE_FACTOR in state:
            self._automatic.factor = float(state[_SCALE_FACTOR])
        self._report = None
        if missing:
            logger.warning(
                "Optimizer state lacks %s: the device keeps its present values", ", ".join(missing)
            )

    def _hyperparameters(self) -> dict[str, torch.Tensor]:
        """The variable attributes of each weight by PopART's names: float32, 0-d."""
        values: dict[str, float] = {}
        for name, group in zip(self._names, self._groups(self._found)):
            if group is None:
                continue
            for popart_name, value in self._of_group(group).items():
                values[f"{popart_name}___specific___{name}"] = value
        if self._found.loss_scaling_is_variable:
            values["lossScaling_FLOAT"] = self._found.loss_scaling
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}

    def _of_group(self, index: int) -> dict[str, float]:
        group = self._found.settings.groups[index]
        variable = self._found.variable(index)
        if self._found.settings.rule is not Rule.SGD:
            named = {_PARAM_NAMES[name]: getattr(group, name) for name in variable if name in _PARAM_NAMES}
            if "betas" in variable:
                named.update(beta1=group.beta1, beta2=group.beta2)
            return named
        # SGD's names end in 0 without momentum, 1 with the combined accumulator, 2 with separate ones.
        kind = 0
        if self._found.settings.with_momentum:
            kind = 1 if self._found.settings.combined_accumulator else 2
        undamped = 1 - group.dampening
        rate = group.lr * undamped if kind == 0 else group.lr
        decay = 1 - rate * group.weight_decay if kind == 0 else group.weight_decay
        named = {}
        if {"lr", "dampening"} & {*variable}:
            named[f"scaledLearningRate{kind}"] = rate / self._found.loss_scaling
        if {"weight_decay", "lr", "dampening"} & {*variable}:
            named[f"weightDecayScaleFactor{kind}"] = decay
        if kind and "momentum" in variable:
            named[f"scaledMomentum{kind}"] = group.momentum
        if kind and "dampening" in variable:
            named[f"dampeningScaleFactor{kind}"] = undamped
        return named
