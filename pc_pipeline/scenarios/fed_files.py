"""Federal Reserve supervisory scenario files: historic, baseline and severely adverse, domestic.

Here: reading the CSV tables of any year (headers and date spellings changed over the years) and mapping their
quarterly figures to our nine monthly series. Not here: what a history is (`history`), scenarios made of the
projections (`supervisory`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import month_index
from pc_pipeline.scenarios.quarterly import level_from_growth, parse_quarter, to_months, year_on_year

# What a header must contain, after lowering and turning punctuation into blanks. First match wins.
_HEADERS: Final = {
    "real_gdp_growth": ("real gdp", "real gross domestic product"),
    "cpi_inflation": ("cpi", "consumer price"),
    "unemployment": ("unemployment",),
    "treasury_3m": ("3 month treasury", "treasury 3 month", "3 month t bill"),
    "treasury_10y": ("10 year treasury", "treasury 10 year"),
    "bbb_yield": ("bbb",),
    "stock_index": ("stock market", "stock price", "dow jones"),
    "house_prices": ("house price", "home price"),
}
_LEVELS: Final = ("stock_index", "house_prices")  # indices; a column of their changes is another variable
_OTHER: Final = frozenset({"commercial", "nominal", "spread", "euro", "asia", "japan", "uk"})
_DATES: Final = ("date", "obs", "observation", "quarter", "observation date", "period")
HISTORIC_NAMES: Final = ("actual", "historic", "historical", "history")

IG_OF_BBB: Final = 0.8
HY_OF_IG: Final = 3.5
HOUSE_TREND: Final = 0.045  # neutral growth of house prices per year
HOUSE_BASE: Final = date(2000, 1, 1)  # month in which the house price index is 100 by definition

LICENCE: Final = "Federal Reserve supervisory scenarios: work of the US government, public domain"

RULES: Final = {
    "gdp_growth_yoy": "real GDP, quarterly annualised growth cumulated to a level, change over 4 quarters",
    "unemployment_rate": "unemployment rate, percent / 100",
    "inflation_rate": "CPI inflation, quarterly annualised rate cumulated to a level, change over 4 quarters",
    "policy_rate": "3-month Treasury rate, percent / 100, stands for the policy rate",
    "yield_10y": "10-year Treasury yield, percent / 100",
    "credit_spread_ig": f"{IG_OF_BBB} x (BBB corporate yield - 10-year Treasury yield), bps",
    "credit_spread_hy": f"{HY_OF_IG} x credit_spread_ig, bps: a proxy, high-yield indices are licensed",
    "property_price_index": (
        f"house price index, 100 in {HOUSE_BASE:%Y-%m} and growing {HOUSE_TREND:.1%} a year = 100"
    ),
    "equity_return": "stock index at quarter end, log-linear between, change over 12 months",
}


@dataclass(frozen=True, slots=True)
class QuarterlyTable:
    """One scenario of a supervisory file.

    Attributes:
        name: as the file spells it, e.g. 'Actual' or 'Supervisory Severely Adverse'.
        quarters: first month of each quarter.
        columns: our key -> (Q,) values as published; NaN where empty.
        source: file name.
    """

    name: str
    quarters: list[date]
    columns: Mapping[str, np.ndarray]
    source: str

    @property
    def is_historic(self) -> bool:
        """Whether this is what happened, rather than a projection."""
        return not set(HISTORIC_NAMES).isdisjoint(_plain(self.name).split())


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def _match_headers(headers: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in headers:
        plain = _plain(header)
        if not _OTHER.isdisjoint(plain.split()):
            continue
        is_change = "change" in plain or "growth" in plain
        for key, phrases in _HEADERS.items():
            if is_change and key in _LEVELS:
                continue
            if key not in found and any(phrase in plain for phrase in phrases):
                found[key] = header
                break
    return found


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV file; none where its first line is not one."""
    with path.open("rb") as handle:
        first = handle.readline(100_000).decode("utf-8-sig", errors="replace")
    try:
        return next(csv.reader(first.splitlines()[:1]), [])
    except csv.Error:
        return []


def looks_like_fed(path: Path) -> bool:
    """Whether the first line of a CSV names the domestic supervisory variables."""
    return path.suffix.lower() == ".csv" and path.is_file() and len(_match_headers(csv_header(path))) >= 6


