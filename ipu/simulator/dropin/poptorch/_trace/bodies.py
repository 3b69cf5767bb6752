"""Bodies of loops between two registered operators, start_for_loop and end_for_loop.

poptorch.for_loop calls its body as often as it has to. Code between two calls runs once: a tape per open loop
records its calls to torch, and the end of the loop repeats them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..poptorch_core import createBackendError
from . import Call
from . import run as trace
from .tape import Tape


class Loop:
    """An open loop.

    :param inputs: what the body takes in its first iteration.
    """

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        self.inputs = inputs
        self.tape = Tape(inputs)

    def repeated(self, count: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """After the body's first iteration, which gave `outputs`: the results of `count` iterations."""
        if torch.is_grad_enabled():  # in training, which is refused at the end of the forward
            return outputs
        program = self.tape.finish(None, outputs)
        if program is None:
            raise createBackendError(
                "torch.ops.poptorch.end_for_loop: the simulator can't repeat this body, which computes "
                "outside of PyTorch's calls. Call poptorch.for_loop(count, body, inputs) instead."
            )
        values = outputs if count > 0 else self.inputs
        for _ in range(count - 1):
            _, values = program(values)
        return values


def _loops() -> list[Loop]:
    run = trace.current()
    return [] if run is None else run.loops


def on_call(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for calls (watch.py): every open loop records them."""
    for loop in _loops():
        proceed = functools.partial(loop.tape.on_call, proceed)
    return proceed(func, args, kwargs)


def on_operation(proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Listener for operations (watch.py): every open loop notices those that belong to no call."""
    for loop in _loops():
        proceed = functools.partial(loop.tape.on_operation, proceed)
    return proceed(func, args, kwargs)
