"""Checks during compilation: which tensors are on the device, and operations that a graph can't hold.

A graph can't hold operations whose result's shape depends on values, reads of values, and operations that
PopTorch lacks.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, Iterable

import torch
from ipu_simulator import variables
from ipu_simulator.graph.operations import schema_of
from torch.utils._python_dispatch import _disable_current_modes

from .._logging import logger
from .._run.structure import map_leaves, tensors
from ..poptorch_core import createBackendError
from . import Call, callers, supported
from . import run as trace
from .call_table import row_of, rows
from .callers import Caller, called_by_library
from .casts import asks_for_device, device_answer, placed, version_of, widened
from .constants import Move, Moves
from .residence import Residence

_MASKS = (torch.bool, torch.uint8)
_WHY = "IPU programs cannot have dynamic shapes"
MASK_AS_INDEX = (
    "Indexing using boolean or byte tensor masks is unsupported because it would produce dynamic output "
    f"shapes based on the mask's data. {_WHY}: use torch.where, or assign to x[mask]."
)


def is_mask(index: Any) -> bool:
    """Whether an index is a boolean or byte mask."""
    return isinstance(index, torch.Tensor) and index.dtype in _MASKS


def reason(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_on_device: Callable[[torch.Tensor], bool]
) -> str | None:
    """Why a call can't be compiled; None if it can. Host tensors are constants, so their values are known."""

    def moves(argument: Any) -> bool:
        return isinstance(argument, torch.Tensor) and is_on_device(argument)

    name = getattr(func, "__name__", "")
    if name in ("__getitem__", "__setitem__"):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        slices = [part for part in parts if isinstance(part, slice)]
        if any(moves(bound) for part in slices for bound in (part.start, part.stop, part.step)):
            return (
                "aten::item is only supported in eager mode, and slicing reads its bounds with it. "
                "Use poptorch.dynamic_slice or dynamic_update, whose start is a tensor."
            )
        if name == "__getitem__" and any(moves(part) and is_mask(part) for part in parts):
            return MASK_AS_INDEX
    subject = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
    if name == "one_hot" and moves(subject):
        classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
        return "OneHot num classes must be specified and must be constant." if classes == -1 else None
    operation = row_of(func).dynamic_shape if moves(subject) else ""
    if name == "where" and len(args) == 1 and not kwargs and moves(subject):
        operation = "nonzero"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else subject)
        operation = name if moves(repeats) else ""
    if not operation:
        return None
    return (
        f"Unsupported ops found in compiled model: [aten::{operation}]. The shape of its result depends on "
        f"values. {_WHY}."
    )


# Functions that create a tensor: on the device, unless the program names another.
_FACTORIES = frozenset(getattr(torch, name) for name, row in rows().items() if row.creates)
# What torch.Tensor(3) and torch.LongTensor(3) call: these constructors know no device but the host's.
_CONSTRUCTOR = torch.ops.aten.empty.memory_format
# Functions that give a tensor the type and the device of another one.
_CONVERTS = frozenset({torch.Tensor.to, torch.Tensor.type_as})
# Functions that read a tensor's value, which tracing doesn't have.
_READS_VALUES = frozenset(
    getattr(owner, name)
    for owner in (torch, torch.Tensor)
    for name, row in rows().items()
    if row.reads_values and hasattr(owner, name)
)


