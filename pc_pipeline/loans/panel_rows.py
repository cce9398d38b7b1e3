"""A panel in loan order: what every count of moves and every trajectory starts from.

Here: `panel_moves`, which sorts a panel, drops contradictory duplicates and finds for each row the state it
came from and the months since the last miss. Gaps and duplicates never make a move: a row whose
predecessor is not the month before has no state it came from. A month reported twice alike counts once;
reported twice with different states it is unknown and acts as a gap. A loan's first row moves from
origination (performing) only if it is the month right after origination. Not here: counting (`transitions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numba
import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.frames import to_polars

KEY: Final = ("scenario", "macro_path_id", "loan_id")
UNKNOWN: Final = -1
_NO_DATE: Final = date(1, 1, 1)  # an unknown vintage: no first row is the month after it
_REQUIRED = (*KEY, "reporting_month", "vintage_month", "loan_state")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderedRows:
    """Panel rows in loan order.

    Attributes:
        frame: N rows, sorted by loan, path and month, duplicates gone. month: (N,) index. state: (N,) 0-6.
        is_first: (N,) first row of a loan on a path. is_origination: (heads,) of each such row, whether
            it is the month right after the vintage.
    """

    frame: pl.DataFrame
    month: np.ndarray
    state: np.ndarray
    is_first: np.ndarray
    is_origination: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelMoves:
    """Panel rows in loan order, with where each came from; all arrays (N,).

    Attributes:
        frame: the rows, sorted by loan, path and month, duplicates gone.
        month: month index of the report. state: 0-6.
        is_first: first row of a loan on a path.
        from_state: state a month earlier, -1 where unknown (gap, or record begins).
        months_since_miss: at the month moved from; 0 late then, -1 never or unknown.
    """

    frame: pl.DataFrame
    month: np.ndarray
    state: np.ndarray
    is_first: np.ndarray
    from_state: np.ndarray
    months_since_miss: np.ndarray

    @property
    def is_move(self) -> np.ndarray:
        """(N,) bool: rows reached from a known living state."""
        return (self.from_state >= 0) & (self.from_state < 4)


@numba.njit(cache=True)
def _trace(
    is_first: np.ndarray,
    month: np.ndarray,
    is_origination: np.ndarray,
    state: np.ndarray,
    came: np.ndarray,
    since: np.ndarray,
) -> None:
    missed = -1
    loan = -1
    for row in range(month.size):
        if is_first[row]:
            loan += 1
            came[row] = 0 if is_origination[loan] else -1
            missed = -1
        elif month[row] == month[row - 1] + 1:
            came[row] = state[row - 1]
        else:
            came[row] = -1
            missed = -1
        since[row] = missed
        if 1 <= state[row] <= 3:
            missed = 0
        elif missed >= 0:
            missed += 1


def month_table(first: int, last: int) -> tuple[int, np.ndarray]:
    """The first day (since 1970) and the month index of each day from it to the last."""
    months = np.arange(first, last + 1).astype("datetime64[D]").astype("datetime64[M]")
    return first, (months.astype(np.int64) + 1970 * 12).astype(np.int32)


def _month_table(days: np.ndarray) -> tuple[int, np.ndarray]:
    return month_table(int(days.min()), int(days.max())) if days.size else month_table(0, 0)


def month_numbers(dates: pl.Series) -> np.ndarray:
    """(N,) month index (year * 12 + month - 1) of a date column without nulls."""
    days = dates.to_physical().to_numpy()
    first, month_of_day = _month_table(days)
    return month_of_day[days - first]


def key_words(column: pl.Series) -> np.ndarray:
    """(N, 2) words of text, (N, 1) of numbers and categories: equal where neighbours are surely equal.

    Text gives Arrow's string views: up to 12 bytes the text itself, else a prefix and a place. Equal text in
    two places may differ here; `_scanned` then finds a loan with two heads, and the panel is sorted and
    compared anew by exact codes (a categorical).
    """
    if column.dtype != pl.String:
        values = column.to_physical()
        whole = values.to_numpy() if values.dtype == pl.Int64 else values.cast(pl.Int64).to_numpy()
        return whole.view(np.uint64).reshape(-1, 1)
    array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    words = np.frombuffer(array.buffers()[1], dtype=np.uint64).reshape(-1, 2)
    return words[array.offset : array.offset + len(array)]


@numba.njit(cache=True)
def _scan(
    loan: np.ndarray,
    scenario: np.ndarray,
    path: np.ndarray,
    day: np.ndarray,
    month_of_day: np.ndarray,
    first_day: int,
    raw_state: np.ndarray,
    month: np.ndarray,
    state: np.ndarray,
    is_first: np.ndarray,
) -> tuple[bool, bool]:
    """One pass: month, state and run heads of each row.

    Returns:
        Whether months rise inside every run of one key, and whether every state is in the alphabet.
    """
    rising, known = True, True
    for row in range(day.size):
        before = row - 1
        month[row] = month_of_day[day[row] - first_day]
        known &= (raw_state[row] >= 0) & (raw_state[row] < 7)
        state[row] = raw_state[row]
        is_first[row] = (
            row == 0
            or loan[row, 0] != loan[before, 0]
            or loan[row, -1] != loan[before, -1]
            or path[row] != path[before]
            or scenario[row, 0] != scenario[before, 0]
            or scenario[row, -1] != scenario[before, -1]
        )
        if not is_first[row] and month[row] <= month[before]:
            rising = False
    return rising, known


def _as_text(column: pl.Series, text: pl.DataType | type[pl.DataType]) -> pl.Series:
    """Text as `text`; numbers and categories are exact as they are."""
    return column.cast(text) if column.dtype == pl.String else column


def _scanned(
    frame: pl.DataFrame, text: pl.DataType | type[pl.DataType] = pl.String
) -> tuple[OrderedRows, bool]:
    """Rows as they come, and whether each key forms one run of rising months; text compared as `text`."""
    day = frame["reporting_month"].to_physical().to_numpy()
    first_day, month_of_day = _month_table(day)
    raw_state = frame["loan_state"].to_numpy()
    month, state = np.empty(day.size, dtype=np.int32), np.empty(day.size, dtype=np.int8)
    is_first = np.empty(day.size, dtype=bool)
    loan, scenario = (key_words(_as_text(frame[name], text)) for name in ("loan_id", "scenario"))
    path = frame["macro_path_id"].cast(pl.Int64).to_numpy()
    rising, known = _scan(
        loan, scenario, path, day, month_of_day, first_day, raw_state, month, state, is_first
    )
    if not known:
        raise DataError("state outside the alphabet", expected="0..6", got=(raw_state.min(), raw_state.max()))
    head = pl.Series(is_first)
    vintage = frame["vintage_month"].filter(head).fill_null(_NO_DATE)
    rows = OrderedRows(
        frame=frame,
        month=month,
        state=state,
        is_first=is_first,
        is_origination=month[is_first] == month_numbers(vintage) + 1,
    )
    if not rising:
        return rows, False
    heads = frame.select(KEY).filter(head)
    return rows, heads["loan_id"].n_unique() == heads.height or heads.n_unique() == heads.height


def _without_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per loan-month; none where reports of the same month contradict each other."""
    place = [*KEY, "reporting_month"]
    alike = frame.unique([*place, "loan_state"], keep="last", maintain_order=True)
    return alike.filter(~pl.struct(place).is_duplicated())


