"""Months. A month is the `datetime.date` of its first day, or its index: year * 12 + month - 1."""

from __future__ import annotations

import calendar
from datetime import date

import polars as pl

from pc_pipeline.core.errors import DataError


def parse_month(value: str | date) -> date:
    """First day of the month of an ISO date, 'YYYY-MM', or date.

    Raises:
        DataError: the text is no month between 1900 and 2200.
    """
    if isinstance(value, date):
        parsed = value
    else:
        try:
            parsed = date.fromisoformat(value if len(value) > 7 else f"{value}-01")
        except ValueError:
            raise DataError("not a month", expected="YYYY-MM or YYYY-MM-DD", got=value) from None
    if not 1900 <= parsed.year <= 2200:
        raise DataError("month outside the calendar", expected="1900..2200", got=parsed.isoformat())
    return date(parsed.year, parsed.month, 1)


def month_index(value: date) -> int:
    """year * 12 + month - 1, so that differences are whole months."""
    return value.year * 12 + value.month - 1


def month_from_index(index: int) -> date:
    """Inverse of `month_index`."""
    return date(index // 12, index % 12 + 1, 1)


def add_months(value: date, months: int) -> date:
    """First day of the month `months` after that of `value`."""
    return month_from_index(month_index(value) + months)


def month_end(value: date) -> date:
    """Last day of the month of `value`."""
    return date(value.year, value.month, calendar.monthrange(value.year, value.month)[1])


def month_range(start: date, n_months: int) -> list[date]:
    """`n_months` consecutive first-of-months beginning with that of `start`."""
    first = month_index(start)
    return [month_from_index(first + step) for step in range(n_months)]


def month_index_expr(column: str) -> pl.Expr:
    """Polars expression for `month_index` of a date column (Int32)."""
    return (pl.col(column).dt.year() * 12 + pl.col(column).dt.month().cast(pl.Int32) - 1).cast(pl.Int32)
