"""Quarterly mortgages by structure: current LTV, rate incentive, house prices, unemployment.

Here: covariates of a quarterly mortgage panel and `StructuralHazard`, a multinomial logit of default and
payoff on them. Not here: figures (`engines.fidelity.mortgages`), monthly models (`challengers`).

Few effects with few kinks extrapolate: a borrower under water cannot refinance, one whose coupon is above the
market's wants to. Flexible models fitted to years of rising prices do not know what falling ones do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pc_pipeline.core.errors import DataError, ModelError

OUTCOMES: Final = ("alive", "default", "payoff")
SETS: Final = ("loan", "three macro", "structural")
PENALTIES: Final = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)  # scikit-learn's C
WEIGHING_YEARS: Final = 3
_LEAST_WEIGHT: Final = 0.01
_LTV_KINKS: Final = (80.0, 100.0)
_INCENTIVE_KINKS: Final = (0.0, 2.0)
_YEAR: Final = 4  # quarters
_NEEDED: Final = (
    "id", "time", "orig_time", "mat_time", "balance_orig_time", "LTV_time", "LTV_orig_time",
    "interest_rate_time", "Interest_Rate_orig_time", "rate_time", "hpi_time", "uer_time", "FICO_orig_time",
    "REtype_CO_orig_time", "REtype_PU_orig_time", "REtype_SF_orig_time", "investor_orig_time", "status_time",
)  # fmt: skip


def mortgage_rows(panel: pl.DataFrame) -> pl.DataFrame:
    """One row a loan and quarter with a known outcome, with the house-price growth of the year before.

    Raises:
        DataError: columns are missing.
    """
    missing = [name for name in _NEEDED if name not in panel.columns]
    if missing:
        raise DataError("columns are missing", expected=", ".join(_NEEDED), got=missing, where="mortgages")
    rows = panel.filter(pl.col("status_time").is_in([0, 1, 2])).unique(
        ["id", "time"], keep="first", maintain_order=True
    )
    prices = rows.group_by("time").agg(pl.col("hpi_time").first().alias("now")).sort("time")
    before = prices.select(pl.col("time") + _YEAR, pl.col("now").alias("then"))
    growth = prices.join(before, on="time", how="left").select(
        "time", (pl.col("now") / pl.col("then") - 1.0).fill_null(0.0).alias("hpi_growth")
    )
    return rows.join(growth, on="time", how="left").sort("id", "time")


def covariates(rows: pl.DataFrame, which: str) -> np.ndarray:
    """(N,F) of `mortgage_rows`; which: one of `SETS`, each including the one before."""
    if which not in SETS:
        raise ModelError("no such covariates", expected=", ".join(SETS), got=which)

    def column(name: str) -> np.ndarray:
        return rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()

    coupon = column("Interest_Rate_orig_time")
    age = np.maximum(column("time") - column("orig_time"), 0.0)
    parts = [
        column("FICO_orig_time"),
        column("LTV_orig_time"),
        np.where(coupon == 0, np.nan, coupon),
        np.log(np.maximum(column("balance_orig_time"), 1.0)),
        np.clip(column("interest_rate_time"), 0.0, 20.0),
        column("mat_time") - column("time"),
        np.log1p(age),
        age / (age + 8.0),
        *(column(f"REtype_{kind}_orig_time") for kind in ("CO", "PU", "SF")),
        column("investor_orig_time"),
    ]
    ltv = np.clip(column("LTV_time"), 0.0, 250.0)
    if which != "loan":
        parts += [column("uer_time"), column("hpi_growth"), ltv]
    if which == "structural":
        incentive = np.clip(column("interest_rate_time") - column("rate_time"), -5.0, 8.0)
        parts += [np.maximum(ltv - kink, 0.0) for kink in _LTV_KINKS]
        parts += [incentive, *(np.maximum(incentive - kink, 0.0) for kink in _INCENTIVE_KINKS)]
    return np.column_stack(parts)


class StructuralHazard:
    """Ridge multinomial logit of `OUTCOMES`, averaged over penalties.

    Each penalty weighs by how likely it made the last `WEIGHING_YEARS` years of the training rows, every year
    forecast by a fit to the rows before it (prequential likelihood, Dawid 1984):

        p = sum_k w_k p_k,    w_k proportional to exp(-sum of the forecasts' losses, nats)

    One year alone, or the best penalty alone, decides by luck: penalties differ by .0002 nats a row where
    years differ by .01.

    Args:
        which: covariates, one of `SETS`.
    """

    def __init__(self, which: str) -> None:
        self.which = which
        self.weights: dict[float, float] = {}
        self._filled = np.zeros(0)
        self._scaler: Any = None
        self._logits: dict[float, Any] = {}

    def fit(self, rows: pl.DataFrame, weights: Mapping[float, float] | None = None) -> None:
        """Weigh the penalties unless weights are given, then fit on all rows."""
        self.weights = dict(weights or self.forecast_weights(rows))
        self._fit(rows, tuple(self.weights))

    def forecast_weights(self, rows: pl.DataFrame) -> dict[float, float]:
        """Penalty -> weight by its forecasts of the last years of some rows; those below 1 % are dropped."""
        time = rows["time"].to_numpy()
        totals = np.zeros(len(PENALTIES))
        for back in range(WEIGHING_YEARS, 0, -1):
            first = int(time.max()) + 1 - back * _YEAR
            year = rows.filter((time >= first) & (time < first + _YEAR))
            self._fit(rows.filter(time < first), PENALTIES)
            happened = year["status_time"].to_numpy()
            for place, penalty in enumerate(PENALTIES):
                totals[place] += _nats(self._answers(year, penalty), happened).sum()
        weights = np.exp(totals.min() - totals)
        weights /= weights.sum()
        weights[weights < _LEAST_WEIGHT] = 0.0
        return {p: float(w / weights.sum()) for p, w in zip(PENALTIES, weights, strict=True) if w > 0}

    def _fit(self, rows: pl.DataFrame, penalties: tuple[float, ...]) -> None:
        happened = rows["status_time"].to_numpy()
        if set(np.unique(happened)) != {0, 1, 2}:
            raise DataError("an outcome never happened", expected=OUTCOMES, got=sorted(set(happened)))
        x = covariates(rows, self.which)
        self._filled = np.nan_to_num(np.nanmean(x, axis=0))
        self._scaler = StandardScaler()
        x = self._scaler.fit_transform(self._complete(x))
        self._logits = {
            penalty: LogisticRegression(C=penalty, solver="newton-cholesky").fit(x, happened)
            for penalty in penalties
        }

    def _complete(self, x: np.ndarray) -> np.ndarray:
        missing = np.isnan(x)
        return np.column_stack([np.where(missing, self._filled, x), missing.astype(float)])

    def _answers(self, rows: pl.DataFrame, penalty: float) -> np.ndarray:
        x = self._scaler.transform(self._complete(covariates(rows, self.which)))
        return self._logits[penalty].predict_proba(x)

    def probabilities(self, rows: pl.DataFrame) -> np.ndarray:
        """(N,3) of `OUTCOMES`.

        Raises:
            ModelError: not fitted.
        """
        if not self._logits:
            raise ModelError("fit comes first", expected="fit(rows)", got="an unfitted hazard")
        parts = [weight * self._answers(rows, penalty) for penalty, weight in self.weights.items()]
        return np.sum(parts, axis=0)

    def losses(self, rows: pl.DataFrame) -> np.ndarray:
        """(N,) nats per loan-quarter."""
        return _nats(self.probabilities(rows), rows["status_time"].to_numpy())


def _nats(p: np.ndarray, happened: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p[np.arange(len(happened)), happened], 1e-12))
