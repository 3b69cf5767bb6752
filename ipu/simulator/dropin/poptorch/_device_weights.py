"""The device's weights: tensors of their own, which stand in for the model's during a run.

Parameters and buffers keep their identity (tied ones stay tied, closures keep working): only the
data that they hold is exchanged for the time of a run.
"""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch

from ._impl import original_class
from ._numerics import numerics
from .poptorch_core import createPoptorchError


class DeviceWeights:
    """One executor's copy of a model's parameters and buffers.

    Each replica has its own buffers; all share the parameters, which are identical on real replicas.
    `names` are those of the parameters, the first where one is tied. `broadcast` as in
    Options.broadcastBuffers: a buffer on the host is every replica's, else [replicas, ...], one for each.

    Raises poptorch.Error for a buffer that isn't.
    """

    def __init__(self, model: torch.nn.Module, replicas: int, broadcast: bool = True) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        # Those that want a gradient, by index, as of now.
        self.trainable = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        self._buffer_names = [name for name, _ in model.named_buffers()]
        self._buffers = list(model.buffers())
        self._broadcast = broadcast or replicas == 1
        if not self._broadcast:
            self._check_buffers(replicas)
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            self.device_parameters = [_on_device(parameter) for parameter in self.parameters]
            self._device_buffers = [
                [_on_device(part) for part in self._host_buffers(replica)] for replica in range(replicas)
            ]

    def _check_buffers(self, replicas: int) -> None:
        for name, buffer in zip(self._buffer_names, self._buffers):
            if buffer.dim() == 0 or buffer.shape[0] != replicas:
                raise createPoptorchError(
                    f"broadcastBuffers(False) gives each of {replicas} replicas its part of each buffer: the "
                    f"first dimension of {name} must be {replicas}, its shape is {list(buffer.shape)}."
                )

    def _host_buffers(self, replica: int) -> list[torch.Tensor]:
        """The host's side of a replica's buffers."""
        return [buffer if self._broadcast else buffer[replica] for buffer in self._buffers]

    def upload(self) -> None:
        """Host to device."""
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for device, host in zip(self.device_parameters, self.parameters):
                device.copy_(host)
            for replica, buffers in enumerate(self._device_buffers):
                for device, host in zip(buffers, self._host_buffers(replica)):
                    device.copy_(host)

    def upload_buffers(self, names: list[str]) -> None:
        """Host to device, of these buffers only."""
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for replica, buffers in enumerate(self._device_buffers):
                for name, device, host in zip(self._buffer_names, buffers, self._host_buffers(replica)):
                    if name in names:
                        device.copy_(host)

    def download(self) -> None:
        """Device to host; buffers that replicas share are the first one's."""
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for device, host in zip(self.device_parameters, self.parameters):
                host.data.copy_(device)
            for replica, buffers in enumerate(self._device_buffers):
                if replica and self._broadcast:
                    break
                for device, host in zip(buffers, self._host_buffers(replica)):
                    host.data.copy_(device)

    def enter_replica(self, replica: int) -> None:
        """Inside swapped_in: from now on the buffers are this replica's."""
        if len(self._device_buffers) > 1:
            for buffer, device in zip(self._buffers, self._device_buffers[replica]):
                buffer.data = device

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, parameters and buffers hold the device's data, no gradients, and have plain classes."""
        tensors = self.parameters + self._buffers
        classes = [type(tensor) for tensor in tensors]
        for tensor in tensors:
            tensor.__class__ = original_class(tensor)
        hosts = [(tensor.data, tensor.grad) for tensor in tensors]
        try:
            for tensor, device in zip(tensors, self.device_parameters + self._device_buffers[0]):
                tensor.grad = None
                tensor.data = device
            yield
        finally:
            for tensor, class_, (data, grad) in zip(tensors, classes, hosts):
                tensor.grad = None
                tensor.data = data
                tensor.grad = grad
                tensor.__class__ = class_

    @contextlib.contextmanager
    def buffers_kept(self) -> Iterator[None]:
        """Whatever happens inside to the first replica's buffers is undone."""
        kept = [device.clone() for device in self._device_buffers[0]]
        try:
            yield
        finally:
            for device, data in zip(self._device_buffers[0], kept):
                device.copy_(data)


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    return numerics.to_device_dtype(tensor.detach(), copy=True)
