"""Running statistics of norms that a forward reads after their norm.

On an IPU the statistics are updated when the forward is over: a read in the same forward gives the values
from before it. PyTorch updates them in the norm.
"""

from __future__ import annotations

from typing import Any

import torch
from ipu_simulator.numerics import storage_of

from .._run.structure import map_leaves, tensors
from . import Call
from .casts import statistics_of


class RunningStatistics:
    """Listener of one forward.

    :param defers: whether norms update copies until `update`; if not, only `are_read` is found out.
    """

    def __init__(self, defers: bool) -> None:
        self.are_read = False
        self._defers = defers
        self._updated: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}  # old and new, by memory

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        statistics = {id(one): one for one in statistics_of(func, args, kwargs) if one is not None}
        self.look_at([one for one in tensors((args, kwargs)) if id(one) not in statistics])
        if not statistics:
            return proceed(func, args, kwargs)
        copies = {key: self._copy_of(one) for key, one in statistics.items()}
        if self._defers:
            args, kwargs = map_leaves((tuple(args), dict(kwargs)), lambda leaf: copies.get(id(leaf), leaf))
        return proceed(func, args, kwargs)

    def look_at(self, used: list[torch.Tensor]) -> None:
        """Notes whether one of these, which the forward uses or returns, is among the statistics so far."""
        if self._updated and not self.are_read:
            self.are_read = any(storage_of(tensor) in self._updated for tensor in used)

    def _copy_of(self, statistic: torch.Tensor) -> torch.Tensor:
        key = storage_of(statistic)
        if key not in self._updated:  # a norm that is called twice updates the same copy twice
            new = statistic.detach().clone() if self._defers else statistic
            self._updated[key] = statistic, new
        return self._updated[key][1]

    def returned(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the forward returned, as it is before `update`."""
        return [tensor.clone() if storage_of(tensor) in self._updated else tensor for tensor in outputs]

    def update(self) -> None:
        """Updates the statistics, after the backward pass, which may need the old ones."""
        for old, new in self._updated.values():
            old.data.copy_(new)  # .data: as in a norm, the version stays the same
