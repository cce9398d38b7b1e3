"""The pool at a cut-off: the tape plus where each living loan stands.

Here: `pool_snapshot`, and `scheduled_pool` for a tape without history. Not here: what happens next
(`simulation`).
"""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index, month_index_expr
from pc_pipeline.loans.amortisation import amortisation_schedule
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.panel_rows import panel_moves
from pc_pipeline.schemas.tables import columns

_POSITION: Final = (
    "current_balance",
    "loan_state",
    "age_months",
    "remaining_term_months",
    "months_since_miss",
)


def pool_snapshot(loans: Any, panel: Any = None, as_of: date | None = None) -> pl.DataFrame:
    """Table `pool` with the tape's columns, one row per living loan.

    Args:
        loans: tape. panel: history on one scenario and path per loan, or None: every loan fresh, at age 0.
        as_of: cut-off month (with a panel; default its last month). Loans lent in that very month are
            fresh; later ones are not in the pool yet, and settled ones no longer.

    Returns:
        remaining_term_months is at least 1: a late loan past its final month is due at once.
        months_since_miss is -1 where no miss is on record.

    Raises:
        DataError: a loan lives on several paths in the panel (filter one scenario), or no loan is alive.
    """
    tape = to_polars(loans, ["loan_id", "original_balance", "vintage_month", "term_months"], "loans")
    tape = tape.drop(_POSITION, strict=False)
    if panel is None:
        pool = _fresh(tape)
    else:
        positions, cut_off = _positions(panel, as_of)
        fresh = _fresh(tape.filter(month_index_expr("vintage_month") == cut_off))
        seasoned = _seasoned(tape, positions, cut_off)
        fresh = fresh.join(seasoned.select("loan_id"), on="loan_id", how="anti")
        pool = pl.concat([seasoned, fresh]).sort("loan_id")
    if pool.is_empty():
        raise DataError("no loan is alive at the cut-off", got=as_of, where="pool")
    rest = [name for name in tape.columns if name != "loan_id"]
    return pool.select(*columns("pool"), *rest)


def scheduled_pool(loans: Any, as_of: date) -> pl.DataFrame:
    """Table `pool` of a tape without history: every loan stands where its schedule says at `as_of`.

    Loans that have matured by then, or are lent later, are not in the pool. All count as performing and never
    late, which nobody has reported: say so where the figures are shown.

    Raises:
        DataError: no loan is alive at the cut-off.
    """
    tape = to_polars(loans, ["loan_id", "original_balance", "vintage_month", "term_months"], "loans")
    age = pl.lit(month_index(as_of)) - month_index_expr("vintage_month")
    alive = (
        tape.drop(_POSITION, strict=False)
        .with_columns(age.cast(pl.Int64).alias("age_months"))
        .filter((pl.col("age_months") >= 0) & (pl.col("age_months") < pl.col("term_months")))
    )
    if alive.is_empty():
        raise DataError("no loan is alive at the cut-off", expected="a loan before its maturity", got=as_of)
    schedule = amortisation_schedule(
        alive["original_balance"].to_numpy(),
        alive["interest_rate"].to_numpy(),
        alive["term_months"].to_numpy(),
        alive["amortization_type"].to_numpy(),
    )
    paid_to = np.minimum(alive["age_months"].to_numpy(), schedule.shape[1] - 1)
    pool = alive.with_columns(
        pl.Series("current_balance", schedule[np.arange(alive.height), paid_to]),
        pl.lit(0, dtype=pl.Int64).alias("loan_state"),
        (pl.col("term_months") - pl.col("age_months")).cast(pl.Int64).alias("remaining_term_months"),
        pl.lit(-1, dtype=pl.Int64).alias("months_since_miss"),
    ).sort("loan_id")
    rest = [name for name in tape.columns if name not in ("loan_id", *_POSITION)]
    return pool.select(*columns("pool"), *rest)


def _fresh(tape: pl.DataFrame) -> pl.DataFrame:
    return tape.with_columns(
        pl.col("original_balance").alias("current_balance"),
        pl.lit(0, dtype=pl.Int64).alias("loan_state"),
        pl.lit(0, dtype=pl.Int64).alias("age_months"),
        pl.col("term_months").cast(pl.Int64).alias("remaining_term_months"),
        pl.lit(-1, dtype=pl.Int64).alias("months_since_miss"),
    )


def _positions(panel: Any, as_of: date | None) -> tuple[pl.DataFrame, int]:
    """State, balance and history of each loan in the cut-off month, and that month."""
    frame = to_polars(panel, ["loan_id", "scenario", "macro_path_id", "outstanding_balance"], "panel")
    homes = frame.select("loan_id", "scenario", "macro_path_id").unique()
    if homes["loan_id"].n_unique() != homes.height:
        raise DataError(
            "a pool needs one history per loan",
            expected="one scenario and path per loan",
            got=homes.select("scenario").unique().to_series().to_list(),
            where="panel",
        )
    moves = panel_moves(frame)
    cut_off = month_index(as_of) if as_of is not None else int(moves.month.max())
    state = moves.state.astype(np.int64)
    late = (state >= 1) & (state <= 3)
    since = np.where(late, 0, np.where(moves.months_since_miss >= 0, moves.months_since_miss + 1, -1))
    here = (moves.month == cut_off) & (state <= 3)
    positions = moves.frame.select(
        "loan_id", pl.col("outstanding_balance").alias("current_balance")
    ).with_columns(pl.Series("loan_state", state), pl.Series("months_since_miss", since.astype(np.int64)))
    return positions.filter(here).filter(pl.col("current_balance") > 0), cut_off


def _seasoned(tape: pl.DataFrame, positions: pl.DataFrame, cut_off: int) -> pl.DataFrame:
    age = (cut_off - month_index_expr("vintage_month")).cast(pl.Int64)
    remaining = (pl.col("term_months").cast(pl.Int64) - age).clip(lower_bound=1)
    order = [*tape.columns, *_POSITION]
    return (
        tape.join(positions, on="loan_id", how="inner")
        .with_columns(age.alias("age_months"), remaining.alias("remaining_term_months"))
        .select(order)
    )
