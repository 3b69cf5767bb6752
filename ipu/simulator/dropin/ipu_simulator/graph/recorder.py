"""Records what a model computes, forward and backward, while it runs: the one listener that does.

Operations are seen below autograd, where what PyTorch composes of simpler operations has come apart. The
recording is a list of events, as PyTorch dispatched them. Two things are read off it afterwards: the cost
model's graph (numbering.py), and the JSON that stands for PopART's IR (poptorch/_trace/popart_ir.py).
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple

import torch
from torch.nn.modules import module as torch_module

from .ir import Phase, Role
from .operations import Schema, latest_node, running_node, schema_of

# Not known to torch 2.0: there, what follows a module that failed counts as that module's.
_ALSO_AFTER_ERRORS: dict[str, Any] = {"always_call": True} if torch.__version__ >= "2.1" else {}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Value(NamedTuple):
    """A tensor as it was when an operation took or made it.

    :param identity: of the Python object.
    :param address: of its storage; tensors that share it are views of one another.
    """

    identity: int
    address: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Place(NamedTuple):
    """Where on the device operations run: a forward pipeline stage and its IPU.

    :param stage: from 0; each change of the IPU begins the next one.
    :param attributes: what the program says of the operations there (poptorch.Attribute).
    :param strategy_stage: the stage's number in the program's execution strategy.
    """

    stage: int
    ipu: int
    attributes: Mapping[str, Any] = _NOTHING
    strategy_stage: int = 0


class Scope(NamedTuple):
    """A module's call, by its path (None if it has none), or a part of the forward that the program named."""

    path: str | None
    is_module: bool


class Where(NamedTuple):
    """The circumstances of an event.

    :param scopes: the outermost first.
    :param marks: attributes for an operation and those of its gradient.
    :param node: the latest node that autograd made (operations.py).
    :param running: the node that runs backward.
    """

    phase: Phase
    scopes: tuple[Scope, ...]
    place: Place
    marks: Mapping[str, Any]
    node: int
    running: int | None


class Operation(NamedTuple):
    """An operation that was dispatched.

    :param taken: the tensors among its arguments, in their order.
    :param results: what it returned.
    :param written: those of its arguments that it wrote in place, as they were afterwards.
    :param attributes: its other arguments.
    """

    where: Where
    schema: Schema
    taken: list[Value]
    results: list[Value]
    written: list[Value]
    attributes: dict[str, Any]


class RecomputationCheckpoint(NamedTuple):
    """The model gave these tensors to recomputationCheckpoint."""

    where: Where
    tensors: list[Value]


class Mark(NamedTuple):
    """Attributes for the operation that computed a tensor, and for those of its gradient."""

    where: Where
    tensor: Value
    marks: dict[str, Any]


Event = Operation | RecomputationCheckpoint | Mark
# Gets each operation and checkpoint once it is recorded, with its results.
OnEvent = Callable[["Operation | RecomputationCheckpoint", "list[torch.Tensor]"], None]


@dataclass
class Recording:
    """What a Recorder saw.

    :param given: tensors that were there before the model ran, with their roles and names.
    :param gradients: parameters and their gradients.
    """

    given: list[tuple[Value, Role, str]]
    events: list[Event]
    gradients: list[tuple[Value, Value]]


