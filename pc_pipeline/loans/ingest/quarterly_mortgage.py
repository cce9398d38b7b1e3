"""Adapter `quarterly_mortgage`: quarterly mortgage panels with default, payoff and loss ("dcr").

Here: the calendar, the rule that turns quarters into months, zeros that mean missing. Not here: macro columns
of the file (one national path; `scenarios.load_history` reads macro).

**Filed events.** status_time 0 alive, 1 default, 2 payoff; no delinquency is filed, so a living loan is
performing whatever its arrears: moves between buckets cannot be learned from this source.

**Quarters to months.** Time t is the month 2000-04 plus 3 (t - 1) months. Between two consecutive quarters
the two months carry the earlier quarter's state and balance; what happened in the quarter is dated in its
last month. So monthly counts are a third of the quarterly hazard on average, all of it in every third
month. A gap of a quarter or more is not filled. The loan ends in its event; principal of a quarter falls in
its last month.

A default charges off the balance; recovery = (1 - lgd) x balance, dated at res_time. Losses not yet resolved
count as no recovery and are counted. Zero means missing for original rate, original balance and balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import polars as pl

from pc_pipeline.core.periods import month_index
from pc_pipeline.loans.ingest.adapter import Options, Tables, find_part, recoveries_table
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.loans.ingest.history import in_order, observed_panel
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.sec_auto import read_columns
from pc_pipeline.loans.ingest.tapes import complete_loans, count_missing_zero, positive, valid_score
from pc_pipeline.schemas.states import LoanState

REQUIRED: Final[dict[str, Any]] = {
    "id": pl.String,
    "time": pl.Int64,
    "orig_time": pl.Int64,
    "mat_time": pl.Int64,
    "balance_time": pl.Float64,
    "balance_orig_time": pl.Float64,
    "interest_rate_time": pl.Float64,
    "status_time": pl.Int64,
}
OPTIONAL: Final[dict[str, Any]] = {
    "LTV_time": pl.Float64,
    "LTV_orig_time": pl.Float64,
    "FICO_orig_time": pl.Float64,
    "Interest_Rate_orig_time": pl.Float64,
    "state_orig_time": pl.String,
    "REtype_CO_orig_time": pl.Int64,
    "REtype_PU_orig_time": pl.Int64,
    "REtype_SF_orig_time": pl.Int64,
    "lgd_time": pl.Float64,
    "res_time": pl.Int64,
}
FIRST_MONTH: Final = date(2000, 4, 1)  # time 1
_MONTH: Final = pl.col("reporting_month")
_END_STATES: Final = {0: LoanState.performing, 1: LoanState.default, 2: LoanState.prepaid}


class QuarterlyMortgage:
    """Quarterly mortgages with filed events."""

    name = "quarterly_mortgage"
    rule = (
        "filed events: status_time 0 alive = performing (no delinquency is filed), 1 default, 2 payoff = "
        "prepaid, matured from the final contractual month; inner months of a quarter carry the earlier one"
    )
    expects = f"quarterly rows with {', '.join(REQUIRED)}"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether some part has the quarterly columns."""
        return any(part.has(tuple(REQUIRED)) for part in parts)

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: a column is missing.
        """
        part = find_part(parts, tuple(REQUIRED), "quarterly panel")
        file = where(part)
        filed = read_columns(part, {**REQUIRED, **OPTIONAL}, log, "loan_panel").with_columns(
            pl.col("id").alias("loan_id"), quarter_month("time").alias("reporting_month")
        )
        log.rows_in(file, filed, _MONTH)
        zeros = [
            name
            for name in ("balance_time", "balance_orig_time", "Interest_Rate_orig_time")
            if name in part.columns
        ]
        count_missing_zero(filed, zeros, log, file)
        rows = in_order(filed, log, file)
        loans = _loans(rows, log, file)
        quarters = _state(rows, log, file)
        months = _fill(quarters, log, file)
        panel = observed_panel(months, loans, log, file, options, covariates=True)
        return Tables(loans=loans.drop("_row"), panel=panel, recoveries=_recoveries(panel, months, log, file))


def quarter_month(name: str) -> pl.Expr:
    """Month of a quarter number: 2000-04 plus 3 (t - 1) months."""
    index = month_index(FIRST_MONTH) + 3 * (pl.col(name) - 1)
    return pl.date(index // 12, index % 12 + 1, 1)


def _loans(rows: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """The tape from each loan's first row; recast terms keep the first."""
    firsts = rows.unique("loan_id", keep="first", maintain_order=True)
    recast = (
        rows.group_by("loan_id").agg(pl.col("mat_time").n_unique().alias("n")).filter(pl.col("n") > 1).height
    )
    log.count("recast_terms", recast)
    log.repair(file, "mat_time", recast, "term recast during the loan: the first stays on the tape")
    filed_amount = positive(pl.col("balance_orig_time"))
    amount = pl.coalesce(filed_amount, positive(pl.col("balance_time")))
    rate = pl.coalesce(positive(pl.col("Interest_Rate_orig_time")), positive(pl.col("interest_rate_time")))
    blank = firsts.filter(positive(pl.col("balance_orig_time")).is_null()).height
    log.repair(file, "balance_orig_time", blank, "zero means missing: the first balance stands in")
    no_rate = firsts.filter(positive(pl.col("Interest_Rate_orig_time")).is_null()).height
    log.repair(file, "Interest_Rate_orig_time", no_rate, "zero means missing: the first rate stands in")
    ltv = positive(pl.col("LTV_orig_time"))
    kind = (
        pl.when(pl.col("REtype_CO_orig_time") == 1)
        .then(pl.lit("residential_co"))
        .when(pl.col("REtype_PU_orig_time") == 1)
        .then(pl.lit("residential_pu"))
        .when(pl.col("REtype_SF_orig_time") == 1)
        .then(pl.lit("residential_sf"))
        .otherwise(pl.lit("residential"))
    )
    return complete_loans(
        firsts,
        {
            "loan_id": pl.col("loan_id"),
            "origination_date": quarter_month("orig_time"),
            "maturity_date": quarter_month("mat_time"),
            "term_months": 3 * (pl.col("mat_time") - pl.col("orig_time")),
            "original_balance": amount,
            "interest_rate": rate / 100,
            "rate_type": pl.lit("fixed"),
            "amortization_type": pl.lit("annuity"),
            "asset_class": pl.lit("realestate"),
            "ltv_origination": ltv / 100,
            "external_score_origination": valid_score(pl.col("FICO_orig_time")),
            "geography_country": pl.lit("US"),
            "geography_region": pl.col("state_orig_time"),
            "borrower_type": pl.lit("consumer"),
            "collateral_type": kind,
            "collateral_value_origination": filed_amount / ltv * 100,
        },
        log,
        file,
    )


