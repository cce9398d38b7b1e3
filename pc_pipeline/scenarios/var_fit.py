"""A vector autoregression with shrinkage, fitted to real history, and how well it does.

Here: estimation (scikit-learn's ridge, penalty by forward-chaining cross-validation), conversion of a
quarterly step to a monthly one, comparison with a random walk and with single autoregressions. Not here: what
becomes of the coefficients (`calibration`, `assumptions`).

    y_{t+s} = phi y_t + B y_t + u,   y = (x - mean) / sd

phi is each series' own AR(1); the ridge pulls the corrections B to zero, so that a heavy penalty gives nine
single AR(1) and not, as plain ridge would, no persistence at all. The step s is three months where series
were interpolated from quarters (taken at the quarters' middle months, so no interpolated value enters a
quarterly average), and one month otherwise. Formula (7) of docs/methods/macro.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import polars as pl
from scipy.linalg import fractional_matrix_power

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.scenarios.history import MacroHistory
from pc_pipeline.schemas.units import MACRO_NAMES

PENALTIES: Final = tuple(float(x) for x in np.logspace(0, 6, 13))
FOLDS: Final = 8
QUARTER: Final = 3
MAX_RADIUS: Final = 0.995  # per month; a fitted law must come back to its mean
FIRST_SHARE: Final = 0.6  # of the sample before the first out-of-sample forecast
REFIT_EVERY: Final = 4  # steps between refits out of sample


@dataclass(frozen=True, slots=True, eq=False)
class StepSample:
    """Standardised pairs (y_t, y_{t+s}).

    Attributes:
        before, after: (n, M) standardised values.
        months: (n,) month of `after`.
        used: (n,) bool, False for pairs that arrive in months the fit leaves out.
        step: months between the two.
    """

    before: np.ndarray
    after: np.ndarray
    months: list[date]
    used: np.ndarray
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class StepFit:
    """Fitted law of one step: y_{t+s} = transition y_t + u.

    Attributes:
        transition: (M, M).
        own: (M,) the single AR(1) coefficients it was pulled to.
        covariance: (M, M) of u.
        penalties: (M,) chosen ridge penalties.
        residuals: (n, M) of the pairs used.
    """

    transition: np.ndarray
    own: np.ndarray
    covariance: np.ndarray
    penalties: np.ndarray
    residuals: np.ndarray


def keep_months(months: list[date], skip: tuple[tuple[str, str], ...]) -> np.ndarray:
    """(T,) bool, False within any of the (first, last) windows."""
    windows = [(parse_month(first), parse_month(last)) for first, last in skip]
    return np.array([not any(first <= month <= last for first, last in windows) for month in months])


def step_sample(
    history: MacroHistory, standardised: np.ndarray, skip: tuple[tuple[str, str], ...] = ()
) -> StepSample:
    """Pairs of a history: at the quarters' middle months, or all months where nothing was interpolated.

    Args:
        standardised: (T, M) values of the history.
        skip: (first, last) months; pairs that arrive within are left out of the fit.

    Raises:
        DataError: fewer than 40 pairs remain.
    """
    months = history.frame["month"].to_list()
    outside = keep_months(months, skip)
    step = QUARTER if history.interpolated else 1
    chosen = [i for i, month in enumerate(months) if step == 1 or month.month % QUARTER == 2]
    before, after = standardised[chosen[:-1]], standardised[chosen[1:]]
    arrivals = [months[i] for i in chosen[1:]]
    used = outside[chosen[1:]]
    if used.sum() < 40:
        raise DataError(
            "macro history is too short for a vector autoregression",
            expected="at least 40 pairs of months or quarters",
            got=int(used.sum()),
            where=history.source,
        )
    return StepSample(before, after, arrivals, used, step)


def _own_persistence(before: np.ndarray, after: np.ndarray, step: int) -> np.ndarray:
    slope = (before * after).sum(axis=0) / (before**2).sum(axis=0)
    return np.clip(slope, 0.0, MAX_RADIUS**step)


def fit_step(
    before: np.ndarray, after: np.ndarray, step: int, penalties: np.ndarray | None = None
) -> StepFit:
    """Ridge fit, equation by equation; each penalty by `choose_penalty` unless given."""
    from sklearn.linear_model import Ridge  # half a second, which only this method needs

    own = _own_persistence(before, after, step)
    surprise = after - own * before
    if penalties is None:
        penalties = np.array([choose_penalty(before, column) for column in surprise.T])
    corrections = [
        Ridge(fit_intercept=False, alpha=penalty).fit(before, column).coef_
        for penalty, column in zip(penalties, surprise.T, strict=True)
    ]
    transition = _stable(np.diag(own) + np.array(corrections), own, step)
    residuals = after - before @ transition.T
    return StepFit(transition, own, residuals.T @ residuals / len(residuals), penalties, residuals)


def choose_penalty(before: np.ndarray, surprise: np.ndarray) -> float:
    """Penalty of one equation with the smallest squared forecast error over forward-chained folds."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, TimeSeriesSplit

    search = GridSearchCV(
        Ridge(fit_intercept=False),
        {"alpha": list(PENALTIES)},
        cv=TimeSeriesSplit(FOLDS),
        scoring="neg_mean_squared_error",
    )
    search.fit(before, surprise)
    return float(search.best_params_["alpha"])


