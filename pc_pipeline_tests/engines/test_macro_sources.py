"""Every macro source through the one face, and what they refuse before work starts."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.macro_sources import as_source, draw_macro
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.definitions import standard_scenario
from pc_pipeline.scenarios.history import history_from_frame
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES
from pc_pipeline_tests.shared_data import shared_path

N_MONTHS = 12


def level_path(n_months=N_MONTHS):
    means = np.array([series.mean for series in MACRO_SERIES])
    return means * (1 + 0.01 * np.sin(np.arange(n_months))[:, None])


def history(n_months=40):
    months = pl.date_range(date(2015, 1, 1), date(2030, 1, 1), "1mo", eager=True)[:n_months]
    frame = pl.DataFrame(level_path(n_months), schema=list(MACRO_NAMES))
    return history_from_frame(frame.insert_column(0, months.alias("month")))


def small_vae():
    torch.manual_seed(0)
    return MacroVAE(MacroVAEConfig(latent_dim=2, hidden_dim=8, n_layers=1, decoder_dim=8, seq_length=24))


SOURCES = {
    "VAE": small_vae,
    "scenario": lambda: standard_scenario("adverse"),
    "scenarios": lambda: [standard_scenario("adverse"), standard_scenario("baseline")],
    "history": history,
    "paths": lambda: np.stack([level_path()] * 9),
    "one path": level_path,
    "frame": lambda: pl.DataFrame(level_path(), schema=list(MACRO_NAMES)),
    "function": lambda: lambda name, count, months, seed: np.stack([level_path(months)] * count),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_runs_through_monte_carlo_simulate(name):
    loans = LoanTapeGenerator(n_loans=20, random_seed=1).generate_static_features()
    model = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1))
    results = PortfolioAggregator().monte_carlo_simulate(
        loans,
        None,
        model,
        n_simulations=8,
        n_months=N_MONTHS,
        macro_source=SOURCES[name](),
        scenario_mix={"adverse": 0.5, "baseline": 0.5},
    )
    assert results.portfolio_losses.shape == (8,)
    assert list(results.scenario_P) == ["adverse"] * 4 + ["baseline"] * 4


@pytest.mark.parametrize("name", ["VAE", "scenario", "history", "paths", "function"])
def test_a_sub_range_of_paths_is_the_same_drawn_alone(name):
    source = as_source(SOURCES[name]())
    whole = source.draw("adverse", 8, N_MONTHS, 5).values_PTM
    part = source.draw("adverse", 3, N_MONTHS, 5, 4).values_PTM
    np.testing.assert_allclose(whole[4:7], part, rtol=0, atol=0 if name != "VAE" else 1e-4)


def test_windows_of_history_are_histories_own():
    drawn = draw_macro(history(), {"baseline": 1.0}, 30, N_MONTHS, 0).values_PTM
    real = history().values()
    windows = np.lib.stride_tricks.sliding_window_view(real, N_MONTHS, axis=0).swapaxes(1, 2)
    for path in drawn:
        assert (np.abs(windows - path).max(axis=(1, 2)) == 0).any()
    assert len(np.unique(drawn[:, 0, 0])) > 5


def test_supervisory_scenarios_are_a_source():
    from pc_pipeline.scenarios.supervisory import load_supervisory

    definitions = load_supervisory(shared_path("data/macro_fed_scenarios"))
    name = next(one.name for one in definitions if one.name.endswith("severely_adverse"))
    drawn = as_source(definitions).draw(name, 4, 13, 0).values_PTM
    assert drawn[:, :, 1].max() > 0.07


@pytest.mark.parametrize("short", [np.stack([level_path(5)] * 9), level_path(5), history(5)])
def test_too_short_a_source_is_refused_before_work(short):
    with pytest.raises(SimulationError, match="shorter than the run"):
        draw_macro(short, {"baseline": 1.0}, 4, N_MONTHS, 0)


def test_too_few_paths_and_nonsense_are_refused():
    with pytest.raises(SimulationError, match="fewer paths"):
        draw_macro(np.stack([level_path()] * 3), {"baseline": 1.0}, 4, N_MONTHS, 0)
    with pytest.raises(ConfigError, match="no macro source"):
        as_source(3.0)
    with pytest.raises(SimulationError, match="lacks series"):
        as_source(pl.DataFrame({"gdp_growth_yoy": [0.02]}))


def test_weights_are_carried_by_a_source_of_the_user():
    class Tilted:
        longest = None

        def draw(self, scenario, n_paths, n_months, seed, first_path=0):
            values = np.stack([level_path(n_months)] * n_paths)
            weights = np.arange(1.0, n_paths + 1)
            return SimpleNamespace(
                values_PTM=values, weights_P=weights, strata_P=None, scenario_P=None, source="tilted"
            )

    drawn = draw_macro(Tilted(), {"adverse": 0.5, "baseline": 0.5}, 6, N_MONTHS, 0)
    np.testing.assert_allclose(drawn.weights_P, [0.5, 1.0, 1.5] * 2)
