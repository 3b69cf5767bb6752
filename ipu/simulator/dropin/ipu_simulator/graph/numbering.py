"""The cost model's graph of what was recorded (recorder.py).

Autograd's bookkeeping (detach) is left out. In-place operations are written out of place: they make a new
tensor. Identity of tensors is that of the Python object, of views that of the memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Iterable, Mapping

import torch

from ..op_table import row_of
from . import canonical
from .ir import BYTES_OF_DTYPE, Graph, Op, Role, Tensor
from .recorder import Mark, Operation, RecomputationCheckpoint, Recorder, Value, Where

# The device has no 64-bit types and no bfloat16.
_DTYPES = {
    torch.float64: "float32",
    torch.bfloat16: "float32",
    torch.int64: "int32",
}
if hasattr(torch, "uint64"):  # from 2.3 on
    _DTYPES[torch.uint64] = "uint32"


class UnsupportedType(ValueError):
    """A type of tensor that the device doesn't have."""


def check_types(event: Operation | RecomputationCheckpoint, _results: list[torch.Tensor]) -> None:
    """Raises UnsupportedType at an operation with a tensor of such a type; an OnEvent (recorder.py)."""
    if isinstance(event, Operation):
        for value in (*event.taken, *event.results):
            _dtype(value)


def graph_of(
    recorder: Recorder,
    stage_ipus: tuple[int, ...],
    inputs: Iterable[torch.Tensor],
    outputs: Iterable[torch.Tensor],
) -> Graph:
    """What was recorded, in the device's spelling.

    :param stage_ipus: the IPU of each forward pipeline stage.
    :param inputs: of the micro batch.
    :param outputs: what the model returned.

    Raises UnsupportedType.
    """
    numbering = _Numbering()
    recording, end = recorder.recording, recorder.where()
    for value, role, name in recording.given:
        numbering.new(value, role, name)
    for event in recording.events:
        if isinstance(event, Operation):
            numbering.operation(event)
        elif isinstance(event, RecomputationCheckpoint):
            numbering.checkpoint(event)
        else:
            numbering.mark(event)
    gradients = {
        numbering.number(parameter, end): numbering.number(gradient, end)
        for parameter, gradient in recording.gradients
    }
    input_numbers = tuple(numbering.number(recorder.value(tensor), end) for tensor in inputs)
    output_numbers = tuple(numbering.number(recorder.value(tensor), end) for tensor in outputs)
    tensors, ops = canonical.canonicalised(numbering.tensors, numbering.ops, numbering.written)
    return Graph(
        tensors=tuple(tensors),
        ops=tuple(
            Op(
                index=index,
                name=op.name,
                phase=op.phase,
                inputs=tuple(op.inputs),
                outputs=tuple(op.outputs),
                module=op.module,
                stage=op.stage,
                ipu=op.ipu,
                segment=op.segment,
                attributes=op.attributes,
            )
            for index, op in enumerate(ops)
        ),
        gradients=gradients,
        checkpoints=frozenset(numbering.checkpoints),
        stage_ipus=stage_ipus,
        inputs=input_numbers,
        outputs=output_numbers,
    )


@dataclass(frozen=True)
class _Origin:
    """Where a forward operation stands; the operations of its gradient stand there too."""

    module: str
    stage: int
    ipu: int
    segment: int
    marks: Mapping[str, Any]


