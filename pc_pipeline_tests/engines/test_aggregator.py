"""The aggregator on a small pool: its two halves, the whole, and the seeds' three methods."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.engines.aggregator import PortfolioAggregator, check_mix
from pc_pipeline.engines.macro_sources import paths_by_scenario
from pc_pipeline.engines.results import SimulationResults
from pc_pipeline.engines.tranches import tranche_results
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.tables import TABLES, validate
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.simulation.distil import DistilConfig
from pc_pipeline.simulation.monte_carlo import SimulationConfig, simulation_table
from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline.waterfall.engine import run_waterfall
from pc_pipeline.waterfall.metrics import tranche_metrics

N_MONTHS, N_PATHS = 12, 24
FAST = DistilConfig(n_loans=40, n_paths=2, n_steps=10, batch=512)


@pytest.fixture(scope="module")
def loans():
    return LoanTapeGenerator(n_loans=80, random_seed=1).generate_static_features()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return (
        MacroVAE(MacroVAEConfig(hidden_dim=8, latent_dim=4, n_layers=1)).eval(),
        TransitionTransformer(TransitionConfig(d_model=16, n_heads=2, n_layers=1)).eval(),
        LoanTrajectoryModel(TrajectoryConfig(d_model=16, n_heads=2, n_layers=1, diffusion_steps=4)).eval(),
    )


@pytest.fixture(scope="module")
def results(loans, models) -> SimulationResults:
    return PortfolioAggregator(WaterfallConfig()).monte_carlo_simulate(
        loans,
        *models,
        n_simulations=N_PATHS,
        scenario_mix={"baseline": 0.5, "severe": 0.5},
        n_months=N_MONTHS,
        distil=FAST,
    )


def flat_macro(n_paths=N_PATHS):
    return np.tile([series.mean for series in MACRO_SERIES], (n_paths, N_MONTHS, 1))


def test_the_whole_run_fills_every_frame(results):
    assert results.portfolio_losses.shape == (N_PATHS,)
    assert [tranche.name for tranche in results.tranche_results] == ["Senior", "Mezz", "Junior", "Equity"]
    assert set(results.cashflows) == {
        "interest",
        "scheduled_principal",
        "prepaid_principal",
        "defaulted_balance",
        "recovery",
    }
    for name, frame in results.frames().items():
        if name in TABLES:
            validate(name, frame)
    assert 0 < results.expected_loss <= results.var_99 <= results.cvar_99
    assert results.summary().height == 7 + 2 * 4
    assert "default_gap_12" in results.diagnostics
    equity, senior = results.tranche_results[-1], results.tranche_results[0]
    assert equity.expected_loss >= senior.expected_loss


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_simulations": 10**9}, "would not fit the memory"),
        ({"n_simulations": 10**9, "config": SimulationConfig(memory_limit_mb=1e12)}, "disk has no room"),
        ({"n_simulations": 0}, "nothing to simulate"),
        ({"n_months": 0}, "nothing to simulate"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(loans, models, tmp_path, given, message):
    def untouched(*_):
        raise AssertionError("macro paths were drawn")

    options = {"n_simulations": 10, "n_months": N_MONTHS, "run_folder": tmp_path / "runs"} | given
    with pytest.raises((SimulationError, ConfigError), match=message):
        PortfolioAggregator().monte_carlo_simulate(loans, *models, macro_source=untouched, **options)


def test_same_seed_same_bytes(loans, models, results):
    again = PortfolioAggregator().monte_carlo_simulate(
        loans.to_pandas(),
        *models,
        n_simulations=N_PATHS,
        scenario_mix={"baseline": 0.5, "severely_adverse": 0.5},
        n_months=N_MONTHS,
        distil=FAST,
        config=SimulationConfig(batch_paths=5, n_threads=1),
    )
    np.testing.assert_array_equal(results.portfolio_losses, again.portfolio_losses)


def test_halves_through_the_stored_table_give_the_same_report(loans, models):
    aggregator, pool = PortfolioAggregator(), pool_snapshot(loans)
    simulated = aggregator.simulate(pool, flat_macro(), models[1])
    stored = simulation_table(simulated, "baseline")
    direct = aggregator.report(simulated, scenario="baseline")
    through = aggregator.report(stored, float(pool["current_balance"].sum()))
    for name, frame in direct.frames().items():
        assert_frame_equal(frame, through.frames()[name], rel_tol=1e-12)


def test_files(results, tmp_path):
    assert results.to_excel(tmp_path / "report.xlsx").stat().st_size > 5_000
    folder = results.to_parquet(tmp_path / "tables")
    back = pl.read_parquet(folder / "tranche_report.parquet")
    assert back.equals(results.tranche_report())


def test_waterfall_by_tensor_carries_gradients_and_by_array_is_hard(loans, models):
    aggregator = PortfolioAggregator()
    cash = aggregator.simulate(pool_snapshot(loans), flat_macro(6), models[1]).cash_PTC
    hard = aggregator.apply_waterfall(cash)
    tensor = torch.tensor(cash, requires_grad=True)
    soft = aggregator.apply_waterfall(tensor)
    assert hard["tranche_cashflows"].shape == soft["tranche_cashflows"].shape == (6, N_MONTHS, 4)
    soft["tranche_cashflows"][:, :, 0].sum().backward()
    assert torch.isfinite(tensor.grad).all()
    assert tensor.grad.abs().sum() > 0
    sharp = PortfolioAggregator(WaterfallConfig(soft_temperature=1e-4))(tensor)
    np.testing.assert_allclose(sharp["tranche_losses"].detach(), hard["tranche_losses"], atol=0.02)


def test_aggregate_cashflows_by_hand():
    """Two loans of 100: one repays 40 and prepays 60, one defaults on 100 and loses 30."""
    trajectories = {
        "states": torch.tensor([[0, 5], [4, 4]]),
        "payments": torch.tensor([[41.0, 60.6], [0.0, 0.0]]),
        "balances": torch.tensor([[60.0, 0.0], [0.0, 0.0]]),
        "losses": torch.tensor([[0.0, 0.0], [30.0, 0.0]]),
    }
    frame = PortfolioAggregator().aggregate_cashflows(
        trajectories, pl.DataFrame({"original_balance": [100.0, 100.0]})
    )
    np.testing.assert_allclose(
        frame.drop("path_id", "month_index").to_numpy(), [[1, 40, 0, 100, 70], [0.6, 0, 60, 0, 0]], atol=1e-5
    )
    with pytest.raises(SimulationError, match="incomplete"):
        PortfolioAggregator().aggregate_cashflows({}, pl.DataFrame({"original_balance": [1.0]}))


def test_mixes():
    assert check_mix({"severe": 0.25, "severely_adverse": 0.25, "baseline": 0.5}) == {
        "severely_adverse": 0.5,
        "baseline": 0.5,
    }
    assert paths_by_scenario({"a": 0.5, "b": 0.3, "c": 0.2}, 9) == {"a": 4, "b": 3, "c": 2}
    with pytest.raises(ConfigError, match="no mix"):
        check_mix({"baseline": 0.7})


def test_bad_runs_are_refused_before_work(loans, models):
    aggregator = PortfolioAggregator()
    with pytest.raises(SimulationError, match="shorter than the run"):
        aggregator.monte_carlo_simulate(loans, flat_macro(), models[1], n_simulations=N_PATHS, n_months=24)
    with pytest.raises(ConfigError, match="nothing to simulate"):
        aggregator.monte_carlo_simulate(loans, models[0], models[1], n_simulations=0)
    with pytest.raises(ConfigError, match="no deal"):
        PortfolioAggregator({"tranches": []})


def test_classes_do_not_depend_on_the_block_of_paths():
    draw = np.random.default_rng(3)
    weights = draw.uniform(0.5, 1.5, 37)
    balance, cash = 1e6, draw.uniform(0.0, 1.0, (37, N_MONTHS, 5)) * [6e3, 2e4, 2e4, 3e4, 1e4]
    deal, index = WaterfallConfig().to_deal(), draw.uniform(0.01, 0.05, (37, N_MONTHS))
    whole = tranche_results(cash, deal, balance, index, weights)
    paid = run_waterfall(cash, deal, pool_balance=balance, index_rate_PT=index)
    figures = tranche_metrics(paid, weights)
    for block in (1, 5, 16):
        blocks = tranche_results(cash, deal, balance, index, weights, block)
        for one, other in zip(whole, blocks, strict=True):
            for field in fields(one):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    for one in whole:
        place = paid.tranche(one.name)
        np.testing.assert_array_equal(one.cash, paid.cash[:, :, place])
        np.testing.assert_array_equal(one.balance, paid.balance[:, :, place])
        np.testing.assert_array_equal(one.irr, figures.irr[:, place])
        np.testing.assert_array_equal(one.wal_years, figures.wal_years[:, place])
        np.testing.assert_array_equal(one.losses, np.clip(figures.loss_share[:, place], 0, 1))
        assert one.mean_irr == pytest.approx(figures.mean_irr[place], rel=1e-12)
        for kind, failed in (("oc", one.oc_failed), ("ic", one.ic_failed)):
            tests = [k for k, test in enumerate(deal.tests) if (test.of, test.kind) == (one.name, kind)]
            assert (failed is None) == (not tests)
            if tests:
                np.testing.assert_array_equal(failed, (paid.passed[:, :, tests] < 0.5).any(axis=(1, 2)))
    assert any(one.oc_failed is not None and 0 < one.oc_failed.sum() < 37 for one in whole)
