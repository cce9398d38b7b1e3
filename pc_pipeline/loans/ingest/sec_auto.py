"""Adapter `sec_auto`: SEC ABS-EE auto loans in two tables: EX-102 fields at cut-off, and monthly payments.

Here: the mapping of EX-102 fields to the tape, and of the payment table to months. Not here: the rule of
delinquency (`recency`), the XML as filed (`sec_auto_xml`, which uses the same mapping).

The cut-off month, for which the tape itself files balance and payment, is each loan's opening row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest.adapter import Options, Tables, cast_columns, find_part
from pc_pipeline.loans.ingest.files import Part, read_part, where
from pc_pipeline.loans.ingest.recency import filed_history, recency_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.tapes import complete_loans, positive, valid_score
from pc_pipeline.schemas.tables import columns

TAPE_COLUMNS: Final[dict[str, Any]] = {
    "assetNumber": pl.String,
    "reportingPeriodEndingDate": pl.String,
    "originationDate": pl.String,
    "loanMaturityDate": pl.String,
    "originalLoanAmount": pl.Float64,
    "originalLoanTerm": pl.Int64,
    "originalInterestRatePercentage": pl.Float64,
    "reportingPeriodActualEndBalanceAmount": pl.Float64,
    "totalActualAmountPaid": pl.Float64,
}
OPTIONAL: Final[dict[str, Any]] = {
    "deal": pl.String,
    "originatorName": pl.String,
    "vehicleNewUsedCode": pl.String,
    "vehicleValueAmount": pl.Float64,
    "obligorCreditScore": pl.String,
    "paymentToIncomePercentage": pl.Float64,
    "obligorGeographicLocation": pl.String,
    "reportingPeriodBeginningLoanBalanceAmount": pl.Float64,
    "reportingPeriodScheduledPaymentAmount": pl.Float64,
    "actualPrincipalCollectedAmount": pl.Float64,
    "currentDelinquencyStatus": pl.Float64,
}
PANEL_COLUMNS: Final[dict[str, Any]] = {
    "asset_number": pl.String,
    "period_end": pl.Date,
    "end_balance": pl.Float64,
    "principal_collected": pl.Float64,
    "total_paid": pl.Float64,
    "recovered": pl.Float64,
    "repossession_proceeds": pl.Float64,
}


class SecAuto:
    """SEC auto loans, two-table form."""

    name = "sec_auto"
    rule = (
        "recency: a month is missed when less than half of the level payment came; state = consecutive "
        "missed months, at most 3; default = balance written to zero without a payment of at least half of "
        "it; prepaid = balance to zero with payment before the final contractual month, matured from then on"
    )
    expects = f"a tape with {', '.join(TAPE_COLUMNS)} and a panel with {', '.join(PANEL_COLUMNS)}"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether a part has the tape's fields and another the panel's."""
        return any(part.has(tuple(TAPE_COLUMNS)) for part in parts) and any(
            part.has(("asset_number", "period_end", "end_balance", "total_paid")) for part in parts
        )

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: a table or column is missing, or identifiers are rounded.
        """
        tape = find_part(parts, tuple(TAPE_COLUMNS), "auto tape")
        months = find_part(parts, tuple(PANEL_COLUMNS), "auto panel")
        filed = read_columns(tape, {**TAPE_COLUMNS, **OPTIONAL}, log, "loan_tape")
        log.rows_in(where(tape), filed)
        loans = auto_loans(filed, log, where(tape))
        rows = read_columns(months, PANEL_COLUMNS, log, "loan_panel")
        log.rows_in(where(months), rows, pl.col("period_end").dt.month_start())
        history = rows.select(
            "_row",
            pl.col("asset_number").alias("loan_id"),
            pl.col("period_end").dt.month_start().alias("reporting_month"),
            pl.col("end_balance").alias("filed_balance"),
            pl.col("principal_collected").alias("principal"),
            pl.col("total_paid").alias("paid"),
            (pl.col("recovered").fill_null(0.0) + pl.col("repossession_proceeds").fill_null(0.0)).alias(
                "proceeds"
            ),
        )
        kept = filed_history(_opening_rows(filed, loans), history, loans, log, where(months), options)
        panel, recoveries = recency_panel(kept, loans, log, where(months), options)
        return Tables(
            loans=loans.select(columns("loan_tape")), panel=panel, recoveries=recoveries, filed=kept
        )

    def rejoin(self, filed: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> Tables:
        """Tables of the months as filed in several deliveries, as if they had come in one."""
        panel, recoveries = recency_panel(filed, loans, log, file, Options())
        return Tables(loans=loans, panel=panel, recoveries=recoveries, filed=filed)


def read_columns(part: Part, types: dict[str, Any], log: QualityLog, table: str) -> pl.DataFrame:
    """The columns of `types`, cast; those that are missing come as null."""
    present = {name: dtype for name, dtype in types.items() if name in part.columns}
    frame = cast_columns(read_part(part, columns=list(present)), present, log, file=where(part), table=table)
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in types.items() if name not in present]
    return frame.with_columns(absent)


def filed_month(name: str) -> pl.Expr:
    """A month from the texts EX-102 files use: MM/YYYY, MM-YYYY, MM-DD-YYYY, MM/DD/YYYY, YYYY-MM-DD."""
    text = pl.col(name).cast(pl.String).str.strip_chars().str.replace_all("-", "/")
    return pl.coalesce(
        ("01/" + text).str.to_date("%d/%m/%Y", strict=False),
        text.str.to_date("%m/%d/%Y", strict=False),
        text.str.to_date("%Y/%m/%d", strict=False),
    ).dt.month_start()


def auto_loans(filed: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Table loan_tape from EX-102 fields."""
    value, amount = pl.col("vehicleValueAmount"), pl.col("originalLoanAmount")
    score = valid_score(pl.col("obligorCreditScore").cast(pl.Float64, strict=False))
    odd_score = filed.select((pl.col("obligorCreditScore").is_not_null() & score.is_null()).sum()).item() or 0
    log.count("unusable_scores", odd_score)
    log.repair(file, "obligorCreditScore", odd_score, "text, or outside 300-850: null")
    no_value = filed.select((value <= 0).sum()).item() or 0
    log.repair(file, "vehicleValueAmount", no_value, "zero means missing: null")
    for name, how in (
        ("ltv_origination", "derived: original amount over vehicle value"),
        ("dti_dscr_origination", "payment to income, where filed"),
        ("maturity_date", "as filed; it may differ from origination plus term by a few months"),
    ):
        log.note(file, name, how)
    car = positive(value)
    return complete_loans(
        filed,
        {
            "loan_id": pl.col("assetNumber").str.strip_chars(),
            "origination_date": filed_month("originationDate"),
            "maturity_date": filed_month("loanMaturityDate"),
            "term_months": pl.col("originalLoanTerm"),
            "original_balance": amount,
            "interest_rate": pl.col("originalInterestRatePercentage"),
            "rate_type": pl.lit("fixed"),
            "amortization_type": pl.lit("annuity"),
            "asset_class": pl.lit("consumer"),
            "ltv_origination": amount / car,
            "dti_dscr_origination": pl.col("paymentToIncomePercentage"),
            "external_score_origination": score,
            "geography_country": pl.lit("US"),
            "geography_region": pl.col("obligorGeographicLocation").str.strip_chars(),
            "borrower_type": pl.lit("consumer"),
            "collateral_type": pl.col("vehicleNewUsedCode").replace_strict(
                {"1": "vehicle_new", "2": "vehicle_used"}, default="vehicle", return_dtype=pl.String
            ),
            "collateral_value_origination": car,
            "originator_id": pl.col("originatorName").str.strip_chars(),
            "underwriting_standard_version": pl.col("deal"),
        },
        log,
        file,
    )


def _opening_rows(filed: pl.DataFrame, loans: pl.DataFrame) -> pl.DataFrame:
    """The cut-off month of each loan, as filed on the tape."""
    begin = pl.col("reportingPeriodBeginningLoanBalanceAmount")
    rows = filed.select(
        pl.col("assetNumber").str.strip_chars().alias("loan_id"),
        filed_month("reportingPeriodEndingDate").alias("reporting_month"),
        pl.col("reportingPeriodActualEndBalanceAmount").alias("filed_balance"),
        pl.col("actualPrincipalCollectedAmount").alias("principal"),
        pl.col("totalActualAmountPaid").alias("paid"),
        pl.lit(0.0).alias("proceeds"),
        begin.alias("opening_balance"),
    )
    if rows["reporting_month"].null_count():
        raise IngestError(
            "the cut-off month cannot be read",
            expected="MM-DD-YYYY",
            got=filed["reportingPeriodEndingDate"][0],
        )
    return rows.join(loans.select("loan_id"), on="loan_id", how="semi", maintain_order="left").unique(
        "loan_id", keep="first", maintain_order=True
    )