class _Numbering:
    """Gives tensors their numbers, event by event."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.ops: list[canonical.Recorded] = []
        self.written: set[int] = set()  # tensors that an in-place operation changed
        self.checkpoints: set[int] = set()
        self._segments: Counter[int] = Counter()  # checkpoints so far, by stage
        self._numbers: dict[int, int] = {}  # identity of a tensor -> its number
        self._owners: dict[int, int] = {}  # address -> the tensor that owns it now
        self._sharing: dict[int, list[int]] = {}  # address -> identities of the tensors there
        self._origins: dict[int, _Origin] = {}  # autograd node -> the operation that it belongs to
        self._latest_origin: _Origin | None = None  # in the backward pass

    # ---- events

    def operation(self, event: Operation) -> None:
        name, where = event.schema.name, event.where
        if row_of(name).alias:
            if len(event.results) == 1 and event.results[0].shape == event.taken[0].shape:
                number = self.number(event.taken[0], where)
                self._bind(event.results[0], number)
                self._owners.setdefault(event.results[0].address, self._owner(number))
            return
        # Numbers first: an in-place operation changes which number its argument has.
        inputs = [self.number(value, where) for value in event.taken]
        origin = self._origin(where)
        outputs = self._outputs(event)
        attributes = {**event.attributes, **origin.marks}
        if event.schema.pointwise and not row_of(name).rule:
            attributes["pointwise"] = True  # for the bound of its cost
        self._record(name, inputs, outputs, origin, attributes, where)
        for value, number in zip(event.written, outputs[len(outputs) - len(event.written) :]):
            self._overwrite(value, number, origin, where)

    def checkpoint(self, event: RecomputationCheckpoint) -> None:
        for value in event.tensors:
            number = self.number(value, event.where)
            owner = self._owner(number)
            whole = self.tensors[owner].shape == self.tensors[number].shape
            self.checkpoints.add(owner if whole else number)
        self._segments[event.where.place.stage] += 1

    def mark(self, event: Mark) -> None:
        number = self.number(event.tensor, event.where)
        for op in reversed(self.ops):
            if number in op.outputs:
                if self.tensors[number].base is not None and op.inputs:
                    number = op.inputs[0]  # a view: its maker is meant
                    continue
                op.attributes.update(event.marks)
                if op.node is not None and op.node in self._origins:
                    origin = self._origins[op.node]
                    self._origins[op.node] = replace(origin, marks={**origin.marks, **event.marks})
                return

    # ---- operations

    def _record(
        self,
        name: str,
        inputs: list[int],
        outputs: list[int],
        origin: _Origin,
        attributes: dict[str, Any],
        where: Where,
        has_node: bool = True,
    ) -> None:
        self.ops.append(
            canonical.Recorded(
                name,
                where.phase,
                inputs,
                outputs,
                origin.module,
                origin.stage,
                origin.ipu,
                origin.segment,
                attributes,
                where.node if has_node and where.phase == "forward" else None,
            )
        )

    def _here(self, where: Where) -> _Origin:
        paths = [scope.path for scope in where.scopes if scope.is_module and scope.path is not None]
        place = where.place
        segment = self._segments[place.stage]
        return _Origin(paths[-1] if paths else "", place.stage, place.ipu, segment, where.marks)

    def _origin(self, where: Where) -> _Origin:
        if where.phase == "forward":
            here = self._here(where)
            self._origins.setdefault(where.node, here)
            return here
        if where.running is not None and where.running in self._origins:
            self._latest_origin = self._origins[where.running]
        elif self._latest_origin is None:  # the loss's own gradient, made where the forward ended
            self._latest_origin = self._here(where)
        # Operations that a backward pass recomputes (torch.utils.checkpoint) have gradients too.
        self._origins.setdefault(where.node, self._latest_origin)
        return self._latest_origin

    def _outputs(self, event: Operation) -> list[int]:
        """New numbers: of what an operation returns, then of what it wrote in place."""
        outputs = []
        written = {value.identity for value in event.written}
        for value in event.results:
            if value.identity in written:
                continue
            if value.address in self._owners:
                outputs.append(self._view(value))
            else:
                outputs.append(self.new(value, "activation", ""))
        return outputs + [self._add(value, "activation", "", None) for value in event.written]

    # ---- tensors

    def number(self, value: Value, where: Where) -> int:
        number = self._numbers.get(value.identity)
        if number is not None:
            return number
        if value.address not in self._owners:
            return self.new(value, "constant", "")
        owner = self.tensors[self._owners[value.address]]
        if owner.shape == value.shape and owner.dtype == _dtype(value):
            self._bind(value, owner.id)
            return owner.id
        # Part of a tensor that was changed in place since, or another name that PyTorch didn't tell of.
        number = self._view(value)
        self._record("as_strided", [owner.id], [number], self._origin(where), {}, where, has_node=False)
        return number

    def new(self, value: Value, role: Role, name: str) -> int:
        number = self._add(value, role, name, None)
        self._owners[value.address] = number
        self._bind(value, number)
        return number

    def _view(self, value: Value) -> int:
        number = self._add(value, "activation", "", self._owners[value.address])
        self._bind(value, number)
        return number

    def _overwrite(self, value: Value, number: int, origin: _Origin, where: Where) -> None:
        """After an in-place operation, whose new values are tensor `number`."""
        owner = self.tensors[self._owners[value.address]]
        self.written.add(owner.id)
        if owner.shape != self.tensors[number].shape:
            # Only part of the memory is new: from now on its owner is the old one with that in it.
            whole = len(self.tensors)
            self.tensors.append(Tensor(whole, owner.shape, owner.dtype, "activation", "", owner.id))
            self._record("overwrite", [owner.id, number], [whole], origin, {}, where, has_node=False)
            number = whole
        self._owners[value.address] = number
        for identity in self._sharing.pop(value.address):
            self._numbers.pop(identity, None)

    def _add(self, value: Value, role: Role, name: str, base: int | None) -> int:
        number = len(self.tensors)
        self.tensors.append(Tensor(number, value.shape, _dtype(value), role, name, base))
        return number

    def _bind(self, value: Value, number: int) -> None:
        self._numbers[value.identity] = number
        self._sharing.setdefault(value.address, []).append(value.identity)

    def _owner(self, number: int) -> int:
        base = self.tensors[number].base
        return number if base is None else self._owner(base)


def _dtype(value: Value) -> str:
    name = _DTYPES.get(value.dtype) or str(value.dtype).removeprefix("torch.")
    if name not in BYTES_OF_DTYPE:
        raise UnsupportedType(f"the model has a tensor of {value.dtype}, which no IPU type stands for")
    return name
