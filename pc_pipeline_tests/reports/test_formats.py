"""Numbers, names and units as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.reports import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01923, "1.92%"),
        (0.0, "0.00%"),
        (1.0, "100.00%"),
        (-0.0496, "−4.96%"),
        (0.00004, "<0.01%"),
        (-0.00004, ">−0.01%"),
        (0.00005, "0.01%"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (12.5, "1,250.00%"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert formats.percent(value) == text


@given(st.floats(1e-9, 10.0))
def test_a_positive_share_never_reads_as_zero(value: float) -> None:
    assert formats.percent(value) != "0.00%"


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (formats.money, 1234567.8, "1,234,568"),
        (formats.money, -0.2, "0"),
        (formats.money, None, "–"),
        (formats.money_short, 35_000_000.0, "35.0 million"),
        (formats.money_short, 950.0, "950"),
        (formats.years, 3.417, "3.42 y"),
        (formats.years, math.nan, "–"),
        (formats.number, 88361, "88,361"),
        (formats.number, 0.0912345678, "0.0912346"),
        (formats.number, -2.5, "−2.5"),
    ],
)
def test_other_figures(write, value: float | None, text: str) -> None:
    assert write(value) == text


def test_intervals_need_both_ends() -> None:
    assert formats.percent_interval(0.0185, 0.0199) == "1.85% to 1.99%"
    assert formats.percent_interval(0.0185, 0.0199, dash="–") == "1.85–1.99%"
    assert formats.percent_interval(None, 0.0199) == ""
    assert formats.percent_interval(0.0185, math.nan) == ""


def test_names_become_words() -> None:
    assert formats.humanize("severely_adverse") == "Severely adverse"
    assert formats.humanize("oc_failure_probability") == "OC failure probability"
    assert formats.humanize("") == ""


def test_text_loses_control_and_direction_characters() -> None:
    assert formats.plain("a\x1b[31mb\u202ec\n") == "a [31mb c"
    assert formats.plain("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("table", "column", "unit"),
    [
        ("pool_report", "lower", "percent"),
        ("tranche_report", "original_balance", "money"),
        ("tranche_report", "coupon", "percent"),
        ("tranche_report", "wal_years", "years"),
        ("cash_flow_report", "p95", "money"),
        ("tranche_balance_report", "mean", "money"),
        ("macro_scenarios", "credit_spread_hy", "bps"),
        ("macro_scenarios", "property_price_index", "number"),
        ("macro_scenarios", "gdp_growth_yoy", "percent"),
        ("loan_tape", "spread_bps", "bps"),
        ("loss_distribution", "loss", "percent"),
        ("loss_distribution", "weight", "number"),
        ("somebody_elses", "recovery", "money"),
    ],
)
def test_units_come_from_the_schema(table: str, column: str, unit: str) -> None:
    assert formats.column_unit(table, column) == unit
