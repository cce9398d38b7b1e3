"""How far a delivery's columns have moved since the last one: the population stability index.

Here: PSI of one column, and the drift rows of a delivery's quality table. Not here: what to do about it.

    PSI = sum over bins of (p - q) ln(p / q)

with p, q the shares of the new and the old delivery; bins are the deciles of the old one for numbers, the
values for text and states, and one bin for missing. Rule of thumb of the scorecard trade (Siddiqi 2006):
under 0.1 stable, over 0.25 another population.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

SHARE_FLOOR: Final = 1e-4
N_BINS: Final = 10
MAX_VALUES: Final = 50
TAPE_COLUMNS: Final = (
    "term_months",
    "original_balance",
    "interest_rate",
    "rate_type",
    "amortization_type",
    "asset_class",
    "ltv_origination",
    "dti_dscr_origination",
    "internal_score_origination",
    "external_score_origination",
    "industry_sector",
    "geography_region",
    "borrower_type",
    "collateral_type",
    "originator_id",
)
PANEL_COLUMNS: Final = ("loan_state", "days_past_due", "outstanding_balance", "actual_payment")
_BY_VALUE: Final = ("loan_state",)


def population_stability(new: pl.Series, old: pl.Series, *, by_value: bool = False) -> float:
    """PSI of two samples of one column; nan where either is empty.

    Args:
        by_value: treat numbers as categories.
    """
    if new.is_empty() or old.is_empty():
        return float("nan")
    if by_value or not old.dtype.is_numeric():
        return _psi(*_value_shares(new, old))
    return _psi(*_bin_shares(new.cast(pl.Float64), old.cast(pl.Float64)))


def drift_rows(new: dict[str, pl.DataFrame], old: dict[str, pl.DataFrame], file: str) -> list[dict[str, Any]]:
    """Rows file, column, month, rows_in, drift_psi: the tape as a whole, the panel month by month.

    A month that the old delivery holds too is compared with itself (what was restated), a new month with
    the old delivery's last.

    Args:
        new, old: tables 'loans' and 'panel' of the two deliveries.
    """
    rows: list[dict[str, Any]] = []
    for name in TAPE_COLUMNS:
        psi = population_stability(new["loans"][name], old["loans"][name])
        rows.append(_row(file, name, None, new["loans"].height, psi))
    if new["panel"].is_empty() or old["panel"].is_empty():
        return rows
    before = {
        key[0]: part for key, part in old["panel"].partition_by("reporting_month", as_dict=True).items()
    }
    last = before[max(before)]
    for key, part in sorted(new["panel"].partition_by("reporting_month", as_dict=True).items()):
        reference = before.get(key[0], last)
        for name in PANEL_COLUMNS:
            psi = population_stability(part[name], reference[name], by_value=name in _BY_VALUE)
            rows.append(_row(file, name, key[0], part.height, psi))
    return rows


def _row(file: str, column: str, month: Any, rows_in: int, psi: float) -> dict[str, Any]:
    when = month if isinstance(month, date) else None
    return {"file": file, "column": column, "month": when, "rows_in": rows_in, "drift_psi": psi}


def _value_shares(new: pl.Series, old: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Shares by value, the rarest beyond MAX_VALUES of the old sample together; missing is a value."""
    counts = []
    for sample in (old, new):
        text = sample.cast(pl.String).fill_null("").alias("value")
        counts.append(text.value_counts(name="n"))
    both = counts[0].join(counts[1], on="value", how="full", coalesce=True, suffix="_new").fill_null(0)
    both = both.sort(["n", "value"], descending=[True, False])
    q, p = both["n"].to_numpy().astype(float), both["n_new"].to_numpy().astype(float)
    if len(q) > MAX_VALUES:
        q = np.append(q[:MAX_VALUES], q[MAX_VALUES:].sum())
        p = np.append(p[:MAX_VALUES], p[MAX_VALUES:].sum())
    return p / p.sum(), q / q.sum()


def _bin_shares(new: pl.Series, old: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Shares by decile of the old sample; missing is a bin of its own."""
    known = old.drop_nulls().drop_nans().to_numpy()
    edges = np.unique(np.quantile(known, np.linspace(0, 1, N_BINS + 1)[1:-1])) if len(known) else np.array([])
    shares = []
    for sample in (new, old):
        values = sample.drop_nulls().drop_nans().to_numpy()
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        shares.append(np.append(counts, len(sample) - len(values)) / len(sample))
    return shares[0], shares[1]


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    low_p, low_q = np.maximum(p, SHARE_FLOOR), np.maximum(q, SHARE_FLOOR)
    return float(((low_p - low_q) * np.log(low_p / low_q)).sum())
