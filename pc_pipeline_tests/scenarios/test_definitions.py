"""Scenario definitions: what they refuse, how they travel as data, the shape of a shift over time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.definitions import (
    ScenarioDefinition,
    Shift,
    load_scenarios,
    standard_scenario,
)
from pc_pipeline.schemas.units import MACRO_NAMES, STANDARD_SCENARIOS


def test_peak_shifts_are_the_decided_ones():
    peaks = {
        name: [
            standard_scenario(name).shifts[series].peak for series in ("gdp_growth_yoy", "unemployment_rate")
        ]
        for name in STANDARD_SCENARIOS[1:]
    }
    assert peaks == {
        "adverse": [-0.03, 0.03],
        "severely_adverse": [-0.06, 0.08],
        "stagflation": [-0.02, 0.03],
    }
    spreads = [standard_scenario(name).shifts["credit_spread_hy"].peak for name in STANDARD_SCENARIOS[1:]]
    assert spreads == [2.0, 4.0, 2.5]
    assert standard_scenario("baseline").shifts == {}


def test_severe_is_an_alias():
    assert standard_scenario("severe") is standard_scenario("severely_adverse")


@pytest.mark.parametrize(
    ("name", "ramp_and_hold", "recovery"), [("adverse", 12, 24), ("severe", 18, 36), ("stagflation", 24, 36)]
)
def test_timing_of_the_standard_shifts(name, ramp_and_hold, recovery):
    profile = standard_scenario(name).profile(120)
    peak_months = np.flatnonzero(profile == 1.0)
    assert (profile[:7] == 0).all()  # onset month 6 is the last quiet month
    assert profile[7] > 0
    assert peak_months[0] == 6 + ramp_and_hold // 2
    assert peak_months[-1] == 6 + ramp_and_hold
    assert profile[6 + ramp_and_hold + recovery] == pytest.approx(0.0, abs=1e-12)
    assert profile[5 + ramp_and_hold + recovery] > 0


@given(
    onset=st.integers(0, 20), ramp=st.integers(2, 24), hold=st.integers(0, 24), recovery=st.integers(2, 48)
)
def test_profile_has_no_jump_at_either_end(onset, ramp, hold, recovery):
    definition = ScenarioDefinition(
        name="x", onset_month=onset, ramp_months=ramp, hold_months=hold, recovery_months=recovery
    )
    profile = definition.profile(160)
    assert profile.min() >= 0
    assert profile.max() <= 1
    # a half cosine over n months never moves more than sin(pi / 2n) in one of them
    assert np.abs(np.diff(profile)).max() <= np.sin(np.pi / (2 * min(ramp, recovery))) + 1e-12
    ends = [profile[onset + 1] - profile[onset], profile[onset + ramp] - profile[onset + ramp - 1]]
    assert max(ends) <= 1 - np.cos(np.pi / ramp) + 1e-12


def test_survives_json():
    definition = ScenarioDefinition(
        name="bust-2027",
        description="local bust",
        shifts={"gdp_growth_yoy": Shift(kind="add", peak=-0.02)},
        pins={"unemployment_rate": {24: 0.09}},
        path={"policy_rate": (0.03, 0.031)},
        noise_scale=0.5,
    )
    assert ScenarioDefinition.from_dict(json.loads(json.dumps(definition.to_dict()))) == definition
    for name in STANDARD_SCENARIOS:
        standard = standard_scenario(name)
        assert ScenarioDefinition.from_dict(json.loads(json.dumps(standard.to_dict()))) == standard


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": "a/b"}, "usable scenario name"),
        ({"name": "observed"}, "usable scenario name"),
        ({"name": "severe"}, "alias"),
        ({"name": "x", "shift": {}}, "wrong fields"),
        ({}, "wrong fields"),
        ({"name": "x", "shifts": {"gdp": {"add": 1}}}, "shifts"),
        ({"name": "x", "shifts": {"gdp_growth_yoy": -0.02}}, "shifts.gdp_growth_yoy"),
        ({"name": "x", "shifts": {"gdp_growth_yoy": {"subtract": 0.02}}}, "shifts.gdp_growth_yoy"),
        ({"name": "x", "shifts": {"credit_spread_ig": {"multiply": -2}}}, "shifts.credit_spread_ig"),
        ({"name": "x", "shifts": {"gdp_growth_yoy": {"add": float("nan")}}}, "shifts.gdp_growth_yoy"),
        ({"name": "x", "onset_month": -1}, "onset_month"),
        ({"name": "x", "ramp_months": 0}, "ramp_months"),
        ({"name": "x", "hold_months": 1.5}, "hold_months"),
        ({"name": "x", "pins": {"unemployment_rate": {"12": 9.0}}}, "pins.unemployment_rate.12"),
        ({"name": "x", "pins": {"unemployment_rate": {"soon": 0.09}}}, "pins.unemployment_rate"),
        ({"name": "x", "pins": {"unemployment_rate": 0.09}}, "pins.unemployment_rate"),
        ({"name": "x", "path": {"policy_rate": []}}, "path.policy_rate"),
        ({"name": "x", "path": {"policy_rate": [0.03, 3.0]}}, "path.policy_rate, month 1"),
        ({"name": "x", "noise_scale": -1}, "noise_scale"),
        ({"name": "x", "noise_scale": 0, "pins": {"policy_rate": {3: 0.01}}}, "pins"),
        ({"name": "x", "path": {"policy_rate": [0.03]}, "shifts": {"policy_rate": {"add": 0.01}}}, "path"),
    ],
)
def test_nonsense_is_refused_with_its_place(fields, where):
    with pytest.raises(ConfigError) as caught:
        ScenarioDefinition.from_dict(fields)
    assert where in str(caught.value)
    assert "expected:" in str(caught.value)
    assert "got:" in str(caught.value)


def test_yaml_file(tmp_path):
    (tmp_path / "rates.csv").write_text("policy_rate,yield_10y\n0.05,0.05\n0.055,0.052\n")
    (tmp_path / "custom.yaml").write_text(
        """
scenarios:
  - name: regional_bust
    shifts:
      gdp_growth_yoy: {add: -0.02}
      property_price_index: {multiply: 0.75}
    pins:
      unemployment_rate: {24: 0.09}
  - name: higher_for_longer
    path_file: rates.csv
"""
    )
    bust, higher = load_scenarios(tmp_path / "custom.yaml")
    assert bust.shifts["property_price_index"] == Shift(kind="multiply", peak=0.75)
    assert bust.pins == {"unemployment_rate": {24: 0.09}}
    assert higher.path == {"policy_rate": (0.05, 0.055), "yield_10y": (0.05, 0.052)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenarios: [", "cannot be read"),
        ("scenarios: []", "no scenarios"),
        ("- {name: baseline}", "taken"),
        ("- {name: a}\n- {name: a}", "twice"),
        ("- {name: a, ramp_months: two}", "scenario number 1"),
        ("- {name: a, path_file: nowhere.csv}", "path_file cannot be read"),
        ("- just text", "not a scenario"),
    ],
)
def test_bad_yaml_names_file_and_entry(tmp_path, text, message):
    file = tmp_path / "custom.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"custom\.yaml|nowhere\.csv") as caught:
        load_scenarios(file)
    assert message in str(caught.value)


def test_every_standard_shift_names_a_series():
    for name in STANDARD_SCENARIOS:
        assert set(standard_scenario(name).shifts) <= set(MACRO_NAMES)
