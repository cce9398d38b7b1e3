"""A whole run: streaming, determinism, the table it fills, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.schemas import tables
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.simulation.estimators import pool_measures
from pc_pipeline.simulation.monte_carlo import (
    SimulationConfig,
    cash_from_table,
    simulate_pool,
    simulation_table,
)
from pc_pipeline.simulation.own_luck import luck_along
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline_tests.simulation.hand import pool_by_hand, residual_by_hand, rows_by_hand

N_MONTHS, N_PATHS = 12, 20


def macro_by_hand(n_paths=N_PATHS, n_months=N_MONTHS):
    means = np.array([series.mean for series in MACRO_SERIES])
    draws = np.random.default_rng(0).random((n_paths, n_months, 1))
    return means * (0.9 + 0.2 * draws)


def rows_from_macro(macro):
    """Rows that depend on the path's own macro only, as a network's do."""
    stress = macro[:, None, :, 1, None, None] / 0.05
    base = rows_by_hand(1, 3, macro.shape[1])
    moved = base * np.where(np.arange(7) == 1, stress, 1.0)
    return moved / moved.sum(axis=-1, keepdims=True)


def run(config=None, macro=None, pool=None, **more):
    pool = pool_by_hand(90, N_MONTHS) if pool is None else pool
    macro = macro_by_hand() if macro is None else macro
    return simulate_pool(pool, 3, macro, rows_from_macro, residual_by_hand(90), config, **more)


def test_same_bytes_whatever_batch_or_threads():
    whole = run(SimulationConfig(seed=4, batch_paths=20, n_threads=1))
    for batch, threads in [(1, 1), (7, 2), (64, 4)]:
        other = run(SimulationConfig(seed=4, batch_paths=batch, n_threads=threads))
        assert whole.cash_PTC.tobytes() == other.cash_PTC.tobytes()
    assert run(SimulationConfig(seed=5)).cash_PTC.tobytes() != whole.cash_PTC.tobytes()


def test_a_sub_range_can_be_run_alone():
    whole = run()
    part = run(macro=macro_by_hand()[8:13], first_path=8)
    np.testing.assert_array_equal(whole.cash_PTC[8:13], part.cash_PTC)


def test_losses_are_a_share_of_the_cut_off_balance():
    done = run()
    totals = done.cash_PTC.sum(axis=1)
    np.testing.assert_allclose(done.losses_P, (totals[:, 3] - totals[:, 4]) / done.pool_balance)
    assert done.pool_balance == pytest.approx(pool_by_hand(90, N_MONTHS).balance_L.sum())


def test_the_table_keeps_its_contract_and_comes_back():
    weights = np.linspace(0.5, 1.5, N_PATHS)
    done = run(weights_P=weights)
    table = simulation_table(done, "baseline")
    tables.validate("simulations", table)
    back = cash_from_table(table.sample(fraction=1.0, shuffle=True, seed=1))
    np.testing.assert_array_equal(back.cash_PTC, np.maximum(done.cash_PTC, 0))
    np.testing.assert_array_equal(back.index_rate_PT, done.index_rate_PT)
    np.testing.assert_allclose(back.weights_P, weights / weights.mean())
    assert back.strata_P is None
    assert back.control is None


def test_strata_and_own_luck_are_stored_so_that_intervals_stay(tmp_path):
    macro = macro_by_hand()
    luck = luck_along(pool_by_hand(90, N_MONTHS), None, rows_from_macro, macro)
    drawn = MacroPaths(
        values_PTM=macro, strata_P=np.arange(N_PATHS) // 2, offset_P=np.linspace(-0.01, 0.01, N_PATHS)
    )
    done = simulate_pool(pool_by_hand(90, N_MONTHS), 3, drawn, rows_from_macro, None, luck=luck)
    table = simulation_table(done, "baseline")
    tables.validate("simulations", table)
    back = cash_from_table(table)
    np.testing.assert_array_equal(back.strata_P, done.strata_P)
    first = pool_measures(done.losses_P, None, done.strata_P, done.control)
    again = pool_measures(done.losses_P, None, back.strata_P, back.control)
    assert first == again


def test_progress_reaches_the_end():
    seen = []
    run(SimulationConfig(batch_paths=8), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 20), (16, 20), (20, 20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule_LW": np.zeros((90, N_MONTHS + 4))}, "without balance"),
        ({"final_L": np.full(90, -1)}, "past maturity"),
        ({"state_L": np.full(90, 5)}, "already ended"),
        ({"rate_L": np.full(90, np.nan)}, "without rate"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(SimulationError, match=message):
        replace(pool_by_hand(90, N_MONTHS), **change)


def test_a_run_that_makes_no_sense_is_refused_before_work():
    with pytest.raises(SimulationError, match="differ in horizon"):
        run(macro=macro_by_hand(n_months=6))
    broken = macro_by_hand()
    broken[3, 2, 1] = np.nan
    with pytest.raises(SimulationError, match="path 3, month 2, unemployment_rate"):
        run(macro=broken)
    with pytest.raises(SimulationError, match="weights"):
        run(weights_P=np.ones(3))
    with pytest.raises(SimulationError, match="memory"):
        run(SimulationConfig(memory_limit_mb=0.001))
    with pytest.raises(SimulationError, match="no probabilities"):
        simulate_pool(pool_by_hand(90, N_MONTHS), 3, macro_by_hand(), lambda m: 2 * rows_from_macro(m))
    with pytest.raises(SimulationError, match="belongs to no cohort"):
        simulate_pool(pool_by_hand(90, N_MONTHS), 2, macro_by_hand(), rows_from_macro)
    with pytest.raises(ConfigError):
        SimulationConfig(batch_paths=0)
