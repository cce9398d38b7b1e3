"""Adapter `uci_cards`: credit-card accounts with six months of repayment status (Taiwan, 2005).

Here: status history across columns to a panel, the static-receivable convention for revolving accounts, the
detection of a status code whose meaning changes. Not here: the outcome default.payment.next.month: the month
after the last has no state for accounts that did not default, so it is no panel row; it is counted.

**Filed status.** PAY_x <= 0 (no use, paid in full, revolving) is performing, 1 is 30dpd, 2 is 60dpd, 3 and
more is 90dpd: months late as the bank counts them.

**Static receivable.** A card draws and repays; a panel follows a receivable. original_balance is the credit
limit, outstanding_balance the bill at its lowest so far: new spending is not the receivable's. So the cash
identity of every other panel holds here too; exposure of a revolving account is understated and the
understatement is counted.

**Data break.** A code that at least 100 accounts carry in one month and whose share changes more than
twenty-fold against the neighbouring month has changed its meaning; the break is noted in the quality table
(learn from months on one side of it only).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import polars as pl

from pc_pipeline.core.periods import add_months
from pc_pipeline.loans.ingest.adapter import Options, Tables, empty, find_part
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.loans.ingest.history import observed_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.sec_auto import read_columns
from pc_pipeline.loans.ingest.tapes import complete_loans

LAST_MONTH: Final = date(2005, 9, 1)
STATUS: Final = ("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6")  # September back to April
BILLS: Final = tuple(f"BILL_AMT{k}" for k in range(1, 7))
PAYMENTS: Final = tuple(f"PAY_AMT{k}" for k in range(1, 7))
PERSON: Final = ("SEX", "EDUCATION", "MARRIAGE", "AGE")
OUTCOME: Final = "default.payment.next.month"
CARD_RATE: Final = 0.20  # assumption: ceiling of Taiwanese card rates at the time; not filed
BREAK_FACTOR: Final = 20.0
BREAK_COUNT: Final = 100
_MINIMUM_PAYMENT: Final = 0.05  # assumption: share of the bill due a month


class UciCards:
    """Card accounts with a status history in columns."""

    name = "uci_cards"
    rule = (
        "filed status: PAY_x months late; 0 and below performing, 1 is 30dpd, 2 is 60dpd, 3 and more 90dpd; "
        "revolving balances as static receivables"
    )
    expects = f"accounts with ID, LIMIT_BAL, {', '.join(STATUS)}, BILL_AMT1..6, PAY_AMT1..6"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether some part has the account columns."""
        return any(part.has(("ID", "LIMIT_BAL", *STATUS, *BILLS, *PAYMENTS)) for part in parts)

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape and panel; no recoveries are filed.

        Raises:
            IngestError: a column is missing.
        """
        types: dict[str, Any] = {"ID": pl.String, "LIMIT_BAL": pl.Float64}
        types |= dict.fromkeys(STATUS, pl.Int64)
        types |= dict.fromkeys((*BILLS, *PAYMENTS), pl.Float64)
        part = find_part(parts, tuple(types), "table of card accounts")
        file = where(part)
        extra = dict.fromkeys((*PERSON, OUTCOME), pl.Int64)
        filed = read_columns(part, {**types, **extra}, log, "loan_tape")
        log.rows_in(file, filed)
        loans = _loans(filed, log, file)
        months = _months(filed)
        find_breaks(months, log, file)
        _count(filed, months, log, file)
        panel = observed_panel(months, loans, log, file, options)
        return Tables(loans=loans.drop("_row"), panel=panel, recoveries=empty("recoveries"))


def _loans(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """The tape: what an instalment tape needs and a card file lacks is assumed and said."""
    for name, how in (
        ("origination_date", "assumed: the month before the first observed"),
        ("term_months", "assumed: 120, a card has no term"),
        ("interest_rate", f"assumed: {CARD_RATE:.0%}, not filed"),
        ("original_balance", "the credit limit"),
        ("amortization_type", "assumed: bullet, a card has no schedule"),
    ):
        log.note(file, name, how)
    start = add_months(LAST_MONTH, -len(STATUS))
    return complete_loans(
        filed,
        {
            "loan_id": pl.col("ID").str.strip_chars(),
            "origination_date": pl.lit(start),
            "maturity_date": pl.lit(add_months(start, 120)),
            "term_months": pl.lit(120),
            "original_balance": pl.col("LIMIT_BAL"),
            "interest_rate": pl.lit(CARD_RATE),
            "rate_type": pl.lit("fixed"),
            "amortization_type": pl.lit("bullet"),
            "asset_class": pl.lit("consumer"),
            "geography_country": pl.lit("TW"),
            "borrower_type": pl.lit("consumer"),
            "collateral_type": pl.lit("none"),
        },
        log,
        file,
    )


def _months(filed: pl.DataFrame) -> pl.DataFrame:
    """One row an account and month, oldest first.

    BILL_AMTx is the statement of a month; PAY_AMTx what was paid in that month (on the statement before).
    """
    frames = [
        filed.select(
            "_row",
            pl.col("ID").str.strip_chars().alias("loan_id"),
            pl.lit(add_months(LAST_MONTH, -k)).alias("reporting_month"),
            pl.col(BILLS[k]).alias("filed_balance"),
            pl.col(BILLS[k]).alias("opening_balance"),
            pl.col(PAYMENTS[k]).alias("paid"),
            (pl.col(BILLS[k]).clip(0.0, None) * _MINIMUM_PAYMENT).alias("scheduled"),
            pl.col(STATUS[k]).alias("code"),
            pl.col(STATUS[k]).clip(0, 3).alias("loan_state"),
            (30 * pl.col(STATUS[k]).clip(0, None)).alias("days_past_due"),
        )
        for k in range(len(STATUS))
    ]
    return pl.concat(frames).sort("loan_id", "reporting_month")


def find_breaks(months: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Codes whose share of a month jumps against the month before or after: month, code, share, neighbour."""
    shares = (
        months.group_by("reporting_month", "code")
        .len("n")
        .with_columns((pl.col("n") / pl.col("n").sum().over("reporting_month")).alias("share"))
    )
    grid = shares.select(pl.col("reporting_month").unique()).join(
        shares.select(pl.col("code").unique()), how="cross"
    )
    full = grid.join(shares, on=["reporting_month", "code"], how="left").with_columns(
        pl.col("n", "share").fill_null(0)
    )
    ordered = full.sort("code", "reporting_month").with_columns(
        pl.col("share").shift(1).over("code").alias("before"),
        pl.col("n").shift(1).over("code").alias("n_before"),
    )
    floor = 1 / months.height
    ratio = pl.max_horizontal("share", pl.lit(floor)) / pl.max_horizontal("before", pl.lit(floor))
    jumped = (pl.max_horizontal("n", "n_before") >= BREAK_COUNT) & (
        (ratio > BREAK_FACTOR) | (ratio < 1 / BREAK_FACTOR)
    )
    breaks = ordered.filter(pl.col("before").is_not_null() & jumped)
    log.count("data_breaks", breaks.height)
    for row in breaks.iter_rows(named=True):
        how = (
            f"data break in {row['reporting_month']:%Y-%m}: status {row['code']} goes from {row['n_before']} "
            f"to {row['n']} accounts; it has changed its meaning"
        )
        log.note(file, "PAY_x", how)
    return breaks