def _state(rows: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Quarters with loan_state; a zero balance of a living loan is missing and refused."""
    alive = pl.col("status_time") == 0
    blank = rows.filter(alive & ~(pl.col("balance_time") > 0))
    log.count("missing_balances", blank.height)
    log.refuse(
        blank.select("_row", "loan_id", "reporting_month", "balance_time", "status_time"),
        file=file,
        table="loan_panel",
        column="balance_time",
        reason="balance zero, which means missing, while the loan lives",
        month=_MONTH,
    )
    good = rows.join(blank.select("_row"), on="_row", how="anti", maintain_order="left")
    is_final = pl.col("time") >= pl.col("mat_time").first().over("loan_id")
    filed = pl.col("status_time").replace_strict(_END_STATES, default=None, return_dtype=pl.Int64)
    state = pl.when((filed == LoanState.prepaid) & is_final).then(int(LoanState.matured)).otherwise(filed)
    # the balance of an event's row is the balance before the event
    exposure = positive(pl.col("balance_time"))
    recovery = pl.when(filed == LoanState.default).then((1 - pl.col("lgd_time")) * exposure)
    log.count("defaults", good.filter(pl.col("status_time") == 1).height)
    log.count(
        "unresolved_defaults", good.filter((pl.col("status_time") == 1) & pl.col("lgd_time").is_null()).height
    )
    log.count("losses_above_the_balance", good.filter(pl.col("lgd_time") > 1).height)
    return good.select(
        "_row",
        "loan_id",
        "reporting_month",
        "time",
        pl.when(alive).then(exposure).otherwise(0.0).alias("filed_balance"),
        exposure.alias("opening_balance"),
        (positive(pl.col("interest_rate_time")) / 100).alias("rate"),
        state.cast(pl.Int64).alias("loan_state"),
        recovery.alias("recovery"),
        quarter_month("res_time").alias("recovery_month"),
        (positive(pl.col("LTV_time")) / 100).alias("ltv_current"),
    )


def _fill(quarters: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Months from quarters: the two months before a consecutive quarter carry the earlier quarter's row."""
    follows = (pl.col("loan_id") == pl.col("loan_id").shift(-1)) & (
        pl.col("time").shift(-1) == pl.col("time") + 1
    )
    carried = quarters.filter(follows & (pl.col("loan_state") < LoanState.default))
    inner = [
        carried.with_columns(_MONTH.dt.offset_by(f"{k}mo"), pl.lit(None, pl.Float64).alias("ltv_current"))
        for k in (1, 2)
    ]
    same = pl.col("loan_id") == pl.col("loan_id").shift(1)
    missing = quarters.filter(same & (pl.col("time") - pl.col("time").shift(1) > 1)).height
    log.count("quarters_missing_inside_a_loan", missing)
    log.count("months_filled", 2 * carried.height)
    log.repair(file, "time", 2 * carried.height, "month inside a quarter: carries the earlier quarter")
    return pl.concat([quarters, *inner]).sort("loan_id", "reporting_month", maintain_order=True)


def _recoveries(panel: pl.DataFrame, months: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Recovery cash of resolved defaults, at resolution."""
    defaults = panel.filter(pl.col("loan_state") == LoanState.default).select("loan_id", "reporting_month")
    rows = defaults.join(months, on=["loan_id", "reporting_month"], how="left", maintain_order="left")
    rows = rows.filter(pl.col("recovery").is_not_null() & (pl.col("recovery") != 0))
    negative = rows.filter(pl.col("recovery") < 0).height
    log.count("negative_recoveries", negative)
    log.repair(
        file, "lgd_time", negative, "loss above the balance: ultimate recovery 0, dated cash kept signed"
    )
    return recoveries_table(
        rows.select(
            "loan_id",
            pl.col("reporting_month").alias("default_month"),
            pl.max_horizontal("recovery_month", "reporting_month").alias("recovery_month"),
            pl.col("recovery").alias("recovery_amount"),
        )
    )
