"""The optimizer of a compiled model: runs updates, accepts changes, and reports its state."""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping

import torch
from ipu_simulator import numerics

from .._logging import logger
from .._run.device_weights import DeviceWeights
from ..poptorch_core import createBackendError
from .base import Optimizer
from .hyperparameters import FINAL_LOSS_SCALE, SCALE_FACTOR, Hyperparameters
from .settings import Extracted

_SHOWN = 4
# Arguments of the device that are never variable.
_COMPILED_IN = (
    "accum_type",
    "velocity_accum_type",
    "first_order_momentum_accum_type",
    "second_order_momentum_accum_type",
    "use_tf_variant",
)


class OptimizerOnDevice:
    """One executable's updater, and the optimizer whose attributes it uses.

    :param accumulators: whether the state on the host includes gradient accumulators.
    :param rounding: of the state, in ipu-float16; None in float32.
    :param automatic_scale: automatic loss scaling by the gradients of all `processes`.
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
        # Of weights that the host gets for every replica: the group of each replica.
        self._every = {weights.names[i]: weights.replicas_returned(i) for i in weights.trainable}
        # Of weights that differ between replicas, likewise.
        self._differing = {weights.names[i]: weights.groups.get(i) for i in weights.trainable}
        settings = found.settings
        # SGD's combined accumulator is its velocity.
        self._accumulators = accumulators and not (settings.combined_accumulator and settings.with_momentum)
        self._compiled = found
        self._found = found
        self._as_ipu = rounding is not None
        self._automatic = numerics.AutomaticLossScale() if automatic_scale else None
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
        self._loaded: Mapping[str, torch.Tensor] | None = None
        self._parameters = Hyperparameters(found, self._names, self._groups(found))
        self._connect(optimizer)

    def _groups(self, found: Extracted) -> list[int | None]:
        return [found.group_of.get(identity) for identity in self._ids]

    def _connect(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, Optimizer):
            optimizer._connect(self._read, self._write)
        self._apply(self._found)

    def _apply(self, found: Extracted) -> None:
        """Updates compute with these attributes from now on, and with those that the optimizer loaded."""
        optimizer = self._optimizer
        loaded = optimizer._loaded_parameters if isinstance(optimizer, Optimizer) else None
        if found == self._found and loaded is self._loaded:
            return
        self._found, self._loaded, self._report = found, loaded, None
        self._parameters = Hyperparameters(found, self._names, self._groups(found), loaded)
        self._updater.group_of = self._parameters.group_of
        _warn_of_missing(self._parameters.missing)
        _warn_of_ignored("hyperparameters", self._parameters.ignored, "they aren't variable")

    def update(self, gradients: list[torch.Tensor | None]) -> None:
        """Applies one weight update; a gradient is None for a weight that the loss doesn't depend on."""
        self._report = None
        scale = self.loss_scale
        settings = self._parameters.settings
        if settings.rule is numerics.Rule.SGD:
            # PopART clips the velocity as the device holds it.
            settings = replace(settings, max_grad_norm=settings.max_grad_norm / self._velocity_scale)
        self._updater.step(gradients, settings, self.loss_scaling())
        if self._automatic is not None:
            self._automatic.update(scale, self._processes)

    @property
    def _velocity_scale(self) -> float:
        """The factor on SGD's velocity, or on its gradient without momentum, on the device."""
        settings = self._parameters.settings
        combined = settings.combined_accumulator and settings.with_momentum
        return settings.velocity_scaling if combined else self.loss_scale

    @property
    def loss_scale(self) -> float:
        """The program's loss scaling, times the factor of automatic loss scaling."""
        return self._parameters.loss_scaling * (1.0 if self._automatic is None else self._automatic.factor)

    def loss_scaling(self) -> float:
        """The factor on the loss whose gradients `update` takes: 1 in float32, where it has no effect."""
        return self.loss_scale if self._as_ipu else 1.0

    def tensors(self, names: set[str], replica: int) -> dict[str, torch.Tensor]:
        """A replica's values before the next update, of state, hyperparameters and loss scales, by PopART's
        names: at least those in `names` that are tensors of the optimizer.
        """
        named: dict[str, torch.Tensor] = {}
        if self._automatic is not None:
            named[SCALE_FACTOR] = torch.tensor(self._automatic.factor)
            named[FINAL_LOSS_SCALE] = torch.tensor(self.loss_scale)
        if names <= {*named}:
            return named
        state, parameters = self._read()
        named.update((name, self._of_replica(name, tensor, replica)) for name, tensor in state.items())
        return {**named, **parameters}

    def _of_replica(self, name: str, tensor: torch.Tensor, replica: int) -> torch.Tensor:
        """A replica's part of a weight's state as `_read` gives it."""
        weight = name.partition("___")[2]
        groups = self._differing.get(weight)
        if self._every.get(weight) is not None:
            return tensor[replica]
        return tensor if groups is None else tensor[groups[replica]]

    @property
    def watch(self) -> numerics.Watch | None:
        """Called with each micro batch's gradients for automatic loss scaling; None without it."""
        if self._automatic is None:
            return None
        automatic = self._automatic
        return lambda gradients, scale: automatic.watch(
            gradients, scale * self.loss_scale / self.loss_scaling()
        )

    @property
    def accumulator_type(self) -> torch.dtype | None:
        """The type of gradient accumulators; None: each weight's type (SGD's combined accumulator)."""
        settings = self._found.settings
        return None if settings.combined_accumulator else settings.accumulator_type

    def follow(self, optimizer: torch.optim.Optimizer, found: Extracted) -> None:
        """Applies an optimizer's attributes. A new optimizer object continues with the device's state.

        Raises poptorch.Error for an invalid value, and if the update rule or a constant would change.
        """
        check_values(found)
        self._check_replacement(found)
        found = found.with_constants_of(self._compiled)
        if optimizer is not self._optimizer:
            self.release()
            self._optimizer = optimizer
            self._apply(found)
            self._connect(optimizer)
        self._apply(found)

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
        constants = [
            (f"{name} of group {group}", value, found.value(group, name))
            for (group, name), value in compiled.constants.items()
            if group < len(found.settings.groups)
        ]
        constants += [
            (name, getattr(compiled.device, name), getattr(found.device, name))
            for name in compiled.device_constants
        ]
        for what, value, now in constants:
            if now != value:
                raise createBackendError(
                    f"Can't replace the compiled optimizer: {what} was compiled in as the constant {value}, "
                    f"the new one has {now}. Mark it with variable_attrs.markAsVariable before the model is "
                    "compiled.",
                    "popart_exception",
                )
        for name in _COMPILED_IN:
            value, now = getattr(compiled.device, name), getattr(found.device, name)
            if now != value:
                raise createBackendError(
                    f"Can't replace the compiled optimizer: its {name} is {value}, the new one has {now}. "
                    "Call destroy() and wrap the model again.",
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
            state = {name: self._of_every_replica(name, tensor) for name, tensor in state.items()}
            if self._automatic is not None:
                state[SCALE_FACTOR] = torch.tensor(self._automatic.factor)
            self._report = state, self._parameters.values()
        return self._report

    def _of_every_replica(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A weight's state as the host gets it: [replicas, ...] if it gets the weight so."""
        weight = name.partition("___")[2]
        groups = self._every.get(weight)
        if groups is None:
            return tensor
        return tensor[groups] if self._differing[weight] else torch.stack([tensor] * len(groups))

    def _of_every_group(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The reverse of `_of_every_replica`."""
        weight = name.partition("___")[2]
        groups = self._every.get(weight)
        if groups is None or tensor.shape[:1] != (len(groups),):
            return tensor
        first = [groups.index(group) for group in range(1 + max(groups))]
        return tensor[first] if self._differing[weight] else tensor[0]

    def _write(self, state: Mapping[str, torch.Tensor] | None) -> None:
        """Uploads a loaded state; None: the device keeps its own. Loaded hyperparameters apply too."""
        self._apply(self._found)
        if state is None:
            return
        known = {
            *numerics.state_names(self._found.settings, self._names),
            *([] if self._automatic is None else [SCALE_FACTOR]),
        }
        # An accumulator is zero between updates; a state of a run with more of them may be loaded.
        ignored = [name for name in state if name not in known and not name.startswith("Accum___")]
        _warn_of_ignored("state", ignored, "there is no such tensor")
        missing = self._updater.load_state(
            {name: self._of_every_group(name, tensor) for name, tensor in state.items()}
        )
        if self._automatic is not None and SCALE_FACTOR in state:
            self._automatic.factor = float(state[SCALE_FACTOR])
        elif self._automatic is not None:
            missing.append(SCALE_FACTOR)
        self._report = None
        _warn_of_missing(missing)


def check_values(found: Extracted) -> None:
    """Raises poptorch.Error for values that PopART refuses."""
    invalid = found.invalid()
    if invalid:
        raise createBackendError(
            f"Invalid {found.type_name} optimizer: {', '.join(invalid)}. Loss and velocity scaling must be "
            "above 0, betas from 0 to below 1, all others at least 0.",
            "popart_exception",
        )


def _warn_of_missing(names: list[str]) -> None:
    if names:
        logger.warning("Optimizer state lacks %s: the device keeps its present values", _listed(names))


def _warn_of_ignored(what: str, names: list[str], why: str) -> None:
    if names:
        logger.warning("Ignoring optimizer %s %s: %s in the compiled model", what, _listed(names), why)


def _listed(names: list[str]) -> str:
    """The first few names, and how many there are: a state has several for each weight."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
