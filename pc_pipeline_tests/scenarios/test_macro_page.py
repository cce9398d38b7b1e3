"""The page docs/methods/macro.md: its examples run and its figures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pc_pipeline.scenarios.assumptions import decided_assumptions, load_assumptions
from pc_pipeline.scenarios.calibration import PANDEMIC
from pc_pipeline.scenarios.definitions import load_scenarios
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.scenarios.history import load_history
from pc_pipeline.scenarios.var_fit import keep_months
from pc_pipeline.schemas.units import MACRO_NAMES
from pc_pipeline_tests.shared_data import shared_path

PAGE = (Path(__file__).parents[2] / "docs" / "methods" / "macro.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.S)[1]


def test_python_example_runs():
    exec(compile(block("python"), "docs/methods/macro.md", "exec"), {})


def test_yaml_example_loads_and_generates(tmp_path):
    (tmp_path / "custom.yaml").write_text(block("yaml"))
    bust, higher = load_scenarios(tmp_path / "custom.yaml")
    generator = MacroScenarioGenerator()
    assert generator.generate_paths(bust, 3)[:, 24, 1] == pytest.approx([0.09] * 3)
    assert generator.mean_path(higher)[2, MACRO_NAMES.index("policy_rate")] == pytest.approx(0.055)


def test_figures_of_the_reaction_rules():
    generator = MacroScenarioGenerator(n_months=72)
    policy, equity = MACRO_NAMES.index("policy_rate"), MACRO_NAMES.index("equity_return")
    means = {name: generator.mean_path(name) for name in ("adverse", "severe", "stagflation")}
    assert means["adverse"][:, policy].min() == pytest.approx(0.008, abs=5e-4)
    assert means["severe"][:, policy].min() == pytest.approx(0.003, abs=5e-4)
    assert means["stagflation"][:, policy].max() == pytest.approx(0.090, abs=2e-3)
    lows = [round(float(mean[:, equity].min()), 2) for mean in means.values()]
    highs = [round(float(mean[:, equity].max()), 2) for mean in means.values()]
    assert lows == [-0.09, -0.27, -0.15]
    assert highs == [0.20, 0.25, 0.19]


def test_figure_of_the_solved_shock_correlations():
    decided = decided_assumptions()
    gap = np.abs(decided.dynamics().shock_correlation - decided.shock_correlation).max()
    assert gap == pytest.approx(0.052, abs=1e-3)


def test_table_of_errors_is_the_shipped_report():
    keys = [
        "var_in",
        "walk_in",
        "var_out",
        "own_out",
        "walk_out",
        "var_out_long",
        "own_out_long",
        "walk_out_long",
    ]
    for row in load_assumptions("us_1988_2023").notes["fit"]:
        name = row["series"]
        line = next(text for text in PAGE.splitlines() if text.startswith(f"| {name} | ") and "**" in text)
        printed = re.findall(r"-?\d*\.\d+", line)
        values = [row[key] for key in [*keys, "residual_autocorrelation"]]
        for text, value in zip(printed, values, strict=True):
            half_digit = 0.5 * 10.0 ** -len(text.split(".")[1])
            assert abs(float(text) - value) <= 1.001 * half_digit, (name, text, value)


def test_held_peak_of_the_shipped_set():
    generator = MacroScenarioGenerator(assumptions="us_1988_2023")
    peak = generator.mean_path("severe")[:, MACRO_NAMES.index("credit_spread_ig")].max()
    assert peak == pytest.approx(440, abs=1)


def test_stated_limits_of_the_shipped_set():
    """Dispersion of changes over twelve months, and one correlation of levels, against history."""
    history = load_history(shared_path("data/macro_fred"))
    keep = keep_months(history.frame["month"].to_list(), PANDEMIC)
    real = history.values()
    paths = MacroScenarioGenerator(n_months=240, assumptions="us_1988_2023").generate_paths("baseline", 400)
    changes = (real[12:] - real[:-12])[keep[12:] & keep[:-12]].std(axis=0)
    share = (paths[:, 12:] - paths[:, :-12]).std(axis=(0, 1)) / changes
    stated = {
        "property_price_index": 0.56,
        "policy_rate": 0.76,
        "unemployment_rate": 0.73,
        "equity_return": 0.75,
        "gdp_growth_yoy": 0.89,
        "inflation_rate": 0.94,
        "yield_10y": 1.24,
    }
    assert {name: share[MACRO_NAMES.index(name)] for name in stated} == pytest.approx(stated, abs=0.03)
    rates = [MACRO_NAMES.index("policy_rate"), MACRO_NAMES.index("yield_10y")]
    assert np.corrcoef(real[keep][:, rates].T)[0, 1] == pytest.approx(0.87, abs=0.01)
    assert np.corrcoef(paths.reshape(-1, 9)[:, rates].T)[0, 1] == pytest.approx(0.3, abs=0.05)
