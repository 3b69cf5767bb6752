"""The weight update: gradients are summed over replicas, then each IPU updates the weights that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from ..graph.ir import BYTES_OF_DTYPE, Graph
from ..graph.stages import Stage
from ..targets import Target
from .constants import Constants
from .settings import Settings


@dataclass(frozen=True)
class Update:
    """What the IPU with most weights does, in bytes and cycles of its fullest tile.

    :param collective_bytes: sent by it: gradients reduced (scattered, if sharded), weights gathered.
    :param remote_bytes: of optimiser state, from streaming memory and back.
    :param collectives: of one weight each, that begin one after another; `remote_buffers` likewise.
    :param ipus: of all replicas.
    """

    collective_bytes: float
    remote_bytes: float
    cycles: float
    collectives: int
    remote_buffers: int
    ipus: int

    def parts_s(self, target: Target, constants: Constants) -> dict[str, float]:
        """Seconds by part. The IPUs of an M2000 that are in use share its streaming memory."""
        each_s = constants.transfer_overhead_s
        sharing = min(self.ipus, target.ipus_per_m2000)
        remote_s = self.remote_bytes * sharing / target.streaming_memory_bytes_per_s
        return {
            "collectives": self.collectives * each_s
            + self.collective_bytes / constants.collective_bytes_per_s,
            "remote buffers": self.remote_buffers * each_s + remote_s,
            "optimiser": self.cycles / target.clock_hz,
        }


def update_of(
    graph: Graph, stages: Sequence[Stage], settings: Settings, target: Target, constants: Constants
) -> Update | None:
    """The update of the IPU with most weights; None where nothing is trained."""
    optimizer = settings.optimizer
    if optimizer is None or not graph.training:
        return None
    weights = _trained_weights(graph, stages)
    elements, weight_bytes, tensors = max(weights.values(), default=(0, 0, 0))
    replicas = settings.replicas
    ring = (replicas - 1) / replicas
    gathered = weight_bytes + settings.accumulator_bytes * elements
    share = replicas if optimizer.sharded else 1
    state_bytes = sum(optimizer.state_bytes_per_element) * elements / share
    per_element = constants.update_cycles_per_tensor_of_state * (1 + len(optimizer.state_bytes_per_element))
    remote = optimizer.location == "off_chip" and state_bytes > 0
    return Update(
        collective_bytes=gathered * ring,
        remote_bytes=2 * state_bytes if remote else 0.0,
        cycles=per_element * elements / share / target.tiles_per_ipu,
        # A reduction and, of shards, a gathering; a load and a store.
        collectives=tensors * (1 + optimizer.sharded) if replicas > 1 else 0,
        remote_buffers=2 * tensors if remote else 0,
        ipus=replicas * graph.num_ipus,
    )


def _trained_weights(graph: Graph, stages: Sequence[Stage]) -> dict[int, tuple[int, int, int]]:
    """(elements, bytes, tensors) of the trained weights of each IPU: those that it is the first to use."""
    home: dict[int, int] = {}
    for stage in stages:
        for op in stage.forward:
            for number in op.inputs:
                home.setdefault(graph.owner(number).id, stage.ipu)
    held: dict[int, tuple[int, int, int]] = {}
    for number in graph.gradients:
        tensor = graph.tensors[number]
        elements, size, tensors = held.get(home.get(number, 0), (0, 0, 0))
        held[home.get(number, 0)] = (
            elements + tensor.elements,
            size + tensor.elements * BYTES_OF_DTYPE[tensor.dtype],
            tensors + 1,
        )
    return held
