"""Constants of an executable: host tensors that its forward moves to the device.

They have the values that they had at compilation, also where the forward runs again: for each micro batch if
it can't be replayed (tape.py), and once if the executable was loaded from a file. A move is known by the line
that makes it, and by its number among that line's moves in one forward.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import Call, callers

# Functions that may move their first argument to the device.
MOVES = frozenset(
    {torch.Tensor.ipu, torch.Tensor.to, torch.Tensor.type_as, torch.as_tensor, torch.asarray, torch.tensor}  # type: ignore[attr-defined]
)

Move = tuple[str, int]


class Moves:
    """The moves of one forward. `constants`: by move; the forward that compiles the model adds new ones."""

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

    def known(self, move: Move | None, args: tuple[Any, ...]) -> torch.Tensor | None:
        """What a move gave at the compilation; None if it wasn't made then, or if this isn't it."""
        constant = None if move is None else self._constants.get(move)
        source = args[0] if args else None
        is_same = isinstance(source, torch.Tensor) and constant is not None and constant.shape == source.shape
        return copy_of(constant) if constant is not None and is_same else None

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py) of later runs."""
        constant = self.known(self.next(func), args)
        return proceed(func, args, kwargs) if constant is None else constant


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy outside autograd, unseen by the listeners."""
    with _disable_current_modes(), torch.no_grad():
        return tensor.clone()
