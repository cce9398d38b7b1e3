"""From what a servicer filed to a panel whose cash balances: the ledger of observed loans.

Here: one function that turns filed balances, payments and states, sorted by loan and month, into the
columns of table loan_panel. Not here: how a state is found (each adapter's rule), synthetic cash
(`loans.amortisation`).

Conventions, the same for every adapter:

* `original_balance` is the true original. A loan first seen with age has an *opening row*, its first
  observed month, whose principal_paid is the whole fall of the balance since origination; every later row
  carries its month's cash. So original_balance - cumulative (principal_paid + charge_off_amount) =
  outstanding_balance holds from the first row on, and no move from origination is made up. Nothing is due
  on an opening row (scheduled_payment 0), so its cash, which is history, enters no payment ratio.
* actual_payment = interest_paid + principal_paid on every row. interest_paid is what came in the month
  beyond the fall of the balance; where less came than the balance fell, the fall counts as paid.
* Where no payment is filed, interest follows the paid-through rule: instalments paid = 1 + months past due
  before - months past due now, each with the interest due on the balance.
* A balance that rises (capitalised interest, a payment reversed) is carried at its lowest level so far:
  principal_paid cannot be negative. This looks only backwards, so a new month never changes an old one.
* A default charges off what is left after that month's principal; the ultimate recovery is the sum of the
  dated recovery cash, not below zero.
* prepayment_amount is the part of the month's principal by which the balance falls further below the
  contractual schedule; a cure of arrears is no prepayment.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.tables import CENT, columns
from pc_pipeline.schemas.units import OBSERVED

OBSERVED_COLUMNS: Final[dict[str, Any]] = {
    "loan_id": pl.String,
    "reporting_month": pl.Date,
    "filed_balance": pl.Float64,  # at month end
    "paid": pl.Float64,  # cash received in the month, null: the paid-through rule
    "scheduled": pl.Float64,  # instalment due, null: the level payment
    "opening_balance": pl.Float64,  # before the month; read on a loan's first row, null: original balance
    "rate": pl.Float64,  # coupon of the month, null: the coupon at origination
    "interest_due": pl.Float64,  # interest of one instalment, null: balance times rate / 12
    "prepaid": pl.Float64,  # principal ahead of schedule as filed, null: by the contractual schedule
    "principal": pl.Float64,  # principal received in the month; read on the default row, null: none
    "loan_state": pl.Int64,
    "days_past_due": pl.Int64,
    "recovery": pl.Float64,  # ultimate, on the default row
}
_IS_DEFAULT: Final = pl.col("loan_state") == LoanState.default
_LOAN_FACTS: Final = (
    "loan_id",
    "asset_class",
    "vintage_month",
    "original_balance",
    "interest_rate",
    "term_months",
    "amortization_type",
    "maturity_date",
)


def level_payment(amount: pl.Expr, rate: pl.Expr, term: pl.Expr) -> pl.Expr:
    """Instalment of an annuity: a r / (1 - (1 + r)^-n) with r = rate / 12; a / n at rate 0."""
    monthly = rate / 12
    return (
        pl.when(monthly > 0).then(amount * monthly / (1 - (1 + monthly).pow(-term))).otherwise(amount / term)
    )


def scheduled_balance(amount: pl.Expr, rate: pl.Expr, term: pl.Expr, age: pl.Expr) -> pl.Expr:
    """Contractual balance of an annuity after `age` instalments."""
    monthly, paid = rate / 12, age.clip(0, term)
    growth = (1 + monthly).pow(paid)
    annuity = amount * growth - level_payment(amount, rate, term) * (growth - 1) / monthly
    return pl.when(monthly > 0).then(annuity).otherwise(amount * (1 - paid / term)).clip(0.0, None)


def months_in_state(state: pl.Expr) -> pl.Expr:
    """Consecutive rows of a loan in the same state, from 1 (rows sorted by loan and month)."""
    run = (state != state.shift(1)).fill_null(True).cum_sum().over("loan_id")
    return pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("loan_id", run)


def days_from_state(state: pl.Expr) -> pl.Expr:
    """30 days a bucket; 120 at default; 0 where the loan ended paid."""
    return state.replace_strict([0, 1, 2, 3, 4, 5, 6], [0, 30, 60, 90, 120, 0, 0], return_dtype=pl.Int64)


def build_panel(
    observed: pl.DataFrame, loans: pl.DataFrame, macro: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Table loan_panel from observed months.

    Args:
        observed: OBSERVED_COLUMNS, sorted by loan_id and reporting_month, one row a loan and month, nothing
            after a terminal state.
        loans: table loan_tape; rows of other loans are left out.
        macro: month and yield_10y, for rate_incentive; null without it.

    Returns:
        Table loan_panel; money rounded to cents.
    """
    cash = _with_cash(_with_balances(_with_facts(observed, loans)))
    recovery = (
        pl.when(_IS_DEFAULT).then(pl.col("recovery").fill_null(0.0).clip(0.0, None)).otherwise(0.0).round(2)
    )
    ahead = pl.coalesce("prepaid", pl.col("ahead") - pl.col("was")).clip(0.0, None)
    panel = cash.with_columns(
        pl.min_horizontal("month_principal", ahead).round(2).alias("prepayment_amount"),
        (pl.col("interest_paid") + pl.col("principal_paid")).round(2).alias("actual_payment"),
        pl.col("balance").round(2).alias("outstanding_balance"),
        recovery.alias("recovery_amount"),
        (pl.col("charge_off_amount") - recovery).round(2).alias("loss_amount"),
        months_in_state(pl.col("loan_state")).alias("months_in_state"),
    )
    return finish_panel(panel, macro)


