"""The tape: records a forward's calls to torch during compilation, for later runs to replay.

On an IPU, the forward's Python runs once, at compilation: its prints and branches happen only then. Replaying
a tape has the same effect, provided that it recorded everything that was computed. If it didn't
(`Tape.leave`), later runs call the forward.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from ipu_simulator.op_table import row_of
from torch.autograd import forward_ad

from .._run.structure import tensors
from . import Call, callers
from .replay import Autocast, Replay, Slot, TapedCall, mapped
from .run import computes

_KNOWN_NAMESPACES = frozenset({"aten", "prims"})


class Tape:
    """The calls of the forward that compiles a model.

    :param inputs: the first micro batch's.
    """

    def __init__(self, inputs: list[torch.Tensor]) -> None:
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
        self._steps.append(TapedCall(func, encoded, {}, torch.is_grad_enabled(), self._autocast()))

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        if not self._is_whole or func is torch._C._set_grad_enabled:  # each step stores its grad mode
            return proceed(func, args, kwargs)
        if torch.is_inference_mode_enabled() or forward_ad._current_level >= 0:
            self.leave()  # not part of the recorded calls
        grad_enabled, autocast = torch.is_grad_enabled(), self._autocast()
        # Before the call, which may change its list arguments.
        encoded_args, encoded_kwargs = mapped((tuple(args), dict(kwargs)), self._encoded)
        self._in_call = self._call_is_pure = True
        try:
            result = proceed(func, args, kwargs)
        finally:
            self._in_call = False
        made = tensors(result)
        # Reading an attribute changes nothing; any other call may.
        if made or getattr(func, "__name__", "") != "__get__":
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
                    callers.place(in_program=True),
                )
            )
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self._places:  # maybe changed in place
                    self._needs_grad[self._places[id(tensor)]] = tensor.requires_grad
        return result

    def _autocast(self) -> Autocast | None:
        now = _autocast()
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
        if not isinstance(leaf, torch.Tensor):
            if isinstance(leaf, slice) and tensors((leaf.start, leaf.stop, leaf.step)):
                self.leave()
            return leaf
        place = self._places.get(id(leaf))
        if place is None:
            # A weight or a constant, or a tensor from an operation that the tape hasn't seen.
            storage = _storage(leaf)
            if leaf.grad_fn is not None or storage is None or storage in self._made_storages:
                self.leave()
            self._other_storages.add(storage)
            return leaf
        if self._needs_grad[place] != leaf.requires_grad:
            self.leave()
        return Slot(place)

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for operations (watch.py): finds those outside recorded calls, and calls' side effects."""
        if not _is_pure(func):
            self._call_is_pure = False
        if not self._in_call and computes(func, args):
            self.leave()
        return proceed(func, args, kwargs)

    def finish(self, loss: torch.Tensor | None, outputs: list[torch.Tensor]) -> Replay | None:
        """The recorded calls as a program; None if the tape was abandoned."""
        results = [self._encoded(tensor) for tensor in ([] if loss is None else [loss]) + outputs]
        if not self._is_whole:
            return None
        return Replay(self._steps, self._num_inputs, loss is not None, results)


def _storage(tensor: torch.Tensor) -> int | None:
    """Identity of a tensor's storage; None for one without a storage (functorch's, zero tensors)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor._is_zerotensor():
        return None
    return int(tensor.untyped_storage()._cdata)  # a fake tensor has no address


def _autocast() -> Autocast | None:
    if hasattr(torch, "get_autocast_dtype"):  # from 2.4 on
        is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    else:
        is_on, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    return Autocast(dtype, torch.is_autocast_cache_enabled()) if is_on else None


def _is_pure(func: Any) -> bool:
    """Whether an operation has no side effects; False for operations of unknown libraries."""
    return (
        func.namespace in _KNOWN_NAMESPACES
        and not func._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in func.tags
        and not row_of(func.overloadpacket.__name__).also_writes
    )
