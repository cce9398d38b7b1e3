"""Counts of observed monthly moves: by month, cohort, scenario and path.

Here: `transition_table`, the long table in DuckDB, which is also the tested reference; `extract_transitions`
and `count_transitions`, dense arrays over a compiled pass. Both obey the rules of `panel_rows`. Not here:
probabilities fitted to counts (`models`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import duckdb
import numba
import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.move_counts import count_in_order
from pc_pipeline.loans.panel_rows import checked_panel, ordered_rows
from pc_pipeline.schemas.states import N_STATES
from pc_pipeline.schemas.tables import columns

By = Literal["cohort", "scenario"]
_GROUPS: Final = {"cohort": ["asset_class", "vintage_month"], "scenario": ["scenario"]}

_MOVES_SQL = """
WITH reported AS (
    SELECT scenario, macro_path_id, loan, reporting_month,
           min(loan_state) AS loan_state,
           any_value(asset_class) AS asset_class, any_value(vintage_month) AS vintage_month,
           any_value(maturity_date) AS maturity_date
    FROM panel
    GROUP BY scenario, macro_path_id, loan, reporting_month
    HAVING min(loan_state) = max(loan_state)
), ordered AS (
    SELECT *, lag(loan_state) OVER life AS last_state, lag(reporting_month) OVER life AS last_month
    FROM reported
    WINDOW life AS (PARTITION BY scenario, macro_path_id, loan ORDER BY reporting_month)
), moved AS (
    SELECT *, CASE
        WHEN last_month IS NULL AND reporting_month = vintage_month + INTERVAL 1 MONTH THEN 0
        WHEN last_month + INTERVAL 1 MONTH = reporting_month THEN last_state
    END AS from_state
    FROM ordered
), counted AS (
    SELECT scenario, macro_path_id, asset_class, vintage_month, reporting_month,
           reporting_month >= date_trunc('month', maturity_date) AS is_final,
           from_state, loan_state AS to_state, count(*) AS n_moves
    FROM moved
    WHERE from_state BETWEEN 0 AND 3
    GROUP BY ALL
)
SELECT scenario::VARCHAR AS scenario, macro_path_id, asset_class::VARCHAR AS asset_class, vintage_month,
       reporting_month, is_final, from_state::BIGINT AS from_state, to_state::BIGINT AS to_state, n_moves
FROM counted
ORDER BY ALL
"""


def transition_table(panel: Any, loans: Any) -> pl.DataFrame:
    """Table `transitions`: counts by scenario, path, cohort, month of arrival, finality and move.

    Args:
        panel, loans: polars or pandas; the tape gives each loan's final contractual month.

    Raises:
        DataError: a column is missing, or a loan of the panel is not on the tape.
    """
    needed = ["scenario", "macro_path_id", "reporting_month", "loan_state", "asset_class", "vintage_month"]
    frame = to_polars(panel, [*needed, "loan_id"], "panel").select(*needed, "loan_id")
    tape = to_polars(loans, ["loan_id", "maturity_date"], "loans").select("loan_id", "maturity_date")
    if tape["loan_id"].n_unique() != tape.height:
        raise DataError("a loan occurs twice on the tape", where="loans.loan_id")
    coded = frame.join(tape.with_row_index("loan"), on="loan_id", how="left", maintain_order="left")
    if coded["loan"].null_count():
        gone = coded.filter(pl.col("loan").is_null())["loan_id"].unique().head(3).to_list()
        raise DataError("loans of the panel are not on the tape", expected="every loan_id", got=gone)
    # Text goes over as dictionaries and loans as row numbers: DuckDB then groups integers.
    rows = coded.drop("loan_id").with_columns(pl.col("scenario", "asset_class").cast(pl.Categorical))
    with duckdb.connect(":memory:") as connection:
        connection.register("panel", rows.to_arrow())
        table = connection.sql(_MOVES_SQL).pl()
    return table.select(columns("transitions")).with_columns(
        pl.col("vintage_month", "reporting_month").cast(pl.Date), pl.col("n_moves").cast(pl.Int64)
    )


@numba.njit(cache=True)
def _count(
    counts: np.ndarray,
    is_first: np.ndarray,
    is_origination: np.ndarray,
    group_of_loan: np.ndarray,
    month: np.ndarray,
    start: int,
    state: np.ndarray,
) -> None:
    loan, group = -1, 0
    for row in range(month.size):
        if is_first[row]:
            loan += 1
            group = group_of_loan[loan] if group_of_loan.size > 1 else 0
            if is_origination[loan]:
                counts[group, month[row] - start, 0, state[row]] += 1
        elif month[row] == month[row - 1] + 1 and state[row - 1] < 4:
            counts[group, month[row] - start, state[row - 1], state[row]] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitionCounts:
    """Dense counts with their labels.

    Attributes:
        counts: (T, 7, 7), or (G, T, 7, 7) by group; [.., from, to]; arrival month on the T axis.
        start_month: month index of the first T. groups: G rows of labels (cohort or scenario), else None.
    """

    counts: np.ndarray
    start_month: int
    groups: pl.DataFrame | None


def count_transitions(panel: Any, by: By | None = None) -> TransitionCounts:
    """Count moves over all months from the first to the last report.

    Args:
        panel: polars or pandas. by: None, 'cohort' or 'scenario'.

    Raises:
        ConfigError: another grouping. DataError: an empty panel or missing columns.
    """
    if by is not None and by not in _GROUPS:
        raise ConfigError("no such grouping of transitions", expected="None, 'cohort' or 'scenario'", got=by)
    frame = checked_panel(panel)
    if frame.is_empty():
        raise DataError("a panel without rows has no transitions", where="panel")
    if by is None and frame["loan_state"].dtype.is_integer():
        counted = count_in_order(frame)
        if counted is not None:
            return TransitionCounts(counts=counted[0], start_month=counted[1], groups=None)
    moves = ordered_rows(frame)
    start, n_months = int(moves.month.min()), int(np.ptp(moves.month)) + 1
    groups, code = None, np.zeros(1, dtype=np.uint32)
    if by is not None:
        labels = moves.frame.select(_GROUPS[by]).filter(pl.Series(moves.is_first))  # a loan keeps its group
        groups = labels.unique().sort(_GROUPS[by])
        numbered = groups.with_row_index("group")
        code = labels.join(numbered, on=_GROUPS[by], how="left", maintain_order="left")["group"].to_numpy()
    counts = np.zeros((1 if groups is None else groups.height, n_months, N_STATES, N_STATES), dtype=np.int64)
    _count(counts, moves.is_first, moves.is_origination, code, moves.month, start, moves.state)
    return TransitionCounts(counts=counts[0] if groups is None else counts, start_month=start, groups=groups)


def extract_transitions(panel: Any, by: By | None = None) -> np.ndarray:
    """Counts (n_months, 7, 7); by cohort or scenario (n_groups, n_months, 7, 7), groups sorted.

    `count_transitions` returns the same with the labels of its axes.
    """
    return count_transitions(panel, by).counts
