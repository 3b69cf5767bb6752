"""The graph that a compilation sees: its operations in order, and the JSON that stands for PopART's IR.

Operations are PyTorch's below autograd, under PopART's names where the two have the same ("MatMul"),
else under their own ("Roll"). Like PopART's lowered IR, it has a Checkpoint for each tensor given to
recomputationCheckpoint, and a Stash and Restore for each tensor that a pipeline stage keeps from its
forward to its backward pass.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Iterator

import torch
from ipu_simulator.graph.operations import schema_of
from ipu_simulator.graph.recorder import module_calls
from ipu_simulator.op_table import row_of
from torch.utils._pytree import tree_flatten

from . import Call
from . import run as _trace

_VIEWS = frozenset({"Identity", "Expand", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
# PopART's RecomputationType.Standard, .NormOnly, .Pipeline and .RecomputeAll.
_RECOMPUTES = frozenset({1, 2, 3, 4})


@dataclass
class _Node:
    name: str
    type: str
    stage: int
    ipu: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    """A tensor of the graph: its name, the stage it was made in, whether it is a weight."""

    tensor: dict[str, Any]
    stage: int
    is_weight: bool


class Recorder:
    """Names the operations of a forward.

    :param weights: the device's parameters and buffers, by name.
    :param inputs: the first micro batch's inputs.
    """

    def __init__(
        self,
        trace: _trace.Trace | _NoBlocks,
        module_names: dict[int, str],
        weights: dict[str, torch.Tensor],
        inputs: list[torch.Tensor],
    ) -> None:
        self._trace = trace
        self._module_names = module_names
        self._scopes: list[str] = []
        self._counts: Counter[str] = Counter()
        self._alive: list[torch.Tensor] = []  # so that no address is used twice
        self._made: dict[int, _Made] = {}
        self._makers: dict[int, _Node] = {}  # by the id of what they made
        self._nodes: list[_Node] = []
        # What each stage takes from elsewhere, by address and stage.
        self._entering: dict[tuple[int, int], dict[str, Any]] = {}
        for name, tensor in weights.items():
            self._keep(tensor, name, -1, is_weight=True)
        for index, tensor in enumerate(inputs):
            self._keep(tensor, f"input/{index}", -1, is_weight=False)

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listens to operations (watch.py)."""
        result = proceed(func, args, kwargs)
        name = func.overloadpacket.__name__
        if name == "detach":  # autograd's bookkeeping
            return result
        name = schema_of(func).name
        type_ = row_of(name).popart_type or "".join(part.capitalize() for part in name.split("_"))
        self._add(type_, _tensors((args, kwargs)), _tensors(result))
        return result

    def _add(self, type_: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        entry = self._trace.entries[-1] if self._trace.entries else None
        stage, ipu = (entry.stage, entry.ipu) if entry else (0, 0)
        path = "/".join([*filter(None, self._scopes), type_])
        name = path if not self._counts[path] else f"{path}/{self._counts[path]}"
        self._counts[path] += 1
        node = _Node(name, type_, stage, ipu, attributes=dict(_trace.open_attributes()))
        for tensor in inputs:
            address = _address(tensor)
            made = self._made.get(address)
            if made is None:
                continue
            node.inputs.append(made.tensor)
            if not made.is_weight and made.stage != stage:
                self._entering.setdefault((address, stage), made.tensor)
        for index, tensor in enumerate(outputs):
            self._makers[id(tensor)] = node
            node.outputs.append(self._keep(tensor, f"{name}:{index}", stage, is_weight=False))
        self._nodes.append(node)

    def _keep(self, tensor: torch.Tensor, name: str, stage: int, is_weight: bool) -> dict[str, Any]:
        address = _address(tensor)
        described = {
            "name": name,
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        self._alive.append(tensor)
        # A view or an in-place change of a weight is still that weight.
        if address not in self._made:
            self._made[address] = _Made(described, stage, is_weight)
        return described

    def limit_memory(self, tensor: torch.Tensor, proportion: float) -> None:
        """Note what set_available_memory says of the operation that made a tensor."""
        if id(tensor) in self._makers:
            self._makers[id(tensor)].attributes["availableMemoryProportion"] = proportion

    def checkpoint(self, tensors: list[torch.Tensor]) -> None:
        """Mark what recomputationCheckpoint was given."""
        for tensor in tensors:
            self._add("Checkpoint", [tensor], [tensor])

    def enter_scope(self, name: str) -> None:
        """See NameScope."""
        self._scopes.append(name)

    def leave_scope(self) -> None:
        """See NameScope; leaving one that was entered before the forward is fine."""
        if self._scopes:
            self._scopes.pop()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, operations are named after the modules that make them."""

        def enter(module: torch.nn.Module) -> None:
            self._scopes.append(self._module_names.get(id(module), ""))

        scopes = module_calls(enter, self._scopes.pop) if self._module_names else contextlib.nullcontext()
        run = _trace.surrounding()
        assert run is not None
        run.ir_recorder = self
        with scopes:
            yield

    def ir(
        self, updated: list[str], update_types: tuple[str, ...], pipelined: bool, recompute: int | None
    ) -> str:
        """JSON: {"maingraph": [{name, type, attributes, inputs, outputs}, ...]}.

        :param updated: names of the weights that train; none in inference.
        :param update_types: PopART's types of one weight's update, in order.
        :param pipelined: whether stages work at the same time.
        :param recompute: PopART's autoRecomputation, None where nobody set it.
        """
        nodes = list(self._nodes)
        if updated and pipelined:
            nodes += self._stashes(recompute is None or recompute in _RECOMPUTES)
        for name in updated:
            changed = {"name": f"UpdatedVar___{name}"}
            gradient = {"name": f"Gradient___{name}"}
            for number, type_ in enumerate(update_types):
                path = f"{type_}/{name}" if type_ not in update_types[:number] else f"{type_}/{name}/{number}"
                outputs = [changed] if number == len(update_types) - 1 else []
                nodes.append(_Node(path, type_, 0, 0, [{"name": name}, gradient], outputs))
        return json.dumps({"maingraph": [_as_json(node) for node in nodes]})

    def _stashes(self, recompute: bool) -> list[_Node]:
        # The last stage goes backward at once and keeps nothing.
        last = self._trace.entries[-1].stage
        ipus = {entry.stage: entry.ipu for entry in self._trace.entries}
        kept = [(stage, tensor) for (_, stage), tensor in self._entering.items()]
        for node in self._nodes:
            if node.type == "Checkpoint" or not (recompute or node.type in _VIEWS):
                kept += [(node.stage, tensor) for tensor in node.outputs]
        return [
            _Node(f"{type_}/{tensor['name']}", type_, stage, ipus.get(stage, 0), [tensor], [tensor])
            for type_ in ("Stash", "Restore")
            for stage, tensor in kept
            if stage != last
        ]


def _address(tensor: torch.Tensor) -> int:
    """Of a tensor's elements; forward-mode derivatives have zeros that take no memory."""
    return id(tensor) if tensor._is_zerotensor() else tensor.untyped_storage().data_ptr()


class Watcher(Recorder):
    """Stands around a later forward of the same model: `found` has those of its tensors that are `wanted`."""

    def __init__(
        self,
        module_names: dict[int, str],
        weights: dict[str, torch.Tensor],
        inputs: list[torch.Tensor],
        wanted: set[str],
    ) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self._wanted = wanted
        super().__init__(_NoBlocks(), module_names, weights, inputs)

    def _keep(self, tensor: torch.Tensor, name: str, stage: int, is_weight: bool) -> dict[str, Any]:
        if name in self._wanted and not is_weight:
            self.found[name] = tensor.detach().clone()
        return super()._keep(tensor, name, stage, is_weight)


class _NoBlocks:
    """In place of a trace, where nobody asks for blocks."""

    entries: ClassVar[list[_trace.BlockEntry]] = []


def _recorder() -> Recorder | None:
    run = _trace.surrounding()
    return None if run is None else run.ir_recorder


def checkpoint(tensors: list[torch.Tensor]) -> None:
    """recomputationCheckpoint was given these; nothing happens unless a model is being compiled."""
    recorder = _recorder()
    if recorder is not None:
        recorder.checkpoint(tensors)
    run = _trace.current()
    if run is not None and run.recorder is not None:
        run.recorder.checkpoint(tensors)


@contextlib.contextmanager
def marked(**marks: Any) -> Iterator[None]:
    """Inside, captured operations have these attributes, and those of their gradients too."""
    run = _trace.current()
    if run is None or run.recorder is None:
        yield
        return
    with run.recorder.marked(**marks):
        yield


def mark_producer(tensor: torch.Tensor, **marks: Any) -> None:
    """As `marked`, for the operation that computed a tensor."""
    run = _trace.current()
    if run is not None and run.recorder is not None:
        run.recorder.mark_producer(tensor, **marks)
    recorder = _recorder()
    if recorder is not None and "available_memory_proportion" in marks:
        recorder.limit_memory(tensor, marks["available_memory_proportion"])


def enter_scope(name: str) -> None:
    """Operations' names have `name` among their scopes until leave_scope."""
    recorder = _recorder()
    if recorder is not None:
        recorder.enter_scope(name)


def leave_scope() -> None:
    """See enter_scope."""
    recorder = _recorder()
    if recorder is not None:
        recorder.leave_scope()


def _tensors(structure: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(structure)[0] if isinstance(leaf, torch.Tensor)]


def _as_json(node: _Node) -> dict[str, Any]:
    attributes = {**node.attributes, "__ipu_number": str(node.ipu), "__pipeline_stage": str(node.stage)}
    return {
        "name": node.name,
        "type": node.type,
        "attributes": attributes,
        "inputs": node.inputs,
        "outputs": node.outputs,
    }
