"""What an IPU keeps for each weight, and what updating it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping

from ..graph.ir import Graph, Tensor
from ..report.verdict import Buffer
from .liveness import Event, Lifetime, Timeline
from .materialised import Materialised, serialization_factors
from .memory_constants import MemoryConstants
from .settings import Settings


def homes(graph: Graph) -> dict[int, int]:
    """The IPU that keeps each parameter, buffer and constant: that of its first use; IPU 0 if it has none."""
    first_use: dict[int, int] = {}
    for op in graph.ops:
        for tensor_id in op.inputs:
            first_use.setdefault(graph.owner(tensor_id).id, op.ipu)
    return {
        tensor.id: first_use.get(tensor.id, 0)
        for tensor in graph.tensors
        if tensor.role in ("parameter", "buffer", "constant") and tensor.base is None
    }


@dataclass(frozen=True)
class WeightMemory:
    """Sizes for weights under the settings of a program."""

    graph: Graph
    sizes: Materialised
    settings: Settings
    constants: MemoryConstants

    def updated_elements(self, weight: Tensor) -> int:
        """How many elements of a weight one replica updates: all, or its shard."""
        optimizer, replicas = self.settings.optimizer, self.settings.replicas
        if (
            optimizer is None
            or not optimizer.sharded
            or weight.elements < self.constants.sharding_threshold_elements
        ):
            return weight.elements
        return math.ceil(weight.elements / replicas)

    def state_bytes(self, weight: Tensor) -> int:
        """Optimiser state of one replica for a weight, wherever it is kept."""
        optimizer = self.settings.optimizer
        if optimizer is None or weight.id not in self.graph.gradients:
            return 0
        return self.updated_elements(weight) * sum(optimizer.state_bytes_per_element)

    def kept(self, ipu: int, homes: Mapping[int, int]) -> list[Buffer]:
        """Weights, accumulators and state that stand on an IPU all the time."""
        buffers: list[Buffer] = []
        optimizer = self.settings.optimizer
        for tensor in (self.graph.tensors[tensor_id] for tensor_id, home in homes.items() if home == ipu):
            name = tensor.name or f"constant {list(tensor.shape)}"
            size = self.sizes.bytes.get(tensor.id, tensor.bytes)
            buffers.append(Buffer(name, "weights", "", size))
            if tensor.id in self.graph.gradients:
                accumulator_bytes = tensor.elements * self.settings.accumulator_bytes
                buffers.append(Buffer(name, "gradient_accumulators", "", accumulator_bytes))
                if optimizer is not None and optimizer.location == "on_chip":
                    buffers.append(Buffer(name, "optimizer_state", "", self.state_bytes(tensor)))
        return [buffer for buffer in buffers if buffer.bytes]

    def update(self, ipu: int, homes: Mapping[int, int]) -> Timeline:
        """The weight update of an IPU, one weight after another."""
        weights = [
            weight
            for weight in self.graph.parameters
            if homes[weight.id] == ipu and weight.id in self.graph.gradients
        ]
        if self.settings.optimizer is None:
            return Timeline((), ())
        factors: dict[int, int] = {}
        for (weight_id, _), factor in serialization_factors(self.graph).items():
            factors[weight_id] = max(factor, factors.get(weight_id, 1))
        lifetimes = tuple(
            Lifetime(buffer, event, event)
            for event, weight in enumerate(weights)
            for buffer in self.update_buffers(weight, factors.get(weight.id, 1))
        )
        return Timeline(tuple(Event("update", weight.name) for weight in weights), lifetimes)

    def update_buffers(self, weight: Tensor, slices: int) -> list[Buffer]:
        """What the update of a weight takes, that of a serialised matmul slice by slice.

        State that is kept off chip comes in and goes out with its weight. Where there is state, the update is
        worked out in float32 first. Sharding adds the reduced shard of the gradient and the gathered weight.
        """
        optimizer = self.settings.optimizer
        assert optimizer is not None
        updated = self.updated_elements(weight)
        elements = math.ceil(updated / slices)
        buffers: list[Buffer] = []
        if optimizer.state_bytes_per_element:
            size = math.ceil(elements * self.constants.update_bytes_per_element)
            buffers.append(Buffer(f"update of {weight.name}", "temporary", "", size))
            if optimizer.location == "off_chip":
                size = elements * sum(optimizer.state_bytes_per_element)
                buffers.append(Buffer(f"state of {weight.name}", "optimizer_state", "", size))
        if updated < weight.elements:
            size = elements * self.settings.accumulator_bytes
            buffers.append(Buffer(f"reduced gradient of {weight.name}", "temporary", "", size))
            gathered = math.ceil(weight.bytes / slices)
            buffers.append(Buffer(f"gathered {weight.name}", "temporary", "", gathered))
        return buffers
