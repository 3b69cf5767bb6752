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
    """

    collective_bytes: float
    remote_bytes: float
    cycles: float

    def parts_s(self, target: Target, constants: Constants) -> dict[str, float]:
        """Seconds by part. IPUs of an M2000 share its streaming memory."""
        remote_bytes_per_s = target.streaming_memory_bytes_per_s / target.ipus_per_m2000
        return {
            "collectives": self.collective_bytes / constants.collective_bytes_per_s,
            "remote buffers": self.remote_bytes / remote_bytes_per_s,
            "optimiser": self.cycles / target.clock_hz,
            "overhead": constants.update_overhead_s,
        }


def update_of(
    graph: Graph, stages: Sequence[Stage], settings: Settings, target: Target, constants: Constants
) -> Update | None:
    """The update of the IPU with most weights; None where nothing is trained."""
    optimizer = settings.optimizer
    if optimizer is None or not graph.training:
        return None
    weights = _trained_weights(graph, stages)
    elements, weight_bytes = max(weights.values(), default=(0, 0))
    replicas = settings.replicas
    ring = (replicas - 1) / replicas
    gathered = weight_bytes + settings.accumulator_bytes * elements
    share = replicas if optimizer.sharded else 1
    state_bytes = sum(optimizer.state_bytes_per_element) * elements / share
    per_element = constants.update_cycles_per_tensor_of_state * (1 + len(optimizer.state_bytes_per_element))
    return Update(
        collective_bytes=gathered * ring,
        remote_bytes=2 * state_bytes if optimizer.location == "off_chip" else 0.0,
        cycles=per_element * elements / share / target.tiles_per_ipu,
    )


def _trained_weights(graph: Graph, stages: Sequence[Stage]) -> dict[int, tuple[int, int]]:
    """(elements, bytes) of the trained weights that each IPU holds: those that it is the first to use."""
    home: dict[int, int] = {}
    for stage in stages:
        for op in stage.forward:
            for number in op.inputs:
                home.setdefault(graph.owner(number).id, stage.ipu)
    held: dict[int, tuple[int, int]] = {}
    for number in graph.gradients:
        tensor = graph.tensors[number]
        elements, size = held.get(home.get(number, 0), (0, 0))
        held[home.get(number, 0)] = (
            elements + tensor.elements,
            size + tensor.elements * BYTES_OF_DTYPE[tensor.dtype],
        )
    return held
