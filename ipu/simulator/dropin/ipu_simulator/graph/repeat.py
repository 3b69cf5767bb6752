"""The graph of a model with many equal layers, from that of the same model with three of them.

Layers 1 and 2 of the three (of 0, 1, 2: the first two) must differ only in tensors. The second one is
repeated: its operations forward between it and the third, its backward operations before its own.

Letters: n copies. A tensor's number tells where it was made: the forward pass of layer 0 made [f0, f1), of
layer 1 [f1, f2); the backward pass of layer 1 made [b1, b0), of layer 0 [b0, end).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Sequence

from .ir import Graph, Op, Tensor

_GIVEN = ("parameter", "buffer", "input")


class Unequal(ValueError):
    """The layers differ, so the graph can't be repeated."""


def repeated(graph: Graph, layers: str, copies: int) -> Graph:
    """The graph with `copies` more layers.

    :param graph: of a model with three layers, captured with every block as a separate stage: layer i is
        stage i + 1.
    :param layers: path of the list of layers, such as "encoder.layers".

    Raises Unequal.
    """
    return _Repetition(graph, layers, copies).graph() if copies else graph


@dataclass(frozen=True)
class _Span:
    """Consecutive operations of one stage and phase, and the number of the first tensor that they make."""

    start: int
    end: int
    first: int


