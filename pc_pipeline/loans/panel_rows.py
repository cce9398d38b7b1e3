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
from pc_pipeline.schemas.states import N_STATES

KEY: Final = ("scenario", "macro_path_id", "loan_id")
UNKNOWN: Final = -1
_NO_DATE: Final = date(1, 1, 1)  # an unknown vintage: no first row is the month after it
_LONGEST_TABLE_DAYS: Final = 1_000_000
_REQUIRED = (*KEY, "reporting_month", "vintage_month", "loan_state")


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


def month_numbers(dates: pl.Series) -> np.ndarray:
    """(N,) month index (year * 12 + month - 1) of a date column without nulls, by a table over its days."""
    days = dates.to_physical().to_numpy()
    if days.size == 0:
        return np.zeros(0, dtype=np.int32)
    first, last = int(days.min()), int(days.max())
    if last - first > _LONGEST_TABLE_DAYS:
        return dates.to_frame().select(month_index_expr(dates.name)).to_series().to_numpy()
    table = np.arange(first, last + 1).astype("datetime64[D]").astype("datetime64[M]").astype(np.int32)
    return (table + 1970 * 12)[days - first]


def _new_key(frame: pl.DataFrame) -> np.ndarray:
    """(N,) bool: the row's key differs from that of the row before."""
    changed = pl.any_horizontal(pl.col(name) != pl.col(name).shift(1) for name in KEY)
    return frame.select(changed.fill_null(True)).to_series().to_numpy()


def _in_order(frame: pl.DataFrame, is_first: np.ndarray, month: np.ndarray) -> bool:
    """Whether each key forms one run of rising months already."""
    if not (is_first[1:] | (np.diff(month) > 0)).all():
        return False
    heads = frame.select(KEY).filter(is_first)
    return heads.height == heads.n_unique()


def _without_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per loan-month; none where reports of the same month contradict each other."""
    place = [*KEY, "reporting_month"]
    alike = frame.unique([*place, "loan_state"], keep="last", maintain_order=True)
    return alike.filter(~pl.struct(place).is_duplicated())


def panel_moves(panel: Any) -> PanelMoves:
    """Put a panel (polars or pandas) in loan order and find where each row came from.

    Raises:
        DataError: a column is missing, a state is outside 0-6, or a month is null.
    """
    frame = to_polars(panel, _REQUIRED, "panel")
    if frame["loan_state"].null_count() or frame["reporting_month"].null_count():
        raise DataError("a panel needs a state and a month in every row", where="panel")
    is_first = _new_key(frame)
    month = month_numbers(frame["reporting_month"])
    if not _in_order(frame, is_first, month):
        frame = _without_duplicates(frame).sort([*KEY, "reporting_month"])
        is_first = _new_key(frame)
        month = month_numbers(frame["reporting_month"])
    state = frame["loan_state"].cast(pl.Int8).to_numpy()
    if state.size and (state.min() < 0 or state.max() >= N_STATES):
        raise DataError(
            "state outside the alphabet", expected="0..6", got=(state.min(), state.max()), where="panel"
        )
    heads = frame["vintage_month"].filter(pl.Series(is_first))
    is_origination = month[is_first] == month_numbers(heads.fill_null(_NO_DATE)) + 1
    came, since = np.empty(state.size, np.int8), np.empty(state.size, np.int32)
    _trace(is_first, month, is_origination, state, came, since)
    return PanelMoves(
        frame=frame, month=month, state=state, is_first=is_first, from_state=came, months_since_miss=since
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
