"""The boundary: polars or pandas in, polars with our types out. Not here: any meaning of a column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import narwhals as nw
import polars as pl

from pc_pipeline.core.errors import DataError

_MONTH_COLUMNS = ("month", "reporting_month", "vintage_month", "maturity_date", "origination_date")


def to_polars(frame: Any, required: Iterable[str], where: str) -> pl.DataFrame:
    """The frame as an eager polars frame whose known month columns are dates.

    Args:
        frame: polars (eager or lazy) or pandas.
        required: columns that must be there.
        where: name of the argument, for the message.

    Raises:
        DataError: not a data frame, or a required column is missing.
    """
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    try:
        found = (
            frame if isinstance(frame, pl.DataFrame) else nw.from_native(frame, eager_only=True).to_polars()
        )
    except TypeError as error:
        raise DataError(
            "not a data frame", expected="polars or pandas", got=type(frame).__name__, where=where
        ) from error
    missing = [name for name in required if name not in found.columns]
    if missing:
        raise DataError("columns are missing", expected=", ".join(missing), got=found.columns, where=where)
    return found.with_columns(
        pl.col(name).cast(pl.Date)
        for name in _MONTH_COLUMNS
        if name in found.columns and found.schema[name] != pl.Date
    )
