"""Names and units of what every room exchanges: macro series, scenarios, classes, channels, features.

Rates and growth are decimals per year, spreads are basis points (suffix `_bps` where the name is
ours), money is float64 in the deal's currency, months are dates of the first day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pc_pipeline.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MacroSeries:
    """One monthly macro series.

    Attributes:
        name: column name.
        mean, sd: of the baseline stationary distribution, in `unit`.
        lower, upper: hard bounds, in `unit`.
        persistence: monthly AR(1) coefficient.
        unit: 'decimal per year', 'bps' or 'index'.
    """

    name: str
    mean: float
    sd: float
    lower: float
    upper: float
    persistence: float
    unit: str


MACRO_SERIES: Final[tuple[MacroSeries, ...]] = (
    MacroSeries("gdp_growth_yoy", 0.02, 0.01, -0.15, 0.15, 0.70, "decimal per year"),
    MacroSeries("unemployment_rate", 0.05, 0.01, 0.02, 0.25, 0.95, "decimal"),
    MacroSeries("inflation_rate", 0.02, 0.005, -0.05, 0.15, 0.80, "decimal per year"),
    MacroSeries("policy_rate", 0.03, 0.01, 0.0, 0.15, 0.98, "decimal per year"),
    MacroSeries("yield_10y", 0.035, 0.008, 0.0, 0.10, 0.95, "decimal per year"),
    MacroSeries("credit_spread_ig", 100.0, 30.0, 50.0, 500.0, 0.90, "bps"),
    MacroSeries("credit_spread_hy", 400.0, 100.0, 200.0, 2000.0, 0.85, "bps"),
    MacroSeries("property_price_index", 100.0, 5.0, 50.0, 200.0, 0.98, "index"),
    MacroSeries("equity_return", 0.08, 0.15, -0.5, 0.5, 0.10, "decimal per year"),
)
MACRO_NAMES: Final = tuple(series.name for series in MACRO_SERIES)
N_MACRO: Final = len(MACRO_SERIES)

STANDARD_SCENARIOS: Final = ("baseline", "adverse", "severely_adverse", "stagflation")
SCENARIO_ALIASES: Final = {"severe": "severely_adverse"}
OBSERVED: Final = "observed"  # the path that really happened; a history, not a forecast


def canonical_scenario(name: str) -> str:
    """The standard name of a scenario ('severe' -> 'severely_adverse'); others pass through."""
    return SCENARIO_ALIASES.get(name, name)


def scenario_code(name: str) -> int:
    """0-3 for the standard scenarios.

    Raises:
        ConfigError: the name is none of them.
    """
    canonical = canonical_scenario(name)
    if canonical not in STANDARD_SCENARIOS:
        raise ConfigError("not a standard scenario", expected=", ".join(STANDARD_SCENARIOS), got=name)
    return STANDARD_SCENARIOS.index(canonical)


ASSET_CLASSES: Final = ("corporate", "consumer", "realestate", "receivables")
BORROWER_TYPES: Final = ("corporate", "sme", "consumer", "sponsor")
AMORTIZATION_TYPES: Final = ("annuity", "bullet", "balloon")
RATE_TYPES: Final = ("fixed", "floating")

CASH_CHANNELS: Final = (
    "interest",
    "scheduled_principal",
    "prepaid_principal",
    "defaulted_balance",
    "recovery",
)
N_CASH: Final = len(CASH_CHANNELS)

COHORT_FEATURES: Final = (
    "class_corporate",
    "class_consumer",
    "class_realestate",
    "class_receivables",
    "vintage_age_months",
    "mean_log_balance",
    "mean_interest_rate",
    "mean_ltv",
    "mean_dti_dscr",
    "mean_score",
    "share_floating",
    "share_amortizing",
)
LOAN_FEATURES: Final = (
    "class_corporate",
    "class_consumer",
    "class_realestate",
    "class_receivables",
    "borrower_corporate",
    "borrower_sme",
    "borrower_consumer",
    "borrower_sponsor",
    "amortization_annuity",
    "amortization_bullet",
    "amortization_balloon",
    "is_floating",
    "is_secured",
    "log_balance",
    "interest_rate",
    "spread",
    "term_months",
    "ltv",
    "dti_dscr",
    "internal_score",
    "external_score",
    "log_collateral_cover",
    "age_months",
    "vintage_index",
)

# Codes that may follow the loan features: categories, not amounts (`loans.segments`).
SEGMENT_CODES: Final = ("industry_code", "region_code")
N_SEGMENT_CODES: Final = 32
# Payment over instalment of the twelve months before the loan is looked at, oldest first.
PAYMENT_WINDOW: Final = tuple(f"payment_ratio_{back}" for back in range(12, 0, -1))
LOAN_EXTRAS: Final = SEGMENT_CODES + PAYMENT_WINDOW
N_LOAN_INPUTS: Final = len(LOAN_FEATURES) + len(LOAN_EXTRAS)