def _with_facts(observed: pl.DataFrame, loans: pl.DataFrame) -> pl.DataFrame:
    """Observed months with their loan's terms; columns that were not filed as null; `first` row of a loan."""
    absent = [
        pl.lit(None, kind).alias(name)
        for name, kind in OBSERVED_COLUMNS.items()
        if name not in observed.columns
    ]
    age = month_index_expr("reporting_month") - month_index_expr("vintage_month")
    return (
        observed.with_columns(absent)
        .join(loans.select(_LOAN_FACTS), on="loan_id", how="inner", maintain_order="left")
        .with_columns(
            pl.col("rate").fill_null(pl.col("interest_rate")),
            age.cast(pl.Int64).alias("age"),
            pl.col("original_balance").round(2),
            pl.col("days_past_due").fill_null(days_from_state(pl.col("loan_state"))),
            (pl.col("loan_id") != pl.col("loan_id").shift(1).fill_null("")).alias("first"),
        )
    )


def _with_balances(facts: pl.DataFrame) -> pl.DataFrame:
    """Adds `balance` at its lowest so far, `before` it in the ledger, and `held` when the month began."""
    ended = pl.col("loan_state") >= LoanState.default
    filed = pl.when(ended).then(0.0).otherwise(pl.col("filed_balance").clip(0.0, None).round(2))
    # first seen with age and no opening balance filed: what the month itself paid is unknown, so nothing
    seasoned = (pl.col("age") > 1) & (pl.col("loan_state") < LoanState.default)
    unseen = pl.when(seasoned).then(pl.col("balance")).otherwise(pl.col("original_balance"))
    opening = pl.min_horizontal(pl.coalesce("opening_balance", unseen), "original_balance")
    lowest = pl.min_horizontal(filed, "original_balance").cum_min().over("loan_id").alias("balance")
    last = pl.col("balance").shift(1)
    return facts.with_columns(lowest).with_columns(
        pl.when("first").then(pl.col("original_balance")).otherwise(last).alias("before"),
        pl.when("first").then(opening).otherwise(last).alias("held"),
    )


