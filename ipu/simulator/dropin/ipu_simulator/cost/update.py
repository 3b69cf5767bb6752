"""The weight update: gradients summed over replicas, optimiser state from where it is stored, new weights.

Each IPU updates the weights that it stores: those of a replica one after another, or several at once if the
program asks for it (PopART's accumulateOuterFragmentSettings). Optimiser state is sharded weight by weight;
the gradients of small weights, which aren't sharded, and all gradients of a program without sharding, are
reduced together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping, Sequence

from ..environment import Target
from ..graph.ir import BYTES_OF_DTYPE, Graph
from ..graph.stages import Stage
from .constants import Constants, memory_constants
from .settings import Settings

# Parts of an update, for reports.
COLLECTIVES, REMOTE_BUFFERS, OPTIMISER = "collectives", "remote buffers", "optimiser"


@dataclass(frozen=True)
class Held:
    """Trained weights: elements, bytes, number of tensors. They can be added."""

    elements: int = 0
    bytes: int = 0
    tensors: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.elements + other.elements, self.bytes + other.bytes, self.tensors + other.tensors)


@dataclass(frozen=True)
class Trained:
    """The trained weights of a stage or an IPU: those large enough to be sharded, and the others."""

    sharded: Held = Held()
    whole: Held = Held()

    def __add__(self, other: Trained) -> Trained:
        return Trained(self.sharded + other.sharded, self.whole + other.whole)


@dataclass(frozen=True)
class IpuUpdate:
    """The update of one IPU's weights, in bytes, and in cycles of its fullest tile.

    :param ring_bytes: bytes that it sends to the IPUs of other replicas: gradients reduced (scattered if
        sharded), weights gathered.
    :param gradient_bytes: of its gradients.
    :param collectives: one or two for each sharded weight, in sequence; one for all others together.
    :param remote_bytes: optimiser state read from and written to streaming memory.
    :param remote_buffers: number of those transfers.
    """

    ring_bytes: float
    gradient_bytes: float
    collectives: int
    remote_bytes: float
    remote_buffers: int
    cycles: float


@dataclass(frozen=True)
class Update:
    """The weight update of a replica.

    :param turns: the IPUs that update at once, turn by turn.
    """

    turns: tuple[tuple[IpuUpdate, ...], ...]
    replicas: int
    ipus_per_replica: int

    def parts_s(self, target: Target, constants: Constants) -> dict[str, float]:
        """Seconds by part: in each turn, those of the slowest IPU."""
        parts = dict.fromkeys((COLLECTIVES, REMOTE_BUFFERS, OPTIMISER), 0.0)
        for turn in self.turns:
            of_ipus = [self._parts_of_ipu(update, len(turn), target, constants) for update in turn]
            slowest = max(of_ipus, key=lambda each: sum(each.values()))
            for name, seconds in slowest.items():
                parts[name] += seconds
        return parts

    def _parts_of_ipu(
        self, update: IpuUpdate, at_once: int, target: Target, constants: Constants
    ) -> dict[str, float]:
        """The IPUs of an M2000 that update at once share the bandwidth of its streaming memory."""
        replicas_there = max(1, min(self.replicas, target.ipus_per_m2000 // self.ipus_per_replica))
        sharing = min(target.ipus_per_m2000, at_once * replicas_there)
        remote_s = update.remote_bytes * sharing / target.streaming_memory_bytes_per_s
        return {
            COLLECTIVES: update.collectives * self._latency_s(constants)
            + update.ring_bytes / target.ring_bytes_per_s
            + self._between_pods_s(update, target),
            REMOTE_BUFFERS: update.remote_buffers * constants.remote_buffer_s + remote_s,
            OPTIMISER: update.cycles / target.clock_hz,
        }

    def _latency_s(self, constants: Constants) -> float:
        """Of a collective, besides the transfer of its bytes: it grows with the number of replicas."""
        return constants.collective_latency_s * math.log2(self.replicas) if self.replicas > 1 else 0.0

    def _between_pods_s(self, update: IpuUpdate, target: Target) -> float:
        """Gradients of replicas in several POD64s also pass their gateway links."""
        pods = -(-self.replicas * self.ipus_per_replica // target.ipus_per_pod)
        return 2 * update.gradient_bytes * (pods - 1) / pods / target.gateway_link_bytes_per_s

    def numbers(self, target: Target) -> frozenset[str]:
        """Names of the constants and hardware facts that it depends on."""
        updates = [update for turn in self.turns for update in turn]
        collectives = any(each.collectives for each in updates)
        remote = any(each.remote_bytes for each in updates)
        ipus = self.replicas * self.ipus_per_replica
        names: set[str] = set()
        for acts, numbers in (
            (any(each.cycles for each in updates), ("update_cycles_per_tensor_of_state",)),
            (
                collectives,
                ("collective_latency_s", "link_bytes_per_s", "links_of_a_ring", "link_efficiency"),
            ),
            (collectives and ipus > target.ipus_per_pod, ("gateway_link_bytes_per_s", "ipus_per_pod")),
            (remote, ("streaming_memory_bytes_per_s", "remote_buffer_s")),
            (remote and ipus > 1, ("ipus_per_m2000",)),
        ):
            if acts:
                names.update(numbers)
        return frozenset(names)


def update_of(
    graph: Graph, stages: Sequence[Stage], settings: Settings, target: Target, constants: Constants
) -> Update | None:
    """The update of a graph; None if nothing is trained."""
    if settings.optimizer is None or not graph.training:
        return None
    ipu_of_stage = [stage.ipu for stage in stages]
    weights = trained_weights(graph, stages)
    return update_with(weights, ipu_of_stage, graph.num_ipus, settings, target, constants)


def update_with(
    weights: Mapping[int, Trained],
    ipu_of_stage: Sequence[int],
    num_ipus: int,
    settings: Settings,
    target: Target,
    constants: Constants,
) -> Update:
    """The update of a program that trains `weights` (by stage), with its stages on these IPUs."""
    of_ipu: dict[int, Trained] = {}
    for stage, held in weights.items():
        ipu = ipu_of_stage[stage]
        of_ipu[ipu] = of_ipu.get(ipu, Trained()) + held
    made = {ipu: _of_ipu(held, settings, target, constants) for ipu, held in sorted(of_ipu.items())}
    at_once = settings.ipus_that_update_at_once(num_ipus)
    turns = [(made[ipu],) for ipu in made if ipu not in at_once]
    together = tuple(made[ipu] for ipu in made if ipu in at_once)
    return Update((*turns, *([together] if together else [])), settings.replicas, num_ipus)


def _of_ipu(held: Trained, settings: Settings, target: Target, constants: Constants) -> IpuUpdate:
    optimizer = settings.optimizer
    assert optimizer is not None
    replicas, share = settings.replicas, settings.shards
    sharded, whole = (held.sharded, held.whole) if share > 1 else (Held(), held.whole + held.sharded)
    gradients = settings.accumulator_bytes
    groups = replicas / share
    # An all-reduce in a ring sends as much as a reduce-scatter and an all-gather.
    whole_bytes = 2 * gradients * whole.elements * (replicas - 1) / replicas
    shard_bytes = (sharded.bytes + gradients * sharded.elements) * (share - 1) / share
    between_bytes = 2 * gradients * sharded.elements / share * (groups - 1) / groups
    states = len(optimizer.state_bytes_per_element)
    elements = whole.elements + sharded.elements / share
    state_bytes = sum(optimizer.state_bytes_per_element) * elements
    remote = optimizer.location == "off_chip"
    per_element = constants.update_cycles_per_tensor_of_state * (1 + states)
    return IpuUpdate(
        ring_bytes=whole_bytes + shard_bytes + between_bytes,
        gradient_bytes=gradients * (whole.elements + sharded.elements),
        collectives=(2 + (groups > 1)) * sharded.tensors + (whole.tensors > 0) if replicas > 1 else 0,
        remote_bytes=2 * state_bytes if remote else 0.0,
        # Each state is loaded and stored.
        remote_buffers=2 * states * (whole.tensors + sharded.tensors) if remote else 0,
        cycles=per_element * elements / target.tiles_per_ipu,
    )


def trained_weights(graph: Graph, stages: Sequence[Stage]) -> dict[int, Trained]:
    """The trained weights by the first stage that uses them."""
    home: dict[int, int] = {}
    for stage in stages:
        for op in stage.forward:
            for number in op.inputs:
                home.setdefault(graph.owner(number).id, stage.index)
    least = memory_constants().sharding_threshold_elements
    held: dict[int, Trained] = {}
    for number in graph.gradients:
        tensor, stage_index = graph.tensors[number], home.get(number, 0)
        own = Held(tensor.elements, tensor.elements * BYTES_OF_DTYPE[tensor.dtype], 1)
        here = Trained(sharded=own) if tensor.elements >= least else Trained(whole=own)
        held[stage_index] = held.get(stage_index, Trained()) + here
    return held
