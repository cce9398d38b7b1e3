"""FRED-MD and FRED-QD: the Parquet files of McCracken and Ng's monthly and quarterly panels.

Here: mapping their mnemonics to our series. What they lack (a stock index always; in the public subset also a
BBB yield and nominal house prices) may come from a supervisory history (`fed_files`) that the caller hands
in.
Not here: what a history is (`history`).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.scenarios.fed_files import HY_OF_IG, IG_OF_BBB, property_index
from pc_pipeline.scenarios.quarterly import to_months, year_on_year

MONTHLY_FILE: Final = "fred_md.parquet"
QUARTERLY_FILE: Final = "fred_qd.parquet"
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
}
MONTHLY_SERIES: Final = ("unemployment_rate", "inflation_rate", "policy_rate", "yield_10y")
_MONTHLY: Final = ("UNRATE", "CPIAUCSL", "FEDFUNDS", "GS10")
_QUARTERLY: Final = ("GDPC1", "BAA10YM", "USSTHPI", "PCEPILFE")


def looks_like_fred(path: Path) -> bool:
    """Whether a folder holds both panels."""
    return path.is_dir() and (path / MONTHLY_FILE).is_file() and (path / QUARTERLY_FILE).is_file()


def _read(path: Path, needed: tuple[str, ...]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IngestError("FRED panel cannot be read", expected="Parquet", got=error, where=path) from error
    missing = [column for column in ("date", *needed) if column not in frame.columns]
    if missing:
        raise IngestError(
            "FRED panel lacks columns",
            expected=", ".join(("date", *needed)),
            got="no " + ", ".join(missing),
            where=path,
        )
    return frame.select("date", pl.col(needed).cast(pl.Float64)).sort("date")


def fred_series(folder: Path) -> dict[str, tuple[list[date], np.ndarray]]:
    """The eight series that the panels can give (all but equity), each with its own months, by `RULES`.

    Raises:
        IngestError: a file or column is missing.
    """
    monthly = _read(folder / MONTHLY_FILE, _MONTHLY)
    months = [parse_month(day) for day in monthly["date"]]
    # the quarterly panel dates a quarter by its last month
    quarterly = _read(folder / QUARTERLY_FILE, _QUARTERLY)
    quarters = [date(day.year, 3 * ((day.month - 1) // 3) + 1, 1) for day in quarterly["date"]]

    def column(name: str) -> np.ndarray:
        frame = monthly if name in _MONTHLY else quarterly
        return frame[name].fill_null(float("nan")).to_numpy()

    ig_months, ig = to_months(quarters, IG_OF_BBB * BBB_OF_BAA * 100.0 * column("BAA10YM"))
    house_months, house = to_months(quarters, column("USSTHPI") * column("PCEPILFE") / 100.0)
    return {
        "gdp_growth_yoy": to_months(quarters, year_on_year(column("GDPC1"), 4)),
        "unemployment_rate": (months, column("UNRATE") / 100.0),
        "inflation_rate": (months, year_on_year(column("CPIAUCSL"), 12)),
        "policy_rate": (months, column("FEDFUNDS") / 100.0),
        "yield_10y": (months, column("GS10") / 100.0),
        "credit_spread_ig": (ig_months, ig),
        "credit_spread_hy": (ig_months, HY_OF_IG * ig),
        "property_price_index": (house_months, property_index(house_months, house, folder)),
    }