def _stable(transition: np.ndarray, own: np.ndarray, step: int) -> np.ndarray:
    """The matrix itself if it comes back to its mean; else halfway to the single AR(1), until it does."""
    while np.abs(np.linalg.eigvals(transition)).max() > MAX_RADIUS**step:
        transition = 0.5 * (transition + np.diag(own))
        if np.abs(transition - np.diag(own)).max() < 1e-9:
            break
    return transition


def monthly_law(fit: StepFit, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, Q) of one month whose `step`-fold repetition is the fitted step.

    A is the principal root; Q solves Q + A Q A' + ... = covariance, negative eigenvalues cut at zero.

    Raises:
        DataError: the step has no real root (an eigenvalue is negative).
    """
    if step == 1:
        return fit.transition, fit.covariance
    root = fractional_matrix_power(fit.transition, 1.0 / step)
    if np.abs(np.imag(root)).max() > 1e-6:
        raise DataError(
            "fitted quarterly law has no monthly counterpart",
            expected="no eigenvalue on the negative axis",
            got=np.linalg.eigvals(fit.transition).round(3).tolist(),
        )
    root = np.real(root)
    size = len(root)
    power, total = np.eye(size), np.zeros((size * size, size * size))
    for _ in range(step):
        total += np.kron(power, power)
        power = power @ root
    shocks = np.linalg.solve(total, fit.covariance.reshape(-1)).reshape(size, size)
    values, vectors = np.linalg.eigh(0.5 * (shocks + shocks.T))
    return root, (vectors * np.maximum(values, 1e-8)) @ vectors.T


def fit_report(
    sd: np.ndarray, sample: StepSample, names: tuple[str, ...], long_steps: int = 4
) -> pl.DataFrame:
    """How the autoregression forecasts, against a random walk and single AR(1), in the units of the series.

    In sample: root mean squared error of one step. Out of sample: expanding window from 60 % of the sample,
    refitted every 4 steps with the penalty chosen on the window alone, one and `long_steps` steps ahead. The
    standardisation uses the whole sample's mean and sd for all three. Pairs left out of the fit are left out
    of the errors too.

    Returns:
        One row per series: var_in, walk_in, var_out, own_out, walk_out, var_out_long, own_out_long,
        walk_out_long, residual_autocorrelation.
    """
    used = sample.used
    fit = fit_step(sample.before[used], sample.after[used], sample.step)
    walk = sample.after[used] - sample.before[used]
    errors: dict[str, list[np.ndarray]] = {"var": [], "own": [], "walk": []}
    errors_long: dict[str, list[np.ndarray]] = {"var": [], "own": [], "walk": []}
    current = fit
    first = int(FIRST_SHARE * len(used))
    for row in range(first, len(used)):
        if (row - first) % REFIT_EVERY == 0:
            known = used[:row]
            current = fit_step(sample.before[:row][known], sample.after[:row][known], sample.step)
        start = sample.before[row]
        if used[row]:
            _append(errors, sample.after[row], start, current, 1)
        last = row + long_steps - 1
        if last < len(used) and used[row : last + 1].all():
            _append(errors_long, sample.after[last], start, current, long_steps)
    residuals = fit.residuals
    autocorrelation = (residuals[1:] * residuals[:-1]).sum(axis=0) / (residuals**2).sum(axis=0)
    columns = {
        "var_in": sd * _rms(fit.residuals),
        "walk_in": sd * _rms(walk),
        **{f"{kind}_out": sd * _rms(np.array(values)) for kind, values in errors.items()},
        **{f"{kind}_out_long": sd * _rms(np.array(values)) for kind, values in errors_long.items()},
        "residual_autocorrelation": autocorrelation,
    }
    return pl.DataFrame({"series": list(names), **columns})


def _append(
    errors: dict[str, list[np.ndarray]], truth: np.ndarray, start: np.ndarray, fit: StepFit, steps: int
) -> None:
    errors["var"].append(truth - np.linalg.matrix_power(fit.transition, steps) @ start)
    errors["own"].append(truth - fit.own**steps * start)
    errors["walk"].append(truth - start)


def _rms(errors: np.ndarray) -> np.ndarray:
    return np.sqrt((errors**2).mean(axis=0))


def independent_series(values: np.ndarray) -> list[int]:
    """Positions of the series that are no copy of an earlier one (a proxy is)."""
    correlation = np.corrcoef(values.T)
    return [i for i in range(len(MACRO_NAMES)) if not (np.abs(correlation[i, :i]) > 0.999).any()]
