"""Histories as filed, before they are a panel: order, doubles, strays, what follows the end.

Here: the steps that every adapter of a history shares, up to a screened panel (`observed_panel`). Not here:
the rule that finds a state (adapters), the cash (`ledger`).
"""

from __future__ import annotations

import polars as pl

from pc_pipeline.loans.ingest import ledger
from pc_pipeline.loans.ingest.adapter import Options
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.screen import contract_rules, known_by, panel_rules, screen
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.tables import columns

_MONTH = pl.col("reporting_month")


def observed_panel(
    observed: pl.DataFrame,
    loans: pl.DataFrame,
    log: QualityLog,
    file: str,
    options: Options,
    *,
    covariates: bool = False,
) -> pl.DataFrame:
    """Table loan_panel from stated months (`ledger.OBSERVED_COLUMNS` and `_row`), refused rows to the log.

    Args:
        covariates: `observed` brings its own ltv_current.
    """
    rows = known_months(observed, loans, log, file, options)
    rows = nothing_after_end(in_order(rows, log, file), log, file)
    count_rises(rows, log, file)
    panel = ledger.build_panel(rows, loans, options.macro)
    panel = panel.with_columns(rows.select("_row", *(["ltv_current"] if covariates else [])))
    rules = [*contract_rules("loan_panel", panel.columns), *panel_rules()]
    good = screen(panel, rules, log, file=file, table="loan_panel", month=_MONTH)
    return good.select(columns("loan_panel"))


def known_months(
    rows: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str, options: Options
) -> pl.DataFrame:
    """Rows of loans on the good tape, with a month that is known by the as-of month."""
    stray = rows.join(loans.select("loan_id"), on="loan_id", how="anti", maintain_order="left")
    log.refuse(
        stray,
        file=file,
        table="loan_panel",
        column="loan_id",
        reason="its loan is not on the tape, or was refused there",
        month=_MONTH,
    )
    log.count("rows_of_unknown_loans", stray.height)
    kept = rows.join(loans.select("loan_id"), on="loan_id", how="semi", maintain_order="left")
    rules = contract_rules("loan_panel", ["reporting_month"])
    if options.as_of is not None:
        rules.append(known_by(options.as_of))
    return screen(kept, rules, log, file=file, table="loan_panel", month=_MONTH)


def count_rises(rows: pl.DataFrame, log: QualityLog, file: str, column: str = "outstanding_balance") -> None:
    """Count balances that rise or are negative, and gaps between months (rows sorted by loan and month)."""
    same = pl.col("loan_id") == pl.col("loan_id").shift(1)
    rises = rows.filter(same & (pl.col("filed_balance") > pl.col("filed_balance").shift(1) + 0.005))
    negative = rows.filter(pl.col("filed_balance") < 0)
    gaps = rows.filter(same & (_MONTH.dt.offset_by("-1mo") != _MONTH.shift(1)))
    log.count("rising_balances", rises.height)
    log.count("negative_balances", negative.height)
    log.count("gaps", gaps.height)
    lowest = "balance rose: carried at its lowest so far"
    log.repair(file, column, rises.height, lowest, rises["reporting_month"])
    log.repair(file, column, negative.height, "credit balance: carried as zero", negative["reporting_month"])


def in_order(frame: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Rows by loan and month, each loan-month once: the first delivered stays, later ones are refused."""
    month, loan = pl.col("reporting_month"), pl.col("loan_id")
    same = loan == loan.shift(1)
    back = same & (month <= month.shift(1))
    heads = frame.select(loan.filter(~same.fill_null(False))).to_series()
    if (
        not frame.select(back.any()).item() and heads.n_unique() == heads.len()
    ):  # whole loans, one after the other
        return frame if heads.is_sorted() else frame.sort("loan_id", "reporting_month", maintain_order=True)
    log.count("rows_out_of_order", frame.select((back | (loan < loan.shift(1))).sum()).item() or 0)
    ordered = frame.sort("loan_id", "reporting_month", maintain_order=True)
    double = (same & (month == month.shift(1))).fill_null(False)
    marked = ordered.with_columns(double.alias("_double"))
    doubles = marked.filter("_double").drop("_double")
    log.count("duplicate_loan_months", doubles.height)
    log.refuse(
        doubles,
        file=file,
        table="loan_panel",
        column="reporting_month",
        reason="duplicate loan-month",
        month=month,
    )
    return marked.filter(~pl.col("_double")).drop("_double")


def nothing_after_end(panel: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Refuse rows of a loan after its default, prepayment or maturity (rows sorted by loan and month)."""
    ended = pl.col("loan_state") > LoanState.dpd90
    follows = (pl.col("loan_id") == pl.col("loan_id").shift(1)) & ended.shift(1)
    if not panel.select(follows.any()).item():
        return panel
    after = ended.shift(1).over("loan_id").fill_null(False).cum_max().over("loan_id")
    marked = panel.with_columns(after.alias("_after"))
    late = marked.filter("_after").drop("_after")
    log.count("rows_after_end", late.height)
    log.refuse(
        late,
        file=file,
        table="loan_panel",
        column="loan_state",
        reason="reported after the loan ended",
        month=pl.col("reporting_month"),
    )
    return marked.filter(~pl.col("_after")).drop("_after")
