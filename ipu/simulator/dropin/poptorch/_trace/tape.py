"""A compiled forward as the list of calls that it made to torch, which later runs repeat.

On an IPU, a forward runs in Python once, when the model is compiled: what it prints or decides is final.
A tape has the same effect wherever it saw all that was computed. Where it didn't (`Tape.leave`), the forward
itself has to run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from .._run.structure import tensors
from .casts import placed
from .watch import Call

# The calls of a tape as one Python function, which repeats them on other inputs.
#
# As on an IPU, what neither the loss nor an output needs isn't computed.

# These give back the very tensor that they were given where there is nothing to do.
_MAY_DO_NOTHING = frozenset(
    {"bool", "contiguous", "dropout", "expand_as", "float", "half", "int", "long", "to", "type", "type_as"}
)


class Autocast(NamedTuple):
    """The arguments of torch.autocast around a call."""

    dtype: torch.dtype
    cache_enabled: bool


@dataclass(frozen=True)
class Place:
    """Stands for the tensor that a run has at this index."""

    index: int


@dataclass
class Step:
    """A call. `made`: the places of the tensors in its result, which is one itself where `gives_tensor`."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad_enabled: bool
    autocast: Autocast | None = None
    made: tuple[int, ...] = ()
    gives_tensor: bool = False
    is_pure: bool = False  # changes nothing, draws nothing: its results are all that it does

    @property
    def taken(self) -> set[int]:
        """The places of the tensors in its arguments."""
        found: list[Any] = []
        mapped((self.args, self.kwargs), found.append)
        return {leaf.index for leaf in found if isinstance(leaf, Place)}

    @property
    def does_nothing(self) -> bool:
        return (
            self.gives_tensor
            and getattr(self.func, "__name__", "") in _MAY_DO_NOTHING
            and {*self.made} <= self.taken
        )


