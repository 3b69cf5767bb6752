"""Finds the layer and operation that made a loss NaN or infinite, by running that micro batch once more."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator

import torch
from ipu_simulator import numerics
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .._trace.callers import place


def first_non_finite(
    model: torch.nn.Module, given: Iterable[tuple[str, torch.Tensor]], forward: Callable[[], Any]
) -> str | None:
    """The first NaN and the first infinity of a forward, as a clause; None if it has neither.

    :param given: weights and inputs, by name; checked first, since they explain all that follows.
    :param forward: runs the micro batch in Python, so that layers are entered. Parameters and buffers that it
        changes are restored.
    """
    for name, tensor in given:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            kind = "NaN" if bool(tensor.isnan().any()) else "an infinity"
            return f"{name} holds {kind} before the forward"
    watch = _Watch(model)
    try:
        with watch.layers(), torch.no_grad(), _tensors_kept(model), watch:
            forward()
    except Exception as error:  # a forward need not run twice; the run itself isn't concerned
        return f"its forward can't be run again to find out ({type(error).__name__}: {error})"
    return watch.clause()


class _Watch(numerics.FloatingPointExceptions):
    """Notes where the first NaN and the first infinity are made, and goes on."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._entered: list[str] = []
        self._nan: str | None = None
        self._infinity: str | None = None  # before the first NaN

    def found(self, exception: numerics.FloatingPointException) -> None:
        layer = f" of layer {self._entered[-1]!r}" if self._entered and self._entered[-1] else ""
        where = place()
        text = f"{exception}{layer}{f', at {where}' if where else ''}"
        if isinstance(exception, numerics.InvalidOperation):
            self._nan = self._nan or text
        elif self._nan is None:
            self._infinity = self._infinity or text

    def clause(self) -> str | None:
        if self._nan is None or self._infinity is None:
            return self._nan or self._infinity
        return f"{self._nan}; before it, {self._infinity}"

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        """Context: the modules whose forward runs are known by name, the innermost last."""

        def enter(module: torch.nn.Module, _: Any) -> None:
            if id(module) in self._paths:
                self._entered.append(self._paths[id(module)])

        def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
            if id(module) in self._paths:
                self._entered.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _tensors_kept(model: torch.nn.Module) -> Iterator[None]:
    kept = [(tensor, tensor.clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for tensor, before in kept:
            tensor.data.copy_(before)
