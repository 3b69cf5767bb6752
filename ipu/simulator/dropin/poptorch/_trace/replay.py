"""Replay: compiles the calls of a tape to one Python function, which repeats them on other inputs.

As on an IPU, dead code is eliminated: calls that neither the loss nor an output depends on.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import torch

from .._run.structure import tensors
from . import errors
from .call_table import row_of
from .casts import placed

# The generated function's "file", and the lines before its body.
_FILE, _HEADER_LINES = "<compiled forward>", 2


class Autocast(NamedTuple):
    """Arguments of the torch.autocast that is active at a call."""

    dtype: torch.dtype
    cache_enabled: bool


def autocast_now() -> Autocast | None:
    """The autocast of this CPU that is active, if any."""
    if hasattr(torch, "get_autocast_dtype"):  # from 2.4 on
        is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    else:
        is_on, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    return Autocast(dtype, torch.is_autocast_cache_enabled()) if is_on else None


@dataclass(frozen=True)
class Slot:
    """Placeholder: index of a tensor among a run's inputs and results."""

    index: int


@dataclass
class TapedCall:
    """A recorded call. `made`: places of the tensors in its result; `gives_tensor`: the result is one."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad_enabled: bool
    autocast: Autocast | None = None
    made: tuple[int, ...] = ()
    gives_tensor: bool = False
    is_pure: bool = False  # no side effects: no in-place change, no random numbers
    writes: bool = False  # changes a floating-point tensor that it takes
    is_callback: bool = False  # calls the program's or the simulator's Python in each run
    origin: errors.Origin = errors.UNKNOWN

    def with_call(
        self, func: Callable[..., Any], args: Any, kwargs: Any, made: tuple[int, ...] | None = None
    ) -> TapedCall:
        """The step with another call in its place; `made`: None for the same places."""
        return replace(self, func=func, args=args, kwargs=kwargs, made=self.made if made is None else made)

    def before(self, func: Callable[..., Any], args: tuple[Any, ...], made: int) -> TapedCall:
        """A step that prepares this one: a pure call that makes one tensor, in the same contexts."""
        return TapedCall(
            func, args, {}, self.grad_enabled, self.autocast, (made,), True, True, origin=self.origin
        )

    @property
    def taken(self) -> set[int]:
        """Places of the tensors in the call's arguments."""
        found: list[Any] = []
        mapped((self.args, self.kwargs), found.append)
        return {leaf.index for leaf in found if isinstance(leaf, Slot)}

    @property
    def does_nothing(self) -> bool:
        return (
            self.gives_tensor
            and self.is_pure
            and row_of(self.func).may_do_nothing
            and {*self.made} <= self.taken
        )


# Steps and results -> other steps.
Rewrite = Callable[[Sequence[TapedCall], Sequence[Any]], list[TapedCall]]


