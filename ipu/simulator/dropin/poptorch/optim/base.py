"""Base of the optimizers: variable attributes, the device's arguments, the state on the device."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Tuple, Union

import torch

# Without newer PyTorch's wrapper, which imports its compiler, torch._dynamo, to switch it off: a second.
_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
_zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
_state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
_load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

# Parameters as PyTorch's optimizers accept them: weights, or groups of weights with attributes.
Params = Union[Iterable[torch.Tensor], Iterable[Dict[str, Any]]]
Betas = Tuple[float, float]

if TYPE_CHECKING:
    # A mixin of PyTorch's optimizers.
    _Mixed = torch.optim.Optimizer
else:
    _Mixed = object


class VariableAttributes:
    """Which attributes may change after compilation; the others are compiled in as constants.

    :param variable_attributes: the initially variable ones.
    :param allowed_attributes: all attributes; any other name raises AssertionError.
    """

    def __init__(self, variable_attributes: list[str], allowed_attributes: list[str]) -> None:
        self._variable_attributes = set(variable_attributes)
        self._allowed_attributes = list(allowed_attributes)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed_attributes, (
            f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"
        )

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is compiled in as a constant."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Compiles the attribute in as a constant. Raises AssertionError for an unknown one."""
        self._check(attr)
        self._variable_attributes.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        """Lets `setOptimizer` change the attribute after compilation. AssertionError for an unknown one."""
        self._check(attr)
        self._variable_attributes.add(attr)


