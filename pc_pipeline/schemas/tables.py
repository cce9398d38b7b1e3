"""One Pandera model per table: columns, units, ranges and cross-column rules.

Here: what a table may hold, `validate` (all or nothing) and `split_rows` (good rows and rejected rows
with their reason). Not here: which room fills a table. Field descriptions become column metadata in
Dagster. Frames are checked eagerly: Pandera checks a LazyFrame for schema only.
"""

from __future__ import annotations

from typing import Any

import pandera.polars as pa
import polars as pl
from pandera.api.polars.types import PolarsData
from pandera.errors import SchemaErrors

from pc_pipeline.core.errors import SchemaError
from pc_pipeline.schemas.states import ABSORBING_STATES
from pc_pipeline.schemas.units import (
    AMORTIZATION_TYPES,
    ASSET_CLASSES,
    BORROWER_TYPES,
    MACRO_SERIES,
    RATE_TYPES,
)

RISK_GRADES = ("A", "B", "C", "D", "E")
CENT = 0.005  # half a cent: money in tables is rounded to cents
_BOUNDS = {series.name: {"ge": series.lower, "le": series.upper} for series in MACRO_SERIES}


def _f(description: str, **checks: Any) -> Any:
    return pa.Field(description=description, **checks)


class Table(pa.DataFrameModel):
    """Base: every listed column present with its type; further columns pass."""

    class Config:
        coerce = False
        strict = False


class MacroScenarios(Table):
    """Macro paths, one row per scenario, path and month."""

    scenario: str = _f("scenario name")
    macro_path_id: int = _f("path number within the scenario, from 0", ge=0)
    month: pl.Date = _f("first of month")
    gdp_growth_yoy: float = _f("real GDP growth over 12 months, decimal", **_BOUNDS["gdp_growth_yoy"])
    unemployment_rate: float = _f("unemployment rate, decimal", **_BOUNDS["unemployment_rate"])
    inflation_rate: float = _f("consumer price growth over 12 months, decimal", **_BOUNDS["inflation_rate"])
    policy_rate: float = _f("policy rate, decimal per year", **_BOUNDS["policy_rate"])
    yield_10y: float = _f("10-year government yield, decimal per year", **_BOUNDS["yield_10y"])
    credit_spread_ig: float = _f("investment-grade spread, bps", **_BOUNDS["credit_spread_ig"])
    credit_spread_hy: float = _f("high-yield spread, bps", **_BOUNDS["credit_spread_hy"])
    property_price_index: float = _f(
        "property prices, index, 100 at baseline", **_BOUNDS["property_price_index"]
    )
    equity_return: float = _f("equity return, decimal per year", **_BOUNDS["equity_return"])

    class Config:
        unique = ["scenario", "macro_path_id", "month"]  # noqa: RUF012


class LoanTape(Table):
    """Static facts of each loan at origination, one row per loan."""

    loan_id: str = _f("loan identifier", unique=True, str_length={"min_value": 1, "max_value": 64})
    origination_date: pl.Date = _f("date of origination")
    maturity_date: pl.Date = _f("first of the final contractual month")
    term_months: int = _f("original term, months", ge=1, le=600)
    original_balance: float = _f("principal at origination, currency", gt=0, le=1e10)
    interest_rate: float = _f("coupon at origination, decimal per year", ge=0, le=1)
    rate_type: str = _f("fixed or floating", isin=RATE_TYPES)
    spread_bps: float = _f("spread over the benchmark, bps", nullable=True, ge=-1000, le=5000)
    benchmark: str = _f("name of the index of a floating rate", nullable=True)
    payment_frequency: str = _f("monthly")
    amortization_type: str = _f("annuity, bullet or balloon", isin=AMORTIZATION_TYPES)
    asset_class: str = _f("corporate, consumer, realestate or receivables", isin=ASSET_CLASSES)
    ltv_origination: float = _f("loan to value at origination, decimal", nullable=True, ge=0, le=5)
    dti_dscr_origination: float = _f(
        "debt to income (consumer) or debt service cover, ratio", nullable=True, ge=0, le=50
    )
    internal_score_origination: float = _f("internal score, 0-100", nullable=True, ge=0, le=100)
    external_score_origination: float = _f("external score, 300-850", nullable=True, ge=300, le=850)
    industry_sector: str = _f("industry", nullable=True)
    geography_country: str = _f("country, ISO 3166 alpha-2", nullable=True)
    geography_region: str = _f("region or state", nullable=True)
    borrower_type: str = _f("corporate, sme, consumer or sponsor", isin=BORROWER_TYPES)
    collateral_type: str = _f("kind of collateral, 'none' if unsecured", nullable=True)
    collateral_value_origination: float = _f("collateral value at origination, currency", nullable=True, ge=0)
    originator_id: str = _f("originator", nullable=True)
    underwriting_standard_version: str = _f("underwriting standard", nullable=True)
    vintage_month: pl.Date = _f("first of the month of origination")

    @pa.dataframe_check
    @classmethod
    def maturity_after_origination(cls, data: PolarsData) -> pl.LazyFrame:
        """Maturity lies after origination."""
        return data.lazyframe.select(pl.col("maturity_date") > pl.col("origination_date"))


