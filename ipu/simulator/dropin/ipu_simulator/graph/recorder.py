"""Records what a model computes, forward and backward, while it runs on fake tensors.

Fake tensors have shapes and dtypes but no memory. Operations are seen below autograd, where what PyTorch
composes of simpler operations has come apart, and without the bookkeeping of autograd (detach). In-place
operations are written out of place: they make a new tensor. Identity of tensors is that of the Python
object, of views that of the storage.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, Iterator, Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

from ..op_table import row_of
from . import canonical
from .ir import BYTES_OF_DTYPE, Graph, Op, Phase, Role, Tensor
from .operations import latest_node, running_node, schema_of

_DEVICE = torch.ops.prim.device.default
# Not known to torch 2.0: there, what follows a module that failed counts as that module's.
_ALSO_AFTER_ERRORS: dict[str, Any] = {"always_call": True} if torch.__version__ >= "2.1" else {}

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


@dataclass(frozen=True)
class _Origin:
    """Where a forward operation stands; the operations of its gradient stand there too."""

    module: str
    stage: int
    ipu: int
    segment: int
    marks: Mapping[str, Any]


class Recorder:
    """Listens to the operations of a forward, above a FakeTensorMode; `backward` then follows its gradients.

    :param placement: says, whenever it is asked, the pipeline stage that operations are part of now, and
        its IPU.
    :param module_paths: paths of the modules by their id().
    """

    def __init__(self, placement: Callable[[], tuple[int, int]], module_paths: Mapping[int, str]) -> None:
        self._marks: Mapping[str, Any] = {}
        self._placement = placement
        self._module_paths = module_paths
        self._path: list[str] = [""]
        self._phase: Phase = "forward"
        self._segments: Counter[int] = Counter()  # checkpoints so far, by stage
        self._tensors: list[Tensor] = []
        self._ops: list[canonical.Recorded] = []
        self._alive: list[torch.Tensor] = []  # so that no id and no address is used twice
        self._ids: dict[int, int] = {}  # id() of a tensor -> its number
        self._owners: dict[int, int] = {}  # address of a storage -> the tensor that owns it now
        self._sharing: dict[int, list[int]] = {}  # address of a storage -> id()s of the tensors in it
        self._written: set[int] = set()  # tensors that an in-place operation changed
        self._origins: dict[int, _Origin] = {}  # autograd node -> the operation that it belongs to
        self._latest_origin = _Origin("", 0, 0, 0, {})
        self._gradients: dict[int, int] = {}
        self._checkpoints: set[int] = set()

    # ---- what the driver tells

    def declare(self, tensor: torch.Tensor, role: Role, name: str) -> int:
        """A tensor that is there before the model runs; returns its number."""
        return self._new(tensor, role, name)

    def checkpoint(self, tensors: Iterable[torch.Tensor]) -> None:
        """The model gave these to recomputationCheckpoint."""
        for tensor in tensors:
            number = self._number(tensor)
            owner = self._owner(number)
            whole = self._tensors[owner].shape == self._tensors[number].shape
            self._checkpoints.add(owner if whole else number)
        self._segments[self._placement()[0]] += 1

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
        number = self._number(tensor)
        for op in reversed(self._ops):
            if number in op.outputs:
                if self._tensors[number].base is not None and op.inputs:
                    number = op.inputs[0]  # a view: its maker is meant
                    continue
                op.attributes.update(marks)
                if op.node is not None and op.node in self._origins:
                    origin = self._origins[op.node]
                    self._origins[op.node] = replace(origin, marks={**origin.marks, **marks})
                return

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, operations get the path of the module that runs them."""

        def enter(module: torch.nn.Module) -> None:
            self._path.append(self._module_paths.get(id(module), self._path[-1]))

        with module_calls(enter, self._path.pop):
            yield

    def backward(self, loss: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
        """Inside `recording`, under the dispatch mode: follows the gradients of `loss`.

        Raises RuntimeError where it has none.
        """
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        self._latest_origin = self._here()
        self._phase = "backward"
        gradients = torch.autograd.grad(loss, wanted, torch.ones_like(loss), allow_unused=True)
        for parameter, gradient in zip(wanted, gradients):
            if gradient is not None:
                self._gradients[self._number(parameter)] = self._number(gradient)

    def graph(
        self, stage_ipus: tuple[int, ...], inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]
    ) -> Graph:
        """What was recorded, in the device's spelling."""
        input_numbers = tuple(self._number(tensor) for tensor in inputs)
        output_numbers = tuple(self._number(tensor) for tensor in outputs)
        tensors, ops = canonical.canonicalised(self._tensors, self._ops, self._written)
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
            gradients=self._gradients,
            checkpoints=frozenset(self._checkpoints),
            stage_ipus=stage_ipus,
            inputs=input_numbers,
            outputs=output_numbers,
        )

    # ---- operations

    def on_operation(
        self, proceed: Callable[..., Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records an operation, which `proceed(func, args, kwargs)` performs; for a dispatch mode."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        schema = schema_of(func)
        if row_of(schema.name).alias:
            result = proceed(func, args, kwargs)
            if isinstance(result, torch.Tensor) and result.shape == args[0].shape:
                self._bind(result, self._number(args[0]))
            return result
        call = schema.bind(args, kwargs)
        # Numbers first: an in-place operation changes which number its argument has.
        inputs = [self._number(tensor) for tensor in call.tensors]
        node = self._forward_node()
        origin = self._origin(node)
        result = proceed(func, args, kwargs)
        outputs = self._outputs(call.written, result)
        attributes = {**call.attributes, **origin.marks} if origin.marks else call.attributes
        self._record(schema.name, inputs, outputs, origin, attributes, node)
        for tensor, number in zip(call.written, outputs[len(outputs) - len(call.written) :]):
            self._overwrite(tensor, number, origin)
        return result

    def _record(
        self,
        name: str,
        inputs: list[int],
        outputs: list[int],
        origin: _Origin,
        attributes: dict[str, Any],
        node: int | None,
    ) -> None:
        self._ops.append(
            canonical.Recorded(
                name,
                self._phase,
                inputs,
                outputs,
                origin.module,
                origin.stage,
                origin.ipu,
                origin.segment,
                attributes,
                node,
            )
        )

    def _forward_node(self) -> int | None:
        """In the forward pass: the autograd node of the operation that is dispatched."""
        return latest_node() if self._phase == "forward" else None

    def _here(self) -> _Origin:
        stage, ipu = self._placement()
        return _Origin(self._path[-1], stage, ipu, self._segments[stage], self._marks)

    def _origin(self, forward_node: int | None) -> _Origin:
        if forward_node is not None:
            here = self._here()
            self._origins.setdefault(forward_node, here)
            return here
        running = running_node()
        if running is not None and running in self._origins:
            self._latest_origin = self._origins[running]
        # What a backward pass runs forward (torch.utils.checkpoint) has gradients of its own.
        self._origins.setdefault(latest_node(), self._latest_origin)
        return self._latest_origin

    def _outputs(self, written: list[torch.Tensor], result: Any) -> list[int]:
        """New numbers: of what an operation returns, then of what it wrote in place."""
        outputs = []
        for tensor in _tensors_of(result):
            if any(tensor is one for one in written):
                continue
            address = _address(tensor)
            if address in self._owners:
                outputs.append(self._view(tensor, address))
            else:
                outputs.append(self._new(tensor, "activation", ""))
        return outputs + [self._add(tensor, "activation", "", None) for tensor in written]

    # ---- tensors

    def _number(self, tensor: torch.Tensor) -> int:
        number = self._ids.get(id(tensor))
        if number is not None:
            return number
        address = _address(tensor)
        if address not in self._owners:
            return self._new(tensor, "constant", "")
        owner = self._tensors[self._owners[address]]
        if owner.shape == tuple(tensor.shape) and owner.dtype == _dtype(tensor):
            self._bind(tensor, owner.id)
            return owner.id
        # Part of a tensor that was changed in place since, or another name that PyTorch didn't tell of.
        number = self._view(tensor, address)
        self._record("as_strided", [owner.id], [number], self._origin(self._forward_node()), {}, None)
        return number

    def _new(self, tensor: torch.Tensor, role: Role, name: str) -> int:
        number = self._add(tensor, role, name, None)
        self._owners[_address(tensor)] = number
        self._bind(tensor, number)
        return number

    def _view(self, tensor: torch.Tensor, address: int) -> int:
        number = self._add(tensor, "activation", "", self._owners[address])
        self._bind(tensor, number)
        return number

    def _overwrite(self, tensor: torch.Tensor, number: int, origin: _Origin) -> None:
        """After an in-place operation on `tensor`, whose new values are tensor `number`."""
        address = _address(tensor)
        owner = self._tensors[self._owners[address]]
        self._written.add(owner.id)
        if owner.shape != self._tensors[number].shape:
            # Only part of the memory is new: from now on its owner is the old one with that in it.
            whole = len(self._tensors)
            self._tensors.append(Tensor(whole, owner.shape, owner.dtype, "activation", "", owner.id))
            self._record("overwrite", [owner.id, number], [whole], origin, {}, None)
            number = whole
        self._owners[address] = number
        for identity in self._sharing.pop(address):
            self._ids.pop(identity, None)

    def _add(self, tensor: torch.Tensor, role: Role, name: str, base: int | None) -> int:
        number = len(self._tensors)
        self._tensors.append(Tensor(number, tuple(tensor.shape), _dtype(tensor), role, name, base))
        return number

    def _bind(self, tensor: torch.Tensor, number: int) -> None:
        self._ids[id(tensor)] = number
        self._sharing.setdefault(_address(tensor), []).append(id(tensor))
        self._alive.append(tensor)

    def _owner(self, number: int) -> int:
        base = self._tensors[number].base
        return number if base is None else self._owner(base)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _dtype(tensor: torch.Tensor) -> str:
    name = _DTYPES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
    if name not in BYTES_OF_DTYPE:
        raise UnsupportedType(f"the model has a tensor of {tensor.dtype}, which no IPU type stands for")
    return name


def _tensors_of(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in _tensors_of(part)]
    return []
