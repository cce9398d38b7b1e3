"""The kernel against its readable twin, against the exact expectation, and against itself cut differently."""

from __future__ import annotations

import numpy as np
import pytest

from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import pack_lanes
from pc_pipeline.simulation.pool import uniform_severity
from pc_pipeline.simulation.reference import (
    cash_of_states,
    counter_numbers,
    expected_cash,
    generator_numbers,
    simulate_reference,
)
from pc_pipeline.simulation.rng import seed_key
from pc_pipeline_tests.simulation.hand import index_by_hand, pool_by_hand, residual_by_hand, rows_by_hand

Z_LIMIT = 4.0
N_MONTHS = 24


def kernel_cash(pool, rows, index, residual, seed, first_path=0):
    out = np.zeros((*index.shape, 5))
    run_lanes(pack_lanes(pool, residual), rows, index, seed_key(seed), first_path, out)
    return out


@pytest.mark.parametrize("with_residual", [False, True])
def test_kernel_follows_numpy_path_by_path(with_residual):
    n_paths, pool = 6, pool_by_hand(400, N_MONTHS)
    rows, index = rows_by_hand(n_paths, 3, N_MONTHS), index_by_hand(n_paths, N_MONTHS)
    residual = residual_by_hand(400) if with_residual else None
    cash = kernel_cash(pool, rows, index, residual, seed=5, first_path=40)
    for p in range(n_paths):
        twin = simulate_reference(pool, rows[p], index[p], residual, counter_numbers(5, pool, 40 + p))
        np.testing.assert_allclose(cash[p], twin, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_kernel_agrees_with_the_exact_expectation(seed):
    n_paths, pool = 2_000, pool_by_hand(40, N_MONTHS, seed=seed)
    rows, index = rows_by_hand(1, 3, N_MONTHS, seed), index_by_hand(1, N_MONTHS, seed)
    residual = residual_by_hand(40, seed)
    cash = kernel_cash(
        pool, np.repeat(rows, n_paths, axis=0), np.repeat(index, n_paths, axis=0), residual, seed
    ).sum(axis=1)
    exact = expected_cash(pool, rows[0], index[0], residual).sum(axis=0)
    z = (cash.mean(axis=0) - exact) / (cash.std(axis=0) / np.sqrt(n_paths))
    assert np.abs(z).max() < Z_LIMIT, z


def test_every_path_conserves_principal():
    pool, index = pool_by_hand(130, N_MONTHS), index_by_hand(50, N_MONTHS)
    cash = kernel_cash(pool, rows_by_hand(50, 3, N_MONTHS), index, None, seed=3)
    repaid = cash[:, :, 1:4].sum(axis=(1, 2))
    np.testing.assert_allclose(repaid, pool.total_balance, rtol=1e-12)
    assert cash.min() >= 0.0
    assert (cash[:, :, 4].sum(axis=1) <= cash[:, :, 3].sum(axis=1)).all()


def test_bits_do_not_depend_on_how_paths_or_loans_are_cut():
    pool, n_paths = pool_by_hand(200, N_MONTHS), 12
    rows, index, residual = (
        rows_by_hand(n_paths, 3, N_MONTHS),
        index_by_hand(n_paths, N_MONTHS),
        residual_by_hand(200),
    )
    whole = kernel_cash(pool, rows, index, residual, seed=9)
    parts = [kernel_cash(pool, rows[a:b], index[a:b], residual, 9, a) for a, b in [(0, 5), (5, 6), (6, 12)]]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = np.random.default_rng(0).permutation(200)
    shuffled = kernel_cash(pool.take(order), rows, index, residual[order], seed=9)
    np.testing.assert_array_equal(whole, shuffled)


def test_removing_a_loan_changes_nothing_but_its_own_cash():
    pool, index = pool_by_hand(100, N_MONTHS), index_by_hand(4, N_MONTHS)
    rows = rows_by_hand(4, 3, N_MONTHS)
    one, rest = pool.take(np.array([17])), pool.take(np.delete(np.arange(100), 17))
    together = kernel_cash(one, rows, index, None, 2) + kernel_cash(rest, rows, index, None, 2)
    np.testing.assert_allclose(together, kernel_cash(pool, rows, index, None, 2), atol=1e-6)


def test_a_bullet_by_hand():
    """1,000 at 12 %, three months: performs, misses the second, cures and matures in the third.

    Month 0 pays 10 of interest, month 1 nothing, month 2 two coupons of 10 and the principal.
    """
    pool = hand_bullet()
    cash = cash_of_states(pool, np.array([[0, 1, 0]]), np.zeros(3))
    np.testing.assert_allclose(cash[:, 0], [10.0, 0.0, 20.0])
    np.testing.assert_allclose(cash[:, 1], [0.0, 0.0, 1000.0])
    np.testing.assert_allclose(cash[:, 2:], 0.0)


def test_a_default_by_hand():
    """The same bullet charged off in month 1 at 50 % severity, recovery one month later."""
    cash = cash_of_states(hand_bullet(), np.array([[0, 4, 4]]), np.zeros(3))
    np.testing.assert_allclose(cash[:, 3], [0.0, 1000.0, 0.0])
    np.testing.assert_allclose(cash[:, 4], [0.0, 0.0, 500.0])


def hand_bullet():
    base = pool_by_hand(1, 3)
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    schedule = np.full((1, 7), 1000.0)
    schedule[0, 6] = 0.0
    fields |= {
        "schedule_LW": schedule,
        "rate_L": np.array([0.12]),
        "final_L": np.array([2]),
        "state_L": np.array([0]),
        "arrears_L": np.array([0]),
        "is_floating_L": np.array([False]),
        "loss_group_L": np.array([0]),
        "severity_GQ": uniform_severity(np.array([0.5]), np.array([0.5]), 2),
        "recovery_lag_L": np.array([1]),
    }
    return type(base)(**fields)


def test_numpy_generator_has_the_same_law():
    pool = pool_by_hand(60, N_MONTHS)
    rows, index = rows_by_hand(1, 3, N_MONTHS)[0], index_by_hand(1, N_MONTHS)[0]
    draws = np.random.default_rng(4)
    cash = np.stack(
        [
            simulate_reference(pool, rows, index, None, generator_numbers(draws, pool)).sum(axis=0)
            for _ in range(150)
        ]
    )
    exact = expected_cash(pool, rows, index, None).sum(axis=0)
    z = (cash.mean(axis=0) - exact) / (cash.std(axis=0) / np.sqrt(len(cash)))
    assert np.abs(z).max() < Z_LIMIT, z
