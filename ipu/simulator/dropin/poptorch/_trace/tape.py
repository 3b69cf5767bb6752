"""The tape: records a forward's calls to torch during compilation, for later runs to replay.

On an IPU, the forward's Python runs once, at compilation: its prints and branches happen only then. Replaying
a tape has the same effect, provided that it recorded everything that was computed. If it didn't
(`Tape.leave`), later runs call the forward.

Only the device's calls are recorded. The host computes its tensors once, at compilation; those that are moved
to the device are constants, with the values that they had then.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from ipu_simulator.numerics.bfloat16 import WeightCopies
from ipu_simulator.op_table import row_of
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from .._run.structure import tensors
from . import Call, callers
from . import run as trace
from .bfloat16 import Rewriting, Value
from .casts import version_of
from .constants import MOVES, copy_of
from .errors import Origin, operation_name
from .fusing import fusing
from .onednn import by_onednn
from .replay import Autocast, Replay, Slot, TapedCall, autocast_now, mapped

_KNOWN_NAMESPACES = frozenset({"aten", "prims"})
_READS = frozenset(
    {
        "__get__",
        "__hash__",
        "__len__",
        "data_ptr",
        "dim",
        "element_size",
        "is_contiguous",
        "is_floating_point",
        "nelement",
        "numel",
        "size",
        "storage_offset",
        "stride",
        "untyped_storage",
    }
)
_HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook"})


class Tape:
    """The calls of the forward that compiles a model.

    :param inputs: the first micro batch's.
    :param is_on_device: whether a tensor is on the device.
    """

    def __init__(
        self, inputs: list[torch.Tensor], is_on_device: Callable[[torch.Tensor], bool] = lambda tensor: True
    ) -> None:
        self._is_on_device = is_on_device
        # The host's tensors and copies of them, by id and version.
        self._constants: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._places: dict[int, int] = {}
        self._made_storages: set[int | None] = set()  # of inputs and results
        self._other_storages: set[int | None] = set()  # of weights and constants
        self._needs_grad: list[bool] = []
        self._alive: list[torch.Tensor] = []  # keeps tensors alive, so that ids stay unique
        self._steps: list[TapedCall] = []
        self._num_inputs = len(inputs)
        self._is_whole = True
        self._in_call = False
        self._call_is_pure = False
        self._autocasts: list[Autocast | None] = [None]  # every change of torch.autocast so far
        for tensor in inputs:
            self._place_of(tensor)

    def leave(self) -> None:
        """Abandons the tape, because a replay would miss something, such as a custom backward pass
        (torch.autograd.Function).
        """
        self._is_whole = False

    def call_later(self, func: Callable[..., Any], *args: Any) -> None:
        """Records a call that only replays make, not the compilation."""
        encoded = mapped(args, self._encoded)
        call = TapedCall(func, encoded, {}, torch.is_grad_enabled(), self._autocast(), is_callback=True)
        self._steps.append(call)

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        if not self._is_whole or func is torch._C._set_grad_enabled:  # each step stores its grad mode
            return proceed(func, args, kwargs)
        if torch.is_inference_mode_enabled() or forward_ad._current_level >= 0:
            self.leave()  # not part of the recorded calls
        grad_enabled, autocast = torch.is_grad_enabled(), self._autocast()
        taken = tensors((list(args), dict(kwargs)))
        versions = [version_of(tensor) for tensor in taken]
        # What is moved may be followed by a tensor of the device that it is to be like.
        decisive = taken[:1] if func in MOVES else taken
        takes_host = bool(taken) and not any(map(self._is_on_device, decisive))
        # Before the call, which may change its list arguments.
        encoded_args, encoded_kwargs = mapped((tuple(args), dict(kwargs)), self._encoded)
        self._in_call = self._call_is_pure = True
        try:
            result = proceed(func, args, kwargs)
        finally:
            self._in_call = False
        made = tensors(result)
        if takes_host or made:
            if not any(map(self._is_on_device, made)):
                return result  # computed on the host
            if takes_host:
                self._add_constant(func, result, autocast)
                return result
        # Reading an attribute or a shape changes nothing; any other call may.
        if made or getattr(func, "__name__", "") not in _READS:
            places = tuple([self._place_of(tensor) for tensor in made])
            gives_tensor = isinstance(result, torch.Tensor)
            is_pure = self._call_is_pure and bool(made)
            self._steps.append(
                TapedCall(
                    func,
                    encoded_args,
                    encoded_kwargs,
                    grad_enabled,
                    autocast,
                    places,
                    gives_tensor,
                    is_pure,
                    _has_written(taken, versions),
                    getattr(func, "__name__", "") in _HOOKS,
                    self._origin(func),
                )
            )
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self._places:  # maybe changed in place
                    self._needs_grad[self._places[id(tensor)]] = tensor.requires_grad
        return result

    def _origin(self, func: Any) -> Origin:
        recorder = trace.recorder()
        module = None if recorder is None else recorder.module_path
        return Origin(callers.place(in_program=True), operation_name(func), module)

    def _add_constant(self, func: Any, result: Any, autocast: Autocast | None) -> None:
        """Records that the device has a tensor that the host computed: each run gets a copy."""
        if not isinstance(result, torch.Tensor):
            return self.leave()
        copy, place = copy_of(result), self._place_of(result)
        self._steps.append(
            TapedCall(torch.clone, (copy,), {}, torch.is_grad_enabled(), autocast, (place,), True, True)
        )

    def _autocast(self) -> Autocast | None:
        now = autocast_now()
        if now != self._autocasts[-1]:
            self._autocasts.append(now)
            if len(self._autocasts) > 3:
                self.leave()  # each autocast has a cache of casts: a second one isn't the first one continued
        return now

    def _place_of(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._places:
            storage = _storage(tensor)
            if storage not in self._other_storages:
                self._made_storages.add(storage)
            self._places[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
            self._needs_grad.append(tensor.requires_grad)
        return self._places[id(tensor)]

    def _encoded(self, leaf: Any) -> Any:
        if isinstance(leaf, slice):
            return self._encoded_slice(leaf)
        if not isinstance(leaf, torch.Tensor):
            return leaf
        place = self._places.get(id(leaf))
        if place is None and not self._is_on_device(leaf):
            key = id(leaf), version_of(leaf)
            if key not in self._constants:
                self._constants[key] = leaf, copy_of(leaf)
            return self._constants[key][1]
        if place is None:
            # A weight, or a tensor from an operation that the tape hasn't seen.
            storage = _storage(leaf)
            if leaf.grad_fn is not None or storage is None or storage in self._made_storages:
                self.leave()
            self._other_storages.add(storage)
            return leaf
        if self._needs_grad[place] != leaf.requires_grad:
            self.leave()
        return Slot(place)

    def _encoded_slice(self, bounds: slice) -> slice:
        """The slice with numbers instead of the host's tensors."""
        if any(map(self._is_on_device, tensors((bounds.start, bounds.stop, bounds.step)))):
            self.leave()
            return bounds
        with _disable_current_modes():
            return slice(
                *[
                    int(bound) if isinstance(bound, torch.Tensor) else bound
                    for bound in (bounds.start, bounds.stop, bounds.step)
                ]
            )

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for operations (watch.py): finds those outside recorded calls, and calls' side effects."""
        if not _is_pure(func):
            self._call_is_pure = False
        if not self._in_call and trace.computes(func, args):
            self.leave()
        return proceed(func, args, kwargs)

    def finish(
        self,
        loss: torch.Tensor | None,
        outputs: list[torch.Tensor],
        copies: WeightCopies | None = None,
        fuses: bool = False,
        uses_onednn: bool = False,
    ) -> Replay | None:
        """The recorded calls as a program; None if the tape was abandoned.

        :param copies: of the weights in bfloat16, for a program that multiplies in bfloat16.
        :param fuses: whether calls may be replaced by others with the same float32 results.
        :param uses_onednn: whether float32 products are oneDNN's.
        """
        results = [self._encoded(tensor) for tensor in ([] if loss is None else [loss]) + outputs]
        if not self._is_whole:
            return None
        values = [Value(tensor.dtype, tensor.numel()) for tensor in self._alive]

        def rewritten(steps: Sequence[TapedCall], results: Sequence[Any]) -> list[TapedCall]:
            steps = fusing(steps, results, [value.dtype for value in values]) if fuses else list(steps)
            steps = by_onednn(steps) if uses_onednn else steps
            return steps if copies is None else Rewriting(values, copies).rewritten(steps, results)

        return Replay(self._steps, self._num_inputs, loss is not None, results, rewritten)


def _has_written(taken: list[torch.Tensor], versions: list[int]) -> bool:
    """Whether a floating-point tensor has changed since it had this version."""
    return any(
        version_of(tensor) != version and tensor.is_floating_point()
        for tensor, version in zip(taken, versions)
    )


def _storage(tensor: torch.Tensor) -> int | None:
    """Identity of a tensor's storage; None for one without a storage (functorch's, zero tensors)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor._is_zerotensor():
        return None
    return int(tensor.untyped_storage()._cdata)  # a fake tensor has no address


def _is_pure(func: Any) -> bool:
    """Whether an operation has no side effects; False for operations of unknown libraries."""
    return (
        func.namespace in _KNOWN_NAMESPACES
        and not func._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in func.tags
        and not row_of(func.overloadpacket.__name__).also_writes
    )
