"""Fits the cost model's constants to published rows, and validates its predictions against them.

A row's program is the graph that this application runs in the row's configuration. Constants are fitted by
least squares on the logarithm of step times, with log-normal priors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Mapping, Sequence

import numpy as np
from ipu_simulator.cost.constants import Constants, constants, entries
from ipu_simulator.cost.memory import homes
from ipu_simulator.cost.settings import Settings
from ipu_simulator.cost.time import Program, program_of
from ipu_simulator.environment import Target, target
from ipu_simulator.graph.ir import Graph
from ipu_simulator.graph.stages import stages_of

from config import ConfigError
from ipu.placement import StagesError

from .published_rows import COLUMNS, Row, RowError


@dataclass(frozen=True)
class MeasuredRow:
    """A row and its program, for the cost model.

    :param flops: FLOPs of one weight update: only matmuls and convolutions, without recomputation.
    :param weights: elements of the weights on each IPU of a replica.
    """

    row: Row
    target: Target
    program: Program
    flops: float
    weights: tuple[int, ...] = ()

    def predicted_s(self, values: Constants) -> float:
        return self.program.step_s(self.target, values)

    @property
    def at_peak_s(self) -> float:
        """Seconds of the row's FLOPs at the peak of all IPUs."""
        ipus = len(self.row.layers_per_ipu) * self.row.replication_factor
        return self.flops / (self.target.peak_flops_per_s * ipus)


def measured(rows: Sequence[Row]) -> tuple[list[MeasuredRow], list[RowError]]:
    """The programs of rows, and the errors of rows that have none."""
    programs: list[MeasuredRow] = []
    faults: list[RowError] = []
    for row in rows:
        try:
            programs.append(_measured(row))
        except RowError as fault:
            faults.append(fault)
    return programs, faults


def _measured(row: Row) -> MeasuredRow:
    """Raises RowError if the row's configuration is illegal."""
    machine = target(row.target)
    needed = len(row.layers_per_ipu) * row.replication_factor
    if needed > machine.num_ipus:
        raise row.error(
            "replication_factor",
            f"{row.replication_factor} replicas of {len(row.layers_per_ipu)} IPUs need {needed}, but "
            f"{row.target} has {machine.num_ipus}",
        )
    graph, settings = _program(row)
    stages = stages_of(graph, settings)
    least = 2 * len(stages) - 1
    if row.gradient_accumulation < least:
        raise row.error(
            "gradient_accumulation",
            f"{row.gradient_accumulation} cannot fill the pipeline, which needs {least}",
        )
    program = program_of(graph, stages, settings, machine, constants())
    micro_batches = row.gradient_accumulation * row.replication_factor
    flops = sum(load.forward.flops + load.backward.flops for load in program.loads)
    home = homes(graph)
    weights = [0] * graph.num_ipus
    for weight in graph.parameters:
        weights[home[weight.id]] += weight.elements
    return MeasuredRow(row, machine, program, float(flops) * micro_batches, tuple(weights))


def _program(row: Row) -> tuple[Graph, Settings]:
    from planning import dry_run as application

    try:
        graph, settings = application.program_of_row(
            row.model,
            target=row.target,
            sequence_length=row.sequence_length,
            mask_tokens=row.mask_tokens,
            micro_batch_size=row.micro_batch_size,
            gradient_accumulation=row.gradient_accumulation,
            replication_factor=row.replication_factor,
            layers_per_ipu=[int(count) if count % 1 == 0 else count for count in row.layers_per_ipu],
            optimizer_state=row.optimizer_state,
            # Some published configurations shard over a single replica, which has no effect.
            replicated_tensor_sharding=row.replicated_tensor_sharding and row.replication_factor > 1,
            matmul_proportion=row.matmul_proportion,
            embedding_serialization_factor=row.embedding_serialization_factor,
        )
    except StagesError as error:
        raise row.error("layers_per_ipu", str(error)) from None
    except ConfigError as error:
        raise _of_row(row, error) from None
    # The overlapping updates of this application's options are those of PopTorch's recipes.
    overlap = settings.updates_overlap and row.framework == "PopTorch"
    return graph, replace(settings, framework=row.framework, updates_overlap=overlap)


def _of_row(row: Row, error: ConfigError) -> RowError:
    """A configuration's problems as an error of the row: keys and columns have the same names."""
    problems = sorted(error.problems, key=lambda problem: problem.key not in COLUMNS)
    column = problems[0].key if problems[0].key in COLUMNS else "model"
    first = problems[0].text if problems[0].key == column else str(problems[0])
    return row.error(column, "; ".join([first, *map(str, problems[1:])]))


# Relative error of the model and of the measurements: the weight of residuals relative to the priors.
RESIDUAL_SD = 0.02
# A fit has converged if no constant changes by more than this, relatively.
_CONVERGED = 1e-10


@dataclass(frozen=True)
class Fit:
    """:param sd: relative standard deviations after the fit, by the constant's name."""

    constants: Constants
    values: Mapping[str, float]
    sd: Mapping[str, float]