def _with_cash(running: pl.DataFrame) -> pl.DataFrame:
    """Adds principal, interest, what was due and charged off, and how far ahead of schedule it stands."""
    fall = (pl.col("before") - pl.col("balance")).round(2)
    month_fall = (pl.col("held") - pl.col("balance")).clip(0.0, None)
    history = (pl.col("before") - pl.col("held")).clip(0.0, None)
    at_default = pl.min_horizontal(pl.col("principal").fill_null(0.0).clip(0.0, None), "held")
    due = pl.col("scheduled").fill_null(_contract_payment()).clip(0.0, None)
    was_ahead = _ahead(pl.col("held"), pl.col("age") - 1)
    principal = running.with_columns(
        pl.when(_IS_DEFAULT).then(history + at_default).otherwise(fall).round(2).alias("principal_paid"),
        pl.when(_IS_DEFAULT).then(at_default).otherwise(month_fall).round(2).alias("month_principal"),
        _interest_paid_through(_IS_DEFAULT).alias("accrued"),
        pl.when(history > CENT).then(0.0).otherwise(due).round(2).alias("scheduled_payment"),
        _ahead(pl.col("balance"), pl.col("age")).alias("ahead"),
    )
    interest = pl.coalesce(pl.col("paid") - pl.col("month_principal"), "accrued").clip(0.0, None)
    written = pl.when(_IS_DEFAULT).then(fall - pl.col("principal_paid")).otherwise(0.0)
    return principal.with_columns(
        interest.round(2).alias("interest_paid"),
        written.round(2).alias("charge_off_amount"),
        pl.when("first").then(was_ahead).otherwise(pl.col("ahead").shift(1)).alias("was"),
    )


def finish_panel(panel: pl.DataFrame, macro: pl.DataFrame | None = None) -> pl.DataFrame:
    """Add what all observed panels have: scenario, weekday of month end, rate incentive; in column order."""
    done = panel.with_columns(
        pl.lit(OBSERVED).alias("scenario"),
        pl.lit(0, pl.Int64).alias("macro_path_id"),
        month_end_weekday().alias("month_end_weekday"),
    )
    if "ltv_current" not in done.columns:
        done = done.with_columns(pl.lit(None, pl.Float64).alias("ltv_current"))
    if macro is not None and "rate" in done.columns:
        yields = macro.select(pl.col("month").alias("reporting_month"), "yield_10y").unique("reporting_month")
        done = done.join(yields, on="reporting_month", how="left", maintain_order="left").with_columns(
            (pl.col("rate") - pl.col("yield_10y")).round(6).alias("rate_incentive")
        )
    elif "rate_incentive" not in done.columns:
        done = done.with_columns(pl.lit(None, pl.Float64).alias("rate_incentive"))
    return done.select(columns("loan_panel"))


def month_end_weekday() -> pl.Expr:
    """Weekday of the last day of reporting_month (a first of month), Monday 1 .. Sunday 7."""
    month = pl.col("reporting_month")
    last = (
        month.to_physical() + month.dt.days_in_month().cast(pl.Int32) - 1
    )  # days since Thursday 1 January 1970
    return ((last + 3) % 7 + 1).cast(pl.Int64)


def _contract_payment() -> pl.Expr:
    """Instalment due by the contract: level for annuities, interest only otherwise."""
    level = level_payment(pl.col("original_balance"), pl.col("interest_rate"), pl.col("term_months"))
    interest_only = pl.col("held") * pl.col("rate") / 12
    return pl.when(pl.col("amortization_type") == "annuity").then(level).otherwise(interest_only)


def _interest_paid_through(is_default: pl.Expr) -> pl.Expr:
    """Interest of the instalments paid this month: 1 + months past due before - months past due now."""
    due = pl.col("interest_due").fill_null(pl.col("held") * pl.col("rate") / 12)
    late = pl.col("days_past_due") // 30
    was_late = pl.when("first").then(late).otherwise(late.shift(1))
    paid = (1 + was_late - late).clip(0, None)
    return pl.when(is_default).then(0.0).otherwise(due * paid)


def _ahead(balance: pl.Expr, age: pl.Expr) -> pl.Expr:
    """How far a balance stands below its contract: the schedule of an annuity, else the original."""
    contract = scheduled_balance(
        pl.col("original_balance"), pl.col("interest_rate"), pl.col("term_months"), age
    )
    level = (
        pl.when(pl.col("amortization_type") == "annuity").then(contract).otherwise(pl.col("original_balance"))
    )
    finished = month_index_expr("reporting_month") >= month_index_expr("maturity_date")
    return pl.when(finished).then(0.0).otherwise((level - balance).clip(0.0, None))
