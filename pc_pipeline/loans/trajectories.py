"""Loan histories as aligned arrays, ready for tensors.

Here: `prepare_trajectories`. Each unbroken stretch of reports of a loan on a path becomes one row: a gap
ends a trajectory and what follows is another one, so nothing inside a row was ever missing. The time axis
is the loan's own; `start_month` places it on the calendar. After the terminal month everything is padding and
`mask` is False. Not here: scaling of macro, tensors (`training`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.features import (
    FeatureScaler,
    calendar_features,
    cohort_table,
    loan_features,
)
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.panel_rows import KEY, PanelMoves, final_months, panel_moves
from pc_pipeline.loans.segments import segment_codes
from pc_pipeline.schemas.states import PADDING


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectories:
    """N trajectories of at most T months.

    Attributes:
        keys: N rows of scenario, macro_path_id, loan_id.
        start_month: (N,) month index of column 0. initial_state: (N,) int8, held the month before.
        initial_months_since_miss: (N,) at the initial state, -1 never or unknown.
        states: (N, T) int8, -1 after the end. mask: (N, T) bool, True where observed.
        is_final: (N, T) bool, in or after the final contractual month.
        payments, balances, losses: (N, T) currency, 0 after the end. balances are after the month.
        payment_ratio: (N, T) float32, cash over the instalment due; 0 where nothing is due.
        initial_balance: (N,) balance before column 0.
        recovery_rate: (N,) float32, ultimate recovery over charge-off; NaN without a default.
        features: (N, 24) float32 scaled, age at the start. missing: (N, 24) bool. scaler: their constants.
        segments: (N, 2) float32 industry and region codes, NaN where unknown.
        cohorts: `cohort_table` of the tape. cohort_row: (N,) row in it. loan_row: (N,) row of the tape.
        macro: paths on the calendar, or None. macro_row: (N,) row in them, or None.
    """

    keys: pl.DataFrame
    start_month: np.ndarray
    initial_state: np.ndarray
    initial_months_since_miss: np.ndarray
    states: np.ndarray
    mask: np.ndarray
    is_final: np.ndarray
    payments: np.ndarray
    balances: np.ndarray
    losses: np.ndarray
    payment_ratio: np.ndarray
    initial_balance: np.ndarray
    recovery_rate: np.ndarray
    features: np.ndarray
    missing: np.ndarray
    scaler: FeatureScaler
    segments: np.ndarray
    cohorts: pl.DataFrame
    cohort_row: np.ndarray
    loan_row: np.ndarray
    macro: MacroPaths | None
    macro_row: np.ndarray | None

    def __len__(self) -> int:
        return self.states.shape[0]

    @property
    def n_months(self) -> int:
        """T."""
        return self.states.shape[1]

    @property
    def months(self) -> np.ndarray:
        """(N, T) month index of every position."""
        return self.start_month[:, None] + np.arange(self.n_months)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) observed months."""
        return self.mask.sum(axis=1)

    def calendar(self) -> np.ndarray:
        """(N, T, 2) month of year 0-11 and weekday of the last day 0-6 of every position."""
        return calendar_features(self.months)

    def macro_values(self) -> np.ndarray:
        """(N, T, 9) macro at every position; beyond the path its last month is repeated (masked anyway).

        Raises:
            DataError: the trajectories were prepared without macro.
        """
        if self.macro is None or self.macro_row is None:
            raise DataError("trajectories were prepared without macro", expected="macro=...", got=None)
        column = np.clip(self.months - self.macro.start_month, 0, self.macro.n_months - 1)
        return self.macro.values[self.macro_row[:, None], column]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Which panel rows are used and where they go: row -> (trajectory, position)."""

    rows: np.ndarray
    trajectory: np.ndarray
    position: np.ndarray
    heads: np.ndarray
    n_months: int

    def scatter(self, values: np.ndarray, fill: Any, dtype: Any) -> np.ndarray:
        """(N, T) array of row values."""
        out = np.full((self.heads.size, self.n_months), fill, dtype=dtype)
        out[self.trajectory, self.position] = values[self.rows]
        return out


def _layout(moves: PanelMoves) -> _Layout:
    used = moves.is_move
    follows = np.zeros_like(used)
    follows[1:] = used[:-1] & ~moves.is_first[1:] & (np.diff(moves.month) == 1)
    rows = np.flatnonzero(used)
    starts = ~follows[rows]
    heads = rows[starts]
    if heads.size == 0:
        raise DataError("the panel holds no two consecutive months of any loan", where="panel")
    trajectory = np.cumsum(starts) - 1
    position = rows - heads[trajectory]
    return _Layout(
        rows=rows, trajectory=trajectory, position=position, heads=heads, n_months=int(position.max()) + 1
    )


def _tape_rows(keys: pl.DataFrame, tape: pl.DataFrame) -> np.ndarray:
    numbered = tape.select("loan_id").with_row_index("loan_row")
    rows = keys.select("loan_id").join(numbered, on="loan_id", how="left", maintain_order="left")["loan_row"]
    return rows.to_numpy().astype(np.int64)


def _cohort_rows(tape: pl.DataFrame, cohorts: pl.DataFrame) -> np.ndarray:
    place = ["asset_class", "vintage_month"]
    numbered = cohorts.select(place).with_row_index("cohort_row")
    rows = tape.select(place).join(numbered, on=place, how="left", maintain_order="left")["cohort_row"]
    return rows.to_numpy().astype(np.int64)


def prepare_trajectories(
    panel: Any, loans: Any, macro: Any = None, scaler: FeatureScaler | None = None
) -> Trajectories:
    """Align a panel loan by loan.

    Args:
        panel, loans: tables `loan_panel` and `loan_tape`, polars or pandas.
        macro: `macro_scenarios` rows of the panel's paths, or None.
        scaler: constants of the loan features; None fits them to these trajectories.

    Raises:
        DataError: columns, loans or macro paths are missing, or no loan has two consecutive months.
    """
    tape = to_polars(loans, ["loan_id", "asset_class", "vintage_month", "maturity_date"], "loans")
    moves = panel_moves(panel)
    frame = moves.frame
    final = final_months(frame, tape)
    layout = _layout(moves)
    keys = frame.select(KEY)[layout.heads]
    loan_row = _tape_rows(keys, tape)
    cohorts = cohort_table(tape)
    start_month = moves.month[layout.heads].astype(np.int64)
    lived = tape[loan_row].with_columns(
        (pl.Series(start_month - 1) - month_index_expr("vintage_month")).alias("age_months")
    )
    values, fitted, missing = loan_features(lived, scaler)
    paths = None if macro is None else macro_paths(macro)
    return Trajectories(
        keys=keys,
        start_month=start_month,
        initial_state=moves.from_state[layout.heads],
        initial_months_since_miss=moves.months_since_miss[layout.heads].astype(np.int64),
        states=layout.scatter(moves.state, PADDING, np.int8),
        mask=layout.scatter(np.ones(frame.height, dtype=bool), False, bool),
        is_final=layout.scatter(moves.month >= final, False, bool),
        **_money(frame, layout),
        features=values,
        missing=missing,
        scaler=fitted,
        segments=segment_codes(tape)[loan_row],
        cohorts=cohorts,
        cohort_row=_cohort_rows(tape, cohorts)[loan_row],
        loan_row=loan_row,
        macro=paths,
        macro_row=None if paths is None else paths.rows_of(keys),
    )


def _money(frame: pl.DataFrame, layout: _Layout) -> dict[str, np.ndarray]:
    """Arrays of cash and balance."""

    def column(name: str) -> np.ndarray:
        return frame[name].to_numpy()

    paid, due, charged = column("actual_payment"), column("scheduled_payment"), column("charge_off_amount")
    ratio = np.divide(paid, due, out=np.zeros_like(paid), where=due > 0)
    recovery = np.divide(
        column("recovery_amount"), charged, out=np.full_like(charged, np.nan), where=charged > 0
    )
    rate = np.full(layout.heads.size, np.nan, dtype=np.float32)
    known = np.isfinite(recovery[layout.rows])
    rate[layout.trajectory[known]] = recovery[layout.rows][known]
    balance = column("outstanding_balance")
    before = balance + column("principal_paid") + charged
    return {
        "payments": layout.scatter(paid, 0.0, np.float64),
        "balances": layout.scatter(balance, 0.0, np.float64),
        "losses": layout.scatter(column("loss_amount"), 0.0, np.float64),
        "payment_ratio": layout.scatter(ratio, 0.0, np.float32),
        "initial_balance": before[layout.heads],
        "recovery_rate": rate,
    }