def fit(rows: Sequence[MeasuredRow]) -> Fit:
    """Gauss-Newton on the rows' log(predicted / published) and on the distances to the priors."""
    fitted = entries()["fitted"]
    names = list(fitted)
    centres = np.log([float(fitted[name]["prior"]) for name in names])
    spreads = np.array([float(fitted[name]["prior_sd"]) for name in names])
    published = np.log([row.row.step_s for row in rows])

    def residuals(logs: np.ndarray) -> np.ndarray:
        values = with_values(dict(zip(names, np.exp(logs).tolist())))
        predicted = np.log([row.predicted_s(values) for row in rows])
        return np.concatenate([(predicted - published) / RESIDUAL_SD, (logs - centres) / spreads])

    logs, step = centres.copy(), 1e-4
    here = residuals(logs)
    for _ in range(50):
        columns = [(residuals(logs + step * unit) - here) / step for unit in np.eye(len(names))]
        jacobian = np.stack(columns, axis=1)
        change = np.linalg.lstsq(jacobian, -here, rcond=None)[0]
        # Full steps overshoot if rows are far from the model: halve a step that worsens the fit.
        while np.abs(change).max() > _CONVERGED and _squares(residuals(logs + change)) > _squares(here):
            change = change / 2
        logs = logs + change
        here = residuals(logs)
        if np.abs(change).max() <= _CONVERGED:
            break
    variances = np.diag(np.linalg.inv(jacobian.T @ jacobian))
    values = dict(zip(names, np.exp(logs).tolist()))
    return Fit(with_values(values), values, dict(zip(names, np.sqrt(variances).tolist())))


def _squares(residuals: np.ndarray) -> float:
    return float(residuals @ residuals)


def with_values(values: Mapping[str, float]) -> Constants:
    """The shipped constants with some values replaced."""
    return replace(constants(), **values)


def utilisation(rows: Sequence[MeasuredRow]) -> tuple[float, float]:
    """The baseline's two constants: (utilisation of PopART's rows, factor of PopTorch's), geometric means.

    Rows of other frameworks use the factor that the model assumes for them.
    """
    plain = [_log_utilisation(row) for row in rows if row.row.framework != "PopTorch"]
    poptorch = [_log_utilisation(row) for row in rows if row.row.framework == "PopTorch"]
    if not plain:
        return float(np.exp(np.mean(poptorch))), 1.0
    level = float(np.mean(plain))
    factor = float(np.exp(level - np.mean(poptorch))) if poptorch else constants().poptorch_factor
    return float(np.exp(level)), factor


def _log_utilisation(row: MeasuredRow) -> float:
    framework = row.row.framework
    factor = 1.0 if framework == "PopTorch" else constants().framework_factor(framework)
    return float(np.log(row.at_peak_s * factor / row.row.step_s))


def by_utilisation_s(row: MeasuredRow, level: float, poptorch_factor: float) -> float:
    """Seconds predicted by the baseline of constant utilisation."""
    framework = row.row.framework
    factor = poptorch_factor if framework == "PopTorch" else constants().framework_factor(framework)
    return row.at_peak_s / level * factor


@dataclass(frozen=True)
class Errors:
    """Relative errors, (predicted - published) / published, by the row's id."""

    of_row: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean of absolute errors."""
        return sum(map(abs, self.of_row.values())) / len(self.of_row)

    @property
    def max(self) -> float:
        return max(map(abs, self.of_row.values()))


@dataclass(frozen=True)
class Validation:
    """:param leave_one_out: errors of each row with constants fitted to all other rows of the file.
    :param leave_a_group_out: by group, errors of its rows with constants fitted to all rows outside it.
    :param baselines: errors of simpler models, with constants fitted to the same rows as the model's.
    :param not_predicted: rows of the file that aren't in any figure, with the reason.
    """

    rows: tuple[MeasuredRow, ...]
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


def validate(rows: Sequence[MeasuredRow], not_predicted: Sequence[RowError] = ()) -> Validation:
    """Validates the shipped constants; the leave-out errors refit them, starting from the priors."""
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


def _errors(rows: Sequence[MeasuredRow], predicted_s: Callable[[MeasuredRow], float]) -> Errors:
    return Errors({row.row.id: predicted_s(row) / row.row.step_s - 1 for row in rows})


def _without(rows: Sequence[MeasuredRow], left_out: Sequence[MeasuredRow]) -> Errors:
    others = [row for row in rows if not any(row is one for one in left_out)]
    values = fit(others).constants
    return _errors(left_out, lambda row: row.predicted_s(values))


def fits_without_groups(rows: Sequence[MeasuredRow]) -> dict[str, Constants]:
    """By group, constants fitted to all rows outside it; without groups that contain all rows."""
    return {
        name: fit([row for row in rows if not any(row is one for one in group)]).constants
        for name, group in _groups_of(rows).items()
    }


def _groups(rows: Sequence[MeasuredRow]) -> dict[str, Errors]:
    return {name: _without(rows, group) for name, group in _groups_of(rows).items()}


def _groups_of(rows: Sequence[MeasuredRow]) -> dict[str, list[MeasuredRow]]:
    groups: dict[str, list[MeasuredRow]] = {}
    for group_of in _GROUPS:
        for row in rows:
            groups.setdefault(group_of(row.row), []).append(row)
    return {name: group for name, group in groups.items() if len(group) < len(rows)}
