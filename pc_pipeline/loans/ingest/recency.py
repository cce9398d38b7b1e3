"""The recency rule: delinquency where only payments are filed.

Here: the rule, on a payment history as filed, from its first month to its last. Not here: the fields of a
format (`sec_auto`), the cash ledger (`ledger`), histories that came in several deliveries (`rejoin`).

A month is missed when less than half of the level payment (amount, term, rate) came. The state is the number
of consecutive missed months, capped at 3; the count opens at zero in a loan's first month. Default: the
balance is written to zero in a month whose payment is less than half of the balance before. Prepaid: the
balance goes to zero with at least that, before the final contractual month; matured in or after it. A month
late by a day is a miss under this rule: it is payment timing more than distress.

A state hangs on the months before it, so a history in slices cannot be joined from the states of each slice.
What is kept of every delivery is the payments as filed (`FILED_COLUMNS`); the rule reads them together.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from pc_pipeline.loans.ingest import ledger
from pc_pipeline.loans.ingest.adapter import Options, recoveries_table
from pc_pipeline.loans.ingest.history import in_order, known_months
from pc_pipeline.loans.ingest.rejoin import IS_TAPE
from pc_pipeline.loans.ingest.result import LEAVES, QualityLog
from pc_pipeline.loans.ingest.screen import contract_rules, panel_rules, screen
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.tables import columns

FILED_COLUMNS: Final[dict[str, Any]] = {
    "_row": pl.Int64,  # place in the file, 0 for the tape's own month
    "loan_id": pl.String,
    "reporting_month": pl.Date,
    "filed_balance": pl.Float64,
    "principal": pl.Float64,
    "paid": pl.Float64,
    "proceeds": pl.Float64,
    "opening_balance": pl.Float64,
    IS_TAPE: pl.Boolean,  # the month that the tape itself files
}
MISSED_SHARE: Final = 0.5  # a month is missed when less than this share of the level payment came
WRITTEN_SHARE: Final = 0.5  # zero balance is a default when less than this share of the balance was paid


def filed_history(
    opening: pl.DataFrame,
    history: pl.DataFrame,
    loans: pl.DataFrame,
    log: QualityLog,
    file: str,
    options: Options,
) -> pl.DataFrame:
    """FILED_COLUMNS, sorted, one row a loan and month: what the rule reads.

    Args:
        opening: loan_id, reporting_month, filed_balance, paid, opening_balance: one row a loan.
        history: _row, loan_id, reporting_month, filed_balance, principal, paid, proceeds.
    """
    rows = in_order(known_months(history, loans, log, file, options), log, file)
    tape = opening.with_columns(pl.lit(0, pl.Int64).alias("_row"), pl.lit(True).alias(IS_TAPE))
    both = pl.concat([tape, rows.with_columns(pl.lit(False).alias(IS_TAPE))], how="diagonal")
    return _drop_opening_doubles(
        both.select(pl.col(name).cast(kind) for name, kind in FILED_COLUMNS.items()).sort(
            "loan_id", "reporting_month", "_row"
        )
    )


def recency_panel(
    filed: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str, options: Options
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(panel, recoveries) of a payment-only history (FILED_COLUMNS, sorted) by the recency rule."""
    rows = _mark_end(filed)
    recoveries = _recoveries(rows, log, file)
    living = _without_aftermath(rows, log, file)
    stated = _recency_states(living, loans)
    observed = stated.join(
        recoveries.group_by("loan_id").agg(pl.col("recovery_amount").sum().alias("recovery")),
        on="loan_id",
        how="left",
        maintain_order="left",
    )
    _count_oddities(observed, log, file)
    panel = ledger.build_panel(observed, loans, options.macro)
    panel = panel.with_columns(observed.select(pl.col("_row")))
    rules = [*contract_rules("loan_panel", panel.columns), *panel_rules()]
    good = screen(panel, rules, log, file=file, table="loan_panel", month=pl.col("reporting_month"))
    return good.select(columns("loan_panel")), recoveries


def _drop_opening_doubles(rows: pl.DataFrame) -> pl.DataFrame:
    """Where the history files the cut-off month too, the history's row stays."""
    repeated = (pl.col("loan_id") == pl.col("loan_id").shift(-1)) & (
        pl.col("reporting_month") == pl.col("reporting_month").shift(-1)
    )
    return rows.filter(~repeated.fill_null(False))