@contextlib.contextmanager
def module_calls(enter: Callable[[torch.nn.Module], None], leave: Callable[[], Any]) -> Iterator[None]:
    """Inside, each module that this thread calls is told to `enter` first and to `leave` afterwards.

    torch's module hooks are the process's: other threads (data loading, another model) may call modules too.
    """
    thread = threading.get_ident()

    def before(module: torch.nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == thread:
            enter(module)

    def after(_module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        if threading.get_ident() == thread:
            leave()

    hooks = [
        torch_module.register_module_forward_pre_hook(before),
        torch_module.register_module_forward_hook(after, **_ALSO_AFTER_ERRORS),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Recorder:
    """Listens to the operations of a forward; `backward` then follows its gradients.

    :param place: says, whenever it is asked, where operations run now.
    :param module_paths: paths of the modules by their id(); without any, modules are no scopes.
    :param on_event: see OnEvent.
    """

    def __init__(
        self,
        place: Callable[[], Place],
        module_paths: Mapping[int, str],
        on_event: OnEvent | None = None,
    ) -> None:
        self.recording = Recording([], [], [])
        self._place = place
        self._module_paths = module_paths
        self._on_event = on_event
        self._scopes: tuple[Scope, ...] = ()
        self._marks = _NOTHING
        self._phase: Phase = "forward"
        self._alive: dict[int, torch.Tensor] = {}  # so that no id and no address is used twice

    # ---- what the driver tells

    def declare(self, tensor: torch.Tensor, role: Role, name: str) -> None:
        """A tensor that is there before the model runs."""
        self.recording.given.append((self.value(tensor), role, name))

    def checkpoint(self, tensors: Iterable[torch.Tensor]) -> None:
        """The model gave these to recomputationCheckpoint."""
        tensors = list(tensors)
        event = RecomputationCheckpoint(self.where(), [self.value(tensor) for tensor in tensors])
        self._add(event, tensors)

    @contextlib.contextmanager
    def marked(self, **marks: Any) -> Iterator[None]:
        """Inside, operations have these attributes, and those of their gradients too."""
        outer, self._marks = self._marks, {**self._marks, **marks}
        try:
            yield
        finally:
            self._marks = outer

    def mark_producer(self, tensor: torch.Tensor, **marks: Any) -> None:
        """Adds attributes to the operation that computed a tensor, and later to those of its gradient."""
        self.recording.events.append(Mark(self.where(), self.value(tensor), marks))

    def stands_for(self, copy: torch.Tensor, tensor: torch.Tensor) -> None:
        """A tensor's value now, which the backward pass will read from `copy`: no operation makes it."""
        alias = schema_of(torch.ops.aten.detach.default)
        taken, results = [self.value(tensor)], [self.value(copy)]
        self.recording.events.append(Operation(self.where(), alias, taken, results, [], {}))

    def enter_scope(self, name: str) -> None:
        """Operations stand in a scope of this name until leave_scope."""
        self._scopes += (Scope(name, False),)

    def leave_scope(self) -> None:
        """See enter_scope; leaving one that was entered before the forward is fine."""
        if self._scopes and not self._scopes[-1].is_module:
            self._scopes = self._scopes[:-1]

    @contextlib.contextmanager
    def in_modules(self) -> Iterator[None]:
        """Inside, operations stand in the scopes of the modules that run them."""
        outer: list[tuple[Scope, ...]] = []

        def enter(module: torch.nn.Module) -> None:
            outer.append(self._scopes)
            self._scopes += (Scope(self._module_paths.get(id(module)), True),)

        def leave() -> None:
            self._scopes = outer.pop()

        with module_calls(enter, leave) if self._module_paths else contextlib.nullcontext():
            yield

    @property
    def module_path(self) -> str | None:
        """The path of the innermost module that runs ("" is the model); None if it has no path."""
        return next((scope.path for scope in reversed(self._scopes) if scope.is_module), None)

    def backward(self, loss: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
        """Inside `in_modules`, under the dispatch mode: follows the gradients of `loss`.

        Raises RuntimeError where it has none.
        """
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        self._phase = "backward"
        gradients = torch.autograd.grad(loss, wanted, torch.ones_like(loss), allow_unused=True)
        self.recording.gradients += [
            (self.value(parameter), self.value(gradient))
            for parameter, gradient in zip(wanted, gradients)
            if gradient is not None
        ]

    # ---- what is recorded

    def on_operation(
        self, proceed: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records an operation, which `proceed(func, args, kwargs)` performs; for a dispatch mode."""
        schema = schema_of(func)
        call = schema.bind(args, kwargs)
        where = self.where()
        taken = self._values(call.tensors)
        result = proceed(func, args, kwargs)
        results = _tensors_of(result)
        written = self._values(call.written)
        self._add(Operation(where, schema, taken, self._values(results), written, call.attributes), results)
        return result

    def _add(self, event: Operation | RecomputationCheckpoint, results: list[torch.Tensor]) -> None:
        self.recording.events.append(event)
        if self._on_event is not None:
            self._on_event(event, results)

    def where(self) -> Where:
        """The circumstances now."""
        return Where(
            self._phase,
            self._scopes,
            self._place(),
            self._marks,
            latest_node(),
            running_node() if self._phase == "backward" else None,
        )

    def value(self, tensor: torch.Tensor) -> Value:
        """A tensor as it is now."""
        identity = id(tensor)
        self._alive[identity] = tensor
        return Value(identity, _storage_of(tensor), tuple(tensor.shape), tensor.dtype)

    def _values(self, tensors: list[torch.Tensor]) -> list[Value]:
        return [self.value(tensor) for tensor in tensors]


def _storage_of(tensor: torch.Tensor) -> int:
    """The storage's own address: that of its elements is 0 if it is empty, fake, or forward-mode's zeros."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _tensors_of(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in _tensors_of(part)]
    return []
