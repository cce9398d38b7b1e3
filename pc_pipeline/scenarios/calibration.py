"""Fitting an assumption set to real history.

Here: `calibrate`, by moments. Not here: histories (`history`), the type of a set (`assumptions`).

Method 'moments': long-run mean and standard deviation, lag-1 autocorrelation, and correlation of the
innovations x_t - m - rho (x_{t-1} - m) of each series.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pc_pipeline.core.errors import DataError
from pc_pipeline.scenarios.assumptions import MacroAssumptions
from pc_pipeline.scenarios.history import MacroHistory
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, UPPER_M
from pc_pipeline.schemas.units import MACRO_NAMES

MIN_MONTHS: Final = 60
MAX_PERSISTENCE: Final = 0.995
PROXY_CORRELATION: Final = 0.9  # decided shock correlation of the two spreads
_IG, _HY = MACRO_NAMES.index("credit_spread_ig"), MACRO_NAMES.index("credit_spread_hy")


def calibrate(history: MacroHistory, name: str = "calibrated") -> MacroAssumptions:
    """Assumptions that reproduce a history's means, dispersion, persistence and innovation correlations.

    Quarterly series interpolated to months look more persistent than they are (`quarterly`).

    Raises:
        DataError: fewer than 60 months, or a series that never moves.
    """
    values = history.values()
    if len(values) < MIN_MONTHS:
        raise DataError(
            "macro history is too short to calibrate on",
            expected=f"at least {MIN_MONTHS} months",
            got=len(values),
            where=history.source,
        )
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    if (sd <= 0).any():
        raise DataError(
            "a macro series never moves",
            expected="some dispersion in each",
            got=sd.tolist(),
            where=history.source,
        )
    centred = values - mean
    persistence = (centred[1:] * centred[:-1]).sum(axis=0) / (centred[:-1] ** 2).sum(axis=0)
    persistence = np.clip(persistence, 0.0, MAX_PERSISTENCE)
    innovations = centred[1:] - persistence * centred[:-1]
    correlation = loosen_proxy(np.corrcoef(innovations.T))
    first, last = history.coverage
    return MacroAssumptions(
        name=name,
        mean=np.clip(mean, LOWER_M + 0.01 * RANGE_M, UPPER_M - 0.01 * RANGE_M),
        sd=sd,
        persistence=persistence,
        shock_correlation=0.5 * (correlation + correlation.T),
        source=history.source,
        notes={"method": "moments", "first_month": first.isoformat(), "last_month": last.isoformat()},
    )


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
