"""Adapter `fannie_mae`: Fannie Mae single-family loan performance, both public layouts.

Here: the two pipe-delimited layouts without header lines (acquisition + performance files until 2020, one
combined file of more than 100 fields since), the same with named columns, and the filed-status rule. Not
here: how to obtain the data: the terms are Fannie Mae's.

**Filed status.** The delinquency status counts months: 0 performing, 1, 2 and 3 or more are 30, 60, 90dpd;
-1, -2, X and blanks are unknown and quarantine the row unless the loan ends in it. Zero balance code 01
(prepaid or matured) and 06 (repurchased: the balance was paid by the seller) end as prepaid, or matured from
the final contractual month on; 02, 03, 09, 15 (third-party sale, short sale, deed in lieu or REO, note sale)
are defaults; other codes (16 and above: removals that are no credit event) end the observation.

The first months of a loan file no balance; the contractual schedule stands in and is counted. Dates come as
MM/YYYY, MM/DD/YYYY and MMYYYY; the word NULL and an empty field both mean missing; rates are percent.
Recoveries are sale and other proceeds less costs, dated at disposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.ingest import ledger
from pc_pipeline.loans.ingest.adapter import Options, Tables, check_ids, recoveries_table
from pc_pipeline.loans.ingest.files import Part, read_part, where
from pc_pipeline.loans.ingest.history import observed_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.tapes import complete_loans, positive, valid_score
from pc_pipeline.schemas.states import LoanState

_ACQUISITION = """
loan_id orig_channel seller_name orig_interest_rate orig_upb orig_loan_term orig_date first_pay_date
orig_ltv orig_cltv num_borrowers dti borrower_credit_score first_home_buyer loan_purpose property_type
num_units occupancy_status property_state zip3 mortgage_insurance_percent product_type
coborrow_credit_score mortgage_insurance_type relocation_mortgage_indicator quarter_tag
"""
ACQUISITION: Final = tuple(_ACQUISITION.split())
_PERFORMANCE = """
loan_id monthly_reporting_period servicer interest_rate current_actual_upb loan_age
remaining_months_to_legal_maturity adj_remaining_months_to_maturity maturity_date msa
current_loan_delinquency_status mod_flag zero_balance_code zero_balance_effective_date
last_paid_installment_date foreclosed_after disposition_date foreclosure_costs
prop_preservation_and_repair_costs asset_recovery_costs misc_holding_expenses holding_taxes
net_sale_proceeds credit_enhancement_proceeds repurchase_make_whole_proceeds other_foreclosure_proceeds
non_interest_bearing_upb principal_forgiveness_upb repurchase_make_whole_proceeds_flag
foreclosure_principal_write_off_amount servicing_activity_indicator
"""
PERFORMANCE: Final = tuple(_PERFORMANCE.split())
_COMBINED = """
pool_id loan_id monthly_reporting_period orig_channel seller_name servicer master_servicer
orig_interest_rate interest_rate orig_upb issuance_upb current_actual_upb orig_loan_term orig_date
first_pay_date loan_age remaining_months_to_legal_maturity adj_remaining_months_to_maturity
maturity_date orig_ltv orig_cltv num_borrowers dti borrower_credit_score coborrow_credit_score
first_home_buyer loan_purpose property_type num_units occupancy_status property_state msa zip3
mortgage_insurance_percent product_type prepayment_penalty interest_only io_first_payment_date
months_to_amortization current_loan_delinquency_status payment_history mod_flag mi_cancellation
zero_balance_code zero_balance_effective_date removal_upb repurchase_date scheduled_principal
total_principal unscheduled_principal last_paid_installment_date foreclosed_after disposition_date
foreclosure_costs prop_preservation_and_repair_costs asset_recovery_costs misc_holding_expenses
holding_taxes net_sale_proceeds credit_enhancement_proceeds repurchase_make_whole_proceeds
other_foreclosure_proceeds non_interest_bearing_upb principal_forgiveness_upb
"""
COMBINED: Final = tuple(
    _COMBINED.split()
)  # fields 1-64 of the combined layout, in our spelling of the old one's names
_COSTS: Final = (
    "foreclosure_costs",
    "prop_preservation_and_repair_costs",
    "asset_recovery_costs",
    "misc_holding_expenses",
    "holding_taxes",
)
_PROCEEDS: Final = (
    "net_sale_proceeds",
    "credit_enhancement_proceeds",
    "repurchase_make_whole_proceeds",
    "other_foreclosure_proceeds",
)
PAID_CODES: Final = ("01", "06")
LOSS_CODES: Final = ("02", "03", "09", "15")
_MONTH: Final = pl.col("reporting_month")


class FannieMae:
    """Fannie Mae loan performance, old two-file and combined layouts."""

    name = "fannie_mae"
    rule = (
        "filed status: current_loan_delinquency_status counts months past due, 3 or more is 90dpd; zero "
        "balance codes 01 and 06 end as prepaid or matured, 02, 03, 09, 15 as default"
    )
    expects = (
        "pipe-delimited files without header: acquisition (25 or 26 fields) and performance (27 to 31 "
        "fields), or combined (100 fields or more); or those columns by name"
    )

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether the parts are one of the layouts, by field count or names."""
        roles = [_role(part) for part in parts]
        return "combined" in roles or ("acquisition" in roles and "performance" in roles)

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: a file is missing or no such layout.
        """
        combined = [part for part in parts if _role(part) == "combined"]
        if combined:
            rows = pl.concat([_text(part, COMBINED) for part in combined], how="vertical")
            file = where(combined[0])
            static, months = rows.unique("loan_id", keep="first", maintain_order=True), rows
            tape_file = file
        else:
            static, tape_file = _role_rows(parts, "acquisition", ACQUISITION)
            months, file = _role_rows(parts, "performance", PERFORMANCE)
            log.rows_in(tape_file, static)
        check_ids(months.head(10_000), "loan_id", file)
        months = months.with_columns(text_month("monthly_reporting_period").alias("reporting_month"))
        log.rows_in(file, months, _MONTH)
        loans = _loans(static, log, tape_file)
        stated = _state(months, loans, log, file)
        panel = observed_panel(stated, loans, log, file, options)
        return Tables(loans=loans.drop("_row"), panel=panel, recoveries=_recoveries(panel, stated, log, file))


def text_month(name: str) -> pl.Expr:
    """A month from MM/YYYY, MM/DD/YYYY or MMYYYY."""
    text = pl.col(name).str.strip_chars()
    return pl.coalesce(
        ("01/" + text).str.to_date("%d/%m/%Y", strict=False),
        text.str.to_date("%m/%d/%Y", strict=False),
        ("01" + text.str.zfill(6)).str.to_date("%d%m%Y", strict=False),
    ).dt.month_start()


def _role(part: Part) -> str:
    """'acquisition', 'performance', 'combined' or ''."""
    for role, names in (
        ("acquisition", ACQUISITION[:25]),
        ("performance", PERFORMANCE[:13]),
        ("combined", COMBINED),
    ):
        if part.has(names):
            return role
    if part.kind != "delimited" or part.delimiter != "|" or "loan_id" in part.columns:
        return ""
    n = len(part.columns)
    if n >= 100:
        return "combined"
    if n in (len(ACQUISITION) - 1, len(ACQUISITION)):
        return "acquisition"
    return "performance" if 27 <= n <= len(PERFORMANCE) else ""


def _text(part: Part, names: Sequence[str]) -> pl.DataFrame:
    """A part as text under our names, with columns that the layout lacks as null; NULL and blank are null."""
    if part.has(names[:13]):
        frame = read_part(part, columns=names)
    else:
        n = len(part.columns)
        labels = [*names[:n], *(f"field_{k + 1}" for k in range(len(names), n))]
        frame = read_part(part, columns=names, names=labels)
    present = [name for name in frame.columns if name != "_row"]
    clean = pl.col(present).cast(pl.String).str.strip_chars()
    frame = frame.with_columns(
        pl.when(clean.str.to_uppercase().is_in(["", "NULL"])).then(None).otherwise(clean).name.keep()
    )
    return frame.with_columns(
        pl.lit(None, pl.String).alias(name) for name in names if name not in present
    ).select("_row", *names)


def _role_rows(parts: Sequence[Part], role: str, names: Sequence[str]) -> tuple[pl.DataFrame, str]:
    found = [part for part in parts if _role(part) == role]
    if not found:
        raise IngestError(
            f"no {role} file",
            expected=f"fields {', '.join(names[:6])} ...",
            got=", ".join(where(part) for part in parts),
            where=parts[0].path.parent,
        )
    return pl.concat([_text(part, names) for part in found], how="vertical"), where(found[0])


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False)


def _loans(static: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Table loan_tape; percent fields become decimals."""
    repeated = static.height - static["loan_id"].n_unique()
    log.count("loans_filed_twice", repeated)
    amount, ltv = _number("orig_upb"), positive(_number("orig_ltv"))
    first_pay, start = text_month("first_pay_date"), text_month("orig_date")
    term = _number("orig_loan_term").cast(pl.Int64)
    for name in ("interest_rate", "ltv_origination", "dti_dscr_origination"):
        log.note(file, name, "percent as filed: divided by 100")
    log.note(file, "maturity_date", "derived: first payment plus term less one month")
    log.note(file, "amortization_type", "annuity: fixed-rate mortgages; interest-only ones as bullet")
    fixed = pl.col("product_type").fill_null("FRM").str.starts_with("FRM")
    interest_only = pl.col("interest_only") == "Y" if "interest_only" in static.columns else pl.lit(False)
    return complete_loans(
        static,
        {
            "loan_id": pl.col("loan_id"),
            "origination_date": start,
            "maturity_date": first_pay.dt.offset_by(pl.format("{}mo", term.clip(1, 1200) - 1)),
            "term_months": term,
            "original_balance": amount,
            "interest_rate": _number("orig_interest_rate") / 100,
            "rate_type": pl.when(fixed).then(pl.lit("fixed")).otherwise(pl.lit("floating")),
            "amortization_type": pl.when(interest_only.fill_null(False))
            .then(pl.lit("bullet"))
            .otherwise(pl.lit("annuity")),
            "asset_class": pl.lit("realestate"),
            "ltv_origination": ltv / 100,
            "dti_dscr_origination": _number("dti") / 100,
            "external_score_origination": valid_score(_number("borrower_credit_score")),
            "geography_country": pl.lit("US"),
            "geography_region": pl.col("property_state"),
            "borrower_type": pl.lit("consumer"),
            "collateral_type": pl.lit("residential_") + pl.col("property_type").str.to_lowercase(),
            "collateral_value_origination": amount / ltv * 100,
            "originator_id": pl.col("seller_name"),
        },
        log,
        file,
    )


