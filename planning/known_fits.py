"""Programs that are known to fit or not to fit, compared with the memory model's predictions.

Recipes are only names here: the caller supplies the function that predicts a recipe's memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

import yaml
from ipu_simulator.cost.verdict import IpuMemory

_FILE = Path(__file__).with_name("known_fits.yml")


@dataclass(frozen=True)
class Case:
    """A recipe, optionally with changes. `fits` is None if it isn't known."""

    name: str
    recipe: str
    source: str
    fits: bool | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """The model's prediction for a case.

    :param filled: for each IPU, the fraction of its fullest tile's memory in use; above 1 it doesn't fit.
    """

    case: Case
    filled: tuple[float, ...]

    @property
    def fits(self) -> bool:
        return max(self.filled) <= 1

    @property
    def right(self) -> bool | None:
        return None if self.case.fits is None else self.case.fits == self.fits


def cases(published_recipes: Iterable[str]) -> tuple[Case, ...]:
    """All published recipes, which ran, then the programs that don't fit and the unknown ones."""
    ran = [Case(name, name, "published", True) for name in published_recipes]
    listed = [Case(**entry) for entry in yaml.safe_load(_FILE.read_text(encoding="utf-8"))]
    return (*ran, *listed)


def judge(
    wanted: Iterable[Case], memory_of: Callable[[str, Mapping[str, Any]], Sequence[IpuMemory]]
) -> tuple[Judgement, ...]:
    """Calls `memory_of(recipe, changes)` for every case."""
    return tuple(
        Judgement(case, tuple(memory.filled for memory in memory_of(case.recipe, case.changes)))
        for case in wanted
    )


def confusion(judgements: Iterable[Judgement]) -> Mapping[tuple[bool, bool], int]:
    """(known to fit, predicted to fit) -> number of cases, without the unknown ones."""
    return Counter((each.case.fits, each.fits) for each in judgements if each.case.fits is not None)


def markdown(judgements: Sequence[Judgement]) -> str:
    """The confusion matrix and a table of all cases, for the documentation."""
    counts = confusion(judgements)
    lines = ["| in sample | judged to fit | judged not to fit |", "|---|---|---|"]
    lines += [
        f"| {title} | {counts.get((known, True), 0)} | {counts.get((known, False), 0)} |"
        for title, known in (("known to have run", True), ("known or certain not to fit", False))
    ]
    lines += [
        "",
        "| program | known | predicted | fullest tile of each IPU | source |",
        "|---|---|---|---|---|",
    ]
    known_words = {True: "fits", False: "does not fit", None: "open"}
    for each in judgements:
        filled = " ".join(f"{share:.0%}" for share in each.filled)
        lines.append(
            f"| {each.case.name} | {known_words[each.case.fits]} | {known_words[each.fits]} | {filled} | "
            f"{each.case.source} |"
        )
    return "\n".join(lines) + "\n"
