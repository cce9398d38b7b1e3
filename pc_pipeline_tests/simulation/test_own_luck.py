"""Loans' own luck: mean zero whatever the worths are, nearly all of L - E[L | path] where they are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation import estimators
from pc_pipeline.simulation.control import Control
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.monte_carlo import SimulationConfig, simulate_pool
from pc_pipeline.simulation.own_luck import OwnLuck, luck_along
from pc_pipeline.simulation.reference import expected_cash
from pc_pipeline.simulation.rng import seed_key
from pc_pipeline_tests.simulation.hand import index_by_hand, pool_by_hand, residual_by_hand, rows_by_hand
from pc_pipeline_tests.simulation.test_monte_carlo import macro_by_hand, rows_from_macro

Z_LIMIT, N_MONTHS, N_PATHS, N_LOANS = 4.0, 24, 2_000, 60


def z_of(values):
    return values.mean() / (values.std() / np.sqrt(values.size))


def drawn(own, luck, rows, index, seed=3):
    """Loss and luck of every path, and the cash without luck asked for."""
    cash, plain = (np.zeros((len(rows), N_MONTHS, 5)) for _ in range(2))
    run_lanes(own.lanes, rows, index, seed_key(seed), 0, cash, luck=luck)
    run_lanes(own.lanes, rows, index, seed_key(seed), 0, plain)
    np.testing.assert_allclose(cash, plain, rtol=1e-12, atol=1e-9)
    return (cash[:, :, 3] - cash[:, :, 4]).sum(axis=1), *luck.out_PX.T


def scattered(own, luck, seed=1):
    """Worths and factors drawn at random, but nothing after a contract's end and defaults as they are."""
    draws = np.random.default_rng(seed)
    worth = (1e4 * draws.random(own.worth_BTJL.shape)).astype(np.float32)
    worth[:, :, 4] = own.worth_BTJL[:, :, 4]
    ended = own.lanes.final_BL[:, None, :] <= np.arange(N_MONTHS)[None, :, None]
    worth[:, :, 0][ended] = 0.0
    factor = np.broadcast_to(draws.random((1, *luck.factor_PCTK.shape[1:])), luck.factor_PCTK.shape)
    return luck._replace(worth_BTJL=worth, factor_PCTK=np.ascontiguousarray(factor, dtype=np.float32))


@pytest.mark.parametrize("with_residual", [False, True])
def test_luck_has_mean_zero_whatever_the_worths_are(with_residual):
    """Every kind of loan, arrears, maturities, drawn severities, the sale at the horizon."""
    pool, rows, index = (
        pool_by_hand(N_LOANS, N_MONTHS),
        rows_by_hand(1, 3, N_MONTHS),
        index_by_hand(1, N_MONTHS),
    )
    residual = residual_by_hand(N_LOANS) if with_residual else None
    own = OwnLuck(pool, residual, rows[0])
    many, indices = np.repeat(rows, N_PATHS, axis=0), np.repeat(index, N_PATHS, axis=0)
    begun, predicted = own.begin(many)
    loss, luck, square = drawn(own, begun, many, indices)
    exact = expected_cash(pool, rows[0], index[0], residual)
    assert np.corrcoef(loss, luck)[0, 1] ** 2 > 0.95
    assert (loss - luck).var() < 0.05 * loss.var()
    assert predicted[0] == pytest.approx((exact[:, 3] - exact[:, 4]).sum(), rel=0.03)
    wrong = scattered(own, own.begin(many)[0])
    _, other, other_square = drawn(own, wrong, many, indices)
    for name, values in (
        ("luck", luck),
        ("square", luck**2 - square),
        ("luck, wrong worths", other),
        ("square, wrong worths", other**2 - other_square),
        ("loss less luck", loss - luck - (exact[:, 3] - exact[:, 4]).sum()),
    ):
        assert abs(z_of(values)) < Z_LIMIT, (name, z_of(values))


