"""What every optimizer of this package shares: attributes, and the state that lives on the device."""

from __future__ import annotations

from typing import Any, Callable

import torch

from ._attributes import VariableAttributes

# Reads the device: tensors by state name and by hyperparameter name, the same objects until it runs again.
DeviceReader = Callable[[], "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]"]
DeviceWriter = Callable[["dict[str, torch.Tensor]"], None]


class Optimizer:
    """Base of the optimizers in this package.

    `state_dict()` is PyTorch's (whose `state` stays empty) with `ipu_state` and `ipu_param`: tensors by
    PopART's names, None before the model is compiled.
    """

    # What pickling and copying carry beside PyTorch's own state.
    _KEPT = (
        "variable_attrs",
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "velocity_accum_type",
        "use_combined_accum",
        "velocity_scaling",
        "bias_correction",
        "max_grad_norm",
        "use_tf_variant",
    )

    def __init__(self) -> None:
        self._ipu_state: dict[str, torch.Tensor] | None = None
        self._ipu_param: dict[str, torch.Tensor] | None = None
        self._reader: DeviceReader | None = None
        self._writer: DeviceWriter | None = None

    def _set_up(self, given: dict[str, Any], defaults: dict[str, Any], group_attributes: list[str]) -> None:
        """Keep the device's arguments. `given` holds all arguments, None for those left out.

        An argument that was given is variable, one left out is compiled in as a constant.
        """
        for name, default in defaults.items():
            setattr(self, name, default if given[name] is None else given[name])
        for name in defaults:
            if name.endswith("accum_type"):
                assert getattr(self, name) in (torch.float32, torch.float16), (
                    "Accumulation types must be either torch.float32 or torch.float16"
                )
        allowed = group_attributes + [
            name for name in ("loss_scaling", "velocity_scaling", "max_grad_norm") if name in defaults
        ]
        variable = [name for name in allowed if given.get(name) is not None]
        self.variable_attrs = VariableAttributes(variable, allowed)

    # Between device and host.
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
        kept = {name: getattr(self, name) for name in self._KEPT if hasattr(self, name)}
        disconnected = {"_reader": None, "_writer": None}
        state = {"_ipu_state": self._ipu_state, "_ipu_param": self._ipu_param}
        return {**super().__getstate__(), **kept, **state, **disconnected}


def without_none(**arguments: Any) -> dict[str, Any]:
    """Only the arguments that were given: PyTorch's own defaults hold for the others."""
    return {name: value for name, value in arguments.items() if value is not None}