def read_fed_file(path: Path) -> list[QuarterlyTable]:
    """All scenarios of one domestic supervisory file.

    Raises:
        IngestError: a needed column, the date column or a number cannot be found or read.
    """
    try:
        frame = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IngestError("supervisory file cannot be read", expected="CSV", got=error, where=path) from error
    headers = {column.lstrip("\ufeff"): column for column in frame.columns}
    found = _match_headers(list(headers))
    missing = sorted(set(_HEADERS) - set(found))
    date_column = next((header for header in headers if _plain(header) in _DATES), None)
    if missing or date_column is None:
        raise IngestError(
            "not a domestic supervisory scenario file",
            expected="a date column and " + ", ".join(_HEADERS),
            got="no column for " + ", ".join([*missing, *([] if date_column else ["date"])]),
            where=path,
        )
    name_column = next(
        (header for header in headers if _plain(header) in ("scenario name", "scenario")), None
    )
    figures = [headers[header] for header in found.values()]
    is_filled = pl.col(*figures).str.strip_chars().str.len_chars() > 0
    frame = frame.filter(
        pl.col(headers[date_column]).str.strip_chars().str.len_chars() > 0,
        pl.any_horizontal(is_filled.fill_null(False)),  # notes below the table stand alone in their line
    )
    names = frame[headers[name_column]].fill_null("").to_list() if name_column else [path.stem] * frame.height
    tables = []
    for name in dict.fromkeys(names):
        rows = frame.filter(pl.Series([other == name for other in names]))
        quarters = [parse_quarter(text, where=path) for text in rows[headers[date_column]]]
        columns = {key: _numbers(rows[headers[header]], path) for key, header in found.items()}
        tables.append(QuarterlyTable(name or "Actual", quarters, columns, path.name))
    return tables


def _numbers(column: pl.Series, path: Path) -> np.ndarray:
    text = column.str.strip_chars().str.replace_all(",", "")
    empty = text.is_null() | text.str.to_lowercase().is_in(["", "na", "n/a", ".", "nan"])
    numbers = text.cast(pl.Float64, strict=False)
    bad = column.filter(~empty & numbers.is_null())
    if len(bad):
        raise IngestError(
            "not a number in a supervisory file",
            expected="a number",
            got=repr(bad[0]),
            where=f"{path}: {column.name}",
        )
    return numbers.fill_null(float("nan")).to_numpy()


def fed_tables(path: Path) -> list[QuarterlyTable]:
    """All domestic tables of a file, or of the CSV files in a folder.

    Raises:
        IngestError: nothing of the kind is there.
    """
    files = sorted(file for file in path.glob("*.csv") if looks_like_fed(file)) if path.is_dir() else [path]
    if not files:
        raise IngestError(
            "no supervisory scenario files", expected="domestic CSV tables", got="none", where=path
        )
    return [table for file in files for table in read_fed_file(file)]


def neutral_house_prices(months: list[date], level_at_base: float) -> np.ndarray:
    """(T,) house price level that counts as 100: the base month's level growing at `HOUSE_TREND`."""
    years = np.array([month_index(month) - month_index(HOUSE_BASE) for month in months]) / 12.0
    return level_at_base * (1.0 + HOUSE_TREND) ** years


def property_index(months: list[date], level: np.ndarray, where: object = None) -> np.ndarray:
    """House price level relative to its neutral path, 100 = neutral.

    Raises:
        IngestError: the base month is not covered.
    """
    if HOUSE_BASE not in months:
        raise IngestError(
            "house prices do not reach their base month",
            expected=f"{HOUSE_BASE:%Y-%m}",
            got=f"{months[0]:%Y-%m} .. {months[-1]:%Y-%m}",
            where=where,
        )
    return 100.0 * level / neutral_house_prices(months, float(level[months.index(HOUSE_BASE)]))


def fed_series(table: QuarterlyTable) -> dict[str, tuple[list[date], np.ndarray]]:
    """Our nine series of one quarterly table, each with its own months, by `RULES`."""
    quarters, columns = table.quarters, table.columns

    def monthly(values: np.ndarray, at_end: bool = False) -> tuple[list[date], np.ndarray]:
        return to_months(quarters, values, at_end=at_end)

    ig = IG_OF_BBB * 100.0 * (columns["bbb_yield"] - columns["treasury_10y"])
    stock_months, log_stock = monthly(np.log(columns["stock_index"]), at_end=True)
    house_months, house = monthly(columns["house_prices"])
    return {
        "gdp_growth_yoy": monthly(year_on_year(level_from_growth(columns["real_gdp_growth"]), 4)),
        "unemployment_rate": monthly(columns["unemployment"] / 100.0),
        "inflation_rate": monthly(year_on_year(level_from_growth(columns["cpi_inflation"]), 4)),
        "policy_rate": monthly(columns["treasury_3m"] / 100.0),
        "yield_10y": monthly(columns["treasury_10y"] / 100.0),
        "credit_spread_ig": monthly(ig),
        "credit_spread_hy": monthly(HY_OF_IG * ig),
        "property_price_index": (house_months, property_index(house_months, house, table.source)),
        "equity_return": (stock_months, year_on_year(np.exp(log_stock), 12)),
    }
