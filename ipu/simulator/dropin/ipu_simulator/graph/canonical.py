"""Rewrites a graph as recorded on the host into the operations of the device.

- Dropout: a CPU draws noise, scales it and multiplies; the device has one operation, which draws the same
  noise again from its seed in the backward pass.
- Softmax: PyTorch's attention uses a variant that is safe for fully masked rows.
- Constant folding: the compiler computes tensors that depend only on constants. A one-element tensor that is
  written in place is a buffer, so it isn't folded.
- Casts between types that are the same on the device (int32 and int64) are views.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ..op_table import row_of
from .ir import Phase, Tensor


@dataclass
class Recorded:
    """An operation as recorded: ir.Op, with the autograd node of its gradient."""

    name: str
    phase: Phase
    inputs: list[int]
    outputs: list[int]
    module: str
    stage: int
    ipu: int
    segment: int
    attributes: dict[str, Any]
    node: int | None


def canonicalised(
    tensors: list[Tensor], ops: list[Recorded], written: set[int]
) -> tuple[list[Tensor], list[Recorded]]:
    """The same graph in the device's operations.

    :param written: tensors that an in-place operation changed later.
    """
    ops = [replace(op, name=row_of(op.name).same_as or op.name) for op in ops]
    ops = _with_dropouts(ops)
    tensors, ops = _without_equal_casts(tensors, ops)
    return _without_constants(tensors, ops, written)


def _with_dropouts(ops: list[Recorded]) -> list[Recorded]:
    producers = {number: op for op in ops for number in op.outputs}
    uses = Counter(number for op in ops for number in op.inputs)
    kept = []
    unused: set[int] = set()
    for op in ops:
        found = _dropout_noise(op, producers)
        if found is None:
            kept.append(op)
            continue
        noise, probability = found
        (value,) = [number for number in op.inputs if number != noise]
        forward = op.phase == "forward"
        name = "native_dropout" if forward else "native_dropout_backward"
        attributes = {"p": probability, "train": True}
        marks = {key: value for key, value in op.attributes.items() if key == "available_memory_proportion"}
        kept.append(replace(op, name=name, inputs=[value], attributes={**attributes, **marks}))
        uses[noise] -= 1
        if not uses[noise]:
            unused.add(noise)
    for noise in unused:
        scaling = producers[noise]
        drawing = producers[scaling.inputs[0]]
        making = producers[drawing.inputs[0]]
        kept = [op for op in kept if op is not scaling and op is not drawing and op is not making]
    return kept


def _dropout_noise(op: Recorded, producers: dict[int, Recorded]) -> tuple[int, float] | None:
    """If `op` multiplies by dropout noise: (the noise, the probability of a zero)."""
    if op.name != "mul" or len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
        return None
    for number in reversed(op.inputs):
        scaling = producers.get(number)
        if scaling is None or scaling.name != "div" or len(scaling.inputs) != 1:
            continue
        drawing = producers.get(scaling.inputs[0])
        if drawing is None or drawing.name != "bernoulli" or len(drawing.inputs) != 1:
            continue
        making = producers.get(drawing.inputs[0])
        if making is not None and row_of(making.name).uninitialised:
            # The probability of bernoulli is that of keeping an element.
            return number, round(1.0 - drawing.attributes["p"], 12)
    return None


def _without_equal_casts(tensors: list[Tensor], ops: list[Recorded]) -> tuple[list[Tensor], list[Recorded]]:
    tensors = list(tensors)
    changed = []
    for op in ops:
        if op.name == "_to_copy" and len(op.inputs) == 1:
            (source,), (made,) = op.inputs, op.outputs
            if tensors[source].dtype == tensors[made].dtype and op.attributes.get("dtype") is not None:
                tensors[made] = replace(tensors[made], base=source)
                op = replace(op, name="alias", attributes={})
        changed.append(op)
    return tensors, changed


def _without_constants(
    tensors: list[Tensor], ops: list[Recorded], written: set[int]
) -> tuple[list[Tensor], list[Recorded]]:
    tensors = list(tensors)
    constant = {tensor.id for tensor in tensors if tensor.role == "constant"}
    kept = []
    for op in ops:
        row = row_of(op.name)
        known = row.shapes_only or all(number in constant for number in op.inputs)
        if not known or row.random or any(number in written for number in op.outputs):
            kept.append(op)
            continue
        for number in op.outputs:
            constant.add(number)
            tensors[number] = replace(tensors[number], role="constant")
    return tensors, kept