def _mark_end(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the balance before each month, whether the loan ends in it, and whether it ended earlier."""
    before = pl.coalesce("opening_balance", pl.col("filed_balance").forward_fill().shift(1).over("loan_id"))
    ends = (pl.col("filed_balance") <= 0) & (pl.col("before") > 0)
    return (
        rows.with_columns(before.alias("before"))
        .with_columns(ends.fill_null(False).alias("ends"))
        .with_columns(
            (pl.col("ends").cum_sum() - pl.col("ends").cast(pl.UInt32) > 0).over("loan_id").alias("ended")
        )
    )


def _written_off() -> pl.Expr:
    return pl.col("ends") & (pl.col("paid").fill_null(0.0) < WRITTEN_SHARE * pl.col("before"))


def _recoveries(rows: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Dated proceeds of defaulted loans, either sign, from the month of default on."""
    defaults = rows.filter(_written_off() & ~pl.col("ended")).select(
        "loan_id", pl.col("reporting_month").alias("default_month")
    )
    money = rows.filter(pl.col("proceeds") != 0).join(
        defaults, on="loan_id", how="left", maintain_order="left"
    )
    dated = money.filter(pl.col("reporting_month") >= pl.col("default_month"))
    table = recoveries_table(
        dated.select(
            "loan_id",
            "default_month",
            pl.col("reporting_month").alias("recovery_month"),
            pl.col("proceeds").alias("recovery_amount"),
        )
    )
    net = table.group_by("loan_id").agg(pl.col("recovery_amount").sum())
    negative = net.filter(pl.col("recovery_amount") < 0).height
    log.count("defaults", defaults.height)
    log.count("negative_proceeds", dated.filter(pl.col("proceeds") < 0).height)
    log.count("defaults_with_negative_net_recovery", negative)
    log.count("proceeds_without_default", money.height - dated.height)
    log.repair(
        file,
        "repossession_proceeds",
        negative,
        "net recovery below zero: ultimate recovery 0, dated cash kept signed",
    )
    return table


def _without_aftermath(rows: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Rows while the loan lives, and its last. Missing balances are refused; later rows carried proceeds."""
    late = rows.filter("ended")
    log.count("rows_after_end", late.height)
    log.repair(
        file,
        "end_balance",
        late.height,
        "after the loan ended: proceeds go to recoveries, the row is no loan-month",
    )
    alive = rows.filter(~pl.col("ended"))
    blank = pl.col("filed_balance").is_null()
    log.count("missing_balances", alive.filter(blank).height)
    log.refuse(
        alive.filter(blank).select("_row", "loan_id", "reporting_month", "filed_balance", "paid", "proceeds"),
        file=file,
        table="loan_panel",
        column="end_balance",
        reason=LEAVES,
        month=pl.col("reporting_month"),
    )
    return alive.filter(~blank)


def _recency_states(rows: pl.DataFrame, loans: pl.DataFrame) -> pl.DataFrame:
    """Add loan_state and days_past_due by the recency rule; one row a month, gaps restart nothing."""
    facts = loans.select("loan_id", "original_balance", "interest_rate", "term_months", "maturity_date")
    level = ledger.level_payment(pl.col("original_balance"), pl.col("interest_rate"), pl.col("term_months"))
    marked = rows.join(facts, on="loan_id", how="left", maintain_order="left").with_columns(
        (pl.col("paid").fill_null(0.0) < MISSED_SHARE * level).alias("missed"),
        (pl.col("reporting_month") == pl.col("reporting_month").min()).over("loan_id").alias("opens"),
    )
    marked = marked.with_columns((pl.col("missed") & ~pl.col("opens")).alias("missed"))
    run = (~pl.col("missed")).cum_sum().over("loan_id")
    n_missed = pl.col("missed").cast(pl.Int64).cum_sum().over("loan_id", run)
    paid_end = (
        pl.when(pl.col("reporting_month") >= pl.col("maturity_date").dt.month_start())
        .then(int(LoanState.matured))
        .otherwise(int(LoanState.prepaid))
    )
    return marked.with_columns(n_missed.alias("n_missed")).with_columns(
        pl.when(_written_off())
        .then(int(LoanState.default))
        .when("ends")
        .then(paid_end)
        .otherwise(pl.col("n_missed").clip(0, 3))
        .cast(pl.Int64)
        .alias("loan_state"),
        pl.when(pl.col("ends") & ~_written_off())
        .then(0)
        .otherwise(30 * pl.col("n_missed"))
        .alias("days_past_due"),
    )


def _count_oddities(rows: pl.DataFrame, log: QualityLog, file: str) -> None:
    rises = rows.filter(pl.col("filed_balance") > pl.col("before") + 0.005)
    negative = rows.filter(pl.col("filed_balance") < 0)
    month = pl.col("reporting_month")
    gap = (month.dt.offset_by("-1mo") != month.shift(1)) & (pl.col("loan_id") == pl.col("loan_id").shift(1))
    only_opening = rows.group_by("loan_id").len().filter(pl.col("len") == 1).height
    log.count("rising_balances", rises.height)
    paid_short = (
        pl.col("ends")
        & (pl.col("loan_state") > LoanState.default)
        & (pl.col("paid") < pl.col("before") - 0.005)
    )
    short = rows.filter(paid_short)
    log.count("payoffs_below_the_balance", short.height)
    log.repair(
        file, "total_paid", short.height, "paid off with less than the balance: the balance counts as paid"
    )
    log.count("negative_balances", negative.height)
    log.count("negative_payments", rows.filter(pl.col("paid") < 0).height)
    log.count("negative_principal", rows.filter(pl.col("principal") < 0).height)
    log.count("gaps", rows.filter(gap).height)
    log.count("loans_without_history", only_opening)
    log.count("missed_months", rows.filter("missed").height)
    log.repair(
        file,
        "end_balance",
        rises.height,
        "balance rose: carried at its lowest so far",
        rises["reporting_month"],
    )
    log.repair(
        file, "end_balance", negative.height, "credit balance: carried as zero", negative["reporting_month"]
    )
