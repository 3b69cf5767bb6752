"""The graph of one micro batch: tensors and operations, captured from the modules that train.

Operations are PyTorch's below autograd (aten). Shapes and dtypes are the device's: float16 where it stores
float16, int32 where the host has int64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Mapping

Phase = Literal["forward", "backward"]
Role = Literal["parameter", "buffer", "input", "constant", "activation"]

BYTES_OF_DTYPE: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program. `base` is the tensor of which this one is a view; None if it owns its memory.

    :param name: name of a parameter, buffer or input; empty for activations.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    role: Role
    name: str = ""
    base: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * BYTES_OF_DTYPE[self.dtype]


@dataclass(frozen=True)
class Op:
    """One operation.

    :param name: aten's name without overload, such as "addmm" or "native_layer_norm_backward".
    :param inputs: ids of its tensor arguments, in order.
    :param attributes: its other arguments by name ("dim", "groups", ...), and annotations from PopTorch:
        "serialization" (mode, factor) in a serializedMatMul, "available_memory_proportion" after
        setAvailableMemory, "stream" for tensors from the host; "pointwise" in one without a cost rule that
        PyTorch calls so.
    :param module: path of the module that runs it, such as "encoder.layers.3.attention.body.query"; for the
        backward pass, the path of the operation whose gradient it computes.
    :param stage: forward pipeline stage of the operation, or of the operation whose gradient it computes.
    :param segment: number of recomputation checkpoints before it in its stage: the operations of a segment
        are recomputed together, just before their backward pass.
    """

    index: int
    name: str
    phase: Phase
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str
    stage: int
    ipu: int
    segment: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """One micro batch. `tensors[i].id == i`; `ops` in execution order, the whole forward before the backward.

    :param gradients: parameter id -> id of its gradient of this micro batch (training only).
    :param checkpoints: ids of the tensors passed to recomputationCheckpoint.
    :param stage_ipus: the IPU of each forward pipeline stage; its length is F.
    :param inputs: ids of the inputs of a micro batch, in the order of the arguments.
    :param outputs: ids of the model's outputs.
    """

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    gradients: Mapping[int, int]
    checkpoints: frozenset[int]
    stage_ipus: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def training(self) -> bool:
        return bool(self.gradients)

    @property
    def num_ipus(self) -> int:
        return 1 + max(self.stage_ipus)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.role == "parameter")

    @cached_property
    def producers(self) -> Mapping[int, Op]:
        """Tensor id -> the operation that produces it."""
        return {number: op for op in self.ops for number in op.outputs}

    @cached_property
    def consumers(self) -> Mapping[int, tuple[Op, ...]]:
        """Tensor id -> the operations that take it."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for number in dict.fromkeys(op.inputs):
                found.setdefault(number, []).append(op)
        return {number: tuple(ops) for number, ops in found.items()}

    def owner(self, tensor_id: int) -> Tensor:
        """The tensor that owns this one's memory."""
        tensor = self.tensors[tensor_id]
        while tensor.base is not None:
            tensor = self.tensors[tensor.base]
        return tensor
