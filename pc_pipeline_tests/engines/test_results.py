"""Results on disk and back, and measures that know how their paths were drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from pc_pipeline.core.errors import DataError
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.results import SimulationResults, macro_fan
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.simulation.control import Control
from pc_pipeline.simulation.monte_carlo import SimulatedCash

N_PATHS, N_MONTHS, POOL = 40, 12, 1_000_000.0


@pytest.fixture(scope="module")
def results() -> SimulationResults:
    draws = np.random.default_rng(0)
    cash = np.zeros((N_PATHS, N_MONTHS, 5))
    cash[:, :, 1:4] = draws.dirichlet(np.ones(3 * N_MONTHS), N_PATHS).reshape(N_PATHS, N_MONTHS, 3) * POOL
    cash[:, :, 0] = POOL * 0.005
    cash[:, :, 4] = 0.4 * cash[:, :, 3]
    weights = np.repeat([0.5, 1.5], N_PATHS // 2)
    simulated = SimulatedCash(
        cash_PTC=cash,
        index_rate_PT=np.full((N_PATHS, N_MONTHS), 0.03),
        weights_P=weights,
        pool_balance=POOL,
        seed=0,
        n_loans=10,
    )
    flat = np.tile([series.mean for series in MACRO_SERIES], (N_PATHS, N_MONTHS, 1))
    found = PortfolioAggregator().report(
        simulated, scenario="baseline", macro_fan_report=macro_fan(flat, "baseline"), seeds={"loans": 3}
    )
    return dataclasses.replace(
        found,
        strata_P=np.arange(N_PATHS) // 2,
        scenario_P=np.repeat(["baseline", "adverse"], N_PATHS // 2),
        control=Control(
            luck_P=found.portfolio_losses - found.portfolio_losses.mean() - draws.normal(0.0, 0.002, N_PATHS),
            square_P=np.full(N_PATHS, found.portfolio_losses.var()),
            predicted_P=np.full(N_PATHS, found.portfolio_losses.mean()),
            offset_P=np.zeros(N_PATHS),
        ),
        model_versions={"macro_vae": "abc"},
        diagnostics={"kl_per_step": 1e-3},
    )


def test_round_trip(results, tmp_path):
    back = SimulationResults.from_parquet(results.to_parquet(tmp_path / "run"))
    for name in ("portfolio_losses", "weights", "strata_P", "scenario_P"):
        np.testing.assert_array_equal(getattr(back, name), getattr(results, name), err_msg=name)
    for name, frame in results.frames().items():
        assert_frame_equal(back.frames()[name], frame)
    assert back.notes() == results.notes()
    for name in ("luck_P", "square_P", "predicted_P", "offset_P"):
        np.testing.assert_array_equal(getattr(back.control, name), getattr(results.control, name))
    np.testing.assert_array_equal(back.tranche_results[1].irr, results.tranche_results[1].irr)


def test_half_a_folder_is_refused(results, tmp_path):
    folder = results.to_parquet(tmp_path / "run")
    (folder / "run.json").unlink()
    with pytest.raises(DataError, match="no simulation"):
        SimulationResults.from_parquet(folder)


def test_weights_reach_the_tranches(results):
    """Means by hand, weights 0.5 and 1.5 on the two halves."""
    half = N_PATHS // 2
    senior = results.tranche_results[0]
    by_hand = 0.25 * senior.losses[:half].mean() + 0.75 * senior.losses[half:].mean()
    assert senior.expected_loss == pytest.approx(by_hand)
    mean_cash = 0.25 * senior.cash[:half].mean(axis=0) + 0.75 * senior.cash[half:].mean(axis=0)
    plain = dataclasses.replace(results, weights=np.ones(N_PATHS), strata_P=None, control=None)
    assert plain.expected_loss != pytest.approx(results.expected_loss, rel=1e-6)
    assert mean_cash.sum() > 0
    assert results.effective_paths == pytest.approx(N_PATHS / 1.25)


def test_a_control_of_the_expected_loss_narrows_its_interval(results):
    with_control = results.interval("expected_loss")
    without = dataclasses.replace(results, control=None).interval("expected_loss")
    assert with_control.upper - with_control.lower < 0.5 * (without.upper - without.lower)
