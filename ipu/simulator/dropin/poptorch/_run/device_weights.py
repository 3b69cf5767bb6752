"""The device's weights, and weights that differ between replicas (replicaGrouping).

The device's weights are separate tensors. During a run, `data` of the model's parameters and buffers is
swapped for the device's, so they keep their identity: tied weights stay tied, and closures keep working.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from dataclasses import dataclass
from typing import Callable, Iterator, Protocol

import torch
from ipu_simulator import numerics

from ..enums import CommGroupType, VariableRetrievalMode
from ..poptorch_core import createPoptorchError
from .host_weights import as_original_classes


class _Executor(Protocol):
    """The part of PoplarExecutor that replicaGrouping needs."""

    replica_groupings: dict[int, ReplicaGrouping]

    @property
    def model(self) -> torch.nn.Module: ...

    def isCompiled(self) -> bool: ...


@dataclass(frozen=True)
class ReplicaGrouping:
    """Which replicas share a weight's value, and whether a download returns one value per group or replica.

    On the host the weight has an additional first dimension, [groups, ...] (with CommGroupType.All: none).
    `group_size`: replicas per group, for consecutive and orthogonal groups.
    """

    kind: CommGroupType
    group_size: int
    returned: VariableRetrievalMode

    def groups(self, name: str, replicas: int) -> tuple[int, ...] | None:
        """The group of each replica; None for CommGroupType.All, which adds no dimension.

        Raises poptorch.Error if `group_size` doesn't divide the number of replicas.
        """
        if self.kind == CommGroupType.All:
            return None
        if self.kind == CommGroupType.NoGrouping:
            return tuple(range(replicas))
        if self.group_size < 1 or replicas % self.group_size:
            raise createPoptorchError(
                f"replicaGrouping of {name}: groups of {self.group_size} replicas don't divide "
                f"replicationFactor({replicas})."
            )
        if self.kind == CommGroupType.Consecutive:
            return tuple(replica // self.group_size for replica in range(replicas))
        return tuple(replica % (replicas // self.group_size) for replica in range(replicas))

    @property
    def returns_every_replica(self) -> bool:
        """Whether a download returns one value per replica instead of per group."""
        return self.returned == VariableRetrievalMode.AllReplicas


def checked(kind: object, group_size: int, returned: object) -> ReplicaGrouping:
    """A ReplicaGrouping. Raises poptorch.Error if `kind` or `returned` isn't of its enumeration."""
    if not isinstance(kind, CommGroupType):
        raise createPoptorchError("comm_group_type must be a poptorch.CommGroupType")
    if not isinstance(returned, VariableRetrievalMode):
        raise createPoptorchError("variable_retrieval_mode must be a poptorch.VariableRetrievalMode")
    return ReplicaGrouping(kind, int(group_size), returned)


# Weak references to all executors: a parameter is the user's object and doesn't know its executors.
_executors: weakref.WeakSet[_Executor] = weakref.WeakSet()
_executors_lock = threading.Lock()


def register(executor: _Executor) -> None:
    """Registers an executor, so that `replica_grouping` finds it by its model's parameters."""
    with _executors_lock:
        _executors.add(executor)


def _executors_of(parameter: torch.nn.Parameter) -> list[_Executor]:
    with _executors_lock:
        alive = list(_executors)
    return [executor for executor in alive if any(parameter is one for one in executor.model.parameters())]


def replica_grouping(
    self: torch.nn.Parameter,
    comm_group_type: CommGroupType,
    shards: int,
    variable_retrieval_mode: VariableRetrievalMode,
) -> None:
    """Sets which replicas share this weight, in every executor of its model that isn't compiled yet.

    The weight is [groups, ...]; a forward sees its replica's value, without the first dimension. `shards`:
    replicas per group, for consecutive and orthogonal groups.

    Raises poptorch.Error if no executor's model has this parameter, and if all of them are compiled.
    """
    grouping = checked(comm_group_type, shards, variable_retrieval_mode)
    of = _executors_of(self)
    if not of:
        raise createPoptorchError("replicaGrouping is for parameters of an executor's model")
    waiting = [executor for executor in of if not executor.isCompiled()]
    if not waiting:
        raise createPoptorchError("replicaGrouping has to be called before the model is compiled")
    for executor in waiting:
        executor.replica_groupings[id(self)] = grouping


