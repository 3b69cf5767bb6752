"""The weight update: gradients are summed over replicas, then each IPU updates the weights that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

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


@dataclass(frozen=True)
class Held:
    """Trained weights: elements, bytes, number of tensors. They add up."""

    elements: int = 0
    bytes: int = 0
    tensors: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.elements + other.elements, self.bytes + other.bytes, self.tensors + other.tensors)


def update_of(
    graph: Graph, stages: Sequence[Stage], settings: Settings, target: Target, constants: Constants
) -> Update | None:
    """The update of the IPU with most weights; None where nothing is trained."""
    if settings.optimizer is None or not graph.training:
        return None
    ipu_of_stage = [stage.ipu for stage in stages]
    weights = trained_weights(graph, stages)
    return update_with(weights, ipu_of_stage, graph.num_ipus, settings, target, constants)


def update_with(
    weights: Mapping[int, Held],
    ipu_of_stage: Sequence[int],
    num_ipus: int,
    settings: Settings,
    target: Target,
    constants: Constants,
) -> Update:
    """The update of a program that trains `weights`, by stage, with its stages on these IPUs."""
    optimizer = settings.optimizer
    assert optimizer is not None
    of_ipu: dict[int, Held] = {}
    for stage, held in weights.items():
        ipu = ipu_of_stage[stage]
        of_ipu[ipu] = of_ipu.get(ipu, Held()) + held
    most = max(of_ipu.values(), key=lambda held: (held.elements, held.tensors), default=Held())
    replicas = settings.replicas
    ring = (replicas - 1) / replicas
    gathered = most.bytes + settings.accumulator_bytes * most.elements
    share = replicas if optimizer.sharded else 1
    state_bytes = sum(optimizer.state_bytes_per_element) * most.elements / share
    per_element = constants.update_cycles_per_tensor_of_state * (1 + len(optimizer.state_bytes_per_element))
    remote = optimizer.location == "off_chip" and state_bytes > 0
    return Update(
        collective_bytes=gathered * ring,
        remote_bytes=2 * state_bytes if remote else 0.0,
        cycles=per_element * most.elements / share / target.tiles_per_ipu,
        # A reduction and, of shards, a gathering; a load and a store.
        collectives=most.tensors * (1 + optimizer.sharded) if replicas > 1 else 0,
        remote_buffers=2 * most.tensors if remote else 0,
        ipus=replicas * num_ipus,
    )


def trained_weights(graph: Graph, stages: Sequence[Stage]) -> dict[int, Held]:
    """The trained weights by the stage that is the first to use them."""
    home: dict[int, int] = {}
    for stage in stages:
        for op in stage.forward:
            for number in op.inputs:
                home.setdefault(graph.owner(number).id, stage.index)
    held: dict[int, Held] = {}
    for number in graph.gradients:
        tensor, stage_index = graph.tensors[number], home.get(number, 0)
        own = Held(tensor.elements, tensor.elements * BYTES_OF_DTYPE[tensor.dtype], 1)
        held[stage_index] = held.get(stage_index, Held()) + own
    return held
