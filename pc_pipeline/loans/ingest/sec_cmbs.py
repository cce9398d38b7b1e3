"""Adapter `sec_cmbs`: SEC ABS-EE commercial mortgages, one row a loan and reporting period, as filed.

Here: the filed-status rule and the mapping of EX-102 CMBS fields. Not here: the property table's own fields
beyond value, kind, state and debt service cover.

**Filed status.** paymentStatusLoanCode 0 (current), A (grace), B (under 30 days late) and 4 (performing
matured balloon) are performing; 1, 2, 3 are 30, 60, 90 and more days; 5 (non-performing matured balloon) is
90dpd. The loan ends when its balance is zero: default where a realised loss was filed or it was disposed of
(liquidationPrepaymentCode 3, 6, 7); else prepaid, or matured from the final contractual month on. A default
charges off the balance before; balance less realised loss is its recovery, dated the same month.

A period filed twice counts once: the amendment (later filing) replaces the first. Periods end on about the
11th; the row is the month in which its period ends. Rows that go on after the end with every amount null
are no loan-months. loan to value is this note's amount over the whole property's value: a note of a larger
loan (pari passu) looks safer than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from pc_pipeline.loans.ingest.adapter import Options, Tables, find_part, recoveries_table
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.loans.ingest.history import observed_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.sec_auto import read_columns
from pc_pipeline.loans.ingest.tapes import complete_loans
from pc_pipeline.schemas.states import LoanState

REQUIRED: Final[dict[str, Any]] = {
    "assetNumber": pl.String,
    "reportingPeriodEndDate": pl.Date,
    "originationDate": pl.Date,
    "maturityDate": pl.Date,
    "originalLoanAmount": pl.Float64,
    "originalTermLoanNumber": pl.Int64,
    "originalInterestRatePercentage": pl.Float64,
    "reportPeriodEndActualBalanceAmount": pl.Float64,
    "paymentStatusLoanCode": pl.String,
}
OPTIONAL: Final[dict[str, Any]] = {
    "loanID": pl.String,
    "trustName": pl.String,
    "dateFiled": pl.Date,
    "formType": pl.String,
    "originatorName": pl.String,
    "originalInterestRateTypeCode": pl.String,
    "paymentTypeCode": pl.String,
    "armIndexCode": pl.String,
    "armMarginNumber": pl.Float64,
    "reportPeriodBeginningScheduleLoanBalanceAmount": pl.Float64,
    "reportPeriodInterestRatePercentage": pl.Float64,
    "scheduledInterestAmount": pl.Float64,
    "totalScheduledPrincipalInterestDueAmount": pl.Float64,
    "unscheduledPrincipalCollectedAmount": pl.Float64,
    "realizedLossToTrustAmount": pl.Float64,
    "liquidationPrepaymentCode": pl.String,
    "workoutStrategyCode": pl.String,
}
PROPERTY: Final[dict[str, Any]] = {
    "assetNumber": pl.String,
    "loanID": pl.String,
    "propertyState": pl.String,
    "propertyTypeCode": pl.String,
    "valuationSecuritizationAmount": pl.Float64,
    "debtServiceCoverageNetOperatingIncomeSecuritizationPercentage": pl.Float64,
}
STATUS: Final = {"0": 0, "A": 0, "B": 0, "4": 0, "1": 1, "2": 2, "3": 3, "5": 3}
LOSS_CODES: Final = ("3", "6", "7")
_KINDS: Final = {"1": "annuity", "2": "balloon", "3": "bullet", "4": "annuity", "5": "balloon"}
_PROPERTIES: Final = {
    "CH": "cooperative",
    "HC": "healthcare",
    "IN": "industrial",
    "LO": "lodging",
    "MF": "multifamily",
    "MH": "mobile_home_park",
    "MU": "mixed_use",
    "OF": "office",
    "RT": "retail",
    "SS": "self_storage",
    "WH": "warehouse",
}
_MONTH: Final = pl.col("reporting_month")


class SecCmbs:
    """SEC commercial mortgages with filed delinquency status."""

    name = "sec_cmbs"
    rule = (
        "filed status: paymentStatusLoanCode 0, A, B, 4 performing; 1, 2, 3 are 30, 60, 90+ days; 5 is "
        "90dpd; balance zero ends the loan: default with a realised loss or disposition, else prepaid/matured"
    )
    expects = f"loan rows with {', '.join(REQUIRED)}; optionally property rows"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether some part has the loan rows' fields."""
        return any(part.has(tuple(REQUIRED)) for part in parts)

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: a table or column is missing.
        """
        part = find_part(parts, tuple(REQUIRED), "table of commercial mortgages")
        file = where(part)
        filed = read_columns(part, {**REQUIRED, **OPTIONAL}, log, "loan_panel").with_columns(
            pl.coalesce("loanID", "assetNumber").str.strip_chars().alias("loan_id"),
            pl.col("reportingPeriodEndDate").dt.month_start().alias("reporting_month"),
        )
        log.rows_in(file, filed, _MONTH)
        rows = _latest_filing(filed, log, file)
        loans = _loans(rows, parts, log, file)
        stated = _state(rows, loans, log, file)
        panel = observed_panel(stated, loans, log, file, options)
        return Tables(loans=loans.drop("_row"), panel=panel, recoveries=_recoveries(panel, stated, log))


def _latest_filing(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """One row a loan and month: of a period filed twice the later filing."""
    amended = pl.col("formType").fill_null("").str.ends_with("/A")
    ordered = filed.with_columns(amended.alias("_amended")).sort(
        "loan_id", "reporting_month", "dateFiled", "_amended", maintain_order=True, nulls_last=False
    )
    last = ordered.unique(["loan_id", "reporting_month"], keep="last", maintain_order=True)
    log.count("refiled_rows_replaced", ordered.height - last.height)
    log.count("rows_of_an_amendment", int(ordered["_amended"].sum()))
    replaced = ordered.join(last.select("_row"), on="_row", how="anti", maintain_order="left")
    how = "period filed again: the later filing replaces it"
    log.repair(file, "dateFiled", replaced.height, how, replaced["reporting_month"])
    return last


def _loans(rows: pl.DataFrame, parts: Sequence[Part], log: QualityLog, file: str) -> pl.DataFrame:
    first = rows.unique("loan_id", keep="first", maintain_order=True)
    first = first.join(_properties(parts, log), on="loan_id", how="left", maintain_order="left")
    is_arm = pl.col("originalInterestRateTypeCode") == "2"
    amount, value = pl.col("originalLoanAmount"), pl.col("value")
    log.note(file, "ltv_origination", "derived: this note over the whole property's value")
    log.note(file, "dti_dscr_origination", "net operating income over debt service, at securitisation")
    kind = pl.col("paymentTypeCode").replace_strict(_KINDS, default="balloon", return_dtype=pl.String)
    return complete_loans(
        first,
        {
            "loan_id": pl.col("loan_id"),
            "origination_date": pl.col("originationDate"),
            "maturity_date": pl.col("maturityDate").dt.month_start(),
            "term_months": pl.col("originalTermLoanNumber"),
            "original_balance": amount,
            "interest_rate": pl.col("originalInterestRatePercentage"),
            "rate_type": pl.when(is_arm).then(pl.lit("floating")).otherwise(pl.lit("fixed")),
            "spread_bps": pl.when(is_arm).then(pl.col("armMarginNumber") * 10_000),
            "benchmark": pl.when(is_arm).then(pl.col("armIndexCode")),
            "amortization_type": kind,
            "asset_class": pl.lit("realestate"),
            "ltv_origination": amount / value,
            "dti_dscr_origination": pl.col("cover"),
            "geography_country": pl.lit("US"),
            "geography_region": pl.col("region"),
            "borrower_type": pl.lit("corporate"),
            "collateral_type": pl.col("kind").replace_strict(
                _PROPERTIES, default="property", return_dtype=pl.String
            ),
            "collateral_value_origination": value,
            "originator_id": pl.col("originatorName"),
            "underwriting_standard_version": pl.col("trustName"),
        },
        log,
        file,
    )


def _properties(parts: Sequence[Part], log: QualityLog) -> pl.DataFrame:
    """Value, cover, kind and state of each loan's property: loan_id, value, cover, kind, region."""
    found = [part for part in parts if part.has(("assetNumber", "propertyTypeCode", "propertyState"))]
    if not found:
        empty = {
            "loan_id": pl.String,
            "value": pl.Float64,
            "cover": pl.Float64,
            "kind": pl.String,
            "region": pl.String,
        }
        return pl.DataFrame(schema=empty)
    frame = read_columns(found[0], PROPERTY, log, "loan_tape")
    log.rows_in(where(found[0]), frame)
    value = pl.col("valuationSecuritizationAmount")
    cover = pl.col("debtServiceCoverageNetOperatingIncomeSecuritizationPercentage")
    return (
        frame.with_columns(pl.coalesce("loanID", "assetNumber").str.strip_chars().alias("loan_id"))
        .group_by("loan_id", maintain_order=True)
        .agg(
            pl.when(value > 0).then(value).drop_nulls().first().alias("value"),
            pl.when(cover > 0).then(cover).drop_nulls().first().alias("cover"),
            pl.col("propertyTypeCode").drop_nulls().first().alias("kind"),
            pl.col("propertyState").drop_nulls().first().alias("region"),
        )
    )