class DeviceWeights:
    """One executor's copy of a model's parameters and buffers.

    Replicas share the parameters, except those with a ReplicaGrouping (`groupings`, by name); each replica
    has its own buffers. `names`: the parameters' names, of tied ones the first. `broadcast` is
    Options.broadcastBuffers. If False and all buffers are [replicas, ...], each replica gets its slice;
    otherwise every replica starts with the whole buffer.

    Raises poptorch.Error for a grouped weight that isn't [groups, ...], and for an uninitialised lazy one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        replicas: int,
        broadcast: bool = True,
        groupings: dict[str, ReplicaGrouping] | None = None,
    ) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if torch.nn.parameter.is_lazy(tensor):
                raise createPoptorchError(
                    f"{name} has no shape yet: run lazy layers once on the host before compiling the model."
                )
        # Indices of the parameters that require a gradient at compilation.
        self.trainable = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        self._buffers = list(model.buffers())
        index = {id(buffer): i for i, buffer in enumerate(self._buffers)}
        # By every name: one buffer may have several.
        self._buffer_index = {n: index[id(b)] for n, b in model.named_buffers(remove_duplicate=False)}
        self.groupings = groupings or {}
        self._replicas = replicas
        self._broadcast = broadcast
        self._returned_every: set[int] = set()  # weights that the host holds as [replicas, ...]
        # By the index of a weight that is [groups, ...] on the device: the group of each replica.
        self.groups: dict[int, tuple[int, ...]] = {}
        for i, name in enumerate(self.names):
            found = self.groupings[name].groups(name, replicas) if name in self.groupings else None
            if found is not None:
                self.groups[i] = found
                self._check_groups(i)
        # broadcastBuffers(False): the host's buffers hold a slice per replica, or the initial value of all.
        self._divided = (
            not broadcast
            and replicas > 1
            and all(buffer.shape[:1] == (replicas,) for buffer in self._buffers)
        )
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            self.device_parameters = [_on_device(self._host_weight(i)) for i in range(len(self.names))]
            self._device_buffers = [
                [_on_device(part) for part in self._host_buffers(replica)] for replica in range(replicas)
            ]

    def _check_groups(self, i: int) -> None:
        shape, groups = self.parameters[i].shape, 1 + max(self.groups[i])
        every = self._replicas if self.groupings[self.names[i]].returns_every_replica else groups
        if not shape or shape[0] not in (groups, every):
            raise createPoptorchError(
                f"replicaGrouping of {self.names[i]}: its first dimension must hold one value for each of "
                f"{groups} groups of replicas, but its shape is {list(shape)}."
            )

    def _host_weight(self, i: int) -> torch.Tensor:
        """The host's value of a weight: [groups, ...] if it differs between replicas."""
        host, grouping = self.parameters[i], self.groupings.get(self.names[i])
        if grouping is None or not grouping.returns_every_replica:
            return host
        groups = self.groups.get(i)
        if groups is None:  # one value on the device; after a download, [replicas, ...] on the host
            return host[0] if i in self._returned_every else host
        if host.shape[0] == 1 + max(groups):
            return host
        return torch.stack([host[groups.index(group)] for group in range(1 + max(groups))])

    def _return_weight(self, i: int) -> None:
        host, device = self.parameters[i], self.device_parameters[i]
        grouping = self.groupings.get(self.names[i])
        if grouping is None or not grouping.returns_every_replica:
            host.data.copy_(device)
            return
        groups = self.groups.get(i)
        replicas = range(self._replicas)
        values = torch.stack([device if groups is None else device[groups[replica]] for replica in replicas])
        self._returned_every.add(i)
        host.data = values.to(host.dtype)

    def replicas_returned(self, i: int) -> list[int] | None:
        """The group of each replica if a download of weight i returns one value per replica; None if not."""
        grouping = self.groupings.get(self.names[i])
        if grouping is None or not grouping.returns_every_replica:
            return None
        return list(self.groups.get(i, [0] * self._replicas))

    def of_replica(self, replica: int) -> list[torch.Tensor]:
        """The device's parameters for one replica."""
        return [
            device[self.groups[i][replica]] if i in self.groups else device
            for i, device in enumerate(self.device_parameters)
        ]

    @property
    def shared_buffers(self) -> dict[str, torch.Tensor]:
        """The model's buffers by name, if several replicas have to share them; otherwise none."""
        if not self._broadcast or self._replicas == 1:
            return {}
        return {name: self._buffers[i] for name, i in self._buffer_index.items()}

    def _host_buffers(self, replica: int) -> list[torch.Tensor]:
        """The host's buffers for one replica."""
        return [buffer[replica] if self._divided else buffer for buffer in self._buffers]

    def upload(self) -> None:
        """Copies parameters and buffers from host to device."""
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for i, device in enumerate(self.device_parameters):
                device.copy_(self._host_weight(i))
            for replica, buffers in enumerate(self._device_buffers):
                for device, host in zip(buffers, self._host_buffers(replica)):
                    device.copy_(host)

    def check_buffer_names(self, names: list[str]) -> None:
        """Raises poptorch.Error for a name of options.updatableNamedBuffers that no buffer has."""
        unknown = [name for name in names if name not in self._buffer_index]
        if unknown:
            raise createPoptorchError(
                f"updatableNamedBuffers names {', '.join(map(repr, unknown))}, but the model's buffers are "
                f"{', '.join(map(repr, self._buffer_index)) or 'none'}."
            )

    def upload_buffers(self, names: list[str]) -> None:
        """Copies these buffers from host to device."""
        indices = {self._buffer_index[name] for name in names}
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for replica, buffers in enumerate(self._device_buffers):
                for index, (device, host) in enumerate(zip(buffers, self._host_buffers(replica))):
                    if index in indices:
                        device.copy_(host)

    def download(self) -> None:
        """Copies parameters and buffers from device to host; an unsliced buffer is the first replica's."""
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for i in range(len(self.parameters)):
                self._return_weight(i)
            for replica, buffers in enumerate(self._device_buffers):
                if replica and not self._divided:
                    break
                for device, host in zip(buffers, self._host_buffers(replica)):
                    host.data.copy_(device)

    def enter_replica(self, replica: int) -> None:
        """Within `swapped_in`: switches buffers and grouped weights to this replica's."""
        for i, groups in self.groups.items():
            self.parameters[i].data = self.device_parameters[i][groups[replica]]
        if len(self._device_buffers) > 1:
            for buffer, device in zip(self._buffers, self._device_buffers[replica]):
                buffer.data = device

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context: parameters and buffers hold the device's data, no gradients, and have plain classes."""
        tensors = self.parameters + self._buffers
        with as_original_classes(tensors):
            hosts = [(tensor.data, tensor.grad) for tensor in tensors]
            try:
                for tensor, device in zip(tensors, self.of_replica(0) + self._device_buffers[0]):
                    tensor.grad = None
                    tensor.data = device
                yield
            finally:
                for tensor, (data, grad) in zip(tensors, hosts):
                    tensor.grad = None
                    tensor.data = data
                    tensor.grad = grad

    @contextlib.contextmanager
    def kept(self) -> Iterator[Callable[[torch.Tensor], None]]:
        """Context: restores the first replica's buffers on exit, and the parameters in written memory.

        It yields the function to call with a tensor that is about to be written to.
        """
        kept = [(device, device.clone()) for device in self._device_buffers[0]]
        parameters = {device.untyped_storage()._cdata: device for device in self.of_replica(0)}

        def keep(written: torch.Tensor) -> None:
            parameter = parameters.pop(written.untyped_storage()._cdata, None)
            if parameter is not None:
                kept.append((parameter, parameter.clone()))

        try:
            yield keep
        finally:
            for device, data in kept:
                device.copy_(data)


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    return numerics.to_device_dtype(tensor.detach(), copy=True)
