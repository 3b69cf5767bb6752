"""Fits the time model's constants: least squares on the logarithm of step times, with log-normal priors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping, Sequence

import numpy as np

from ipu_simulator.cost.constants import Constants, constants, entries
from .measured import Measured

# The model's own relative error and that of measurements: what a residual is weighed with against the priors.
RESIDUAL_SD = 0.02
# Largest relative change of a constant in the last step of a fit.
_CONVERGED = 1e-10


@dataclass(frozen=True)
class Fit:
    """:param sd: relative standard deviations after the fit, by the constant's name."""

    constants: Constants
    values: Mapping[str, float]
    sd: Mapping[str, float]


def fit(rows: Sequence[Measured]) -> Fit:
    """Gauss-Newton on log(predicted / published) of the rows and on the distance to the priors."""
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
        # Rows far from the model make whole steps overshoot: a step that worsens the fit is halved.
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
    """The shipped constants with other values of some."""
    return replace(constants(), **values)


def utilisation(rows: Sequence[Measured]) -> tuple[float, float]:
    """The baseline's two constants: (utilisation of PopART's rows, factor of PopTorch's), geometric means.

    Rows of other frameworks count with the factor that the model assumes for them.
    """
    plain = [_log_utilisation(row) for row in rows if row.row.framework != "PopTorch"]
    poptorch = [_log_utilisation(row) for row in rows if row.row.framework == "PopTorch"]
    if not plain:
        return float(np.exp(np.mean(poptorch))), 1.0
    level = float(np.mean(plain))
    factor = float(np.exp(level - np.mean(poptorch))) if poptorch else constants().poptorch_factor
    return float(np.exp(level)), factor


def _log_utilisation(row: Measured) -> float:
    framework = row.row.framework
    factor = 1.0 if framework == "PopTorch" else constants().framework_factor(framework)
    return float(np.log(row.at_peak_s * factor / row.row.step_s))


def by_utilisation_s(row: Measured, level: float, poptorch_factor: float) -> float:
    """What the baseline of constant utilisation predicts."""
    framework = row.row.framework
    factor = poptorch_factor if framework == "PopTorch" else constants().framework_factor(framework)
    return row.at_peak_s / level * factor
