"""Structural covariates by hand, and on real mortgages."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.ingest import add_covariates, read_tape
from pc_pipeline.schemas.tables import failures
from pc_pipeline_tests.shared_data import shared_path

MACRO = pl.DataFrame(
    {
        "month": [dt.date(2023, m, 1) for m in (1, 2, 3)],
        "yield_10y": [0.035, 0.04, 0.03],
        "property_price_index": [100.0, 110.0, 80.0],
    }
)


def pool(place: Path) -> Path:
    place.mkdir()
    pl.DataFrame(
        {
            "loan_id": ["house", "card", "old"],
            "origination_date": [dt.date(2023, 1, 1), dt.date(2023, 1, 1), dt.date(2020, 1, 1)],
            "term_months": [120, 24, 120],
            "original_balance": [80_000.0, 1_000.0, 80_000.0],
            "collateral_value_origination": [100_000.0, None, 100_000.0],
            "interest_rate": [0.05, 0.2, 0.05],
            "amortization_type": ["bullet"] * 3,
            "asset_class": ["realestate", "consumer", "realestate"],
        }
    ).write_parquet(place / "loans.parquet")
    rows = [
        (loan, dt.date(2023, m, 1), 0, {"card": 1_000.0}.get(loan, 80_000.0))
        for loan in ("house", "card", "old")
        for m in (2, 3, 4)
    ]
    pl.DataFrame(
        rows, schema=["loan_id", "reporting_month", "loan_state", "outstanding_balance"], orient="row"
    ).write_parquet(place / "panel.parquet")
    return place


def test_current_ltv_and_incentive_by_hand(tmp_path: Path) -> None:
    panel = read_tape(pool(tmp_path / "d"), macro=MACRO).panel
    assert failures("loan_panel", panel).is_empty()
    house = panel.filter(pl.col("loan_id") == "house")
    # 80,000 over 100,000 x 110/100, then x 80/100; April is not in the macro frame
    assert house["ltv_current"].to_list() == [0.7273, 1.0, None]
    assert house["rate_incentive"].to_list() == [pytest.approx(0.01), pytest.approx(0.02), None]
    card = panel.filter(pl.col("loan_id") == "card")
    assert card["ltv_current"].null_count() == 3
    assert card["rate_incentive"].to_list()[:2] == [pytest.approx(0.16), pytest.approx(0.17)]
    old = panel.filter(pl.col("loan_id") == "old")  # began before the index does
    assert old["ltv_current"].null_count() == 3
    assert panel["month_end_weekday"].to_list()[:3] == [2, 5, 7]  # 28 Feb, 31 March, 30 April 2023


def test_pandas_macro_and_missing_columns(tmp_path: Path) -> None:
    plain = read_tape(pool(tmp_path / "d"))
    assert plain.panel["ltv_current"].null_count() == plain.panel.height
    frame = pd.DataFrame({"month": pd.to_datetime(["2023-02-01"]), "yield_10y": [0.04]})
    some = add_covariates(plain.panel, plain.loans, frame)
    assert some["ltv_current"].null_count() == some.height
    assert some["rate_incentive"].is_not_null().sum() == 3
    with pytest.raises(DataError):
        add_covariates(plain.panel, plain.loans, MACRO.drop("yield_10y"))


def test_filed_ltv_is_kept_and_agrees_with_the_index() -> None:
    folder = shared_path("data/dcr_mortgage")
    filed = pl.read_parquet(folder / "panel.parquet")
    index = filed.group_by("time").agg(pl.col("hpi_time").first()).sort("time")
    start = dt.date(2000, 4, 1)
    months = pl.DataFrame({"month": pl.date_range(start, dt.date(2011, 1, 1), "1mo", eager=True)})
    quarters = index.with_columns(
        pl.lit(start).dt.offset_by(pl.format("{}mo", 3 * (pl.col("time") - 1))).alias("month")
    )
    macro = months.join(quarters, on="month", how="left").with_columns(
        pl.col("hpi_time").forward_fill().alias("property_price_index"), pl.lit(0.04).alias("yield_10y")
    )
    result = read_tape(folder, macro=macro)
    bare = result.panel.with_columns(pl.lit(None, pl.Float64).alias("ltv_current"))
    ours = add_covariates(bare, result.loans, macro)["ltv_current"]
    both = (
        pl.DataFrame({"filed": result.panel["ltv_current"], "ours": ours})
        .drop_nulls()
        .filter(pl.col("filed") > 0.05)
    )
    ratio = both["ours"] / both["filed"]
    assert both.height > 10_000
    # the file's own loan to value is first-lien balance over the indexed value; most loans agree to 2 %
    assert ratio.median() == pytest.approx(1.0, abs=0.02)
