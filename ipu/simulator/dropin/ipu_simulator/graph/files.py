"""A graph as JSON text, from which the same graph is read: for keeping a capture."""

from __future__ import annotations

import json
from typing import Any

from .ir import Graph, Op, Tensor

_PLAIN = (str, int, float, bool, type(None))


def graph_text(graph: Graph) -> str:
    """Raises TypeError if an attribute is neither a plain value nor a tuple of such."""
    for op in graph.ops:
        for value in op.attributes.values():
            _check(value)
    content = {
        "tensors": [[t.shape, t.dtype, t.role, t.name, t.base] for t in graph.tensors],
        "ops": [
            [o.name, o.phase, o.inputs, o.outputs, o.module, o.stage, o.ipu, o.segment, dict(o.attributes)]
            for o in graph.ops
        ],
        "gradients": list(graph.gradients.items()),
        "checkpoints": sorted(graph.checkpoints),
        "stage_ipus": graph.stage_ipus,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
    }
    return json.dumps(content, separators=(",", ":"))


def graph_of_text(text: str) -> Graph:
    """Raises ValueError, KeyError or TypeError if the text isn't a graph's."""
    content = json.loads(text)
    tensors = [
        Tensor(number, tuple(shape), dtype, role, name, base)
        for number, (shape, dtype, role, name, base) in enumerate(content["tensors"])
    ]
    ops = [
        Op(
            number,
            name,
            phase,
            tuple(inputs),
            tuple(outputs),
            module,
            stage,
            ipu,
            segment,
            {key: _tuples(value) for key, value in attributes.items()},
        )
        for number, (name, phase, inputs, outputs, module, stage, ipu, segment, attributes) in enumerate(
            content["ops"]
        )
    ]
    return Graph(
        tensors=tuple(tensors),
        ops=tuple(ops),
        gradients=dict(content["gradients"]),
        checkpoints=frozenset(content["checkpoints"]),
        stage_ipus=tuple(content["stage_ipus"]),
        inputs=tuple(content["inputs"]),
        outputs=tuple(content["outputs"]),
    )


def _check(value: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check(item)
    elif not isinstance(value, _PLAIN):
        raise TypeError(f"{value!r} can't be kept")


def _tuples(value: Any) -> Any:
    return tuple([_tuples(item) for item in value]) if isinstance(value, list) else value