class Borrowers(Table):
    """Borrowers of the payment cascade, one row per loan; a missing feature takes its neutral value."""

    loan_id: str = _f("loan identifier", unique=True, str_length={"min_value": 1, "max_value": 64})
    borrower_id: str = _f("borrower identifier", str_length={"min_value": 1, "max_value": 64})
    credit_score: float = _f("external score, 300-850", nullable=True, ge=300, le=850)
    dti: float = _f("debt to income, decimal", nullable=True, ge=0, le=1)
    income: float = _f("income, currency per year", nullable=True, ge=1, le=1e9)
    principal: float = _f("principal, currency", nullable=True, ge=1, le=1e10)
    term_months: int = _f("term, months", nullable=True, ge=1, le=600)
    interest_rate: float = _f("coupon, decimal per year", nullable=True, ge=0, le=1)
    risk_grade: str = _f("grade, A (best) to E", nullable=True, isin=RISK_GRADES)
    employment_months: float = _f("months in employment", nullable=True, ge=0, le=1200)
    delinquencies_2y: float = _f("delinquencies in two years", nullable=True, ge=0, le=1000)
    bankruptcies: float = _f("bankruptcies", nullable=True, ge=0, le=1000)


class LoanPanel(Table):
    """One row per loan and month until the terminal row."""

    loan_id: str = _f("loan identifier")
    reporting_month: pl.Date = _f("first of the reported month")
    scenario: str = _f("scenario name, 'observed' for real history")
    macro_path_id: int = _f("macro path the loan lived through", ge=0)
    asset_class: str = _f("corporate, consumer, realestate or receivables", isin=ASSET_CLASSES)
    vintage_month: pl.Date = _f("first of the month of origination")
    original_balance: float = _f("principal at origination, currency", gt=0)
    loan_state: int = _f("state at month end, 0-6", ge=0, le=6)
    days_past_due: int = _f("days past due at month end", ge=0)
    months_in_state: int = _f("consecutive months in this state, from 1", ge=1)
    scheduled_payment: float = _f("instalment due this month, currency", ge=0)
    actual_payment: float = _f("cash received this month, without recoveries, currency", ge=0)
    interest_paid: float = _f("interest received, currency", ge=0)
    principal_paid: float = _f("all principal received, currency", ge=0)
    prepayment_amount: float = _f("part of principal ahead of schedule, currency", ge=0)
    charge_off_amount: float = _f("balance written off, on the default row, currency", ge=0)
    outstanding_balance: float = _f("balance after payment and charge-off, currency", ge=0)
    recovery_amount: float = _f("ultimate recovery, on the default row, currency", ge=0)
    loss_amount: float = _f("charge-off less recovery, currency")
    ltv_current: float = _f("balance over indexed collateral value, decimal", nullable=True, ge=0)
    rate_incentive: float = _f("coupon less current 10-year yield, decimal per year", nullable=True)
    month_end_weekday: int = _f("weekday of the month's last day, Monday 1 .. Sunday 7", ge=1, le=7)

    class Config:
        unique = ["loan_id", "reporting_month", "scenario", "macro_path_id"]  # noqa: RUF012

    @pa.dataframe_check
    @classmethod
    def loss_is_charge_off_less_recovery(cls, data: PolarsData) -> pl.LazyFrame:
        """loss_amount = charge_off_amount - recovery_amount, to the cent."""
        gap = pl.col("charge_off_amount") - pl.col("recovery_amount") - pl.col("loss_amount")
        return data.lazyframe.select(gap.abs() < CENT)

    @pa.dataframe_check
    @classmethod
    def terminal_rows_are_settled(cls, data: PolarsData) -> pl.LazyFrame:
        """Default, prepaid and matured leave no balance; only a default charges off."""
        terminal = pl.col("loan_state").is_in(ABSORBING_STATES)
        settled = ~terminal | (pl.col("outstanding_balance") < CENT)
        return data.lazyframe.select(
            settled & ((pl.col("charge_off_amount") < CENT) | (pl.col("loan_state") == 4))
        )

    @pa.dataframe_check
    @classmethod
    def not_before_origination(cls, data: PolarsData) -> pl.LazyFrame:
        """No report from before the loan existed."""
        return data.lazyframe.select(pl.col("reporting_month") >= pl.col("vintage_month"))


