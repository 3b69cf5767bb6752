"""Random numbers of merged micro batches: each has those that it draws when it runs alone.

A micro batch's generator is seeded by its key (ipu_simulator/numerics/rounding.py). Merged, K generators
draw side by side. torch.func.vmap may dispatch other operations than the forward itself (bernoulli for
bernoulli_), and lay out its tensors differently, on which some draws depend; so a draw is known by its
distribution, and repeats the layout that it has in a single micro batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from ipu_simulator import numerics
from ipu_simulator.graph.operations import schema_of

_UNIFORM: dict[str, Any] = {"from": 0.0, "to": 1.0}
_NORMAL: dict[str, Any] = {"mean": 0.0, "std": 1.0}
# Operation -> its in-place equivalent, and the parameters that it implies.
_DISTRIBUTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "aten.bernoulli.p": ("bernoulli_", {}),
    "aten.bernoulli_.float": ("bernoulli_", {}),
    "aten.exponential_.default": ("exponential_", {}),
    "aten.normal_.default": ("normal_", {}),
    "aten.rand.default": ("uniform_", _UNIFORM),
    "aten.rand_like.default": ("uniform_", _UNIFORM),
    "aten.randn.default": ("normal_", _NORMAL),
    "aten.randn_like.default": ("normal_", _NORMAL),
    "aten.uniform_.default": ("uniform_", {}),
}
_PARAMETERS = frozenset({"from", "lambd", "mean", "p", "std", "to"})


class UnknownDraw(ValueError):
    """An operation draws random numbers in a way that can't be repeated for several micro batches."""


@dataclass(frozen=True)
class Draw:
    """One operation's random numbers: the in-place function, its parameters, and the tensor's layout."""

    function: str
    parameters: tuple[tuple[str, float], ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def drawn_by(self, generator: torch.Generator) -> torch.Tensor:
        """A tensor of these random numbers, from this generator."""
        result = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        getattr(result, self.function)(**dict(self.parameters), generator=generator)
        return result

    def agrees(self, merged: Draw, count: int) -> bool:
        """Whether `merged` is this draw of `count` micro batches."""
        mine = self.function, self.parameters, (count, *self.size), self.dtype
        return mine == (merged.function, merged.parameters, merged.size, merged.dtype)


def draws(func: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def draw_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: torch.Tensor) -> Draw:
    """The draw that an operation has made. Raises UnknownDraw."""
    if str(func) not in _DISTRIBUTIONS:
        raise UnknownDraw(f"random numbers by {func}")
    function, implied = _DISTRIBUTIONS[str(func)]
    given = schema_of(func).bind(args, kwargs).attributes
    parameters = implied or {name: given[name] for name in given.keys() & _PARAMETERS}
    return Draw(
        function, tuple(sorted(parameters.items())), tuple(result.shape), result.stride(), result.dtype
    )


class MergedDraws(numerics.OperationMode):
    """Inside, random operations on [K, ...] give micro batch k the numbers of generator k.

    :param expected: the draws of a single micro batch, in order.
    :param seeds: of the micro batches.

    Raises UnknownDraw for any other draw.
    """

    def __init__(self, expected: Sequence[Draw], seeds: Sequence[int]) -> None:
        super().__init__()
        self._expected = iter(expected)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not draws(func):
            return result
        draw = next(self._expected, None)
        if draw is None or not draw.agrees(draw_of(func, args, kwargs or {}, result), len(self._generators)):
            raise UnknownDraw(f"random numbers by {func} in another order")
        for own, generator in zip(result, self._generators):
            own.copy_(draw.drawn_by(generator))
        return result
