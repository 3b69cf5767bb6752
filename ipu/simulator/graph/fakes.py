"""Stand-ins for a model's weights and inputs that have shapes and dtypes but no memory."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Inside, models are built, and tensors made, on the meta device: at no cost, however large."""
    with torch.device("meta"):
        yield


def fake_mode() -> FakeTensorMode:
    """The mode to run a model in. Real tensors that the model holds outside its parameters and buffers
    are constants.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(mode: FakeTensorMode, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake CPU tensor of the same shape and strides. `tensor` may be real, fake or on the meta device."""
    with mode, torch.no_grad():
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype if dtype is None else dtype, device="cpu"
        )


class FakeWeights:
    """A model's parameters and buffers, one fake for each: tied ones stay one tensor.

    :param device_dtype: the dtype that the device has for a dtype of the host.
    """

    def __init__(
        self,
        mode: FakeTensorMode,
        model: torch.nn.Module,
        device_dtype: Callable[[torch.dtype], torch.dtype],
    ) -> None:
        self._model = model
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self._fakes: dict[int, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            fake = fake_like(mode, parameter, device_dtype(parameter.dtype))
            self.parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            self._fakes[id(parameter)] = self.parameters[name]
        for name, buffer in model.named_buffers():
            self.buffers[name] = fake_like(mode, buffer, device_dtype(buffer.dtype))
            self._fakes[id(buffer)] = self.buffers[name]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake of a parameter or buffer; any other tensor itself."""
        return self._fakes.get(id(tensor), tensor)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model's modules hold the fakes; afterwards, exactly what they held before."""
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
