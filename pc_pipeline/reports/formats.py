"""How a number, a name and a unit are written. Here: text for people. Not here: layout, or any figure's
calculation. One place, so that console, page and workbook never write the same number in two ways.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from pc_pipeline.schemas.tables import TABLES, describe
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_SERIES

Unit = Literal["percent", "bps", "money", "years", "integer", "number", "text", "date"]

MISSING: Final = "–"
MINUS: Final = "\N{MINUS SIGN}"
MEASURE_TITLES: Final = {
    "expected_loss": "Expected loss",
    "var_95": "VaR 95",
    "var_99": "VaR 99",
    "var_999": "VaR 99.9",
    "cvar_95": "CVaR 95",
    "cvar_99": "CVaR 99",
    "cvar_999": "CVaR 99.9",
}
CHANNEL_TITLES: Final = {
    "interest": "Interest",
    "scheduled_principal": "Scheduled principal",
    "prepaid_principal": "Prepaid principal",
    "defaulted_balance": "Defaulted balance",
    "recovery": "Recoveries",
}
SERIES_TITLES: Final = {
    "gdp_growth_yoy": "GDP growth, 12 months",
    "unemployment_rate": "Unemployment rate",
    "inflation_rate": "Inflation, 12 months",
    "policy_rate": "Policy rate",
    "yield_10y": "10-year government yield",
    "credit_spread_ig": "Investment-grade spread",
    "credit_spread_hy": "High-yield spread",
    "property_price_index": "Property price index",
    "equity_return": "Equity return",
}
_SERIES_UNITS: Final[dict[str, Unit]] = {
    series.name: {"bps": "bps", "index": "number"}.get(series.unit, "percent")  # type: ignore[misc]
    for series in MACRO_SERIES
}
# Units of float columns whose description in the schema names no unit of its own.
_TABLE_UNITS: Final[dict[str, Unit]] = {
    "pool_report": "percent",
    "tranche_report": "percent",
    "cash_flow_report": "money",
    "tranche_balance_report": "money",
}
_ABBREVIATIONS: Final = {
    "irr": "IRR",
    "wal": "WAL",
    "oc": "OC",
    "ic": "IC",
    "id": "ID",
    "auc": "AUC",
    "ltv": "LTV",
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]")


def is_missing(value: float | None) -> bool:
    """True for null, NaN and the infinities: nothing that can be shown as a figure."""
    return value is None or not math.isfinite(value)


def _signed(text: str) -> str:
    return text.replace("-", MINUS) if re.search(r"[1-9]", text) else text.replace("-", "")


def percent(value: float | None, digits: int = 2) -> str:
    """0.01923 -> '1.92%'. A positive share too small to show is written '<0.01%', never as zero."""
    if value is None or is_missing(value):
        return MISSING
    smallest = 10.0 ** -(digits + 2)
    if 0 < abs(value) < smallest / 2:
        return f"{'<' if value > 0 else f'>{MINUS}'}{smallest:.{digits}%}"
    return _signed(f"{value:,.{digits}%}")


def percent_interval(
    lower: float | None, upper: float | None, digits: int = 2, dash: str | None = None
) -> str:
    """(0.0185, 0.0199) -> '1.85% to 1.99%', or with a dash '1.85–1.99%'; empty when an end is missing."""
    if is_missing(lower) or is_missing(upper):
        return ""
    start, end = percent(lower, digits), percent(upper, digits)
    return f"{start} to {end}" if dash is None else f"{start.removesuffix('%')}{dash}{end}"


def money(value: float | None) -> str:
    """1234567.8 -> '1,234,568'."""
    if value is None or is_missing(value):
        return MISSING
    return _signed(f"{value:,.0f}")


def money_scale(largest: float) -> tuple[float, str]:
    """(divisor, word) under which amounts up to `largest` read well: (1e6, 'million') for 35,000,000."""
    for divisor, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(largest) >= divisor:
            return divisor, word
    return 1.0, ""


def money_short(value: float | None) -> str:
    """35000000 -> '35.0 million'."""
    if value is None or is_missing(value):
        return MISSING
    divisor, word = money_scale(value)
    return _signed(f"{value / divisor:,.1f} {word}" if word else f"{value:,.0f}")


def years(value: float | None) -> str:
    """3.417 -> '3.42 y'."""
    if value is None or is_missing(value):
        return MISSING
    return _signed(f"{value:,.2f} y")


def number(value: float | None) -> str:
    """Six significant digits, thousands separated, no trailing zeros."""
    if value is None or is_missing(value):
        return MISSING
    if value == int(value) and abs(value) < 1e15:
        return _signed(f"{int(value):,}")
    return _signed(f"{value:,.6g}")


def series_unit(series: str) -> Unit:
    """Unit in which a macro series is shown: percent, bps or number (an index)."""
    return _SERIES_UNITS.get(series, "number")


def plain(text: object, longest: int | None = None) -> str:
    """Text without control and direction-override characters, cut to `longest` characters if given."""
    clean = _CONTROL.sub(" ", str(text)).strip()
    if longest is not None and len(clean) > longest:
        clean = clean[: longest - 1].rstrip() + "…"
    return clean


def humanize(name: str) -> str:
    """'severely_adverse' -> 'Severely adverse'; 'oc_failure_probability' -> 'OC failure probability'."""
    words = [_ABBREVIATIONS.get(word, word) for word in plain(name).split("_") if word]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def measure_title(measure: str) -> str:
    """Title of a pool measure; an unknown one keeps its own name."""
    return MEASURE_TITLES.get(measure, humanize(measure))


def channel_title(channel: str) -> str:
    """Title of a cash channel."""
    return CHANNEL_TITLES.get(channel, humanize(channel))


def series_title(series: str) -> str:
    """Title of a macro series."""
    return SERIES_TITLES.get(series, humanize(series))


def describe_column(table: str, column: str) -> str:
    """The schema's description of a column, empty when the table or column is not in the schemas."""
    if table not in TABLES:
        return ""
    return next((text for name, _, text in describe(table) if name == column), "")


def column_unit(table: str, column: str) -> Unit:
    """Unit of a float column: read from its schema description, else from its name, else 'number'."""
    description = describe_column(table, column)
    if column in CASH_CHANNELS or "currency" in description:
        return "money"
    if "bps" in description or column.endswith("_bps"):
        return "bps"
    if "years" in description or column.endswith("_years"):
        return "years"
    if table in _TABLE_UNITS:
        return _TABLE_UNITS[table]
    if column in _SERIES_UNITS:
        return series_unit(column)
    if "decimal" in description or "share of" in description:
        return "percent"
    return _unit_of_name(column)


def _unit_of_name(column: str) -> Unit:
    if column == "loss" or column.endswith(("_rate", "_probability", "_share", "_loss", "_irr")):
        return "percent"
    if column.endswith(("_balance", "_amount", "_payment")):
        return "money"
    return "number"