class Recoveries(Table):
    """Dated recovery cash of defaulted loans."""

    loan_id: str = _f("loan identifier")
    scenario: str = _f("scenario name, 'observed' for real history")
    macro_path_id: int = _f("macro path", ge=0)
    default_month: pl.Date = _f("month of default")
    recovery_month: pl.Date = _f("month in which the cash arrives")
    recovery_amount: float = _f("cash, currency (negative: a reversal)")


class Transitions(Table):
    """Counts of observed monthly moves by path, cohort and month of arrival."""

    scenario: str = _f("scenario name")
    macro_path_id: int = _f("macro path", ge=0)
    asset_class: str = _f("asset class", isin=ASSET_CLASSES)
    vintage_month: pl.Date = _f("first of the month of origination")
    reporting_month: pl.Date = _f("month of the state moved to")
    is_final: bool = _f("in or after the final contractual month")
    from_state: int = _f("living state moved from, 0-3", ge=0, le=3)
    to_state: int = _f("state moved to, 0-6", ge=0, le=6)
    n_moves: int = _f("number of loans", ge=1)


class Pool(Table):
    """The pool at the cut-off from which a simulation starts: the tape plus each living loan's position."""

    loan_id: str = _f("loan identifier", unique=True)
    current_balance: float = _f("outstanding balance at cut-off, currency", gt=0)
    loan_state: int = _f("state at cut-off, 0-3", ge=0, le=3)
    age_months: int = _f("months since origination at cut-off", ge=0)
    remaining_term_months: int = _f("contractual months still to come", ge=1)
    months_since_miss: int = _f("months since last delinquent month, -1 never", ge=-1)


class Simulations(Table):
    """Simulated pool cash, one row per path and month."""

    scenario: str = _f("scenario name")
    path_id: int = _f("simulated path, from 0", ge=0)
    month_index: int = _f("month of the simulation, from 0", ge=0)
    weight: float = _f("likelihood weight of the path, mean 1", ge=0)
    interest: float = _f("interest collected, currency", ge=0)
    scheduled_principal: float = _f("scheduled principal collected, currency", ge=0)
    prepaid_principal: float = _f("principal ahead of schedule, currency", ge=0)
    defaulted_balance: float = _f("balance charged off, currency", ge=0)
    recovery: float = _f("recovery cash, currency", ge=0)
    index_rate: float = _f("policy rate of the path, decimal per year")
    stratum: int | None = _f("stratum the path was drawn in, where paths are drawn along the loss", ge=0)
    luck: float | None = _f("loss by the loans' own luck, mean 0 given the macro path, share of the pool")
    square: float | None = _f("such that luck squared less it has mean 0, share of the pool squared", ge=0)
    predicted: float | None = _f("loss predicted from the macro path alone, share of the pool", ge=0)
    offset: float | None = _f("guess of the loss less its mean over the stratum, share of the pool")


class PoolReport(Table):
    """Pool loss measures with 95 % intervals, one row per scenario and measure."""

    scenario: str = _f("scenario name")
    measure: str = _f("expected_loss, var_95, var_99, var_999, cvar_95, cvar_99, cvar_999")
    value: float = _f("share of original pool balance")
    lower: float = _f("lower end of the 95 % interval")
    upper: float = _f("upper end of the 95 % interval")


class TrancheReport(Table):
    """Risk and return per tranche, one row per scenario and tranche."""

    scenario: str = _f("scenario name")
    tranche: str = _f("tranche name")
    original_balance: float = _f("size at closing, currency", gt=0)
    share: float = _f("size as share of all tranches", gt=0, le=1)
    coupon: float = _f("coupon at closing, decimal per year; null for residual", nullable=True)
    expected_loss: float = _f("mean unpaid principal, share of tranche", ge=0, le=1 + 1e-9)
    expected_loss_lower: float = _f("lower end of the 95 % interval")
    expected_loss_upper: float = _f("upper end of the 95 % interval")
    loss_probability: float = _f("share of paths that lose any principal", ge=0, le=1 + 1e-9)
    loss_probability_lower: float = _f("lower end of the 95 % interval")
    loss_probability_upper: float = _f("upper end of the 95 % interval")
    irr: float = _f("IRR of the mean cash flows, decimal per year; null without a root", nullable=True)
    irr_p05: float = _f("5th percentile of path IRRs", nullable=True)
    irr_p95: float = _f("95th percentile of path IRRs", nullable=True)
    wal_years: float = _f("mean weighted average life of principal, years", nullable=True)
    oc_failure_probability: float = _f("share of paths that fail the OC test at least once", nullable=True)
    ic_failure_probability: float = _f("share of paths that fail the IC test at least once", nullable=True)


class CashFlowReport(Table):
    """Pool cash by month: mean and quantiles over paths."""

    scenario: str = _f("scenario name")
    month_index: int = _f("month of the simulation, from 0", ge=0)
    channel: str = _f("cash channel")
    mean: float = _f("mean, currency")
    p05: float = _f("5th percentile, currency")
    p50: float = _f("median, currency")
    p95: float = _f("95th percentile, currency")


