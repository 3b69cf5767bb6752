"""What the optimizers of this package share: which attributes may change, and the state on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Tuple, Union

import torch

# What PyTorch's optimizers take: weights, or groups of them with attributes.
Params = Union[Iterable[torch.Tensor], Iterable[Dict[str, Any]]]
Betas = Tuple[float, float]

if TYPE_CHECKING:
    # Mixed into one of PyTorch's optimizers.
    _Mixed = torch.optim.Optimizer
else:
    _Mixed = object


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


@dataclass(frozen=True)
class DeviceArguments:
    """The arguments that only the device has, with the values that stand for one left out.

    An optimizer takes some of them; for those that it doesn't take, and for PyTorch's own optimizers, these
    values hold too.

    :ivar loss_scaling: the loss is multiplied and the gradient divided by it.
    :ivar velocity_scaling: scales what SGD's combined accumulator keeps.
    :ivar use_combined_accum: SGD: one tensor for velocity and gradient accumulation.
    :ivar accum_type: float16 or float32, of the gradient accumulator; likewise the other types, of SGD's
        velocity and of the moments.
    :ivar max_grad_norm: gradients are clipped by their global norm; infinity for not at all.
    :ivar bias_correction: whether the moments are divided by 1 - beta**t.
    :ivar use_tf_variant: RMSprop: epsilon inside the root, and the average of squares starts at 1.
    """

    loss_scaling: float = 1.0
    velocity_scaling: float = 1.0
    use_combined_accum: bool = False
    accum_type: torch.dtype = torch.float32
    velocity_accum_type: torch.dtype = torch.float32
    first_order_momentum_accum_type: torch.dtype = torch.float32
    second_order_momentum_accum_type: torch.dtype = torch.float32
    max_grad_norm: float = math.inf
    bias_correction: bool = True
    use_tf_variant: bool = False


DEVICE_ARGUMENTS = tuple(field.name for field in fields(DeviceArguments))
# Those that the program may change while it runs.
_MAY_VARY = ("loss_scaling", "velocity_scaling", "max_grad_norm")


def device_arguments(optimizer: torch.optim.Optimizer) -> DeviceArguments:
    """Those that an optimizer has now, whatever its class."""
    return DeviceArguments(
        **{name: getattr(optimizer, name) for name in DEVICE_ARGUMENTS if hasattr(optimizer, name)}
    )


# Reads the device: tensors by state name and by hyperparameter name, the same objects until it runs again.
DeviceReader = Callable[[], "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]"]
DeviceWriter = Callable[["dict[str, torch.Tensor]"], None]


class Optimizer(_Mixed):
    """Base of the optimizers in this package.

    `state_dict()` is PyTorch's (whose `state` stays empty) with `ipu_state` and `ipu_param`: tensors by
    PopART's names, None before the model is compiled.
    """

    variable_attrs: VariableAttributes
    loss_scaling: float

    def __init__(self) -> None:
        self._ipu_state: dict[str, torch.Tensor] | None = None
        self._ipu_param: dict[str, torch.Tensor] | None = None
        self._reader: DeviceReader | None = None
        self._writer: DeviceWriter | None = None

    def _set_up(self, given: dict[str, Any], takes: list[str], group_attributes: list[str]) -> None:
        """Keep the device's arguments, of which the optimizer `takes` these.

        `given` holds all arguments, None for those left out: an argument that was given is variable, one left
        out is compiled in as a constant.
        """
        for name in takes:
            setattr(self, name, getattr(DeviceArguments, name) if given[name] is None else given[name])
        for name in takes:
            if name.endswith("accum_type"):
                assert getattr(self, name) in (torch.float32, torch.float16), (
                    "Accumulation types must be either torch.float32 or torch.float16"
                )
        allowed = group_attributes + [name for name in _MAY_VARY if name in takes]
        variable = [name for name in allowed if given.get(name) is not None]
        self.variable_attrs = VariableAttributes(variable, allowed)

    # ---- between device and host

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
        # What PyTorch's own state lacks.
        ours = ("variable_attrs", *DEVICE_ARGUMENTS)
        kept = {name: getattr(self, name) for name in ours if hasattr(self, name)}
        disconnected = {"_reader": None, "_writer": None}
        state = {"_ipu_state": self._ipu_state, "_ipu_param": self._ipu_param}
        return {**super().__getstate__(), **kept, **state, **disconnected}


def without_none(**arguments: Any) -> dict[str, Any]:
    """Only the arguments that were given: PyTorch's own defaults hold for the others."""
    return {name: value for name, value in arguments.items() if value is not None}
