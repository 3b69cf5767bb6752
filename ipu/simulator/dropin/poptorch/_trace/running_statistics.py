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
from .casts import statistics_of, version_of


class RunningStatistics:
    """Listener of one forward.

    :param defers: whether norms update copies until `update`; if not, only `are_read` is found out.
    """

    def __init__(self, defers: bool) -> None:
        self._is_read = False
        self._is_written = False
        self._defers = defers
        self._updated: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}  # old and new, by memory

    @property
    def are_read(self) -> bool:
        """Whether the forward reads statistics after their norm, and doesn't change them itself."""
        return self._is_read and not self._is_written

    def on_call(self, proceed: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Listener for calls (watch.py)."""
        statistics = {id(one): one for one in statistics_of(func, args, kwargs) if one is not None}
        if statistics:
            copies = {key: self._copy_of(one) for key, one in statistics.items()}
            if self._defers:
                args, kwargs = map_leaves(
                    (tuple(args), dict(kwargs)), lambda leaf: copies.get(id(leaf), leaf)
                )
            return proceed(func, args, kwargs)
        used = self._among(tensors((args, kwargs)))
        versions = [version_of(one) for one in used]
        result = proceed(func, args, kwargs)
        self._is_written |= versions != [version_of(one) for one in used]
        self._is_read |= bool(used)
        return result

    def look_at(self, outputs: list[torch.Tensor]) -> None:
        """Notes whether the forward returns statistics."""
        self._is_read |= bool(self._among(outputs))

    def _among(self, used: list[torch.Tensor]) -> list[torch.Tensor]:
        return [one for one in used if storage_of(one) in self._updated] if self._updated else []

    def _copy_of(self, statistic: torch.Tensor) -> torch.Tensor:
        key = storage_of(statistic)
        if key not in self._updated:  # a norm that is called twice updates the same copy twice
            new = statistic.detach().clone() if self._defers else statistic
            self._updated[key] = statistic, new
        return self._updated[key][1]

    def returned(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the forward returned, as it is before `update`."""
        return [tensor.clone() if self._among([tensor]) else tensor for tensor in outputs]

    def update(self) -> None:
        """Updates the statistics, after the backward pass, which may need the old ones."""
        for old, new in self._updated.values():
            old.data.copy_(new)  # .data: as in a norm, the version stays the same