class TrancheBalanceReport(Table):
    """Tranche balances by month: mean and quantiles over paths."""

    scenario: str = _f("scenario name")
    tranche: str = _f("tranche name")
    month_index: int = _f("month of the simulation, from 0", ge=0)
    mean: float = _f("mean, currency")
    p05: float = _f("5th percentile, currency")
    p95: float = _f("95th percentile, currency")


class MacroFanReport(Table):
    """Simulated macro series by month: quantiles over paths."""

    scenario: str = _f("scenario name")
    series: str = _f("macro series")
    month_index: int = _f("month of the simulation, from 0", ge=0)
    p05: float = _f("5th percentile")
    p25: float = _f("25th percentile")
    p50: float = _f("median")
    p75: float = _f("75th percentile")
    p95: float = _f("95th percentile")


class Quarantine(Table):
    """Rows that were refused, as text, with the reason; nothing is lost."""

    source_file: str = _f("file the row came from")
    row_number: int = _f("1-based data row in the file, 0 if the row has no single place", ge=0)
    table: str = _f("table the row was meant for")
    column: str = _f("column at fault")
    reason: str = _f("what was expected")
    row_json: str = _f("the row as it came, JSON")


class DataQuality(Table):
    """What ingest did to each column of the deliveries that the landed pool is made of.

    A row counts whole rows of a file (column '*'), or names what was repaired or refused in one column, or
    how far a column has drifted; each over the file (month null) or for one month.
    """

    file: str = _f("delivered file")
    column: str = _f("column, '*' for whole rows")
    month: pl.Date = _f("reporting month, null for the whole file", nullable=True)
    rows_in: int = _f("rows that came, 0 where the entry is about values", ge=0)
    accepted: int = _f("rows kept", ge=0)
    repaired: int = _f("values changed", ge=0)
    how: str = _f("how they were changed, or what was noted")
    quarantined: int = _f("rows refused", ge=0)
    why: str = _f("why they were refused")
    drift_psi: float = _f("population stability index against the delivery before", ge=0, nullable=True)
    delivery: str = _f("delivery the file came with")

    @pa.dataframe_check
    @classmethod
    def rows_are_kept_or_refused(cls, data: PolarsData) -> pl.LazyFrame:
        """accepted = rows_in - quarantined, where rows are counted."""
        kept = pl.col("accepted") == (pl.col("rows_in") - pl.col("quarantined")).clip(0)
        return data.lazyframe.select(kept | (pl.col("rows_in") == 0))


TABLES: dict[str, type[Table]] = {
    "macro_scenarios": MacroScenarios,
    "loan_tape": LoanTape,
    "borrowers": Borrowers,
    "loan_panel": LoanPanel,
    "recoveries": Recoveries,
    "transitions": Transitions,
    "pool": Pool,
    "simulations": Simulations,
    "pool_report": PoolReport,
    "tranche_report": TrancheReport,
    "cash_flow_report": CashFlowReport,
    "tranche_balance_report": TrancheBalanceReport,
    "macro_fan_report": MacroFanReport,
    "quarantine": Quarantine,
    "data_quality": DataQuality,
}


def columns(table: str) -> list[str]:
    """Column names of a table, in order."""
    return list(TABLES[table].to_schema().columns)


def describe(table: str) -> list[tuple[str, str, str]]:
    """(column, type, description) of each column of a table."""
    schema = TABLES[table].to_schema()
    return [(name, str(column.dtype), column.description or "") for name, column in schema.columns.items()]


def failures(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """All breaches of a table's contract: column, check, index (null for the whole table), value."""
    try:
        TABLES[table].validate(frame, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        return cases.select(
            pl.col("column").cast(pl.String),
            pl.col("check").cast(pl.String),
            pl.col("index").cast(pl.Int64),
            pl.col("failure_case").cast(pl.String).alias("value"),
        )
    return pl.DataFrame(
        schema={"column": pl.String, "check": pl.String, "index": pl.Int64, "value": pl.String}
    )


def validate(table: str, frame: pl.DataFrame, where: str = "") -> pl.DataFrame:
    """The frame itself, if it keeps its table's contract.

    Raises:
        SchemaError: names the first breaches and how many there are.
    """
    broken = failures(table, frame)
    if broken.is_empty():
        return frame
    first = broken.head(5).iter_rows(named=True)
    raise SchemaError(
        f"table {table!r} breaks its contract in {broken.height} places",
        expected="; ".join(
            f"{row['column']}: {row['check']}" for row in broken.head(5).iter_rows(named=True)
        ),
        got="; ".join(f"{row['value']} in row {row['index']}" for row in first),
        where=where or table,
    )
