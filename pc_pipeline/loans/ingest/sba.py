"""Adapter `sba`: US Small Business Administration 7(a) loans, one row a loan with its outcome.

Here: a tape, and one panel row for each charged-off loan: its month and amount. Not here: a monthly history.
None is filed, and none is made up: a paid loan has no month of payoff, so it is on the tape and has no row;
no month-to-month move can be counted. Every loan of such a file is settled: evidence on losses, not a pool.

**Charge-off.** Default in the month of ChgOffDate, of ChgOffPrinGr: gross principal written off, before the
guaranty. No recovery is filed, so the loss is the charge-off; what came before it counts as principal paid.

**Assumed**, and said in the quality table: the rate (not filed), level payments (revolving lines too).
Term is as filed; for defaulted loans it is often cut to the time of default: do not learn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from pc_pipeline.loans.ingest.adapter import Options, Tables, check_ids, empty, find_part
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.loans.ingest.history import observed_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.sec_auto import read_columns
from pc_pipeline.loans.ingest.tapes import complete_loans
from pc_pipeline.schemas.states import LoanState

REQUIRED: Final[dict[str, Any]] = {
    "LoanNr_ChkDgt": pl.String,
    "Term": pl.Int64,
    "DisbursementDate": pl.Date,
    "DisbursementGross": pl.Float64,
    "MIS_Status": pl.String,
    "ChgOffDate": pl.Date,
    "ChgOffPrinGr": pl.Float64,
}
OPTIONAL: Final[dict[str, Any]] = {
    "State": pl.String,
    "Bank": pl.String,
    "NAICS": pl.String,
    "RevLineCr": pl.String,
    "RealEstate": pl.Int64,
}
PAID, CHARGED_OFF = "P I F", "CHGOFF"
ASSUMED_RATE: Final = (
    0.095  # assumption: prime of some 7 % (mean 1995-2005) and a margin of 2.5 points; not filed
)


class Sba:
    """7(a) loans with their outcome."""

    name = "sba"
    rule = (
        "filed outcome: charged off is default in that month; paid in full has no month and no row; no "
        "delinquency and no history is filed"
    )
    expects = f"one row a loan with {', '.join(REQUIRED)}"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether some part has the 7(a) columns."""
        return any(part.has(tuple(REQUIRED)) for part in parts)

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, and the default rows of charged-off loans.

        Raises:
            IngestError: a column is missing.
        """
        part = find_part(parts, tuple(REQUIRED), "table of 7(a) loans")
        file = where(part)
        filed = read_columns(part, {**REQUIRED, **OPTIONAL}, log, "loan_tape")
        check_ids(filed, "LoanNr_ChkDgt", file)
        log.rows_in(file, filed)
        known = _known_outcomes(filed, log, file)
        loans = _loans(known, log, file)
        panel = observed_panel(_defaults(known, log, file), loans, log, file, options)
        return Tables(loans=loans.drop("_row"), panel=panel, recoveries=empty("recoveries"))


def _known_outcomes(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Rows that say paid or charged off; a charge-off needs its month and an amount."""
    status = pl.col("MIS_Status").str.strip_chars()
    marked = filed.with_columns(status.alias("MIS_Status"))
    odd = marked.filter(~pl.col("MIS_Status").is_in([PAID, CHARGED_OFF]).fill_null(False))
    log.count("unknown_outcomes", odd.height)
    log.refuse(
        odd, file=file, table="loan_tape", column="MIS_Status", reason="outcome neither P I F nor CHGOFF"
    )
    kept = marked.filter(pl.col("MIS_Status").is_in([PAID, CHARGED_OFF]))
    dated = pl.col("ChgOffDate").is_not_null() & (pl.col("ChgOffPrinGr") > 0)
    vague = kept.filter((pl.col("MIS_Status") == CHARGED_OFF) & ~dated.fill_null(False))
    log.count("charge_offs_without_month_or_amount", vague.height)
    log.refuse(
        vague, file=file, table="loan_tape", column="ChgOffDate", reason="charged off without month or amount"
    )
    return kept.join(vague.select("_row"), on="_row", how="anti", maintain_order="left")


def _loans(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """The tape; what a tape needs and the file lacks is assumed and said."""
    lines = filed.filter(pl.col("RevLineCr").is_in(["Y", "T"])).height
    odd_lines = filed.filter(~pl.col("RevLineCr").is_in(["Y", "N"]).fill_null(False)).height
    log.count("revolving_lines", lines)
    log.count("undocumented_revolving_codes", odd_lines)
    log.count("banks_missing", filed["Bank"].null_count())
    for name, how in (
        ("interest_rate", f"assumed: {ASSUMED_RATE:.1%}, not filed"),
        ("amortization_type", f"assumed: annuity; {lines} revolving lines (Y, T) too"),
        ("original_balance", "the amount disbursed"),
        ("term_months", "as filed; of defaulted loans often cut to the time of default"),
    ):
        log.note(file, name, how)
    start = pl.col("DisbursementDate")
    return complete_loans(
        filed,
        {
            "loan_id": pl.col("LoanNr_ChkDgt").str.strip_chars(),
            "origination_date": start,
            "maturity_date": start.dt.month_start().dt.offset_by(
                pl.format("{}mo", pl.col("Term").clip(-1200, 1200))
            ),
            "term_months": pl.col("Term"),
            "original_balance": pl.col("DisbursementGross"),
            "interest_rate": pl.lit(ASSUMED_RATE),
            "rate_type": pl.lit("fixed"),
            "amortization_type": pl.lit("annuity"),
            "asset_class": pl.lit("corporate"),
            "industry_sector": pl.col("NAICS"),
            "geography_country": pl.lit("US"),
            "geography_region": pl.col("State"),
            "borrower_type": pl.lit("sme"),
            "collateral_type": pl.when(pl.col("RealEstate") == 1).then(pl.lit("real_estate")),
            "originator_id": pl.col("Bank"),
        },
        log,
        file,
    )


def _defaults(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """One month a charged-off loan: what is written off is what it held before."""
    gone = filed.filter(pl.col("MIS_Status") == CHARGED_OFF)
    log.count("defaults", gone.height)
    log.count("paid_in_full_without_a_month", filed.height - gone.height)
    over = gone.filter(pl.col("ChgOffPrinGr") > pl.col("DisbursementGross")).height
    log.repair(file, "ChgOffPrinGr", over, "above the amount disbursed: written off is the amount disbursed")
    log.note(file, "ChgOffPrinGr", "gross charge-off, before the guaranty; no recovery is filed")
    return gone.select(
        "_row",
        pl.col("LoanNr_ChkDgt").str.strip_chars().alias("loan_id"),
        pl.col("ChgOffDate").dt.month_start().alias("reporting_month"),
        pl.lit(0.0).alias("filed_balance"),
        pl.col("ChgOffPrinGr").alias("opening_balance"),
        pl.lit(int(LoanState.default), pl.Int64).alias("loan_state"),
        pl.lit(0.0).alias("paid"),
        pl.lit(0.0).alias("recovery"),
    )