def mapped(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """The arguments with `function` applied to each leaf; named tuples become plain ones."""
    if isinstance(arguments, tuple) and not isinstance(arguments, torch.Size):
        return tuple([mapped(part, function) for part in arguments])
    if isinstance(arguments, list):
        return [mapped(part, function) for part in arguments]
    if isinstance(arguments, dict):
        return {key: mapped(value, function) for key, value in arguments.items()}
    return function(arguments)


class Replay:
    """A compiled forward: replays the recorded calls on other inputs of the same shapes, without its Python.

    :param results: the loss, if there is one, then the outputs: places, or tensors independent of the inputs.
    :param rewrite: replaces the steps by others with the same results.
    """

    def __init__(
        self,
        steps: list[TapedCall],
        num_inputs: int,
        has_loss: bool,
        results: list[Any],
        rewrite: Rewrite | None = None,
    ) -> None:
        self._num_inputs = num_inputs
        self._has_loss = has_loss
        needed = _needed(steps, results)
        if rewrite is not None:
            needed = rewrite(needed, results)
        self._run, self._origins = _compiled(needed, num_inputs, results)

        self.has_callbacks = any(step.is_callback for step in steps)

    def __reduce__(self) -> tuple[Any, ...]:
        # The calls hold the model's tensors, so a copied or pickled executor calls its model's forward.
        return _no_replay, ()

    def __call__(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(loss or None, outputs) of one micro batch."""
        assert len(inputs) == self._num_inputs
        outside = torch.is_grad_enabled()
        try:
            results = self._run(*inputs)
        except Exception as error:
            for frame, line in traceback.walk_tb(error.__traceback__):
                if frame.f_code.co_filename == _FILE and line in self._origins:
                    errors.explain(error, self._origins[line])
            raise
        finally:
            torch.set_grad_enabled(outside)
        return (results[0], results[1:]) if self._has_loss else (None, results)

    def merged(
        self, inputs: list[torch.Tensor], draws: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """As a call, for several micro batches at once: inputs [K, ...], or 0-d, give results [K, ...].

        `draws`: whether it may draw random numbers. Raises what torch.func.vmap raises for a forward that it
        can't run.
        """
        outside = torch.is_grad_enabled()
        dims = tuple([0 if tensor.dim() else None for tensor in inputs])
        try:
            with _batching_rules_only():
                batched = torch.func.vmap(
                    lambda *own: tuple(self._run(*own)), dims, randomness="different" if draws else "error"
                )
                results = list(batched(*inputs))
        finally:
            torch.set_grad_enabled(outside)
        return (results[0], results[1:]) if self._has_loss else (None, results)


@contextlib.contextmanager
def _batching_rules_only() -> Iterator[None]:
    """Context: torch.func.vmap raises for an operation that it would otherwise run in a loop."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)


def _no_replay() -> None:
    return None


def _needed(steps: list[TapedCall], results: list[Any]) -> list[TapedCall]:
    """Dead code elimination: drops steps that do nothing, and pure ones whose results aren't used."""
    needed = {result.index for result in results if isinstance(result, Slot)}
    kept = []
    for step in reversed(steps):
        if step.does_nothing or (step.is_pure and needed.isdisjoint(step.made)):
            continue
        needed |= step.taken
        kept.append(step)
    return kept[::-1]


def _compiled(
    steps: list[TapedCall], num_inputs: int, results: list[Any]
) -> tuple[Callable[..., list[torch.Tensor]], dict[int, errors.Origin]]:
    """Generates a function of the inputs: per step, a line for the call and one to free dead tensors.

    Also returns the origin of the call in each line of the function that has one.
    """
    constants: dict[str, Any] = {}
    lines: list[str] = []
    origins: dict[int, errors.Origin] = {}
    grad_enabled: bool | None = None
    autocast: Autocast | None = None
    dying = _dying(steps, results)

    def constant(value: Any) -> str:
        constants[f"c{len(constants)}"] = value
        return f"c{len(constants) - 1}"

    def text(part: Any) -> str:
        if isinstance(part, Slot):
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
        # The device "ipu" is replaced here once, not in every call of every run.
        func, args, kwargs, _ = placed(step.func, step.args, step.kwargs)
        arguments = [*map(text, args), *(f"{name}={text(value)}" for name, value in kwargs.items())]
        call = f"{constant(func)}({', '.join(arguments)})"
        made = ", ".join(f"v{place}" for place in step.made)
        if step.gives_tensor:
            call = f"{made} = {call}"
        elif made:
            call = f"{made}, = {constant(tensors)}({call})"
        lines.append(indent + call)
        origins[len(lines) + _HEADER_LINES] = step.origin
        if dead:
            lines.append(f"{indent}{' = '.join(f'v{place}' for place in dead)} = None")
    lines.append(f"return {text(results)}")
    inputs = ", ".join(f"v{place}" for place in range(num_inputs))
    body = "".join(f"        {line}\n" for line in lines)
    source = f"def make({', '.join(constants)}):\n    def run({inputs}):\n{body}    return run\n"
    namespace: dict[str, Any] = {}
    exec(compile(source, _FILE, "exec"), namespace)
    run: Callable[..., list[torch.Tensor]] = namespace["make"](**constants)
    return run, origins


def _dying(steps: list[TapedCall], results: list[Any]) -> list[list[int]]:
    """For each step, the places whose last use it is."""
    used = {result.index for result in results if isinstance(result, Slot)}
    dying = []
    for step in reversed(steps):
        last = {*step.taken, *step.made} - used
        used |= last
        dying.append(sorted(last))
    return dying[::-1]