def _state(rows: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Observed months with loan_state by the filed status."""
    balance = pl.col("reportPeriodEndActualBalanceAmount")
    ended = (balance <= 0).fill_null(False)
    was_ended = (ended.cum_sum().over("loan_id") - ended.cast(pl.UInt32)) > 0
    marked = rows.join(
        loans.select("loan_id", "maturity_date"), on="loan_id", how="left", maintain_order="left"
    )
    marked = marked.with_columns(was_ended.alias("_was_ended"))
    blank = marked.filter(pl.col("_was_ended") & balance.is_null())
    log.count("rows_after_end", blank.height)
    how = "filed after the loan ended, every amount null: no loan-month"
    log.repair(file, "reportPeriodEndActualBalanceAmount", blank.height, how, blank["reporting_month"])
    alive = marked.filter(~(pl.col("_was_ended") & balance.is_null()))
    lost = (pl.col("realizedLossToTrustAmount").fill_null(0.0) > 0) | pl.col(
        "liquidationPrepaymentCode"
    ).is_in(LOSS_CODES)
    is_final = pl.col("maturity_date") <= _MONTH
    filed = (
        pl.col("paymentStatusLoanCode")
        .str.strip_chars()
        .replace_strict(STATUS, default=None, return_dtype=pl.Int64)
    )
    state = (
        pl.when((balance <= 0) & lost.fill_null(False))
        .then(int(LoanState.default))
        .when((balance <= 0) & is_final)
        .then(int(LoanState.matured))
        .when(balance <= 0)
        .then(int(LoanState.prepaid))
        .otherwise(filed)
    )
    stated = alive.with_columns(state.cast(pl.Int64).alias("loan_state"))
    unknown = stated.filter(pl.col("loan_state").is_null() | balance.is_null())
    log.count("unknown_status", unknown.height)
    log.refuse(
        unknown.select("_row", "loan_id", "reporting_month", "paymentStatusLoanCode", balance),
        file=file,
        table="loan_panel",
        column="paymentStatusLoanCode",
        reason="status or balance missing while the loan lives",
        month=_MONTH,
    )
    good = stated.filter(pl.col("loan_state").is_not_null() & balance.is_not_null())
    before = pl.coalesce(balance.shift(1).over("loan_id"), "reportPeriodBeginningScheduleLoanBalanceAmount")
    is_default = pl.col("loan_state") == LoanState.default
    return good.select(
        "_row",
        "loan_id",
        "reporting_month",
        balance.alias("filed_balance"),
        pl.col("totalScheduledPrincipalInterestDueAmount").alias("scheduled"),
        pl.col("scheduledInterestAmount").alias("interest_due"),
        pl.col("unscheduledPrincipalCollectedAmount").alias("prepaid"),
        pl.col("reportPeriodBeginningScheduleLoanBalanceAmount").alias("opening_balance"),
        pl.col("reportPeriodInterestRatePercentage").alias("rate"),
        "loan_state",
        pl.when(is_default)
        .then(before - pl.col("realizedLossToTrustAmount").fill_null(0.0))
        .alias("recovery"),
    )


def _recoveries(panel: pl.DataFrame, stated: pl.DataFrame, log: QualityLog) -> pl.DataFrame:
    """Proceeds of a liquidation: balance less realised loss, dated the month of liquidation."""
    defaults = panel.filter(pl.col("loan_state") == LoanState.default)
    log.count("defaults", defaults.height)
    dated = defaults.filter(pl.col("recovery_amount") > 0)
    return recoveries_table(
        dated.select(
            "loan_id",
            _MONTH.alias("default_month"),
            _MONTH.alias("recovery_month"),
            "recovery_amount",
        )
    )
