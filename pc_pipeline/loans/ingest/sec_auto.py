"""Adapter `sec_auto`: SEC ABS-EE auto loans in two tables: EX-102 fields at cut-off, and monthly payments.

Here: the recency rule for payment-only panels, and the mapping of EX-102 fields to the tape. Not here: the
XML as filed (`sec_auto_xml`, which uses the same mapping), the cash ledger (`ledger`).

**Recency rule.** A month is missed when less than half of the level payment (amount, term, rate) came. The
state is the number of consecutive missed months, capped at 3; the count opens at zero in the cut-off month.
Default: the balance is written to zero in a month whose payment is less than half of the balance before.
Prepaid: the balance goes to zero with at least that, before the final contractual month; matured in or
after it. Under this rule a month late by a day is a miss: it is payment timing more than distress.

The cut-off month, for which the tape itself files balance and payment, is each loan's opening row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest import ledger
from pc_pipeline.loans.ingest.adapter import Options, Tables, cast_columns, find_part, recoveries_table
from pc_pipeline.loans.ingest.files import Part, read_part, where
from pc_pipeline.loans.ingest.history import in_order, known_months
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.screen import contract_rules, panel_rules, screen
from pc_pipeline.loans.ingest.tapes import complete_loans, positive, valid_score
from pc_pipeline.schemas.states import LoanState
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
MISSED_SHARE: Final = 0.5  # a month is missed when less than this share of the level payment came
WRITTEN_SHARE: Final = 0.5  # zero balance is a default when less than this share of the balance was paid


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
        opening = _opening_rows(filed, loans)
        panel, recoveries = recency_panel(opening, history, loans, log, where(months), options)
        return Tables(loans=loans.select(columns("loan_tape")), panel=panel, recoveries=recoveries)


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


def recency_panel(
    opening: pl.DataFrame,
    history: pl.DataFrame,
    loans: pl.DataFrame,
    log: QualityLog,
    file: str,
    options: Options,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(panel, recoveries) of a payment-only history by the recency rule.

    Args:
        opening: loan_id, reporting_month, filed_balance, paid, opening_balance: one row a loan.
        history: _row, loan_id, reporting_month, filed_balance, principal, paid, proceeds.
    """
    rows = known_months(history, loans, log, file, options)
    rows = in_order(rows, log, file)
    rows = pl.concat([opening.with_columns(pl.lit(0, pl.Int64).alias("_row")), rows], how="diagonal")
    rows = _drop_opening_doubles(rows.sort("loan_id", "reporting_month", "_row"))
    rows = _mark_end(rows)
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
        reason="balance missing and never written to zero: the loan leaves observation",
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
