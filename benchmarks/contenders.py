"""Two sides of a comparison, each in a separate process, and the ratio of their times in adjacent pairs."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Dict, List, Optional

from torch import nn

import data.workers
from config import ConfigError

from .results import quartiles
from .trainings import Budget

# Warm-up until the allocator is in a steady state: the first steps allocate memory from the system.
WARM_UP_ROUNDS = 3


class Contender:
    """One side of a comparison: `step_s()` makes a weight update and returns its seconds.

    `model` is the module whose weights are updated, if it is in this process.
    """

    def __init__(self, step_s: Callable[[], float], model: Optional[nn.Module] = None) -> None:
        self.step_s = step_s
        self.model = model


# In the process of `Apart`: the contender whose steps are timed.
_contender: List[Contender] = []


class Apart:
    """A process for one contender at a time, so that the two sides share no allocator, threads or caches.

    A context manager; leaving it ends the process.

    :param name: of the side, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Not forked: this process may have threads, and a configured allocator.
        self._pool = ProcessPoolExecutor(
            1, mp_context=data.workers.SpawnContext(), initializer=data.workers.end_with_parent
        )

    def contender(self, build: Callable[..., Contender], *arguments: Any) -> Contender:
        """Replaces the process's contender with `build(*arguments)`. Raises what `build` raises."""
        with data.workers.signals_deferred():  # handled in this process
            made = self._pool.submit(_make, build, arguments)
        self._result(made)
        return Contender(lambda: float(self._result(self._pool.submit(_step_s))))

    def _result(self, asked: Any) -> Any:
        try:
            return asked.result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"the process of {self._name} died in the middle of a step, perhaps out of memory: "
                "choose smaller comparisons with --only"
            ) from error

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: Optional[object]) -> None:
        self._pool.shutdown()


def _make(build: Callable[..., Contender], arguments: Any) -> None:
    _contender.clear()
    _contender.append(build(*arguments))


def _step_s() -> float:
    return _contender[0].step_s()


def compare(
    ours: Contender,
    theirs: Contender,
    rounds: int,
    budget: Optional[Budget] = None,
    better: str = "higher",
) -> Dict[str, Any]:
    """Alternates the two, and which one starts, after at least one warm-up round.

    The ratio is their time over ours, or, where a `lower` one is better, ours over theirs.
    """
    for _ in range(WARM_UP_ROUNDS):
        ours.step_s()
        theirs.step_s()
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = theirs.step_s()
            first = ours.step_s()
        else:
            first = ours.step_s()
            second = theirs.step_s()
        pairs.append((first, second))
        if budget is not None and budget.is_spent:
            break
    ratios = [b / a if better == "higher" else a / b for a, b in pairs]
    low, median, high = quartiles(ratios)
    return {
        "rounds": len(pairs),
        "ours_s": quartiles([first for first, _ in pairs])[1],
        "theirs_s": quartiles([second for _, second in pairs])[1],
        "median": median,
        "low": low,
        "high": high,
        "better": better,
    }
