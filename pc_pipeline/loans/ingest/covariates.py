"""Structural covariates of a panel, where they can be known: current LTV, rate incentive, month-end weekday.

Here: `add_covariates`, used on delivered panels and on any panel with its tape and macro. Not here: macro
(`scenarios`), the features of a network.

    ltv_current    = balance / (collateral value at origination x index now / index at origination)
    rate_incentive = coupon - 10-year yield of the month

The index applies to loans secured on property (asset class realestate); other collateral is taken at its
value at origination only where nothing better is known, which for a depreciating vehicle it is not: those
stay null. Months outside the macro frame stay null, as does a loan that began before the index does.
A value the delivery itself filed is kept.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.ingest.ledger import month_end_weekday

INDEXED_CLASSES: Final = ("realestate",)


def add_covariates(panel: pl.DataFrame, loans: pl.DataFrame, macro: Any) -> pl.DataFrame:
    """The panel with ltv_current, rate_incentive and month_end_weekday filled where they follow.

    Args:
        panel: table loan_panel.
        loans: table loan_tape.
        macro: polars or pandas, one path: month, yield_10y and, for current LTV, property_price_index.

    Raises:
        DataError: macro lacks month or yield_10y.
    """
    months = to_polars(macro, ("month", "yield_10y"), "macro").with_columns(pl.col("month").dt.month_start())
    if "property_price_index" not in months.columns:
        months = months.with_columns(pl.lit(None, pl.Float64).alias("property_price_index"))
    months = months.unique("month", keep="first", maintain_order=True)
    now = months.select(
        pl.col("month").alias("reporting_month"), "yield_10y", pl.col("property_price_index").alias("_now")
    )
    then = months.select(
        pl.col("month").alias("vintage_month"), pl.col("property_price_index").alias("_then")
    )
    facts = loans.select("loan_id", "interest_rate", pl.col("collateral_value_origination").alias("_value"))
    joined = (
        panel.join(now, on="reporting_month", how="left", maintain_order="left")
        .join(then, on="vintage_month", how="left", maintain_order="left")
        .join(facts, on="loan_id", how="left", maintain_order="left")
    )
    value = pl.col("_value") * pl.col("_now") / pl.col("_then")
    indexed = pl.col("asset_class").is_in(INDEXED_CLASSES) & (value > 0)
    return joined.with_columns(
        pl.coalesce(
            "ltv_current", pl.when(indexed).then((pl.col("outstanding_balance") / value).round(4))
        ).alias("ltv_current"),
        pl.coalesce("rate_incentive", (pl.col("interest_rate") - pl.col("yield_10y")).round(6)).alias(
            "rate_incentive"
        ),
        month_end_weekday().alias("month_end_weekday"),
    ).select(panel.columns)