def test_paths_that_differ_have_luck_of_their_own():
    """Rows of each path differ from the reference: factors follow them, luck stays of mean zero and close."""
    macro = np.tile(macro_by_hand(40, N_MONTHS), (20, 1, 1))
    pool, residual = pool_by_hand(N_LOANS, N_MONTHS), residual_by_hand(N_LOANS)
    own = luck_along(pool, residual, rows_from_macro, macro)
    done = simulate_pool(pool, 3, macro, rows_from_macro, residual, SimulationConfig(seed=2), luck=own)
    assert abs(z_of(done.control.luck_P)) < Z_LIMIT
    left = done.losses_P - done.control.luck_P - done.control.predicted_P
    assert left.var() < 0.05 * done.losses_P.var()
    other = SimulationConfig(seed=2, batch_paths=7, n_threads=1)
    again = simulate_pool(pool, 3, macro, rows_from_macro, residual, other, luck=own)
    np.testing.assert_array_equal(done.control.luck_P, again.control.luck_P)


def test_another_pool_is_refused():
    macro = macro_by_hand(4, N_MONTHS)
    own = luck_along(pool_by_hand(30, N_MONTHS), None, rows_from_macro, macro)
    with pytest.raises(SimulationError, match="another pool"):
        simulate_pool(pool_by_hand(N_LOANS, N_MONTHS), 3, macro, rows_from_macro, None, luck=own)
    with pytest.raises(SimulationError, match="reference rows"):
        OwnLuck(pool_by_hand(30, N_MONTHS), None, rows_by_hand(1, 3, N_MONTHS + 1)[0])


# ---- what it is good for, on a law that is known ------------------------------------------------------

LEVEL, OWN = 0.02, 0.003


def law(seed, n_paths=2_000):
    """Lognormal expected loss, skewed own luck of 40 terms around it, known but for a little."""
    draws = np.random.default_rng(seed)
    expected = LEVEL * np.exp(0.3 * draws.standard_normal(n_paths))
    terms = draws.exponential(1.0, (n_paths, 40)) - 1.0
    scale = OWN * np.sqrt(expected / LEVEL) / np.sqrt(40)
    luck = scale * terms.sum(axis=1)
    noise = 0.05 * OWN * draws.standard_normal(n_paths)
    control = Control(
        luck_P=luck,
        square_P=scale**2 * (terms**2).sum(axis=1),
        predicted_P=expected * np.exp(0.005 * draws.standard_normal(n_paths)),
        offset_P=np.zeros(n_paths),
    )
    return expected + luck + noise, control


def test_controls_change_no_mean_and_take_own_luck_out():
    losses, control = law(0, 200_000)
    ones = np.full(losses.size, 1 / losses.size)
    v = float(np.quantile(losses, 0.99))
    excess, over = np.maximum(losses - v, 0.0), (losses > v) * 1.0
    taken_excess = control.of_excess(v, losses, ones, None)
    taken_over = control.of_exceedance(v, losses, ones, None)
    for name, taken in (("mean", control.of_mean()), ("excess", taken_excess), ("over", taken_over)):
        assert abs(z_of(taken)) < Z_LIMIT, (name, z_of(taken))
    expected = losses - control.luck_P
    ramp = np.maximum(expected - v, 0.0)  # what no control of luck could take out
    assert (excess - taken_excess).var() < 1.1 * ramp.var() + 0.1 * (excess.var() - ramp.var())
    assert (over - taken_over).var() < 0.85 * over.var()


def test_controlled_measures_are_unbiased_and_closer():
    truth = {name: e.value for name, e in estimators.pool_measures(law(99, 500_000)[0]).items()}
    found = {True: [], False: []}
    for seed in range(60):
        losses, control = law(seed)
        for is_controlled in found:
            measures = estimators.pool_measures(losses, control=control if is_controlled else None)
            found[is_controlled].append([measures[name].value for name in truth])
    error = np.array(found[True]) - list(truth.values())
    z = error.mean(axis=0) / (error.std(axis=0, ddof=1) / np.sqrt(60))
    assert np.abs(z[:3]).max() < Z_LIMIT, z
    assert abs(z[list(truth).index("cvar_99")]) < Z_LIMIT, z
    ratio = np.var(np.array(found[True]), axis=0) / np.var(np.array(found[False]), axis=0)
    assert ratio[0] < 0.99
    assert ratio.max() < 1.2, dict(zip(truth, ratio, strict=True))


def test_luck_of_anything_is_found_among_paths_of_like_prediction():
    losses, control = law(5, 8_000)
    junior = np.clip(losses / 0.03, 0.0, 1.0)
    taken = control.of_any(junior, np.ones(junior.size))
    assert abs(z_of(taken)) < Z_LIMIT
    assert (junior - taken).var() < junior.var()
    assert stats.pearsonr(taken, control.luck_P).statistic > 0.8
