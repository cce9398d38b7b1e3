"""The shipped set, the autoregression behind it, and supervisory projections as scenarios."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError, IngestError
from pc_pipeline.scenarios.assumptions import (
    MacroAssumptions,
    decided_assumptions,
    load_assumptions,
    shipped_sets,
)
from pc_pipeline.scenarios.calibration import PANDEMIC, add_proxy, calibrate, loosen_proxy
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.scenarios.history import history_from_frame, load_history
from pc_pipeline.scenarios.marginals import LOWER_M, UPPER_M
from pc_pipeline.scenarios.supervisory import load_supervisory
from pc_pipeline.scenarios.var_fit import StepFit, fit_step, monthly_law
from pc_pipeline.schemas.units import MACRO_NAMES, STANDARD_SCENARIOS
from pc_pipeline_tests.shared_data import shared_path

SHIPPED = "us_1988_2023"


def test_shipped_sets_load_and_say_where_they_come_from():
    assert shipped_sets() == ["decided", SHIPPED]
    shipped = load_assumptions(SHIPPED)
    assert "FRED" in shipped.source
    assert "ODC" in shipped.notes["licence"]
    assert "public domain" in shipped.notes["licence"]
    assert len(shipped.notes["fit"]) == 8
    assert np.abs(np.linalg.eigvals(shipped.transition)).max() < 1


def test_shipped_set_holds_coefficients_and_no_data():
    numbers = json.dumps(load_assumptions(SHIPPED).to_dict())
    assert len(numbers) < 20_000  # 420 months of nine series would need some 60,000 characters


def test_shipped_set_comes_out_of_the_data_again():
    history = load_history(shared_path("data/macro_fred"))
    again, shipped = calibrate(history, method="var", skip=PANDEMIC), load_assumptions(SHIPPED)
    for part in ("mean", "sd", "persistence", "shock_correlation", "transition", "shock_covariance"):
        np.testing.assert_allclose(getattr(again, part), getattr(shipped, part), rtol=1e-5, atol=1e-9)


def test_json_round_trip(tmp_path):
    for name in shipped_sets():
        original = load_assumptions(name)
        again = load_assumptions(original.save(tmp_path / f"{name}.json"))
        assert again.to_dict() == original.to_dict()


def test_broken_sets_are_refused(tmp_path):
    data = decided_assumptions().to_dict()
    with pytest.raises(ConfigError, match="not assumptions"):
        MacroAssumptions.from_dict({**data, "series": ["x"]})
    with pytest.raises(ConfigError, match="wrong fields"):
        MacroAssumptions.from_dict({**data, "colour": 1})
    for part, value, message in (
        ("mean", [0.0] * 9, "unemployment_rate"),
        ("mean", [0.0] * 8, "finite numbers"),
        ("sd", [0.0] * 9, "sd of gdp"),
        ("persistence", [1.0] * 9, "persistence of gdp"),
        ("shock_correlation", np.full((9, 9), 0.5).tolist(), "unit diagonal"),
        ("transition", np.eye(9).tolist(), "together"),
    ):
        with pytest.raises(ConfigError, match=message):
            MacroAssumptions.from_dict({**data, part: value})
    with pytest.raises(ConfigError, match="not assumptions"):
        MacroAssumptions.from_dict([1])  # type: ignore[arg-type]
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        load_assumptions(tmp_path / "x.json")


@pytest.fixture(scope="module")
def us_generator():
    initial = {
        "gdp_growth_yoy": 0.03,
        "unemployment_rate": 0.038,
        "inflation_rate": 0.037,
        "policy_rate": 0.0533,
        "yield_10y": 0.044,
        "credit_spread_ig": 141.0,
        "credit_spread_hy": 495.0,
        "property_price_index": 108.0,
        "equity_return": 0.18,
    }
    return MacroScenarioGenerator(assumptions=SHIPPED, initial=initial, random_seed=21)


@pytest.mark.parametrize("name", STANDARD_SCENARIOS)
def test_shipped_set_generates_what_it_states(us_generator, name):
    n_paths = 4_000
    paths = us_generator.generate_paths(name, n_paths)
    mean, sd = us_generator.mean_path(name), us_generator.sd_path(name)
    assert ((paths > LOWER_M) & (paths < UPPER_M)).all()
    assert np.abs((paths.mean(axis=0) - mean) / (sd / np.sqrt(n_paths))).max() < 4.5
    centred = (paths - mean) ** 2
    error = centred.std(axis=0) / np.sqrt(n_paths)
    assert np.abs((centred.mean(axis=0) - sd**2) / error).max() < 5.5
    table = macro_table(us_generator, name, 2)
    assert table.height == 120


def test_shipped_dynamics_show_in_long_paths():
    """Covariances of one long path over lag 0 and 1 against those of the stated law, standardised."""
    generator = MacroScenarioGenerator(n_months=1200, assumptions=SHIPPED, random_seed=5)
    law = generator.assumptions.dynamics()
    paths = generator.generate_paths("baseline", 40)
    z = generator.assumptions.curve().normals(paths)
    for lag, expected in ((0, law.stationary), (1, law.transition @ law.stationary)):
        products = np.einsum("pti,ptj->pij", z[:, lag:], z[:, : 1200 - lag]) / (1200 - lag)
        error = products.std(axis=0, ddof=1) / np.sqrt(40)
        assert np.abs((products.mean(axis=0) - expected) / error).max() < 4.5


def test_autoregression_recovers_a_known_law():
    """20,000 steps of a known two-way law: coefficients within 4 standard errors, shocks within 2 %."""
    rng = np.random.default_rng(3)
    truth = np.array([[0.8, 0.1], [-0.05, 0.9]])
    y, rows = np.zeros(2), []
    for _ in range(20_001):
        y = truth @ y + rng.standard_normal(2)
        rows.append(y)
    values = np.array(rows)
    fit = fit_step(values[:-1], values[1:], 1)
    error = np.sqrt(np.diag(np.linalg.inv(values.T @ values)))
    assert (np.abs(fit.transition - truth) < 4 * error + 1e-3).all()
    np.testing.assert_allclose(fit.covariance, np.eye(2), atol=0.04)


def test_heavy_penalty_leaves_single_autoregressions():
    values = np.random.default_rng(0).standard_normal((300, 3)).cumsum(axis=0) * 0.1
    fit = fit_step(values[:-1], values[1:], 1, penalties=np.full(3, 1e12))
    np.testing.assert_allclose(fit.transition, np.diag(fit.own), atol=1e-6)


def test_monthly_law_repeats_to_the_quarterly_one():
    quarterly = np.array([[0.7, 0.05, 0.0], [0.0, 0.8, -0.1], [0.05, 0.0, 0.9]])
    covariance = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 1.0]])
    fit = StepFit(quarterly, np.diag(quarterly), covariance, np.ones(3), np.zeros((1, 3)))
    step, shocks = monthly_law(fit, 3)
    np.testing.assert_allclose(np.linalg.matrix_power(step, 3), quarterly, atol=1e-10)
    total = shocks + step @ shocks @ step.T + step @ step @ shocks @ step.T @ step.T
    np.testing.assert_allclose(total, covariance, atol=1e-7)
    alternating = StepFit(np.diag([-0.5, 0.5]), np.zeros(2), np.eye(2), np.ones(2), np.zeros((1, 2)))
    with pytest.raises(DataError, match="no monthly counterpart"):
        monthly_law(alternating, 3)


def test_a_proxy_gets_a_life_of_its_own():
    correlation = decided_assumptions().shock_correlation.copy()
    ig, hy = MACRO_NAMES.index("credit_spread_ig"), MACRO_NAMES.index("credit_spread_hy")
    correlation[hy] = correlation[ig]
    correlation[:, hy] = correlation[:, ig]
    correlation[hy, hy] = correlation[ig, hy] = correlation[hy, ig] = 1.0
    loosened = loosen_proxy(correlation)
    assert loosened[ig, hy] == 0.9
    assert np.linalg.eigvalsh(loosened).min() > 0
    kept = [i for i in range(9) if i != hy]
    transition, shocks = add_proxy(0.9 * np.eye(8), 0.19 * np.eye(8), kept)
    law = decided_assumptions().dynamics().from_matrices(transition, shocks)
    assert law.stationary[ig, hy] == pytest.approx(0.9)
    assert transition[hy, hy] == pytest.approx(0.9)
    with pytest.raises(DataError, match="copy each other"):
        add_proxy(np.eye(8), np.eye(8), list(range(8)))


def test_calibration_arguments():
    frame = MacroScenarioGenerator(n_months=120, start_date="2010-01-01").generate_scenario("baseline")
    history = history_from_frame(frame)
    with pytest.raises(ConfigError, match="unknown calibration method"):
        calibrate(history, method="magic")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="never moves"):
        calibrate(history_from_frame(frame.with_columns(policy_rate=pl.lit(0.01))))
    monthly = calibrate(history, method="var")
    assert monthly.notes["step_months"] == 1


def test_supervisory_projections_are_scenarios():
    baseline, severe = load_supervisory(shared_path("data/macro_fed_scenarios"))
    assert [baseline.name, severe.name] == ["fed_2025_baseline", "fed_2025_severely_adverse"]
    assert all(len(severe.path[series]) == 39 for series in MACRO_NAMES)
    assert severe.path["unemployment_rate"][19] == pytest.approx(0.10)  # 2026 Q3, middle month
    assert severe.path["policy_rate"][4] == pytest.approx(0.001)  # 2025 Q2
    assert severe.path["credit_spread_ig"][4] == pytest.approx(0.8 * 470)
    assert severe.path["equity_return"][11] == -0.5  # 51 % down over 2025, moved onto the bound
    assert "equity_return" in severe.description
    generator = MacroScenarioGenerator(start_date="2025-01-01", random_seed=1)
    paths = generator.generate_paths(severe, 1_000)
    np.testing.assert_allclose(
        generator.mean_path(severe)[:39, :8], np.array([severe.path[s] for s in MACRO_NAMES[:8]]).T, rtol=1e-6
    )
    z = (paths.mean(axis=0) - generator.mean_path(severe)) / (generator.sd_path(severe) / np.sqrt(1_000))
    assert np.abs(z).max() < 4.5
    assert macro_table(generator, severe, 2).height == 120


def test_supervisory_needs_history(tmp_path):
    source = shared_path("data/macro_fed_scenarios")
    name = "2025-Table_3A_Supervisory_Severely_Adverse_Domestic.csv"
    (tmp_path / name).symlink_to(source / name)
    with pytest.raises(IngestError, match="need the historic table"):
        load_supervisory(tmp_path)
    historic = (source / "2025-Table_1A_Historic_Domestic.csv").read_text().splitlines()
    (tmp_path / "old_Table_1A.csv").write_text("\n".join(historic[:150]) + "\n")
    with pytest.raises(IngestError, match="no historic table reaches"):
        load_supervisory(tmp_path)