def mapped(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """The same with `function` applied to each leaf; tuples of any kind become plain ones."""
    if isinstance(arguments, tuple) and not isinstance(arguments, torch.Size):
        return tuple([mapped(part, function) for part in arguments])
    if isinstance(arguments, list):
        return [mapped(part, function) for part in arguments]
    if isinstance(arguments, dict):
        return {key: mapped(value, function) for key, value in arguments.items()}
    return function(arguments)


class Program:
    """A forward without its Python: the same calls on other inputs of the same shapes.

    :param results: the loss, where there is one, and the outputs: places, or tensors that no input reaches.
    """

    def __init__(self, steps: list[Step], num_inputs: int, has_loss: bool, results: list[Any]) -> None:
        self._num_inputs = num_inputs
        self._has_loss = has_loss
        self._run = _compiled(_needed(steps, results), num_inputs, results)

    def __reduce__(self) -> tuple[Any, ...]:
        # Calls hold a model's own tensors: a copied executor runs its copy's forward.
        return _no_program, ()

    def __call__(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(loss or None, outputs) of one micro batch."""
        assert len(inputs) == self._num_inputs
        outside = torch.is_grad_enabled()
        try:
            results = self._run(*inputs)
        finally:
            torch.set_grad_enabled(outside)
        return (results[0], results[1:]) if self._has_loss else (None, results)


def _no_program() -> None:
    return None


def _needed(steps: list[Step], results: list[Any]) -> list[Step]:
    """Without steps that do nothing, and those of whose results nothing comes."""
    needed = {result.index for result in results if isinstance(result, Place)}
    kept = []
    for step in reversed(steps):
        if step.does_nothing or (step.is_pure and needed.isdisjoint(step.made)):
            continue
        needed |= step.taken
        kept.append(step)
    return kept[::-1]


def _compiled(steps: list[Step], num_inputs: int, results: list[Any]) -> Callable[..., list[torch.Tensor]]:
    """A function of the inputs: a line for each step, and one that forgets what no later line reads."""
    constants: dict[str, Any] = {}
    lines: list[str] = []
    grad_enabled: bool | None = None
    autocast: Autocast | None = None
    dying = _dying(steps, results)

    def constant(value: Any) -> str:
        constants[f"c{len(constants)}"] = value
        return f"c{len(constants) - 1}"

    def text(part: Any) -> str:
        if isinstance(part, Place):
            return f"v{part.index}"
        if type(part) is tuple:
            return f"({''.join(f'{text(item)}, ' for item in part)})"
        if type(part) is list:
            return f"[{', '.join(map(text, part))}]"
        if type(part) is dict:
            return f"{{{', '.join(f'{constant(key)}: {text(item)}' for key, item in part.items())}}}"
        return repr(part) if part is None or type(part) in (bool, int) else constant(part)

    for step, dead in zip(steps, dying):
        if step.autocast != autocast:
            autocast = step.autocast
            if autocast is not None:
                options = f"dtype={constant(autocast.dtype)}, cache_enabled={autocast.cache_enabled}"
                lines.append(f"with {constant(torch.autocast)}('cpu', {options}):")
        indent = "    " if autocast is not None else ""
        if step.grad_enabled != grad_enabled:
            grad_enabled = step.grad_enabled
            lines.append(f"{indent}{constant(torch.set_grad_enabled)}({grad_enabled})")
        # Once, instead of a look at every call of every run.
        func, args, kwargs, _ = placed(step.func, step.args, step.kwargs)
        arguments = [*map(text, args), *(f"{name}={text(value)}" for name, value in kwargs.items())]
        call = f"{constant(func)}({', '.join(arguments)})"
        made = ", ".join(f"v{place}" for place in step.made)
        if step.gives_tensor:
            call = f"{made} = {call}"
        elif made:
            call = f"{made}, = {constant(tensors)}({call})"
        lines.append(indent + call)
        if dead:
            lines.append(f"{indent}{' = '.join(f'v{place}' for place in dead)} = None")
    lines.append(f"return {text(results)}")
    inputs = ", ".join(f"v{place}" for place in range(num_inputs))
    body = "".join(f"        {line}\n" for line in lines)
    source = f"def make({', '.join(constants)}):\n    def run({inputs}):\n{body}    return run\n"
    namespace: dict[str, Any] = {}
    exec(compile(source, "<compiled forward>", "exec"), namespace)
    run: Callable[..., list[torch.Tensor]] = namespace["make"](**constants)
    return run


def _dying(steps: list[Step], results: list[Any]) -> list[list[int]]:
    """For each step, the places that nothing after it takes."""
    used = {result.index for result in results if isinstance(result, Place)}
    dying = []
    for step in reversed(steps):
        last = {*step.taken, *step.made} - used
        used |= last
        dying.append(sorted(last))
    return dying[::-1]


# These make another name for a tensor and leave nothing to repeat.
_NOT_COMPUTING = frozenset(
    {torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
)
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
        self._alive: list[torch.Tensor] = []  # so that no id is used twice
        self._steps: list[Step] = []
        self._num_inputs = len(inputs)
        self._is_whole = True
        self._in_call = False
        self._call_is_pure = False
        self._autocasts: list[Autocast | None] = [None]  # around the calls, each time that it changes
        for tensor in inputs:
            self._place_of(tensor)

    def leave(self) -> None:
        """Something happens that a repetition of the calls would miss, such as an autograd.Function whose
        backward pass is the program's own.
        """
        self._is_whole = False

    def call_later(self, func: Callable[..., Any], *args: Any) -> None:
        """A call that isn't made now, only when the others are repeated."""
        encoded = mapped(args, self._encoded)
        self._steps.append(Step(func, encoded, {}, torch.is_grad_enabled(), self._autocast()))

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listens to calls (watch.py)."""
        if not self._is_whole or func is torch._C._set_grad_enabled:  # each step knows its own
            return proceed(func, args, kwargs)
        if torch.is_inference_mode_enabled() or forward_ad._current_level >= 0:
            self.leave()  # the calls alone don't say so
        grad_enabled, autocast = torch.is_grad_enabled(), self._autocast()
        # Before the call: it may change lists that it is given.
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
                Step(
                    func, encoded_args, encoded_kwargs, grad_enabled, autocast, places, gives_tensor, is_pure
                )
            )
            for tensor in tensors((args, kwargs)):
                if id(tensor) in self._places:  # changed in place, perhaps
                    self._needs_grad[self._places[id(tensor)]] = tensor.requires_grad
        return result

    def _autocast(self) -> Autocast | None:
        now = _autocast()
        if now != self._autocasts[-1]:
            self._autocasts.append(now)
            if len(self._autocasts) > 3:
                self.leave()  # leaving one forgets what it has cast, so that two aren't as one interrupted
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
            # A weight or a constant of the program, else of an origin that wasn't seen.
            storage = _storage(leaf)
            if leaf.grad_fn is not None or storage is None or storage in self._made_storages:
                self.leave()
            self._other_storages.add(storage)
            return leaf
        if self._needs_grad[place] != leaf.requires_grad:
            self.leave()
        return Place(place)

    def on_operation(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listens to operations (watch.py): those that no call on the tape led to, and calls that do more
        than give a result.
        """
        if not _is_pure(func):
            self._call_is_pure = False
        if (
            not self._in_call
            and func not in _NOT_COMPUTING
            and any(isinstance(arg, torch.Tensor) for arg in tree_flatten(args)[0])
        ):
            self.leave()
        return proceed(func, args, kwargs)

    def finish(self, loss: torch.Tensor | None, outputs: list[torch.Tensor]) -> Program | None:
        """The calls as a program; None where they aren't all."""
        results = [self._encoded(tensor) for tensor in ([] if loss is None else [loss]) + outputs]
        if not self._is_whole:
            return None
        return Program(self._steps, self._num_inputs, loss is not None, results)


def _storage(tensor: torch.Tensor) -> int | None:
    """Where a tensor's elements are; None for one that has none of its own (functorch's, zeros)."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor._is_zerotensor():
        return None
    return tensor.untyped_storage().data_ptr()


def _autocast() -> Autocast | None:
    if hasattr(torch, "get_autocast_dtype"):  # from 2.4 on
        is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    else:
        is_on, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    return Autocast(dtype, torch.is_autocast_cache_enabled()) if is_on else None


def _is_pure(func: Any) -> bool:
    """Whether an operation changes no tensor and no random state; of other libraries' nothing is known."""
    return (
        func.namespace in _KNOWN_NAMESPACES
        and not func._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in func.tags
        and "batch_norm" not in func._schema.name  # some change running statistics, and don't say so
    )
