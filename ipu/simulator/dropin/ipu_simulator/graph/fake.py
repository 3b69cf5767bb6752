"""Stand-ins for a model's weights and inputs: fake tensors, which have shapes and dtypes but no memory; or
copies, for a model whose control flow depends on values.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Inside, models and tensors are built on the meta device, which takes no memory, whatever their size."""
    with torch.device("meta"):
        yield


def fake_mode() -> FakeTensorMode:
    """The fake tensor mode for running a model. Real tensors that the model holds besides its parameters and
    buffers are constants.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def stand_in(
    mode: FakeTensorMode | None, tensor: torch.Tensor, device_dtype: Callable[[torch.dtype], torch.dtype]
) -> torch.Tensor:
    """A CPU tensor of the same shape and strides in the device's dtype: a fake one of `mode`, or a copy.

    `tensor` may be real, or with a mode also fake or on the meta device.
    """
    dtype = device_dtype(tensor.dtype)
    with torch.no_grad():
        if mode is None:
            return tensor.detach().to(dtype, copy=True)
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cpu")


class WeightsStandIns:
    """One stand-in per parameter and buffer of a model; tied ones share a stand-in."""

    def __init__(
        self,
        mode: FakeTensorMode | None,
        model: torch.nn.Module,
        device_dtype: Callable[[torch.dtype], torch.dtype],
    ) -> None:
        self._model = model
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self._others: dict[int, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            other = stand_in(mode, parameter, device_dtype)
            self.parameters[name] = torch.nn.Parameter(other, requires_grad=parameter.requires_grad)
            self._others[id(parameter)] = self.parameters[name]
        for name, buffer in model.named_buffers():
            self.buffers[name] = stand_in(mode, buffer, device_dtype)
            self._others[id(buffer)] = self.buffers[name]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a parameter or buffer; any other tensor is returned unchanged."""
        return self._others.get(id(tensor), tensor)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model's modules hold the stand-ins; on exit the originals are restored."""
        tables: list[dict[str, Any]] = [
            table for module in self._model.modules() for table in (module._parameters, module._buffers)
        ]
        before = [dict(table) for table in tables]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = self.of(tensor)
        try:
            yield
        finally:
            for table, contents in zip(tables, before):
                table.clear()
                table.update(contents)
