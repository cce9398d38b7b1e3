"""What must hold of every loan-month, to the cent. Each function returns the rows that break it.

Here: identities of `loan_panel`, `loan_tape` and `recoveries`, used by unit tests, property tests and asset
checks alike. Not here: column types and ranges (`schemas.tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import polars as pl

from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.schemas.states import ABSORBING_STATES, LoanState, contract_moves
from pc_pipeline.schemas.tables import CENT

_LOAN: Final = ("scenario", "macro_path_id", "loan_id")
_PLACE: Final = (*_LOAN, "reporting_month")
_CASH: Final = (
    "loan_state",
    "original_balance",
    "actual_payment",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "outstanding_balance",
    "recovery_amount",
    "loss_amount",
)


def _sorted(panel: Any) -> pl.DataFrame:
    return to_polars(panel, [*_PLACE, *_CASH], "panel").sort(_PLACE)


def _breaches(frame: pl.DataFrame, gap: pl.Expr, identity: str) -> pl.DataFrame:
    return (
        frame.with_columns(gap.abs().alias("gap"))
        .filter((pl.col("gap") >= CENT) | pl.col("gap").is_nan())
        .select(*_PLACE, pl.lit(identity).alias("identity"), "gap")
    )


def balance_breaches(panel: Any) -> pl.DataFrame:
    """original_balance - cumulative (principal_paid + charge_off_amount) = outstanding_balance.

    Holds for panels that begin at origination.
    """
    gone = (pl.col("principal_paid") + pl.col("charge_off_amount")).cum_sum().over(_LOAN)
    gap = pl.col("original_balance") - gone - pl.col("outstanding_balance")
    return _breaches(_sorted(panel), gap, "balance")


def cash_breaches(panel: Any) -> pl.DataFrame:
    """actual_payment = interest_paid + principal_paid; prepayment_amount <= principal_paid; none negative."""
    frame = _sorted(panel)
    split = pl.col("actual_payment") - pl.col("interest_paid") - pl.col("principal_paid")
    ahead = (pl.col("prepayment_amount") - pl.col("principal_paid")).clip(lower_bound=0.0)
    negative = pl.min_horizontal(*_CASH[2:8]).clip(upper_bound=0.0)
    return pl.concat(
        [
            _breaches(frame, split, "payment is interest plus principal"),
            _breaches(frame, ahead, "prepayment is part of principal"),
            _breaches(frame, negative, "no negative amount"),
        ]
    )


def loss_breaches(panel: Any) -> pl.DataFrame:
    """loss_amount = charge_off_amount - recovery_amount; charge-offs and recoveries on default rows only."""
    frame = _sorted(panel)
    gap = pl.col("charge_off_amount") - pl.col("recovery_amount") - pl.col("loss_amount")
    written = pl.col("charge_off_amount") + pl.col("recovery_amount")
    misplaced = pl.when(pl.col("loan_state") == LoanState.default).then(0.0).otherwise(written)
    return pl.concat(
        [
            _breaches(frame, gap, "loss is charge-off less recovery"),
            _breaches(frame, misplaced, "only a default charges off"),
        ]
    )


def terminal_breaches(panel: Any) -> pl.DataFrame:
    """A terminal row leaves no balance and is the loan's last."""
    frame = _sorted(panel)
    terminal = pl.col("loan_state").is_in(ABSORBING_STATES)
    owed = pl.when(terminal).then(pl.col("outstanding_balance")).otherwise(0.0)
    is_last = pl.col("reporting_month") == pl.col("reporting_month").max().over(_LOAN)
    after = pl.when(terminal & ~is_last).then(1.0).otherwise(0.0)
    return pl.concat(
        [
            _breaches(frame, owed, "terminal rows owe nothing"),
            _breaches(frame, after, "terminal rows are last"),
        ]
    )


def move_breaches(panel: Any) -> pl.DataFrame:
    """Consecutive months make moves the contract allows; no month is missing or doubled."""
    frame = _sorted(panel)
    allowed = contract_moves()
    month = month_index_expr("reporting_month")
    step = month - month.shift(1).over(_LOAN)
    moved = frame.with_columns(
        step.fill_null(1).alias("step"), pl.col("loan_state").shift(1).over(_LOAN).fill_null(0).alias("came")
    )
    table = pl.DataFrame(
        [
            {"came": came, "loan_state": to, "is_allowed": bool(allowed[came, to])}
            for came in range(allowed.shape[0])
            for to in range(allowed.shape[1])
        ]
    )
    judged = moved.join(table, on=["came", "loan_state"], how="left", maintain_order="left")
    illegal = pl.when(pl.col("is_allowed") & (pl.col("came") < 4)).then(0.0).otherwise(1.0)
    return pl.concat(
        [
            _breaches(judged, illegal, "the contract allows the move"),
            _breaches(judged, (pl.col("step") - 1).cast(pl.Float64), "months are consecutive"),
        ]
    )


def maturity_breaches(panel: Any, loans: Any) -> pl.DataFrame:
    """No loan matures before its final contractual month, nor is performing or prepaid from then on."""
    tape = to_polars(loans, ["loan_id", "maturity_date"], "loans").select("loan_id", "maturity_date")
    frame = _sorted(panel).join(tape, on="loan_id", how="left", maintain_order="left")
    is_final = pl.col("reporting_month") >= pl.col("maturity_date").dt.truncate("1mo")
    matured = pl.col("loan_state") == LoanState.matured
    ended = pl.col("loan_state").is_in([LoanState.performing, LoanState.prepaid])
    wrong = pl.when((matured & ~is_final) | (ended & is_final)).then(1.0).otherwise(0.0)
    return _breaches(frame, wrong, "maturity ends the contract")


def recovery_breaches(panel: Any, recoveries: Any) -> pl.DataFrame:
    """Dated recoveries of a loan add up to the ultimate recovery on its default row, none before default."""
    place = list(_LOAN)
    dated = to_polars(
        recoveries, [*place, "default_month", "recovery_month", "recovery_amount"], "recoveries"
    )
    early = dated.filter(pl.col("recovery_month") < pl.col("default_month"))
    sums = dated.group_by(place).agg(pl.col("recovery_amount").sum().alias("dated"))
    ultimate = _sorted(panel).filter(pl.col("loan_state") == LoanState.default)
    joined = ultimate.join(sums, on=place, how="full", coalesce=True).with_columns(
        pl.col("dated", "recovery_amount").fill_null(0.0)
    )
    too_early = early.select(
        *place,
        pl.col("recovery_month").alias("reporting_month"),
        pl.lit("recovery after default").alias("identity"),
        pl.lit(1.0).alias("gap"),
    )
    gap = pl.col("dated") - pl.col("recovery_amount")
    return pl.concat([_breaches(joined, gap, "dated recoveries add up"), too_early])


PANEL_IDENTITIES: Final[dict[str, Callable[[Any], pl.DataFrame]]] = {
    "balance": balance_breaches,
    "cash": cash_breaches,
    "loss": loss_breaches,
    "terminal": terminal_breaches,
    "moves": move_breaches,
}


def panel_breaches(panel: Any) -> pl.DataFrame:
    """All breaches of all panel identities: loan, month, identity, gap. Empty where all hold."""
    return pl.concat([check(panel) for check in PANEL_IDENTITIES.values()])
