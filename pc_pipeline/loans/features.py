"""What networks see of a loan, a cohort and the calendar.

Here: the 24 loan features, the 12 cohort features, their scaling constants (JSON) and the calendar. A missing
value takes the stated default, the training mean, and raises its flag. Not here: networks (`models`).
"""

from __future__ import annotations

import calendar
import json
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index, month_index_expr
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.schemas.units import (
    AMORTIZATION_TYPES,
    ASSET_CLASSES,
    BORROWER_TYPES,
    COHORT_FEATURES,
    LOAN_FEATURES,
)

_UNSCALED_PREFIXES: Final = ("class_", "borrower_", "amortization_", "is_", "share_")
_UNSECURED: Final = ("none", "unsecured", "")
_MINIMUM_SD: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureScaler:
    """Constants that travel with a model: scaled = (raw - mean) / sd; a missing value is scaled 0.

    Attributes:
        names: feature names in order. mean, sd: (D,) constants; 0 and 1 for flags and shares, which keep
            their raw value and default to 0. reference_month: month index at which vintage_index is 0.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    reference_month: int = 0

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.mean) == len(self.sd):
            raise DataError(
                "a scaler needs one mean and sd per feature", got=(len(self.names), len(self.mean))
            )

    def transform(self, raw: np.ndarray) -> np.ndarray:
        """(N, D) raw with NaN where missing -> float32, missing at 0."""
        scaled = (np.asarray(raw, dtype=float) - np.array(self.mean)) / np.array(self.sd)
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)

    def to_json(self) -> str:
        """Text for a model card."""
        return json.dumps(
            {
                "names": self.names,
                "mean": self.mean,
                "sd": self.sd,
                "reference_month": self.reference_month,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> FeatureScaler:
        """Inverse of `to_json`.

        Raises:
            DataError: the text is no scaler.
        """
        try:
            data = json.loads(text)
            return cls(
                names=tuple(data["names"]),
                mean=tuple(float(value) for value in data["mean"]),
                sd=tuple(float(value) for value in data["sd"]),
                reference_month=int(data["reference_month"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("not a feature scaler", got=text[:80]) from error

    @classmethod
    def fit(cls, names: tuple[str, ...], raw: np.ndarray, reference_month: int = 0) -> FeatureScaler:
        """Constants of raw training values (N, D); NaN is left out."""
        mean, sd = np.zeros(len(names)), np.ones(len(names))
        for place, name in enumerate(names):
            known = raw[:, place][np.isfinite(raw[:, place])]
            if name.startswith(_UNSCALED_PREFIXES) or known.size == 0:
                continue
            mean[place] = known.mean()
            spread = known.std()
            sd[place] = spread if spread > _MINIMUM_SD else 1.0
        return cls(
            names=names, mean=tuple(mean.tolist()), sd=tuple(sd.tolist()), reference_month=reference_month
        )


class LoanFeatures(NamedTuple):
    """Scaled features (L, 24) float32, the constants used, and where a value was missing (L, 24) bool."""

    values: np.ndarray
    scaler: FeatureScaler
    missing: np.ndarray


def _one_hot(column: str, names: tuple[str, ...], prefix: str) -> list[pl.Expr]:
    return [(pl.col(column) == name).cast(pl.Float64).alias(f"{prefix}_{name}") for name in names]


def _raw_loan_features(frame: pl.DataFrame, reference_month: int) -> np.ndarray:
    """(L, 24) raw values, NaN where missing."""
    age = pl.col("age_months").cast(pl.Float64) if "age_months" in frame.columns else pl.lit(0.0)
    secured = pl.col("collateral_type").is_not_null() & ~pl.col("collateral_type").is_in(_UNSECURED)
    cover = (pl.col("collateral_value_origination") / pl.col("original_balance")).log()
    raw = frame.select(
        *_one_hot("asset_class", ASSET_CLASSES, "class"),
        *_one_hot("borrower_type", BORROWER_TYPES, "borrower"),
        *_one_hot("amortization_type", AMORTIZATION_TYPES, "amortization"),
        (pl.col("rate_type") == "floating").cast(pl.Float64).alias("is_floating"),
        secured.cast(pl.Float64).alias("is_secured"),
        pl.col("original_balance").log().alias("log_balance"),
        pl.col("interest_rate"),
        (pl.col("spread_bps") / 1e4).alias("spread"),
        pl.col("term_months").cast(pl.Float64),
        pl.col("ltv_origination").alias("ltv"),
        pl.col("dti_dscr_origination").alias("dti_dscr"),
        pl.col("internal_score_origination").alias("internal_score"),
        pl.col("external_score_origination").alias("external_score"),
        cover.alias("log_collateral_cover"),
        age.alias("age_months"),
        (month_index_expr("vintage_month") - reference_month).cast(pl.Float64).alias("vintage_index"),
    )
    values = raw.select(LOAN_FEATURES).cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
    values[~np.isfinite(values)] = np.nan
    return values


def loan_features(loans: Any, scaler: FeatureScaler | None = None) -> LoanFeatures:
    """The 24 features of each loan (LOAN_FEATURES, in order).

    Args:
        loans: tape, or a pool with `age_months` (age at the start; absent: 0). polars or pandas.
        scaler: constants of an earlier fit; None fits them here, with vintage_index 0 at the first vintage.

    Raises:
        DataError: columns are missing or the scaler is of other features.
    """
    needed = ["asset_class", "borrower_type", "amortization_type", "rate_type", "collateral_type"]
    needed += [
        "original_balance",
        "collateral_value_origination",
        "interest_rate",
        "spread_bps",
        "term_months",
    ]
    needed += ["ltv_origination", "dti_dscr_origination", "internal_score_origination"]
    frame = to_polars(loans, [*needed, "external_score_origination", "vintage_month"], "loans")
    if scaler is not None and scaler.names != LOAN_FEATURES:
        raise DataError("the scaler is of other features", expected=LOAN_FEATURES[:3], got=scaler.names[:3])
    if frame.is_empty() and scaler is None:
        raise DataError("a tape without loans has no scaling constants", where="loans")
    reference = scaler.reference_month if scaler else _first_month(frame, "vintage_month")
    raw = _raw_loan_features(frame, reference)
    fitted = scaler or FeatureScaler.fit(LOAN_FEATURES, raw, reference)
    return LoanFeatures(fitted.transform(raw), fitted, np.isnan(raw))


def _first_month(frame: pl.DataFrame, column: str) -> int:
    return int(frame.select(month_index_expr(column).min()).item())


def cohort_table(loans: Any, as_of: date | None = None) -> pl.DataFrame:
    """One row per (asset_class, vintage_month), sorted, with the 12 raw COHORT_FEATURES.

    vintage_age_months is the age at the start of the axis the cohort will be used on: the mean `age_months`
    where the frame is a pool; else months from the vintage to `as_of`, by default the first vintage (later
    vintages then have a negative age: they are yet to be lent). Null where no loan states a value.
    Further columns: n_loans, original_balance (sum).
    """
    needed = ["asset_class", "vintage_month", "original_balance", "interest_rate", "ltv_origination"]
    needed += ["dti_dscr_origination", "internal_score_origination", "rate_type", "amortization_type"]
    frame = to_polars(loans, needed, "loans")
    if frame.is_empty():
        raise DataError("a tape without loans has no cohorts", where="loans")
    start = month_index(as_of) if as_of is not None else _first_month(frame, "vintage_month")
    from_pool = as_of is None and "age_months" in frame.columns
    age = pl.col("age_months").mean() if from_pool else (start - month_index_expr("vintage_month").first())
    return (
        frame.group_by("asset_class", "vintage_month", maintain_order=True)
        .agg(
            age.cast(pl.Float64).alias("vintage_age_months"),
            pl.col("original_balance").mean().log().alias("mean_log_balance"),
            pl.col("interest_rate").mean().alias("mean_interest_rate"),
            pl.col("ltv_origination").mean().alias("mean_ltv"),
            pl.col("dti_dscr_origination").mean().alias("mean_dti_dscr"),
            pl.col("internal_score_origination").mean().alias("mean_score"),
            (pl.col("rate_type") == "floating").mean().alias("share_floating"),
            (pl.col("amortization_type") != "bullet").mean().alias("share_amortizing"),
            pl.len().cast(pl.Int64).alias("n_loans"),
            pl.col("original_balance").sum(),
        )
        .with_columns(_one_hot("asset_class", ASSET_CLASSES, "class"))
        .sort("asset_class", "vintage_month")
        .select("asset_class", "vintage_month", *COHORT_FEATURES, "n_loans", "original_balance")
    )


def cohort_features(cohorts: Any, scaler: FeatureScaler | None = None) -> tuple[np.ndarray, FeatureScaler]:
    """Scaled (C, 12) float32 of a `cohort_table`, and the constants used."""
    frame = to_polars(cohorts, COHORT_FEATURES, "cohorts")
    if scaler is not None and scaler.names != COHORT_FEATURES:
        raise DataError("the scaler is of other features", expected=COHORT_FEATURES[:3], got=scaler.names[:3])
    raw = frame.select(COHORT_FEATURES).cast(pl.Float64).fill_null(np.nan).to_numpy()
    fitted = scaler or FeatureScaler.fit(COHORT_FEATURES, raw)
    return fitted.transform(raw), fitted


def calendar_features(months: Any) -> np.ndarray:
    """(T, 2) ints: month of year 0-11 and weekday of the month's last day, Monday 0 .. Sunday 6.

    Args:
        months: dates, or month indices (year * 12 + month - 1), of any shape; two columns are appended.
    """
    values = np.asarray([month_index(m) for m in months] if _holds_dates(months) else months, dtype=np.int64)
    distinct, place = np.unique(values, return_inverse=True)
    rows = np.array([_calendar_row(int(month)) for month in distinct], dtype=np.int64).reshape(-1, 2)
    return rows[place.reshape(values.shape)]


def _holds_dates(months: Any) -> bool:
    return len(months) > 0 and isinstance(next(iter(months)), date)


def _calendar_row(month: int) -> tuple[int, int]:
    year, month_of_year = divmod(month, 12)
    last_day = calendar.monthrange(year, month_of_year + 1)[1]
    return month_of_year, calendar.weekday(year, month_of_year + 1, last_day)