@dataclass(frozen=True)
class DeviceArguments:
    """The device's arguments, with their defaults.

    Each optimizer accepts some of them. The defaults also hold for arguments that an optimizer doesn't
    accept, and for PyTorch's optimizers.

    :ivar loss_scaling: the loss is multiplied and the gradient divided by this factor.
    :ivar velocity_scaling: scales SGD's combined accumulator.
    :ivar use_combined_accum: SGD: one tensor for velocity and gradient accumulation.
    :ivar accum_type: of the gradient accumulator: float16 or float32; likewise the types of SGD's velocity
        and of the moments.
    :ivar max_grad_norm: clip gradients to this global norm; infinity: no clipping.
    :ivar bias_correction: whether the moments are divided by 1 - beta**t.
    :ivar use_tf_variant: RMSprop: epsilon inside the square root, and the mean square starts at 1.
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
# The device's arguments that may be variable.
MAY_VARY = ("loss_scaling", "velocity_scaling", "max_grad_norm")


def device_arguments(optimizer: torch.optim.Optimizer) -> DeviceArguments:
    """The current device arguments of an optimizer of any class."""
    return DeviceArguments(
        **{name: getattr(optimizer, name) for name in DEVICE_ARGUMENTS if hasattr(optimizer, name)}
    )


# Reads (ipu_state, ipu_param) from the device; returns the same objects until the next run.
DeviceReader = Callable[[], "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]"]
# Uploads a state; None if only hyperparameters were loaded.
DeviceWriter = Callable[["dict[str, torch.Tensor] | None"], None]


class Optimizer(_Mixed):
    """Base of the optimizers in this package.

    `state_dict()` is PyTorch's, whose `state` remains empty, with `ipu_state` and `ipu_param`: tensors by
    PopART's names; None before the model is compiled.
    """

    variable_attrs: VariableAttributes
    loss_scaling: float

    def add_param_group(self, param_group: Dict[str, Any]) -> None:
        """As in PyTorch."""
        _add_param_group(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in PyTorch."""
        _zero_grad(self, set_to_none)

    def __init__(self) -> None:
        self._ipu_state: dict[str, torch.Tensor] | None = None
        self._ipu_param: dict[str, torch.Tensor] | None = None
        self._reader: DeviceReader | None = None
        self._writer: DeviceWriter | None = None
        # Hyperparameters that were loaded, and the optimizer's attributes at that time.
        self._loaded: tuple[dict[str, torch.Tensor], list[Any]] | None = None

    def _set_up(self, given: dict[str, Any], takes: list[str], group_attributes: list[str]) -> None:
        """Stores the device's arguments, of which the optimizer accepts `takes`.

        `given` holds the constructor's arguments, None for omitted ones. A given argument is variable, an
        omitted one is compiled in as a constant. Raises AssertionError for an invalid accumulator type.
        """
        for name in takes:
            setattr(self, name, getattr(DeviceArguments, name) if given[name] is None else given[name])
        for name in takes:
            if name.endswith("accum_type"):
                assert getattr(self, name) in (torch.float32, torch.float16), (
                    "Accumulation types must be either torch.float32 or torch.float16"
                )
        allowed = group_attributes + [name for name in MAY_VARY if name in takes]
        variable = [name for name in allowed if given.get(name) is not None]
        self.variable_attrs = VariableAttributes(variable, allowed)

    # ---- between device and host

    def _connect(self, reader: DeviceReader, writer: DeviceWriter) -> None:
        """Connects the optimizer to the device's state, and uploads a state that was loaded before."""
        self._reader, self._writer = reader, writer
        if self._ipu_state is not None or self._loaded is not None:
            writer(self._ipu_state)

    def _disconnect(self) -> None:
        """Disconnects from the device and keeps its last state."""
        self._refresh()
        self._reader = self._writer = None

    def _refresh(self) -> None:
        if self._reader is not None:
            self._ipu_state, self._ipu_param = self._reader()

    @property
    def _loaded_parameters(self) -> dict[str, torch.Tensor] | None:
        """The loaded `ipu_param`, with which the device computes until the attributes change."""
        return None if self._loaded is None else self._loaded[0]

    def _attributes(self) -> list[Any]:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return [copy.deepcopy(groups), device_arguments(self)]

    def _attributes_applied(self) -> None:
        """Called when the executor takes over the attributes: they rule if they changed after a load."""
        if self._loaded is not None and self._loaded[1] != self._attributes():
            self._loaded = None

    def has_state(self) -> bool:
        """Whether there is a state: on the device, or loaded for it."""
        return self._reader is not None or self._ipu_state is not None

    def get_state_dict(self) -> dict[str, Any]:
        """The device's part of `state_dict()`."""
        self._refresh()
        return {"ipu_state": self._ipu_state, "ipu_param": self._ipu_param}

    def set_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the device's part of a state; it is uploaded when the model is compiled, if that is later.

        The device computes with the hyperparameters in `ipu_param` from the next run on, until `setOptimizer`
        brings other attributes. Raises RuntimeError for an empty dictionary, and for one without `ipu_state`
        and `ipu_param`; ValueError for a state that is no tensor, a hyperparameter that is no number, and a
        loss scaling that isn't above 0.
        """
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if "ipu_state" not in state or "ipu_param" not in state:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        _check_tensors(state)
        parameters = state["ipu_param"]
        self._loaded = None if parameters is None else (dict(parameters), self._attributes())
        if self._writer is None:
            self._ipu_state, self._ipu_param = state["ipu_state"], parameters
        else:
            self._writer(state["ipu_state"])

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's state dictionary with the device's part."""
        return {**_state_dict(self), **self.get_state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a `state_dict()`: hyperparameters into the groups, the rest to the device.

        Raises RuntimeError for a state dictionary without `ipu_state` and `ipu_param`.
        """
        _load_state_dict(self, state)
        self.set_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which isn't connected to the device, but has the device's last state."""
        self._refresh()
        # Not part of PyTorch's state.
        ours = ("variable_attrs", *DEVICE_ARGUMENTS)
        kept = {name: getattr(self, name) for name in ours if hasattr(self, name)}
        disconnected = {"_reader": None, "_writer": None}
        state = {
            "_ipu_state": self._ipu_state,
            "_ipu_param": self._ipu_param,
            "_loaded": self._loaded,
        }
        return {**super().__getstate__(), **kept, **state, **disconnected}


def _check_tensors(state: dict[str, Any]) -> None:
    for name, value in (state["ipu_state"] or {}).items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"Optimizer state {name} must be a tensor, it is {value!r}.")
    for name, value in (state["ipu_param"] or {}).items():
        is_number = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, (int, float))
        if not is_number:
            raise ValueError(f"Optimizer hyperparameter {name} must be a number, it is {value!r}.")
        if name.startswith("lossScaling") and not float(value) > 0:
            raise ValueError(f"Optimizer hyperparameter {name} must be above 0, it is {float(value)}.")


def without_none(**arguments: Any) -> dict[str, Any]:
    """The given arguments; PyTorch's defaults apply to the omitted ones (None)."""
    return {name: value for name, value in arguments.items() if value is not None}
