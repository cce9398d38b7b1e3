"""Stratified tail sampling on a law that is known: unbiased and precise (coverage: `test_coverage`)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.simulation import estimators
from pc_pipeline.simulation.tails import (
    Surface,
    TailConfig,
    design,
    fit_surface,
    main_directions,
    place_noise,
)

SPREAD = 0.10
CONFIG = TailConfig(n_directions=2, n_candidates=2**16)
# log loss = -4 + 0.4 s1 + 0.05 s1 s2 + 0.10 luck: the surface sees all but the luck
SURFACE = Surface(coefficients=np.array([-4.0, 0.4, 0.0, 0.0, 0.05, 0.0]), spread=SPREAD, share=0.9)


def losses_of(s_PK, luck_P):
    return np.exp(-4.0 + 0.4 * s_PK[:, 0] + 0.05 * s_PK[:, 0] * s_PK[:, 1] + SPREAD * luck_P)


@pytest.fixture(scope="module")
def truth():
    draws = np.random.default_rng(0)
    losses = losses_of(draws.standard_normal((1_000_000, 2)), draws.standard_normal(1_000_000))
    return {name: estimate.value for name, estimate in estimators.pool_measures(losses).items()}


def one_run(seed, n_paths=400, surface=SURFACE, config=CONFIG):
    plan = design([surface], np.array([1.0]), n_paths, config, seed)
    losses = losses_of(plan.s_PK, np.random.default_rng(1000 + seed).standard_normal(n_paths))
    return losses, plan.weights_P, plan.strata_P


def test_weights_are_shares(truth):
    losses, weights, strata = one_run(0)
    assert weights.sum() == pytest.approx(400)
    assert weights.max() <= 1 / (1 - sum(CONFIG.aims.values())) * 1.2  # the even share bounds them
    assert np.bincount(strata).min() == 2
    assert 50 < estimators.effective_sample_size(weights) < 400
    # far more paths beyond VaR 99 than the four of a plain run
    assert (losses > truth["var_99"]).sum() > 30


def test_unbiased_whatever_the_surface_is(truth):
    """Also with a surface that is wrong: its sign is turned over and half of it missing."""
    wrong = Surface(coefficients=np.array([-4.0, -0.2, 0.1, 0.0, 0.0, 0.0]), spread=SPREAD, share=0.0)
    for surface in (SURFACE, wrong):
        found = []
        for seed in range(60):
            losses, weights, _ = one_run(seed, surface=surface)
            found.append((weights @ losses / 400, weights @ (losses > truth["var_99"]) / 400))
        mean, error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(60)
        z = (mean - [truth["expected_loss"], 0.01]) / error
        assert np.abs(z).max() < 4, z


def test_more_precise_than_plain_for_the_mean_and_for_the_tail(truth):
    draws = np.random.default_rng(5)
    tails, plain = [], []
    for seed in range(40):
        losses, weights, strata = one_run(seed)
        tails.append([e.value for e in estimators.pool_measures(losses, weights, strata).values()])
        losses = losses_of(draws.standard_normal((400, 2)), draws.standard_normal(400))
        plain.append([e.value for e in estimators.pool_measures(losses).values()])
    reference = np.array(list(truth.values()))
    gain = np.mean((np.array(plain) - reference) ** 2, axis=0) / np.mean((tails - reference) ** 2, axis=0)
    found = dict(zip(truth, gain, strict=True))
    assert found["expected_loss"] > 3, found
    assert found["cvar_99"] > 20, found


def test_two_scenarios_are_drawn_by_loss_and_keep_their_shares():
    """A scenario of share 0.1 with five times the loss holds the tail: it gets paths, not weight."""
    worse = Surface(coefficients=SURFACE.coefficients + np.eye(6)[0] * np.log(5), spread=SPREAD, share=0.9)
    plan = design([SURFACE, worse], np.array([0.9, 0.1]), 1000, CONFIG, 3)
    worst = plan.scenario_P == 1
    assert worst.mean() > 0.25
    assert plan.weights_P[worst].sum() / 1000 == pytest.approx(0.1, abs=0.02)


def test_noise_is_standard_normal_and_sits_on_the_plane():
    directions = main_directions(np.random.default_rng(1).normal(1.0, 1.0, (5, 40)), 3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-12)
    draws = np.random.default_rng(2)
    s = draws.standard_normal((4000, 3))
    noise = place_noise(s, directions, draws.standard_normal((4000, 40)))
    np.testing.assert_allclose(noise @ directions.T, s, atol=1e-12)
    assert stats.kstest(noise[:, 7], "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(40)).max() < 5 / np.sqrt(4000)


def test_a_quadratic_is_found_exactly():
    s = np.random.default_rng(0).standard_normal((60, 2))
    surface = fit_surface(s, losses_of(s, np.zeros(60)))
    np.testing.assert_allclose(surface.coefficients, SURFACE.coefficients, atol=1e-9)
    assert surface.share == pytest.approx(1.0)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="two paths"):
        TailConfig(per_stratum=1)
    with pytest.raises(ConfigError, match="aims"):
        TailConfig(aims={"cvar_99": 0.99})
    with pytest.raises(ConfigError, match="too few paths"):
        design([SURFACE], np.array([1.0]), 1, CONFIG, 0)
    with pytest.raises(SimulationError, match="one path"):
        estimators.expected_loss(np.array([0.1, 0.2]), None, np.array([0, 1]))
