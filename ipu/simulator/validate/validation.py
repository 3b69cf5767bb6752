"""How far predictions are from published rows, also with constants fitted without a row or its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from ipu_simulator.cost.constants import constants, entries
from .fitting import by_utilisation_s, fit
from .measured import Measured
from .rows import Row, RowError


@dataclass(frozen=True)
class Errors:
    """Relative errors, (predicted - published) / published, by the row's id."""

    of_row: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Of absolute values, as is the maximum."""
        return sum(map(abs, self.of_row.values())) / len(self.of_row)

    @property
    def max(self) -> float:
        return max(map(abs, self.of_row.values()))


@dataclass(frozen=True)
class Validation:
    """:param leave_one_out: each row with constants that were fitted to all others of the file.
    :param leave_a_group_out: by group, its rows with constants that were fitted to all rows outside.
    :param baselines: simpler models, with the constants that were fitted to the same rows as the model's.
    :param not_predicted: rows of the file that no figure includes, with the reason.
    """

    rows: tuple[Measured, ...]
    predicted_s: Mapping[str, float]
    errors: Errors
    leave_one_out: Errors
    leave_a_group_out: Mapping[str, Errors]
    baselines: Mapping[str, Errors]
    not_predicted: tuple[RowError, ...] = ()


_GROUPS: tuple[Callable[[Row], str], ...] = (
    lambda row: f"model {row.model}",
    lambda row: f"framework {row.framework}",
    lambda row: "chip Bow" if row.target.startswith("bow") else "chip GC200",
    lambda row: f"machine of {row.target.rpartition('pod')[2]} IPUs",
    lambda row: "packed" if row.packed else "not packed",
)


def validate(rows: Sequence[Measured], not_predicted: Sequence[RowError] = ()) -> Validation:
    """With the shipped constants; those left out of a fit are fitted from their priors."""
    predicted = {row.row.id: row.predicted_s(constants()) for row in rows}
    level = entries()["baseline"]["utilisation"]["value"]
    factor = entries()["baseline"]["utilisation_poptorch_factor"]["value"]
    return Validation(
        rows=tuple(rows),
        predicted_s=predicted,
        errors=_errors(rows, lambda row: predicted[row.row.id]),
        leave_one_out=Errors(
            {row.row.id: _without(rows, [row]).of_row[row.row.id] for row in rows},
        ),
        leave_a_group_out=_groups(rows),
        baselines={
            "constant_utilisation": _errors(rows, lambda row: by_utilisation_s(row, level, factor)),
            "flops_over_peak": _errors(rows, lambda row: row.at_peak_s),
        },
        not_predicted=tuple(not_predicted),
    )


def _errors(rows: Sequence[Measured], predicted_s: Callable[[Measured], float]) -> Errors:
    return Errors({row.row.id: predicted_s(row) / row.row.step_s - 1 for row in rows})


def _without(rows: Sequence[Measured], left_out: Sequence[Measured]) -> Errors:
    others = [row for row in rows if not any(row is one for one in left_out)]
    values = fit(others).constants
    return _errors(left_out, lambda row: row.predicted_s(values))


def _groups(rows: Sequence[Measured]) -> dict[str, Errors]:
    """Groups that leave some rows to fit to, and that no other group equals."""
    groups: dict[str, list[Measured]] = {}
    for group_of in _GROUPS:
        for row in rows:
            groups.setdefault(group_of(row.row), []).append(row)
    return {name: _without(rows, group) for name, group in groups.items() if len(group) < len(rows)}
