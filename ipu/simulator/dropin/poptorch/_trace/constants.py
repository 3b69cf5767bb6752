"""Constants of an executable whose forward runs again: host tensors that it moves to the device.

A tape (tape.py) holds its constants. A forward that can't be replayed moves its tensors again in each run,
but the executable has the values that they had at compilation. A move is known by the line that makes it,
and by its number among that line's moves in one forward.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import Call, callers

# Functions that may move their first argument to the device.
MOVES = frozenset({torch.Tensor.ipu, torch.Tensor.to, torch.Tensor.type_as, torch.tensor})  # type: ignore[attr-defined]

Move = tuple[str, int]


class Moves:
    """The moves of one forward. `constants`: by move; the forward that compiles the model adds them."""

    def __init__(self, constants: dict[Move, torch.Tensor]) -> None:
        self._constants = constants
        self._counts: Counter[str] = Counter()

    def next(self, func: Any) -> Move | None:
        """The move that a call is; None if it can't be one. To be asked once for each call."""
        if func not in MOVES:
            return None
        place = callers.place() or ""
        self._counts[place] += 1
        return place, self._counts[place]

    def keep(self, move: Move | None, moved: torch.Tensor) -> None:
        """Adds a constant: what a move has given."""
        if move is not None:
            self._constants[move] = copy_of(moved)

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py) of later runs."""
        move = self.next(func)
        constant = None if move is None else self._constants.get(move)
        if constant is None or constant.shape != args[0].shape:
            return proceed(func, args, kwargs)
        return copy_of(constant)


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside autograd, unseen by the listeners."""
    with _disable_current_modes(), torch.no_grad():
        return tensor.clone()
