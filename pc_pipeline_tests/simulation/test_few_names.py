"""Twenty loans of unequal size: the kernel's distribution against the exact convolution of their losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pc_pipeline.simulation import estimators
from pc_pipeline.simulation.history import history_class
from pc_pipeline.simulation.monte_carlo import SimulationConfig, simulate_pool
from pc_pipeline.simulation.own_luck import luck_along
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, uniform_severity
from pc_pipeline.simulation.reference import _clocks, _weights_of_classes, settle_maturity
from pc_pipeline_tests.simulation.hand import pool_by_hand, residual_by_hand, rows_by_hand

N_LOANS, N_MONTHS, N_PATHS, BINS = 20, 12, 30_000, 40_000
SEVERITY = np.array([0.4, 0.7])
Z_LIMIT = 4.0


@pytest.fixture(scope="module")
def few():
    """Annuities, bullets, balloons, fixed and floating, some in arrears; the largest a fifth of the pool."""
    pool = pool_by_hand(N_LOANS, N_MONTHS, seed=4)
    severity = uniform_severity(SEVERITY, SEVERITY, 2)  # no spread: a loan's loss has finitely many values
    return replace(pool, severity_GQ=severity), residual_by_hand(N_LOANS, 4)


def loan_law(pool, rows_CTKJ, residual):
    """{loss: probability} of one loan: positions (state, clocks, column paid), carried forward."""
    schedule, final = pool.schedule_LW[0], int(pool.final_L[0])
    lost = float(SEVERITY[pool.loss_group_L[0]])
    weights = _weights_of_classes(pool, rows_CTKJ, residual)
    start = (int(pool.state_L[0]), int(pool.since_miss_L[0]), int(pool.in_state_L[0]))
    mass, law = {(*start, DUE_AT_CUTOFF - int(pool.arrears_L[0])): 1.0}, {}
    for t in range(N_MONTHS):
        later, due = {}, min(t, final) + DUE_AT_CUTOFF + 1
        for (state, since, inside, paid), p in mass.items():
            held = int(history_class(np.array(state), np.array(since), np.array(inside)))
            moves = settle_maturity(weights[t, held][None], np.array([t >= final]))[0]
            for new, q in enumerate(p * moves / moves.sum()):
                if new < 4 and q > 0:
                    key = (
                        new,
                        *_clocks(state, new, since, inside),
                        max(paid, due - new) if new < 3 else paid,
                    )
                    later[key] = later.get(key, 0.0) + q
                elif q > 0:
                    loss = lost * schedule[paid] if new == 4 else 0.0
                    law[loss] = law.get(loss, 0.0) + q
        mass = later
    for (state, _, _, paid), p in mass.items():
        loss = lost * schedule[paid] if state == 3 else 0.0
        law[loss] = law.get(loss, 0.0) + p
    return law


def pool_law(pool, rows_CTKJ, residual):
    """(BINS,) probabilities of pool losses k / BINS of the balance: loans convolved, means kept."""
    spectrum = np.ones(BINS + 1, dtype=complex)
    for loan in range(pool.n_loans):
        own = np.zeros(2 * BINS)
        for loss, q in loan_law(pool.take(np.array([loan])), rows_CTKJ, residual[loan : loan + 1]).items():
            place = loss / pool.total_balance * BINS
            low = int(place)
            own[low] += q * (1 - place + low)
            own[low + 1] += q * (place - low)
        spectrum = spectrum * np.fft.rfft(own)
    return np.fft.irfft(spectrum, 2 * BINS)[:BINS]


def test_twenty_unequal_loans_have_the_exact_distribution(few):
    pool, residual = few
    assert pool.balance_L.max() > 0.15 * pool.total_balance
    rows, macro = rows_by_hand(1, 3, N_MONTHS, 4), np.full((N_PATHS, N_MONTHS, 9), 0.03)
    law = pool_law(pool, rows[0], residual)
    grid = np.arange(BINS) / BINS
    assert law.sum() == pytest.approx(1.0, abs=1e-9)

    def same_rows(macro_PTM):
        return np.broadcast_to(rows, (len(macro_PTM), *rows.shape[1:]))

    own = luck_along(pool, residual, same_rows, macro[:1])
    done = simulate_pool(pool, 3, macro, same_rows, residual, SimulationConfig(seed=1), luck=own)
    losses = done.losses_P
    for level in (0.5, 0.9, 0.99, 0.999):
        v = grid[np.searchsorted(np.cumsum(law), level)] + 1.5 / BINS  # between the law's atoms and the grid
        over, excess = (losses > v) * 1.0, np.maximum(losses - v, 0.0)
        for name, values, exact in (
            ("above", over, law[grid > v].sum()),
            ("excess", excess, law @ np.maximum(grid - v, 0.0)),
        ):
            z = (values.mean() - exact) / (values.std() / np.sqrt(N_PATHS))
            assert abs(z) < Z_LIMIT, (level, name, z)
    left = losses - done.control.luck_P
    z = (left.mean() - law @ grid) / (left.std() / np.sqrt(N_PATHS))
    assert abs(z) < Z_LIMIT
    assert left.var() < 0.1 * losses.var(), "own luck is followed name by name"


def test_a_control_stays_unbiased_where_luck_is_far_from_normal(few):
    """Twenty names: the coefficients of the normal case are poor, but known beforehand."""
    pool, residual = few
    rows, macro = rows_by_hand(1, 3, N_MONTHS, 4), np.full((N_PATHS, N_MONTHS, 9), 0.03)

    def same_rows(macro_PTM):
        return np.broadcast_to(rows, (len(macro_PTM), *rows.shape[1:]))

    own = luck_along(pool, residual, same_rows, macro[:1])
    done = simulate_pool(pool, 3, macro, same_rows, residual, SimulationConfig(seed=2), luck=own)
    weights = np.full(N_PATHS, 1.0 / N_PATHS)
    v = estimators.weighted_quantile(done.losses_P, 0.99)
    for taken in (
        done.control.of_mean(),
        done.control.of_excess(v, done.losses_P, weights, None),
        done.control.of_exceedance(v, done.losses_P, weights, None),
    ):
        assert abs(taken.mean() / (taken.std() / np.sqrt(N_PATHS))) < Z_LIMIT