def _count(filed: pl.DataFrame, months: pl.DataFrame, log: QualityLog, file: str) -> None:
    values = [name for name in filed.columns if name not in ("_row", "ID")]
    log.count("accounts_equal_but_for_their_id", filed.height - filed.unique(values).height)
    log.count("undocumented_education", int((~filed["EDUCATION"].is_in([1, 2, 3, 4])).sum() or 0))
    log.count("undocumented_marriage", int((~filed["MARRIAGE"].is_in([1, 2, 3])).sum() or 0))
    log.count("undocumented_codes", months.filter(pl.col("code").is_in([-2, 0])).height)
    log.count("outcomes_not_in_the_panel", int((filed[OUTCOME] == 1).sum() or 0))
    log.count("accounts_with_a_negative_bill", filed.filter(pl.min_horizontal(BILLS) < 0).height)
    jumps = months.filter(
        (pl.col("loan_id") == pl.col("loan_id").shift(1))
        & (pl.col("loan_state") > pl.col("loan_state").shift(1) + 1)
    )
    log.count("jumps_of_two_buckets", jumps.height)
    lowest = pl.col("filed_balance").clip(0.0, None).min()
    by_account = months.group_by("loan_id").agg(
        lowest.alias("lowest"), pl.col("filed_balance").last().alias("bill")
    )
    gap = by_account.select((pl.col("bill").clip(0.0, None) - pl.col("lowest")).clip(0.0, None).sum()).item()
    log.note(
        file, "BILL_AMT1", f"static receivable: the last bills exceed outstanding balances by {gap:,.0f}"
    )
