"""Quarterly figures made monthly, and growth rates made levels.

Method `linear_mid_quarter`: a quarter's average stands at the middle month, a quarter-end value at the last
month, with straight lines between; before the first and after the last point of the sample (one month at most
on either side) the value is held. No curve is fitted, so nothing overshoots; the price is that month-to-month
changes within a quarter are equal and persistence looks higher than it is.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

import numpy as np

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import month_index, month_range

METHOD: Final = "linear_mid_quarter"
_YEAR_FIRST = re.compile(r"^\s*(\d{4})\D*[Qq]\s*([1-4])\s*$")
_QUARTER_FIRST = re.compile(r"^\s*(?:[Qq]\s*([1-4])|([1-4])[Qq])\D*(\d{4})\s*$")
_ISO_END = re.compile(r"^\s*(\d{4})-(\d{2})-(30|31)\s*$")
_US_END = re.compile(r"^\s*(\d{1,2})/(30|31)/(\d{4})\s*$")


def parse_quarter(text: object, where: object = None) -> date:
    """First month of a quarter: '1976 Q1', '1976:Q1', 'Q1 1976', '1Q1976', or its last day, '3/31/1976'.

    Raises:
        IngestError: it is no quarter.
    """
    said = str(text)
    if found := _YEAR_FIRST.match(said):
        return date(int(found[1]), 3 * int(found[2]) - 2, 1)
    if found := _QUARTER_FIRST.match(said):
        return date(int(found[3]), 3 * int(found[1] or found[2]) - 2, 1)
    iso, us = _ISO_END.match(said), _US_END.match(said)
    year, month = (iso[1], iso[2]) if iso else (us[3], us[1]) if us else ("0", "0")
    if int(month) in (3, 6, 9, 12):
        return date(int(year), int(month) - 2, 1)
    raise IngestError("not a quarter", expected="like 1976 Q1", got=repr(text), where=where)


def to_months(
    quarters: list[date], values: np.ndarray, *, at_end: bool = False
) -> tuple[list[date], np.ndarray]:
    """Monthly values of a quarterly series by `linear_mid_quarter`.

    Args:
        quarters: first months of the quarters; missing values may be NaN.
        values: (Q,) averages, or quarter-end values with `at_end`.

    Returns:
        All months from the first to the last quarter that has a value, and (T,) values.

    Raises:
        IngestError: no value at all, or quarters that do not follow each other.
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) == 0:
        raise IngestError("quarterly series is empty", expected="at least one value", got="none")
    chosen = [quarters[position] for position in known]
    index = np.array([month_index(quarter) for quarter in chosen])
    gaps = np.flatnonzero(np.diff(index) != 3)
    if len(gaps):
        raise IngestError(
            "quarters do not follow each other",
            expected=f"the quarter after {chosen[gaps[0]]:%Y-%m}",
            got=f"{chosen[gaps[0] + 1]:%Y-%m}",
        )
    months = month_range(chosen[0], 3 * len(chosen))
    points = index + (2 if at_end else 1)
    return months, np.interp([month_index(month) for month in months], points, values[known])


def level_from_growth(growth_percent: np.ndarray, start: float = 1.0) -> np.ndarray:
    """(Q,) level after each quarter of annualised growth in percent, from `start` before the first."""
    return start * np.cumprod((1.0 + growth_percent / 100.0) ** 0.25)


def year_on_year(level: np.ndarray, periods: int) -> np.ndarray:
    """level_t / level_{t - periods} - 1; NaN for the first `periods`."""
    growth = np.full(len(level), np.nan)
    growth[periods:] = level[periods:] / level[:-periods] - 1.0
    return growth
