"""The exact law, and a model that has it: conditional paths must agree with Gaussian conditioning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.evaluation.macro_conditional import ConditionCase, conditional_table, is_met, scenario_odds
from pc_pipeline.evaluation.macro_latent import latent_use, latent_walk
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.scenarios.definitions import ScenarioDefinition
from pc_pipeline.scenarios.exact_law import exact_law, open_values
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.schemas.units import MACRO_NAMES, STANDARD_SCENARIOS
from pc_pipeline.training.macro_start import warm_start

MONTHS = 24
GENERATOR = MacroScenarioGenerator(MONTHS, random_seed=3)


@pytest.fixture(scope="module")
def model() -> MacroVAE:
    """The start alone: 600 paths of each scenario, no gradient."""
    torch.manual_seed(0)
    network = MacroVAE(
        MacroVAEConfig(seq_length=MONTHS, hidden_dim=8, n_layers=1, decoder_dim=8, latent_dim=20)
    )
    paths = np.concatenate([GENERATOR.generate_paths(name, 600) for name in STANDARD_SCENARIOS])
    labels = torch.arange(4).repeat_interleave(600)
    warm_start(network, torch.tensor(paths, dtype=torch.float32), labels)
    return network.eval()


def test_the_written_law_has_the_moments_of_drawn_paths() -> None:
    law = exact_law(GENERATOR, "adverse")
    opened = open_values(GENERATOR.generate_paths("adverse", 4000)).reshape(4000, -1)
    spread = np.sqrt(np.diag(law.covariance))
    assert np.abs((opened.mean(0) - law.mean) / spread).max() < 5 / np.sqrt(4000)
    cells = np.arange(0, MONTHS * 9, 13)
    correlation = law.covariance / np.outer(spread, spread)
    measured = np.corrcoef(opened[:, cells].T)
    assert np.abs(measured - correlation[np.ix_(cells, cells)]).max() < 5 / np.sqrt(4000)


def test_giving_values_agrees_with_the_generators_own_pins() -> None:
    definition = ScenarioDefinition(name="pinned", pins={"unemployment_rate": {12: 0.07}}, reacts=False)
    given = exact_law(GENERATOR, "baseline").given([("unemployment_rate", 12, 0.07)])
    drawn = open_values(GENERATOR.generate_paths(definition, 4000))
    gap = (drawn.mean(0) - given.mean_path()) / np.maximum(given.sd_path(), 1e-3)
    gap[12, 1] = 0.0
    assert np.abs(gap).max() < 5 / np.sqrt(4000)
    assert given.sd_path()[12, 1] == pytest.approx(0.0, abs=1e-6)
    assert given.median_path()[12, 1] == pytest.approx(0.07)


def test_a_value_worth_one_of_two_scenarios_gets_its_odds() -> None:
    laws = {name: exact_law(GENERATOR, name) for name in ("baseline", "severely_adverse")}
    odds = scenario_odds(laws, [("unemployment_rate", 15, 0.11)])
    assert odds["severely_adverse"] > 0.99
    with pytest.raises(ConfigError):
        laws["baseline"].given([("unemployment_rate", MONTHS, 0.1)])
    with pytest.raises(ConfigError):
        laws["baseline"].given([])


def test_conditional_paths_follow_the_exact_law(model: MacroVAE) -> None:
    case = ConditionCase(
        name="two values",
        scenario="adverse",
        given=(("gdp_growth_yoy", 10, -0.03), ("credit_spread_hy", 10, 900.0)),
    )
    law = exact_law(GENERATOR, "adverse")
    row = conditional_table(model, {"adverse": law}, cases=[case], n_paths=1500).to_dicts()[0]
    assert is_met(row)
    learned = 5 / np.sqrt(600)  # the model's own level is known from 600 paths
    assert row["mean_gap_sd"] < learned + 5 * row["mean_gap_error"]
    assert row["sd_gap"] < 0.12 + 5 * row["sd_gap_error"]
    assert row["moved"] > 0.5  # the other means really move, so agreement says something


def test_the_model_weighs_scenarios_as_bayes_does(model: MacroVAE) -> None:
    """Unemployment that both baseline and adverse can have: paths come from both, in the exact shares."""
    given = [("unemployment_rate", 14, 0.066)]
    odds = scenario_odds({name: exact_law(GENERATOR, name) for name in STANDARD_SCENARIOS}, given)
    drawn = model.generate_conditional({"unemployment_rate": {"month": 14, "value": 0.066}}, MONTHS, 1500)
    spread = open_values(drawn[:, 14].double().numpy())[:, MACRO_NAMES.index("credit_spread_ig")]
    middle = [
        exact_law(GENERATOR, name).given(given).mean_path()[14, MACRO_NAMES.index("credit_spread_ig")]
        for name in STANDARD_SCENARIOS
    ]
    expected = float(np.dot(list(odds.values()), middle))
    assert abs(float(spread.mean()) - expected) < 0.15


def test_the_model_refuses_what_the_law_makes_impossible(model: MacroVAE) -> None:
    with pytest.raises(ModelError, match="implausible"):
        model.generate_conditional({"unemployment_rate": {"month": 3, "value": 0.24}}, MONTHS, 4)


def test_the_walk_moves_what_the_latent_is_named_for(model: MacroVAE) -> None:
    walk = latent_walk(model, "baseline", n_paths=500)
    assert walk.height == 20
    first = walk.row(1, named=True)  # level at the start: unemployment
    assert first["meaning"] == "level at the start: unemployment_rate"
    assert first["strongest_month"] <= 2
    # 4 sd of the latent are rho x 4 sd of the part of the first shock that GDP does not explain
    assert 1.0 < first["unemployment_rate"] < 4.0
    paths = torch.tensor(GENERATOR.generate_paths("baseline", 50), dtype=torch.float32)
    use = latent_use(model, paths, torch.zeros(50, dtype=torch.long))
    assert use.height == 20
    assert (use["kl"] >= 0).all()