class _Repetition:
    def __init__(self, graph: Graph, layers: str, copies: int) -> None:
        self._graph, self._n = graph, copies
        self._number = re.compile(rf"(?<={re.escape(layers)}\.)\d+(?=\.|$)")
        self._forward = [self._span("forward", stage) for stage in (1, 2)]
        self._backward = [self._span("backward", stage) for stage in (1, 2)]
        one, two = self._forward
        back_one, back_two = self._backward
        self._f0, self._f1, self._f2 = one.first, two.first, self._first_after(two)
        self._b1, self._b0 = back_two.first, back_one.first
        self._end = self._first_after(back_one)
        self._s, self._t = self._f2 - self._f1, self._b0 - self._b1
        adjacent = one.end == two.start and back_two.end == back_one.start
        equal = self._f1 - self._f0 == self._s and self._end - self._b0 == self._t
        if not adjacent or not equal:
            raise Unequal("the layers' operations aren't consecutive, or make different numbers of tensors")
        self._check_equal(one, two)
        self._check_equal(back_one, back_two)
        self._given()

    def _span(self, phase: str, stage: int) -> _Span:
        indices = [op.index for op in self._graph.ops if op.phase == phase and op.stage == stage]
        if not indices or indices[-1] - indices[0] + 1 != len(indices):
            raise Unequal(f"the {phase} operations of stage {stage} aren't consecutive")
        ops = self._graph.ops[indices[0] : indices[-1] + 1]
        return _Span(indices[0], indices[-1] + 1, min(number for op in ops for number in op.outputs))

    def _first_after(self, span: _Span) -> int:
        after = [number for op in self._graph.ops[span.end :] for number in op.outputs]
        if not after:
            raise Unequal("nothing follows the layers")
        return min(after)

    def _check_equal(self, one: _Span, other: _Span) -> None:
        first, second = self._graph.ops[one.start : one.end], self._graph.ops[other.start : other.end]
        if [_kind(op, self._graph) for op in first] != [_kind(op, self._graph) for op in second]:
            raise Unequal("the layers have different operations")

    def _given(self) -> None:
        """Numbers of parameters, buffers and inputs: a layer's copies follow it."""
        tensors = self._graph.tensors
        count = next((t.id for t in tensors if t.role not in _GIVEN), len(tensors))
        of_second = [t.id for t in tensors[:count] if self._layer(t.name) == 1]
        if of_second and of_second != list(range(of_second[0], of_second[-1] + 1)):
            raise Unequal("the layers' parameters aren't consecutive")
        self._count, self._of_second = count, of_second
        self._per_layer = len(of_second)
        self._g = self._n * self._per_layer
        self._after_second = of_second[-1] + 1 if of_second else count

    def _layer(self, path: str) -> int | None:
        found = self._number.search(path)
        return int(found.group()) if found else None

    def _path(self, path: str, copy: int) -> str:
        """The path in the result, of an operation or tensor of the second layer's copy, or (0) of others."""

        def number(found: re.Match[str]) -> str:
            layer = int(found.group())
            return str(layer + copy if layer == 1 else layer + self._n if layer > 1 else layer)

        return self._number.sub(number, path, count=1)

    # ---- numbers

    def _other(self, number: int, last: bool) -> int:
        """The new number of a tensor that an operation outside of the copies refers to.

        `last`: a forward result of the second layer means that of the last copy.
        """
        n = self._n
        if number < self._count:
            return number if number < self._after_second else number + self._g
        if number < self._f2:
            of_second = number >= self._f1
            return number + self._g + (n * self._s if of_second and last else 0)
        moved = number + self._g + n * self._s
        return moved if number < self._b1 else moved + n * self._t

    def _of_copy(self, number: int, like: int, copy: int) -> int:
        """The new number of a tensor that copy `copy` refers to where the second layer (copy 0) refers to
        `number`, and the first layer to `like`.
        """
        n, forward = self._n, self._g + self._n * self._s
        if number in self._second_given:
            return number + copy * self._per_layer
        if number < self._f0:
            return self._other(number, last=False)
        if number < self._f2:  # made by this layer or the one before it
            return number + self._g + copy * self._s
        if self._b1 <= number < self._b0:
            return number + forward + (n - copy) * self._t
        if number < self._b1 and self._b1 <= like < self._b0:  # a gradient made by the layer after it
            return number + forward if copy == n else like + forward + (n - copy - 1) * self._t
        if number < self._b1 and number == like:  # a gradient or result that all layers read
            return number + forward
        raise Unequal(f"a layer refers to tensor {number}, and the one before it to {like}")

    @property
    def _second_given(self) -> range:
        return range(self._after_second - self._per_layer, self._after_second)

    # ---- the result

    def graph(self) -> Graph:
        graph, n = self._graph, self._n
        tensors = self._tensors()
        ops: list[Op] = []
        (_, two), (back_one, back_two) = self._forward, self._backward
        for op in graph.ops[: two.start]:
            ops.append(self._moved(op, last=False))
        for copy in range(n + 1):
            ops += self._copied(two, self._forward[0], copy)
        for op in graph.ops[two.end : back_two.start]:
            ops.append(self._moved(op, last=True))
        for copy in range(n, -1, -1):
            ops += self._copied(back_two, back_one, copy)
        for op in graph.ops[back_two.end : back_one.end]:
            ops.append(self._moved(op, last=False))
        for op in graph.ops[back_one.end :]:
            ops.append(self._moved(op, last=True))
        checkpoints = set()
        for number in graph.checkpoints:
            checkpoints.add(self._other(number, last=False))
            if self._f1 <= number < self._f2:
                checkpoints |= {number + self._g + copy * self._s for copy in range(1, n + 1)}
        return Graph(
            tensors=tuple(tensors),
            ops=tuple(replace(op, index=index) for index, op in enumerate(ops)),
            gradients=self._gradients(),
            checkpoints=frozenset(checkpoints),
            stage_ipus=tuple(self._stage_ipus()),
            inputs=tuple(self._other(number, last=False) for number in graph.inputs),
            outputs=tuple(self._other(number, last=True) for number in graph.outputs),
        )

    def _gradients(self) -> dict[int, int]:
        found = {}
        likes = {
            parameter + self._per_layer: gradient for parameter, gradient in self._graph.gradients.items()
        }
        for parameter, gradient in self._graph.gradients.items():
            if parameter not in self._second_given:
                found[self._other(parameter, last=False)] = self._other(gradient, last=True)
                continue
            for copy in range(self._n + 1):
                number = self._of_copy(gradient, likes[parameter], copy)
                found[parameter + copy * self._per_layer] = number
        return dict(sorted(found.items()))

    def _stage_ipus(self) -> list[int]:
        before = self._graph.stage_ipus
        return [*before[:3], *range(3, 3 + self._n), *(self._ipu(ipu) for ipu in before[3:])]

    def _ipu(self, ipu: int) -> int:
        return ipu + self._n if ipu > 2 else ipu

    def _moved(self, op: Op, last: bool) -> Op:
        return replace(
            op,
            inputs=tuple(self._other(number, last) for number in op.inputs),
            outputs=tuple(self._other(number, last) for number in op.outputs),
            module=self._path(op.module, 0),
            stage=op.stage + self._n if op.stage > 2 else op.stage,
            ipu=self._ipu(op.ipu),
        )

    def _copied(self, span: _Span, first: _Span, copy: int) -> list[Op]:
        ops = []
        for offset, op in enumerate(self._graph.ops[span.start : span.end]):
            like = self._graph.ops[first.start + offset]

            def numbers(of: Sequence[int], likes: Sequence[int]) -> tuple[int, ...]:
                return tuple(self._of_copy(*pair, copy) for pair in zip(of, likes, strict=True))

            ops.append(
                replace(
                    op,
                    inputs=numbers(op.inputs, like.inputs),
                    outputs=numbers(op.outputs, like.outputs),
                    module=self._path(op.module, copy),
                    stage=op.stage + copy,
                    ipu=op.ipu + copy,
                )
            )
        return ops

    def _tensors(self) -> list[Tensor]:
        tensors, n = self._graph.tensors, self._n
        made: list[Tensor] = []

        def others(start: int, end: int, last: bool) -> None:
            for tensor in tensors[start:end]:
                base = None if tensor.base is None else self._other(tensor.base, last)
                number, name = self._other(tensor.id, last=False), self._path(tensor.name, 0)
                made.append(replace(tensor, id=number, name=name, base=base))

        def copies(start: int, end: int, like: int, copy: int) -> None:
            for tensor in tensors[start:end]:
                base = tensor.base
                if base is not None:
                    other = tensors[tensor.id + like].base
                    if other is None:
                        raise Unequal("a layer's tensor is a view, and not in the one before it")
                    base = self._of_copy(base, other, copy)
                name = self._path(tensor.name, copy)
                made.append(replace(tensor, id=len(made), name=name, base=base))

        others(0, self._after_second, last=False)
        for copy in range(1, n + 1):
            copies(self._after_second - self._per_layer, self._after_second, -self._per_layer, copy)
        others(self._after_second, self._f1, last=False)
        for copy in range(n + 1):
            copies(self._f1, self._f2, -self._s, copy)
        others(self._f2, self._b1, last=True)
        for copy in range(n, -1, -1):
            copies(self._b1, self._b0, self._t, copy)
        others(self._b0, len(tensors), last=True)
        if any(tensor.id != number for number, tensor in enumerate(made)):
            raise Unequal("tensors aren't numbered in the order in which they are made")
        return made


def _kind(op: Op, graph: Graph) -> tuple[object, ...]:
    """Equal for operations that differ only in which tensors they take and make."""
    tensors = [graph.tensors[number] for number in (*op.inputs, *op.outputs)]
    shapes = tuple((tensor.shape, tensor.dtype, tensor.role) for tensor in tensors)
    return (op.name, len(op.inputs), shapes, tuple(sorted(op.attributes.items(), key=str)))
