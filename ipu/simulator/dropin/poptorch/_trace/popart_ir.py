"""The JSON that stands for PopART's IR: an export of what was recorded of the forward that compiles a model.

Operations are PyTorch's below autograd, under PopART's names where the two have the same ("MatMul"),
else under their own ("Roll"). Like PopART's lowered IR, it has a Checkpoint for each tensor given to
recomputationCheckpoint, and a Stash and Restore for each tensor that a pipeline stage keeps from its
forward to its backward pass.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ipu_simulator.graph.recorder import Mark, Operation, Place, RecomputationCheckpoint, Recording, Value
from ipu_simulator.op_table import row_of

_VIEWS = frozenset({"Identity", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
# PopART's RecomputationType.Standard, .NormOnly, .Pipeline and .RecomputeAll.
_RECOMPUTES = frozenset({1, 2, 3, 4})


@dataclass
class _Node:
    name: str
    type: str
    place: Place
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


class Named(NamedTuple):
    """A node's name, its type, and what it takes and makes; its results are "NAME:0", "NAME:1", ..."""

    name: str
    type: str
    taken: list[Value]
    made: list[Value]


class Names:
    """Names the nodes of a recording, whose events it must be given in their order."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def nodes(self, event: Operation | RecomputationCheckpoint) -> list[Named]:
        """The nodes that an event is in PopART's IR: most often one."""
        if isinstance(event, RecomputationCheckpoint):
            return [self._named(event, "Checkpoint", [value], [value]) for value in event.tensors]
        name = event.schema.name
        if name == "detach" and not event.written:  # autograd's bookkeeping
            return []
        type_ = row_of(name).popart_type or "".join(part.capitalize() for part in name.split("_"))
        return [self._named(event, type_, event.taken, event.results)]

    def _named(
        self, event: Operation | RecomputationCheckpoint, type_: str, taken: list[Value], made: list[Value]
    ) -> Named:
        scopes = [
            (scope.path or "").rpartition(".")[2] if scope.is_module else scope.path
            for scope in event.where.scopes
        ]
        path = "/".join([*filter(None, scopes), type_])
        name = path if not self._counts[path] else f"{path}/{self._counts[path]}"
        self._counts[path] += 1
        return Named(name, type_, taken, made)


@dataclass(frozen=True)
class _Made:
    """A tensor of the graph: the stage it was made in, whether it is a weight."""

    tensor: dict[str, Any]
    stage: int
    is_weight: bool


class _Nodes:
    """The nodes of a recording, and what each pipeline stage takes from another or from the host."""

    def __init__(self, recording: Recording) -> None:
        self.nodes: list[_Node] = []
        # What each stage takes from elsewhere, and where it is first used, by address and stage.
        self.entering: dict[tuple[int, int], tuple[Place, dict[str, Any]]] = {}
        self.weights_at: dict[str, Place] = {}  # where each weight is first used
        self._made: dict[int, _Made] = {}  # by address
        # By the identity of what they made: nodes, and the identity of what each took first.
        self._makers: dict[int, tuple[_Node, int | None]] = {}
        names = Names()
        for value, role, name in recording.given:
            self._keep(value, name, -1, is_weight=role != "input")
        for event in recording.events:
            if isinstance(event, Mark):
                self._limit_memory(event)
                continue
            for named in names.nodes(event):
                self._add(named, event.where.place)

    def _add(self, named: Named, place: Place) -> None:
        node = _Node(named.name, named.type, place, attributes=dict(place.attributes))
        for value in named.taken:
            made = self._made.get(value.address)
            if made is None:
                continue
            node.inputs.append(made.tensor)
            if made.is_weight:
                self.weights_at.setdefault(made.tensor["name"], place)
            elif made.stage != place.stage:
                self.entering.setdefault((value.address, place.stage), (place, made.tensor))
        first = named.taken[0].identity if named.taken else None
        for index, value in enumerate(named.made):
            self._makers[value.identity] = node, first
            node.outputs.append(self._keep(value, f"{named.name}:{index}", place.stage, is_weight=False))
        self.nodes.append(node)

    def _keep(self, value: Value, name: str, stage: int, is_weight: bool) -> dict[str, Any]:
        type_ = str(value.dtype).removeprefix("torch.")
        described = {"name": name, "type": type_, "shape": list(value.shape)}
        # A view or an in-place change of a tensor goes by the name of that tensor.
        self._made.setdefault(value.address, _Made(described, stage, is_weight))
        return described

    def _limit_memory(self, mark: Mark) -> None:
        share = mark.marks.get("available_memory_proportion")
        identity: int | None = mark.tensor.identity
        while share is not None and identity is not None and identity in self._makers:
            maker, identity = self._makers[identity]
            if maker.type not in _VIEWS:  # of a view, the operation that computed it is meant
                maker.attributes["availableMemoryProportion"] = share
                return


def as_json(
    recording: Recording,
    updated: list[str],
    update_types: tuple[str, ...],
    num_stages: int,
    recompute: int | None,
) -> str:
    """JSON: {"maingraph": [{name, type, attributes, inputs, outputs}, ...]}.

    :param updated: names of the weights that train; none in inference.
    :param update_types: PopART's types of one weight's update, in order.
    :param num_stages: forward pipeline stages that work at the same time; 1 without a pipeline.
    :param recompute: PopART's autoRecomputation, None where nobody set it.
    """
    read = _Nodes(recording)
    nodes = list(read.nodes)
    if updated:
        nodes += _stashes(read, num_stages, recompute is None or recompute in _RECOMPUTES)
    for name in updated:
        changed = {"name": f"UpdatedVar___{name}"}
        gradient = {"name": f"Gradient___{name}"}
        for number, type_ in enumerate(update_types):
            path = f"{type_}/{name}" if type_ not in update_types[:number] else f"{type_}/{name}/{number}"
            outputs = [changed] if number == len(update_types) - 1 else []
            place = read.weights_at.get(name, Place(0, 0))
            nodes.append(_Node(path, type_, place, [{"name": name}, gradient], outputs))
    return json.dumps({"maingraph": [_node_as_json(node) for node in nodes]})


def _stashes(read: _Nodes, num_stages: int, recompute: bool) -> list[_Node]:
    kept = list(read.entering.values())
    for node in read.nodes:
        if node.type == "Checkpoint" or not (recompute or node.type in _VIEWS):
            kept += [(node.place, tensor) for tensor in node.outputs]
    # The last stage goes backward at once and keeps nothing.
    return [
        _Node(f"{type_}/{tensor['name']}", type_, place, [tensor], [tensor])
        for type_ in ("Stash", "Restore")
        for place, tensor in kept
        if place.stage < num_stages - 1
    ]


def _node_as_json(node: _Node) -> dict[str, Any]:
    attributes = {
        **node.attributes,
        "__ipu_number": str(node.place.ipu),
        "__pipeline_stage": str(node.place.strategy_stage),
    }
    return {
        "name": node.name,
        "type": node.type,
        "attributes": attributes,
        "inputs": node.inputs,
        "outputs": node.outputs,
    }