def _state(months: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Observed months with loan_state by the filed status."""
    facts = loans.select(
        "loan_id",
        pl.col("maturity_date").alias("_maturity"),
        pl.col("vintage_month").alias("_vintage"),
        pl.col("original_balance").alias("_amount"),
        pl.col("interest_rate").alias("_original_rate"),
        pl.col("term_months").alias("_term"),
    )
    code = _number("zero_balance_code").cast(pl.Int64).cast(pl.String).str.zfill(2)
    rows = months.with_columns(
        code.alias("_code"), _number("current_loan_delinquency_status").cast(pl.Int64).alias("_late")
    ).join(facts, on="loan_id", how="left", maintain_order="left")
    paid, lost = pl.col("_code").is_in(PAID_CODES), pl.col("_code").is_in(LOSS_CODES)
    is_final = pl.col("_maturity") <= _MONTH
    living = pl.when(pl.col("_late") >= 0).then(pl.col("_late").clip(0, 3))
    state = (
        pl.when(lost)
        .then(int(LoanState.default))
        .when(paid & is_final)
        .then(int(LoanState.matured))
        .when(paid)
        .then(int(LoanState.prepaid))
        .when(pl.col("_code").is_null())
        .then(living)
    )
    rows = rows.with_columns(state.cast(pl.Int64).alias("loan_state"))
    _count(rows, log, file)
    unknown = pl.col("loan_state").is_null()
    log.refuse(
        rows.filter(unknown).select("_row", *PERFORMANCE[:13], "reporting_month"),
        file=file,
        table="loan_panel",
        column="current_loan_delinquency_status",
        reason="status unknown, or the loan was removed without a credit event",
        month=_MONTH,
    )
    good = rows.filter(~unknown)
    age = month_index_expr("reporting_month") - month_index_expr("_vintage")
    schedule = ledger.scheduled_balance(pl.col("_amount"), pl.col("_original_rate"), pl.col("_term"), age - 1)
    balance = _number("current_actual_upb")
    blank = good.filter(balance.is_null() & (pl.col("loan_state") < LoanState.default))
    log.count("blank_balances", blank.height)
    how = "blank in the first months: the contractual schedule stands in"
    log.repair(file, "current_actual_upb", blank.height, how, blank["reporting_month"])
    living_state = pl.col("loan_state") < LoanState.default
    return good.select(
        "_row",
        "loan_id",
        "reporting_month",
        pl.when(living_state).then(pl.coalesce(balance, schedule)).otherwise(0.0).alias("filed_balance"),
        (_number("interest_rate") / 100).alias("rate"),
        "loan_state",
        pl.when(living_state).then(30 * pl.col("_late")).alias("days_past_due"),
        pl.when(pl.col("loan_state") == LoanState.default).then(_net_proceeds()).alias("recovery"),
        pl.max_horizontal(text_month("disposition_date"), "reporting_month").alias("recovery_month"),
    )


def _net_proceeds() -> pl.Expr:
    """Proceeds less costs; null where neither is filed."""
    money = sum((_number(name).fill_null(0.0) for name in _PROCEEDS), pl.lit(0.0)) - sum(
        (_number(name).fill_null(0.0) for name in _COSTS), pl.lit(0.0)
    )
    filed = pl.any_horizontal(pl.col(name).is_not_null() for name in (*_PROCEEDS, *_COSTS))
    return pl.when(filed).then(money)


def _count(rows: pl.DataFrame, log: QualityLog, file: str) -> None:
    code = pl.col("_code")
    log.count("repurchased", rows.filter(code == "06").height)
    log.count("ended_by_loss", rows.filter(code.is_in(LOSS_CODES)).height)
    log.count("prepaid_or_matured", rows.filter(code == "01").height)
    log.count("unknown_status", rows.filter(code.is_null() & pl.col("loan_state").is_null()).height)
    log.count("modified_rows", rows.filter(pl.col("mod_flag") == "Y").height)


def _recoveries(panel: pl.DataFrame, stated: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Net proceeds of defaulted loans, dated at disposition."""
    defaults = panel.filter(pl.col("loan_state") == LoanState.default).select("loan_id", "reporting_month")
    rows = defaults.join(stated, on=["loan_id", "reporting_month"], how="left", maintain_order="left")
    log.count("defaults", rows.height)
    log.count("defaults_without_proceeds", int(rows["recovery"].is_null().sum()))
    negative = rows.filter(pl.col("recovery") < 0)
    log.repair(file, "net_sale_proceeds", negative.height, "net proceeds below zero: ultimate recovery 0")
    return recoveries_table(
        rows.filter(pl.col("recovery").is_not_null() & (pl.col("recovery") != 0)).select(
            "loan_id",
            pl.col("reporting_month").alias("default_month"),
            "recovery_month",
            pl.col("recovery").alias("recovery_amount"),
        )
    )