def checked_panel(panel: Any) -> pl.DataFrame:
    """The panel (polars or pandas) with every key, state and month filled.

    Raises:
        DataError: a column is missing, or a key, state or month is null.
    """
    frame = to_polars(panel, _REQUIRED, "panel")
    empty = [name for name in (*KEY, "loan_state", "reporting_month") if frame[name].null_count()]
    if empty:
        raise DataError("a panel needs a loan, a state and a month in every row", got=empty, where="panel")
    return frame


def ordered_rows(panel: Any) -> OrderedRows:
    """Put a panel (polars or pandas) in loan order, contradictory duplicates gone.

    Raises:
        DataError: a column is missing, a state is outside 0-6, or a key, state or month is null.
    """
    frame = checked_panel(panel)
    rows, in_order = _scanned(frame)
    if in_order:
        return rows
    tidy = _without_duplicates(frame).sort([*KEY, "reporting_month"])
    return _scanned(tidy, pl.Categorical)[0]


def panel_moves(panel: Any) -> PanelMoves:
    """Put a panel (polars or pandas) in loan order and find where each row came from.

    Raises:
        DataError: as `ordered_rows`.
    """
    rows = ordered_rows(panel)
    came, since = np.empty(rows.state.size, np.int8), np.empty(rows.state.size, np.int32)
    _trace(rows.is_first, rows.month, rows.is_origination, rows.state, came, since)
    return PanelMoves(
        frame=rows.frame,
        month=rows.month,
        state=rows.state,
        is_first=rows.is_first,
        from_state=came,
        months_since_miss=since,
    )


def final_months(frame: pl.DataFrame, loans: Any) -> np.ndarray:
    """(N,) month index of each row's final contractual month, looked up on the tape.

    Raises:
        DataError: a loan of the panel is not on the tape.
    """
    tape = to_polars(loans, ["loan_id", "maturity_date"], "loans").select(
        "loan_id", month_index_expr("maturity_date").alias("final_month")
    )
    joined = frame.select("loan_id").join(tape, on="loan_id", how="left", maintain_order="left")
    if joined.height != frame.height:
        raise DataError("a loan occurs twice on the tape", where="loans.loan_id")
    if joined["final_month"].null_count():
        gone = joined.filter(pl.col("final_month").is_null())["loan_id"][0]
        raise DataError("a loan of the panel has no maturity on the tape", got=gone, where="loans")
    return joined["final_month"].to_numpy()
