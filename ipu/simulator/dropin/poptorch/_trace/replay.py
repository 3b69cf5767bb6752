"""The calls of a tape as one Python function, which repeats them on other inputs.

As on an IPU, what neither the loss nor an output needs isn't computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import torch

from .._run.structure import tensors
from .casts import placed

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
