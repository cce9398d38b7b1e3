"""FRED-MD and FRED-QD: McCracken and Ng's monthly and quarterly panels.

Here: finding the panels in a folder (the CSV files as published, with their rows of transformation codes, or
Parquet with a `date` column) and mapping their mnemonics to our series. What they lack (in the public-domain
subset a stock index, a BBB yield) may come from a supervisory history (`fed_files`) that the caller adds. Not
here: what a history is (`history`).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.scenarios.fed_files import HY_OF_IG, IG_OF_BBB, csv_header, property_index
from pc_pipeline.scenarios.quarterly import to_months, year_on_year

BBB_OF_BAA: Final = 0.71  # mean ratio of (BBB - 10y) to BAA10YM, 139 quarters 1988Q4-2023Q3

LICENCE: Final = (
    "contains information from FRED-MD and FRED-QD, copyright Federal Reserve Bank of St. Louis, "
    "made available under the ODC Attribution License (ODC-BY 1.0)"
)

RULES: Final = {
    "gdp_growth_yoy": "GDPC1 (quarterly), change over 4 quarters",
    "unemployment_rate": "UNRATE (monthly), percent / 100",
    "inflation_rate": "CPIAUCSL (monthly), change over 12 months",
    "policy_rate": "FEDFUNDS (monthly), percent / 100",
    "yield_10y": "GS10 (monthly), percent / 100",
    "credit_spread_ig": f"{IG_OF_BBB} x {BBB_OF_BAA} x BAA10YM (quarterly), bps",
    "credit_spread_hy": f"{HY_OF_IG} x credit_spread_ig, bps: a proxy, high-yield indices are licensed",
    "property_price_index": "USSTHPI x PCEPILFE / 100 (quarterly, nominal again) over its neutral path",
    "equity_return": "S&P 500 (monthly), change over 12 months",
}
MONTHLY_SERIES: Final = ("unemployment_rate", "inflation_rate", "policy_rate", "yield_10y", "equity_return")
_MONTHLY_MARK, _QUARTERLY_MARK = "CPIAUCSL", "GDPC1"  # a panel with the second is the quarterly one
_DATES: Final = ("date", "sasdate")


def fred_panels(folder: Path) -> tuple[Path, Path] | None:
    """The monthly and the quarterly panel of a folder, the last by name of each; None without both."""
    if not folder.is_dir():
        return None
    monthly, quarterly = None, None
    for file in sorted(folder.iterdir()):
        names = _column_names(file)
        if names and names[0] in _DATES and _QUARTERLY_MARK in names:
            quarterly = file
        elif names and names[0] in _DATES and _MONTHLY_MARK in names:
            monthly = file
    return (monthly, quarterly) if monthly and quarterly else None


def _column_names(file: Path) -> list[str]:
    try:
        if file.suffix == ".parquet":
            return list(pl.read_parquet_schema(file))
        return csv_header(file) if file.suffix == ".csv" else []
    except (OSError, pl.exceptions.PolarsError):
        return []  # not a panel; whoever asked for it by name will hear why


def _read(path: Path) -> pl.DataFrame:
    """A panel as floats by month; rows of transformation codes and empty trailing rows are dropped."""
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IngestError(
            "FRED panel cannot be read", expected="CSV or Parquet", got=error, where=path
        ) from error
    first = frame.columns[0]
    if frame[first].dtype == pl.String:
        frame = frame.with_columns(pl.col(first).str.to_date("%m/%d/%Y", strict=False))
    frame = frame.rename({first: "date"}).filter(pl.col("date").is_not_null())
    if frame.is_empty():
        raise IngestError("FRED panel has no months", expected="dates like 1/1/1959", got="none", where=path)
    return frame.select("date", pl.exclude("date").cast(pl.Float64, strict=False)).sort("date")


def fred_series(monthly_file: Path, quarterly_file: Path) -> dict[str, tuple[list[date], np.ndarray]]:
    """The series that the panels can give, each with its own months, by `RULES`.

    Raises:
        IngestError: a file cannot be read, or house prices do not reach their base month.
    """
    monthly, quarterly = _read(monthly_file), _read(quarterly_file)
    months = [parse_month(day) for day in monthly["date"]]
    # the quarterly panel dates a quarter by its last month
    quarters = [date(day.year, 3 * ((day.month - 1) // 3) + 1, 1) for day in quarterly["date"]]

    def column(frame: pl.DataFrame, name: str) -> np.ndarray | None:
        return frame[name].fill_null(float("nan")).to_numpy() if name in frame.columns else None

    series: dict[str, tuple[list[date], np.ndarray]] = {}
    for name, mnemonic in (
        ("unemployment_rate", "UNRATE"),
        ("policy_rate", "FEDFUNDS"),
        ("yield_10y", "GS10"),
    ):
        values = column(monthly, mnemonic)
        if values is not None:
            series[name] = (months, values / 100.0)
    for name, mnemonic in (("inflation_rate", "CPIAUCSL"), ("equity_return", "S&P 500")):
        values = column(monthly, mnemonic)
        if values is not None:
            series[name] = (months, year_on_year(values, 12))
    output, spread = column(quarterly, "GDPC1"), column(quarterly, "BAA10YM")
    if output is not None:
        series["gdp_growth_yoy"] = to_months(quarters, year_on_year(output, 4))
    if spread is not None:
        ig_months, ig = to_months(quarters, IG_OF_BBB * BBB_OF_BAA * 100.0 * spread)
        series["credit_spread_ig"], series["credit_spread_hy"] = (ig_months, ig), (ig_months, HY_OF_IG * ig)
    houses, prices = column(quarterly, "USSTHPI"), column(quarterly, "PCEPILFE")
    if houses is not None and prices is not None:
        house_months, house = to_months(quarters, houses * prices / 100.0)
        series["property_price_index"] = (house_months, property_index(house_months, house, quarterly_file))
    return series
