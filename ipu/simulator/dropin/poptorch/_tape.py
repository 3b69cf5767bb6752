"""A compiled forward as the list of calls that it made to torch, which later runs repeat.

On an IPU, a forward runs in Python once, when the model is compiled: what it prints or decides is final.
A tape has the same effect wherever it saw all that was computed. Where it didn't (`Tape.leave`), the forward
itself has to run again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._ipu_device import placed
from ._structure import tensors

# These make another name for a tensor and leave nothing to repeat.
_NOT_COMPUTING = frozenset(
    {torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
)
_CONTAINERS = (tuple, list, dict)


def _mapped(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """The same with `function` applied to each leaf; tuples of any kind become plain ones."""
    if isinstance(arguments, tuple) and not isinstance(arguments, torch.Size):
        return tuple([_mapped(part, function) for part in arguments])
    if isinstance(arguments, list):
        return [_mapped(part, function) for part in arguments]
    if isinstance(arguments, dict):
        return {key: _mapped(value, function) for key, value in arguments.items()}
    return function(arguments)


@dataclass(frozen=True)
class _Place:
    """Stands for the tensor that a run has at this index."""

    index: int


@dataclass
class _Step:
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad_enabled: bool
    made: list[int]  # places of the tensors in the result
    dying: tuple[int, ...] = ()  # places that no later step takes


class Tape(TorchFunctionMode):
    """Stands around the forward that compiles a model, inside all other modes.

    :param inputs: the first micro batch's.
    """

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self._places: dict[int, int] = {}
        self._made_storages: set[int | None] = set()  # of inputs and results
        self._other_storages: set[int | None] = set()  # of weights and constants
        self._needs_grad: list[bool] = []
        self._alive: list[torch.Tensor] = []  # so that no id is used twice
        self._steps: list[_Step] = []
        self._num_inputs = len(inputs)
        self._is_whole = True
        self._in_call = False
        for tensor in inputs:
            self._place_of(tensor)

    def leave(self) -> None:
        """Something happens that a repetition of the calls would miss."""
        self._is_whole = False

    def call_later(self, func: Callable[..., Any], *args: Any) -> None:
        """A call that isn't made now, only when the others are repeated."""
        self._steps.append(_Step(func, _mapped(args, self._encoded), {}, torch.is_grad_enabled(), []))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._is_whole or func is torch._C._set_grad_enabled:  # each step knows its own
            return func(*args, **kwargs)
        if torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
            self.leave()  # the calls alone don't say so
        grad_enabled = torch.is_grad_enabled()
        # Before the call: it may change lists that it is given.
        encoded = _mapped((tuple(args), dict(kwargs)), self._encoded)
        self._in_call = True
        try:
            result = func(*args, **kwargs)
        finally:
            self._in_call = False
        made = tensors(result)
        # Reading an attribute changes nothing; any other call may.
        if made or getattr(func, "__name__", "") != "__get__":
            places = [self._place_of(tensor) for tensor in made]
            self._steps.append(_Step(func, *encoded, grad_enabled, places))
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self._places:  # changed in place, perhaps
                    self._needs_grad[self._places[id(tensor)]] = tensor.requires_grad
        return result

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
            # A weight or a constant of the program, else of an origin that wasn't seen.
            storage = _storage(leaf)
            if leaf.grad_fn is not None or storage is None or storage in self._made_storages:
                self.leave()
            self._other_storages.add(storage)
            return leaf
        if self._needs_grad[place] != leaf.requires_grad:
            self.leave()
        return _Place(place)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Stands around the forward, outside the other modes; the tape itself goes inside them."""
        original = torch.autograd.Function.__dict__["apply"]

        def apply(cls, *args, **kwargs):
            # Its backward pass is the program's own, and isn't among the calls.
            if torch.is_grad_enabled():
                self.leave()
            return original.__get__(None, cls)(*args, **kwargs)

        torch.autograd.Function.apply = classmethod(apply)
        try:
            with _Unseen(self):
                yield
        finally:
            torch.autograd.Function.apply = original

    def finish(self, loss: torch.Tensor | None, outputs: list[torch.Tensor]) -> Program | None:
        """The calls as a program; None where they aren't all."""
        results = [self._encoded(tensor) for tensor in ([] if loss is None else [loss]) + outputs]
        if not self._is_whole:
            return None
        for step in self._steps:
            # Once, instead of a look at every call of every run.
            step.func, step.args, step.kwargs, _ = placed(step.func, step.args, step.kwargs)
        last_use = {result.index: len(self._steps) for result in results if isinstance(result, _Place)}
        for number, step in reversed(list(enumerate(self._steps))):
            taken = [leaf.index for leaf in _leaves(step) if isinstance(leaf, _Place)]
            step.dying = tuple(place for place in {*taken, *step.made} if place not in last_use)
            for place in step.dying:
                last_use[place] = number
        return Program(self._steps, len(self._alive), self._num_inputs, loss is not None, results)


def _storage(tensor: torch.Tensor) -> int | None:
    """Where a tensor's elements are; None for one that has none of its own (functorch's)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return None
    return tensor.untyped_storage().data_ptr()


def _leaves(step: _Step) -> list[Any]:
    found: list[Any] = []
    _mapped((step.args, step.kwargs), found.append)
    return found


class _Unseen(TorchDispatchMode):
    """Notes operations that no call on the tape led to."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (
            not self._tape._in_call
            and func not in _NOT_COMPUTING
            and any(isinstance(arg, torch.Tensor) for arg in tree_leaves(args))
        ):
            self._tape.leave()
        return func(*args, **(kwargs or {}))


class Program:
    """A forward without its Python: the same calls on other inputs of the same shapes."""

    def __init__(
        self, steps: list[_Step], num_places: int, num_inputs: int, has_loss: bool, results: list[Any]
    ) -> None:
        self._steps = steps
        self._num_places = num_places
        self._num_inputs = num_inputs
        self._has_loss = has_loss
        self._results = results

    def __reduce__(self) -> tuple[Any, ...]:
        # Calls hold a model's own tensors: a copied executor runs its copy's forward.
        return _no_program, ()

    def __call__(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(loss or None, outputs) of one micro batch."""
        assert len(inputs) == self._num_inputs
        values: list[torch.Tensor | None] = [*inputs, *[None] * (self._num_places - len(inputs))]

        def decoded(part: Any) -> Any:
            kind = type(part)
            if kind is _Place:
                return values[part.index]
            return _mapped(part, decoded) if kind in _CONTAINERS else part

        outside = torch.is_grad_enabled()
        try:
            for step in self._steps:
                if step.grad_enabled != torch.is_grad_enabled():
                    torch.set_grad_enabled(step.grad_enabled)
                kwargs = {name: decoded(part) for name, part in step.kwargs.items()}
                result = step.func(*[decoded(part) for part in step.args], **kwargs)
                if isinstance(result, torch.Tensor):
                    values[step.made[0]] = result
                elif step.made:
                    for place, tensor in zip(step.made, tensors(result)):
                        values[place] = tensor
                for place in step.dying:
                    values[place] = None
        finally:
            torch.set_grad_enabled(outside)
        results = [decoded(result) for result in self._results]
        return (results[0], results[1:]) if self._has_loss else (None, results)


def _no_program() -> None:
    return None
