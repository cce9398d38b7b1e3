"""Fitting an assumption set to real history.

Here: `calibrate`, by moments or by a vector autoregression; what to do with a proxy. Not here: histories
(`history`), estimation of the autoregression (`var_fit`), the type of a set (`assumptions`).

Method 'moments': mean and standard deviation, lag-1 autocorrelation rho, correlation of the innovations
x_t - m - rho (x_{t-1} - m). Series that were interpolated from quarters look smoother from month to month
than they are; their rho is the cube root of the autocorrelation over three months. Method 'var': the same
means and standard deviations, dynamics by `var_fit`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.scenarios.assumptions import MacroAssumptions
from pc_pipeline.scenarios.history import MacroHistory
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, UPPER_M
from pc_pipeline.scenarios.var_fit import (
    fit_report,
    fit_step,
    independent_series,
    keep_months,
    monthly_law,
    step_sample,
)
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO

MIN_MONTHS: Final = 60
MAX_PERSISTENCE: Final = 0.995
PROXY_CORRELATION: Final = 0.9  # decided shock correlation of the two spreads
PANDEMIC: Final = (
    ("2020-03", "2021-06"),
)  # a shock of another kind; leaving it out: Schorfheide and Song 2021
_IG, _HY = MACRO_NAMES.index("credit_spread_ig"), MACRO_NAMES.index("credit_spread_hy")


def calibrate(
    history: MacroHistory,
    name: str = "calibrated",
    method: Literal["moments", "var"] = "moments",
    skip: tuple[tuple[str, str], ...] = (),
    report: bool = False,
) -> MacroAssumptions:
    """Assumptions that reproduce a history's means, dispersion, persistence and innovations.

    Args:
        history: at least 60 months.
        method: 'moments' (nine AR(1)) or 'var' (a shrunken vector autoregression).
        skip: (first, last) windows of months that count neither in moments nor in dynamics, e.g. `PANDEMIC`.
        report: add `var_fit.fit_report` to the notes of a 'var' (half a minute).

    Returns:
        The set; `notes` hold sample, method and, for 'var', penalty and fit.

    Raises:
        ConfigError: unknown method.
        DataError: too short a history, a series that never moves, or no stable monthly law.
    """
    values = history.values()
    keep = keep_months(history.frame["month"].to_list(), skip)
    if keep.sum() < MIN_MONTHS:
        raise DataError(
            "macro history is too short to calibrate on",
            expected=f"at least {MIN_MONTHS} months",
            got=int(keep.sum()),
            where=history.source,
        )
    mean, sd = values[keep].mean(axis=0), values[keep].std(axis=0, ddof=1)
    if (sd <= 1e-9 * RANGE_M).any():
        raise DataError(
            "a macro series never moves",
            expected="some dispersion in each",
            got=sd.tolist(),
            where=history.source,
        )
    if method == "moments":
        fitted = _by_moments(values - mean, keep, history.interpolated)
    elif method == "var":
        fitted = _by_var(history, (values - mean) / sd, sd, skip, report)
    else:
        raise ConfigError("unknown calibration method", expected="'moments' or 'var'", got=repr(method))
    first, last = history.coverage
    notes = {
        "method": method,
        "first_month": first.isoformat(),
        "last_month": last.isoformat(),
        "licence": history.licence,
        "rules": dict(history.rules),
        "clipped_months": dict(history.clipped),
        "skipped": [list(window) for window in skip],
        **fitted.pop("notes"),
    }
    return MacroAssumptions(
        name=name,
        mean=np.clip(mean, LOWER_M + 0.01 * RANGE_M, UPPER_M - 0.01 * RANGE_M),
        sd=sd,
        source=history.source,
        notes=notes,
        **fitted,
    )


def _by_moments(centred: np.ndarray, keep: np.ndarray, interpolated: frozenset[str]) -> dict[str, Any]:
    persistence = _autocorrelation(centred, keep, 1)
    over_quarter = np.cbrt(np.maximum(_autocorrelation(centred, keep, 3), 0.0))
    smooth = np.array([name in interpolated for name in MACRO_NAMES])
    persistence = np.clip(np.where(smooth, over_quarter, persistence), 0.0, MAX_PERSISTENCE)
    innovations = (centred[1:] - persistence * centred[:-1])[keep[1:] & keep[:-1]]
    correlation = loosen_proxy(np.corrcoef(innovations.T))
    return {
        "persistence": persistence,
        "shock_correlation": 0.5 * (correlation + correlation.T),
        "notes": {},
    }


def _autocorrelation(centred: np.ndarray, keep: np.ndarray, lag: int) -> np.ndarray:
    both = keep[:-lag] & keep[lag:]
    before, after = centred[:-lag][both], centred[lag:][both]
    return (before * after).sum(axis=0) / np.sqrt((before**2).sum(axis=0) * (after**2).sum(axis=0))


def loosen_proxy(correlation: np.ndarray) -> np.ndarray:
    """Shock correlations in which a high-yield spread that was made from the other one has a life of its own.

    A proxy moves one for one with its origin, which no real pair of spreads does: HY becomes
    0.9 IG + independent, so its correlations with all others are 0.9 times those of IG.
    """
    if correlation[_IG, _HY] < 0.999:
        return correlation
    loosened = correlation.copy()
    loosened[_HY, :] = loosened[:, _HY] = PROXY_CORRELATION * correlation[_IG, :]
    loosened[_HY, _HY] = 1.0
    return loosened


def _by_var(
    history: MacroHistory,
    standardised: np.ndarray,
    sd: np.ndarray,
    skip: tuple[tuple[str, str], ...],
    report: bool,
) -> dict[str, Any]:
    kept = independent_series(history.values())
    sample = step_sample(history, standardised[:, kept], skip)
    fit = fit_step(sample.before[sample.used], sample.after[sample.used], sample.step)
    transition, shocks = monthly_law(fit, sample.step)
    if len(kept) < N_MACRO:
        transition, shocks = add_proxy(transition, shocks, kept)
    stationary = solve_discrete_lyapunov(transition, shocks)
    persistence = np.diag(transition @ stationary) / np.diag(stationary)
    scale = np.sqrt(np.diag(shocks))
    correlation = shocks / np.outer(scale, scale)
    names = tuple(MACRO_NAMES[i] for i in kept)
    return {
        "transition": transition,
        "shock_covariance": shocks,
        "persistence": np.clip(persistence, 0.0, MAX_PERSISTENCE),
        "shock_correlation": 0.5 * (correlation + correlation.T),
        "notes": {
            "step_months": sample.step,
            "pairs": int(sample.used.sum()),
            "penalties": dict(zip(names, fit.penalties.tolist(), strict=True)),
            **({"fit": fit_report(sd[kept], sample, names).to_dicts()} if report else {}),
        },
    }


def add_proxy(transition: np.ndarray, shocks: np.ndarray, kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The nine-series law from one without the high-yield proxy.

    HY = 0.9 IG + sqrt(1 - 0.81) e with an AR(1) e of its own, as persistent as IG, in standard deviations.

    Raises:
        DataError: another series than high yield is missing.
    """
    if sorted(set(range(N_MACRO)) - set(kept)) != [_HY]:
        missing = [MACRO_NAMES[i] for i in range(N_MACRO) if i not in kept]
        raise DataError(
            "series copy each other", expected="at most the high-yield spread as a proxy", got=missing
        )
    full, covariance = np.zeros((N_MACRO, N_MACRO)), np.zeros((N_MACRO, N_MACRO))
    full[np.ix_(kept, kept)], covariance[np.ix_(kept, kept)] = transition, shocks
    phi = full[_IG, _IG]
    full[_HY] = PROXY_CORRELATION * full[_IG]
    full[_HY, _IG] -= PROXY_CORRELATION * phi
    full[_HY, _HY] = phi
    covariance[_HY, :] = covariance[:, _HY] = PROXY_CORRELATION * covariance[_IG]
    own = (1 - PROXY_CORRELATION**2) * (1 - phi**2)
    covariance[_HY, _HY] = PROXY_CORRELATION**2 * covariance[_IG, _IG] + own
    return full, covariance