class Checks:
    """Checks of one compilation. `sources`: the tensors that each tensor was computed from, by its id.

    The listeners raise poptorch.Error for anything that the device can't do: reads of values, moves to the
    host, empty tensors, shapes that depend on values, complex numbers, missing operations.
    """

    def __init__(
        self,
        on_device: Iterable[torch.Tensor] = (),
        constants: dict[Move, torch.Tensor] | None = None,
        hides_devices: bool = False,
    ) -> None:
        """`on_device`: inputs, weights and buffers, which are on the device from the start; `constants`: of a
        compiled executable; `hides_devices`: whether tensors are fake, whose `device` is always the CPU.
        """
        self._hides_devices = hides_devices
        self.computes = False  # whether the call in progress takes a device tensor
        self._makes = False  # whether it makes one of none
        self._call = ""  # the latest call's function
        self.is_on_host = False  # whether its result is on the host
        self._residence = Residence(on_device)
        self.constants = {} if constants is None else constants
        self._moves = Moves(self.constants)
        self.has_narrow_indices = False
        self.names_ipu = False
        self.writes_in_place = False  # into floating-point tensors
        self._ipus: list[object] = []
        self._warned_of: set[str] = set()
        self._has_warned = False  # about a library
        self.sources: dict[int, list[torch.Tensor]] = {}
        self._alive: list[torch.Tensor] = []  # keeps tensors alive, so that ids stay unique

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        self._refuse_to_read_values(func, args)
        move = self._moves.next(func)
        if asks_for_device(func) and self.is_on_device(args[0]):
            if not called_by_library():
                self.names_ipu = True
                return device_answer(func)
            # In `y.to(x.device)` this object means the IPU, although it reads "cpu" here.
            answer = proceed(func, args, kwargs)
            self._ipus.append(answer)
            return answer
        to_host = func is torch.Tensor.cpu or (func in _CONVERTS and self._names_cpu(args, kwargs))
        if to_host and self.is_on_device(args[0]):
            raise createBackendError("Illegal move to CPU (via .cpu() or .to('cpu')) when tracing a model.")
        if func in _FACTORIES and kwargs.get("device") is None:
            self._warn_of_factory(func)
        func, args, kwargs, moved = placed(func, args, kwargs)
        self.names_ipu |= moved
        if not moved:
            func, args, kwargs, moved = self._moved(func, args, kwargs)
        inputs = tensors((list(args), dict(kwargs)))
        comes_from_host = bool(inputs) and not self.is_on_device(inputs[0])
        self.computes = any(self.is_on_device(tensor) for tensor in inputs)
        gives_device = moved or self._is_for_device(func, kwargs, bool(inputs))
        self.is_on_host = not gives_device
        self._makes = gives_device and not inputs
        self._call = getattr(func, "__name__", "")
        self._refuse_unsupported(func, args, kwargs)
        args, kwargs, changed = widened(func, args, kwargs)
        self.has_narrow_indices |= changed
        # TorchScript's operations take constants that it folded. Older PyTorch indexes without a call.
        is_programs = not isinstance(func, torch._ops.OpOverload) or func is torch.ops.aten.index.Tensor
        if self.computes and not moved and is_programs:
            self._residence.mark_on_host(inputs)
        versions = [version_of(tensor) for tensor in inputs]
        # The host's tensors have values, which a fake mode wouldn't read.
        is_real = self._hides_devices and self.is_on_host
        if self._hides_devices and gives_device and not moved:
            args, kwargs = map_leaves((tuple(args), dict(kwargs)), self._number)
        try:
            with _disable_current_modes() if is_real else contextlib.nullcontext():
                constant = self._moves.known(move, args) if comes_from_host else None
                result = proceed(func, args, kwargs) if constant is None else constant
        finally:
            self.computes = self._makes = self.is_on_host = False
        # An operation of TorchScript comes from below autograd, which counts versions.
        is_mutable = isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable
        self.writes_in_place |= gives_device and (
            is_mutable
            or any(
                version_of(tensor) != version and tensor.is_floating_point()
                for tensor, version in zip(inputs, versions)
            )
        )
        if func is torch.Tensor.__setitem__:  # returns nothing
            self.sources.setdefault(id(args[0]), []).extend(inputs)
            self._alive.append(args[0])
        results = tensors(result)
        self._alive += results
        if not gives_device:
            self._residence.mark_on_host(results)
            return result
        if not moved:  # such as host.expand_as(x)
            results = [made for made in results if not self._residence.is_on_host(made)]
        self._residence.mark_on_device(results)
        if comes_from_host:
            self._moves.keep(move, result)
        for made in results:
            if 0 in made.shape:  # not numel(), which a subclass may override
                self._refuse(f"Zero-sized tensors are unsupported (Got shape {list(made.shape)}).")
            self.sources.setdefault(id(made), []).extend(inputs)
            if made.is_complex():
                raise createBackendError(f"Complex numbers are unsupported (Got {made.dtype}).")
        return result

    def _moved(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any], bool]:
        """(func, args, kwargs, whether the call moves a host tensor to the device, as a copy).

        A device may be one that a library read of a device tensor, or that of another tensor.
        """
        if func not in _CONVERTS or self.is_on_device(args[0]):
            return func, args, kwargs, False
        targets = (*args[1:], *kwargs.values())
        for target in targets:
            is_ipu = isinstance(target, torch.Tensor) and self.is_on_device(target)
            is_hidden = self._hides_devices and isinstance(target, torch.device)
            if is_ipu or is_hidden or any(target is device for device in self._ipus):
                return torch.Tensor.to, args, {**kwargs, "copy": True}, True
        return func, args, kwargs, False

    def _number(self, leaf: Any) -> Any:
        """The number in a 0-d tensor of the host, also in a slice; any other argument is kept."""
        if isinstance(leaf, slice):
            return slice(*map(self._number, (leaf.start, leaf.stop, leaf.step)))
        if not isinstance(leaf, torch.Tensor) or leaf.dim() or self.is_on_device(leaf):
            return leaf
        with _disable_current_modes():
            return leaf.item()

    def _is_for_device(self, func: Any, kwargs: dict[str, Any], has_inputs: bool) -> bool:
        """Whether the result of the call in progress is on the device."""
        if func is _CONSTRUCTOR:
            return False
        # An operation outside of calls, such as TorchScript's, which names the CPU where the program doesn't.
        is_operation = isinstance(func, torch._ops.OpOverload)
        device = kwargs.get("device")
        if device is not None and not is_operation:
            return not self._is_cpu(device)
        # Functions of the host's numbers, such as torch.div(3, 2), compute on the host.
        return self.computes or func in _FACTORIES or (is_operation and not has_inputs)

    def _refuse_to_read_values(self, func: Any, args: tuple[Any, ...]) -> None:
        if func not in _READS_VALUES or not self.is_on_device(args[0]):
            return
        if func is torch.Tensor.__format__ and args[0].dim() > 0:
            return  # prints the whole tensor
        if func is torch.Tensor.item:
            raise createBackendError(supported.NO_VALUES)
        always = supported.always_reads_values(callers.caller_module())
        self._refuse(supported.NO_VALUES, callers.author() if always else None)
        self._follow_values()

    def _refuse_unsupported(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        why = reason(func, args, kwargs, self.is_on_device)
        if why is not None:
            self._refuse(why)
            self._follow_values()
        elif self.computes or self._makes:
            self._refuse_for(supported.refused_call(func, args, kwargs))

    def _refuse_for(self, why: str | None) -> None:
        """As `_refuse`, for an operation, which PyTorch's newer versions don't excuse."""
        if why is not None:
            self._refuse(why, callers.author())

    def _refuse(self, why: str, caller: Caller | None = None) -> None:
        """Raises poptorch.Error for what PopTorch refuses, unless a library newer than PopTorch does it.

        Such libraries read values (transformers: whether a mask is all ones) and create empty temporary
        tensors. Older releases didn't, so a program shouldn't fail here because of a newer one.
        """
        caller = caller or callers.caller()
        if caller is Caller.PROGRAM or (caller is Caller.LIBRARY and variables.strict()):
            raise createBackendError(why)
        if caller is Caller.LIBRARY and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: a library newer than PopTorch (%s) does what PopTorch refuses: %s The simulator "
                "allows it; on an IPU an older release may be needed. %s=1 makes it an error.",
                callers.place(in_program=True) or sys.argv[0],
                callers.place() or "PyTorch",
                why,
                variables.STRICT,
            )

    def _follow_values(self) -> None:
        """Makes every run call the forward: values that a library reads may differ between runs."""
        run = trace.current()
        if isinstance(run, trace.Trace):
            run.follows_values = True

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for operations (watch.py)."""
        self._refuse_operation(func, args, kwargs)
        result = proceed(func, args, kwargs)
        if not self.is_on_host and trace.isRunningOnIpu():
            self._residence.follow(args, kwargs, result)
        return result

    def _refuse_operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises poptorch.Error for an operation that PopTorch lacks, for a read of a value, and for a
        host tensor among device tensors.
        """
        if not trace.isRunningOnIpu():
            return  # host code in the middle of a run
        name = schema_of(func).name
        on_device = [self._residence.is_held(arg) for arg in args if isinstance(arg, torch.Tensor)]
        if self.computes or self._makes or any(on_device):
            lacking = supported.missing(func, self._call)
            why = supported.unsupported(lacking) if lacking else None
            self._refuse_for(why or supported.refused_operation(func, args, kwargs))
        if name == "index" and any(is_mask(part) and self._residence.is_held(part) for part in args[1]):
            self._refuse(MASK_AS_INDEX)  # in older PyTorch the function mode doesn't see __getitem__
            self._follow_values()
        if name == "_local_scalar_dense" and all(on_device):
            self._refuse(supported.NO_VALUES)
        host = None if self.is_on_host else self._residence.misplaced(name, args, kwargs)
        if host is not None:
            self._refuse_host_tensor(host)

    def _refuse_host_tensor(self, tensor: torch.Tensor) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._refuse(
            f"Expected an IPU tensor but got tensor(device=cpu, shape={list(tensor.shape)}, dtype={dtype}).\n"
            'Constant tensors should be moved explicitly to the IPU, via cpu_tensor.to("ipu").',
            callers.author(through_poptorch=True),
        )

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device: from the start, or computed from device tensors."""
        return self._residence.is_on_device(tensor)

    def mark_on_device(self, made: list[torch.Tensor], of: list[torch.Tensor]) -> None:
        """Marks tensors, computed from `of` outside the modes' view, as being on the device.

        Raises poptorch.Error if only some of their sources are there.
        """
        host = [tensor for tensor in of if not self.is_on_device(tensor)]
        if host and len(host) < len(of):
            self._refuse_host_tensor(host[0])
        self._residence.mark_on_device(made)
        for tensor in made:
            self.sources.setdefault(id(tensor), []).extend(of)
        self._alive += made

    def _names_cpu(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        named = [kwargs[name] for name in ("device", "tensor", "other") if name in kwargs]
        target = next(iter([*named, *args[1:2]]), None)
        if isinstance(target, torch.Tensor):
            return not self.is_on_device(target) and callers.author() is Caller.PROGRAM
        return self._is_cpu(target)

    def _is_cpu(self, device: Any) -> bool:
        """Whether a program names the host; it may hold a device that a library read of a device tensor."""
        if self._hides_devices and isinstance(device, torch.device):
            return False
        if any(device is ipu for ipu in self._ipus) or not isinstance(device, (str, torch.device)):
            return False
        return torch.device(device).type == "cpu" and not called_by_library()

    def _warn_of_factory(self, func: Any) -> None:
        if func.__name__ not in self._warned_of and not called_by_library():
            self._warned_of.add(func.__name__)
            logger.warning(
                "No device set in torch.%s(): forcing to IPU. Pass the device of another tensor "
                "(device=x.device) to set it.",
                func.__name__,
            )
