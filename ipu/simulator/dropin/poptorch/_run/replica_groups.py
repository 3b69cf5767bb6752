"""Weights that differ between replicas: which replicas share a value, and where a program says so."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..enums import CommGroupType, VariableRetrievalMode
from ..poptorch_core import createPoptorchError

if TYPE_CHECKING:
    from ..executor import PoplarExecutor


@dataclass(frozen=True)
class ReplicaGrouping:
    """Which replicas hold the same value of a weight, and what the host gets back of it.

    The weight has one more dimension on the host, the first: one value for each group (with
    CommGroupType.All, none). `group_size`: the replicas of a group, where they are consecutive or orthogonal.
    """

    kind: CommGroupType
    group_size: int
    returned: VariableRetrievalMode

    def groups(self, name: str, replicas: int) -> tuple[int, ...] | None:
        """The group of each replica; None where one group has no dimension of its own.

        Raises poptorch.Error where replicas can't be grouped so.
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
        """Whether a download gives one value for each replica, rather than for each group."""
        return self.returned == VariableRetrievalMode.AllReplicas


def checked(kind: object, group_size: int, returned: object) -> ReplicaGrouping:
    """Raises poptorch.Error for arguments that aren't of the enumerations."""
    if not isinstance(kind, CommGroupType):
        raise createPoptorchError("comm_group_type must be a poptorch.CommGroupType")
    if not isinstance(returned, VariableRetrievalMode):
        raise createPoptorchError("variable_retrieval_mode must be a poptorch.VariableRetrievalMode")
    return ReplicaGrouping(kind, int(group_size), returned)


# All executors alive: a parameter is the user's own object and doesn't know its executors.
_executors: weakref.WeakSet[PoplarExecutor] = weakref.WeakSet()
_executors_lock = threading.Lock()


def register(executor: PoplarExecutor) -> None:
    """Makes an executor known to the parameters of its model."""
    with _executors_lock:
        _executors.add(executor)


def _executors_of(parameter: torch.nn.Parameter) -> list[PoplarExecutor]:
    with _executors_lock:
        alive = list(_executors)
    return [executor for executor in alive if any(parameter is one for one in executor.model.parameters())]


def replica_grouping(
    self: torch.nn.Parameter,
    comm_group_type: CommGroupType,
    shards: int,
    variable_retrieval_mode: VariableRetrievalMode,
) -> None:
    """Say which replicas share this weight, to every executor of its model that isn't compiled yet.

    The weight's first dimension holds one value for each group; a forward sees its replica's, without that
    dimension. `shards`: the replicas in a group, where they are consecutive or orthogonal.

    Raises poptorch.Error for a weight of no executor, or where all are compiled.
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
