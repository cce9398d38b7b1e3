"""Estimators on numbers a person can check, their weights, and the coverage of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation import estimators

HUNDRED = np.arange(1, 101) / 100.0


def test_quantile_and_tail_mean_by_hand():
    assert estimators.value_at_risk(HUNDRED, 0.95).value == 0.95
    tail = estimators.conditional_value_at_risk(HUNDRED, 0.95).value
    assert tail == pytest.approx(np.mean([0.95, 0.96, 0.97, 0.98, 0.99, 1.00]))
    assert estimators.expected_loss(HUNDRED).value == pytest.approx(0.505)
    assert estimators.loss_probability(HUNDRED, 0.9).value == pytest.approx(0.10)


def test_an_integer_weight_is_a_repetition():
    weights = np.where(HUNDRED > 0.9, 3.0, 1.0)
    repeated = np.repeat(HUNDRED, weights.astype(int))
    for level in (0.5, 0.9, 0.95, 0.99):
        weighted = estimators.weighted_quantile(HUNDRED, level, weights)
        assert weighted == estimators.weighted_quantile(repeated, level)
        assert estimators.conditional_value_at_risk(HUNDRED, level, weights).value == pytest.approx(
            estimators.conditional_value_at_risk(repeated, level).value
        )
    assert estimators.effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert estimators.effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)


def test_losses_all_alike_have_no_width():
    for name, estimate in estimators.pool_measures(np.full(50, 0.02)).items():
        assert estimate.value == pytest.approx(0.02), name
        assert estimate.upper - estimate.lower < 1e-12


def test_measures_are_ordered():
    losses = np.random.default_rng(0).beta(1.2, 40, 5_000)
    found = estimators.pool_measures(losses)
    values = [found[name].value for name in ("expected_loss", "var_95", "var_99", "var_999")]
    assert values == sorted(values)
    for name in ("95", "99", "999"):
        assert found[f"cvar_{name}"].value >= found[f"var_{name}"].value
    assert list(found) == list(estimators.MEASURES)


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (np.array([]), None),
        (np.array([0.1, np.nan]), None),
        (np.array([0.1, 0.2]), np.array([1.0])),
        (np.array([0.1, 0.2]), np.array([1.0, -1.0])),
        (np.array([0.1, 0.2]), np.array([0.0, 0.0])),
    ],
)
def test_nonsense_is_refused(losses, weights):
    with pytest.raises(SimulationError):
        estimators.expected_loss(losses, weights)


def test_wilson_interval_of_no_losses_is_not_empty():
    never = estimators.loss_probability(np.zeros(100))
    assert never.value == never.lower == 0.0
    assert never.upper == pytest.approx(3.8416 / 103.8416, abs=1e-4)  # z^2 / (n + z^2)


LAWS = {"lognormal": stats.lognorm(0.8, scale=0.02), "beta": stats.beta(1.2, 40)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_cover(name, weighted):
    """95 % intervals cover in 93-97 % of runs, give or take two standard errors of 800 replications."""
    law, n_paths, n_runs = LAWS[name], 5_000, 800
    draws = np.random.default_rng(7)
    tail = law.ppf(0.99 + 0.01 * (np.arange(100_000) + 0.5) / 100_000)
    truth = {"expected_loss": law.mean(), "var_99": law.ppf(0.99), "cvar_99": tail.mean()}
    hits = dict.fromkeys(truth, 0)
    for _ in range(n_runs):
        u, weights = draws.random(n_paths), None
        if weighted:  # half the paths drawn from the upper tenth: a defensive mixture
            u = np.where(draws.random(n_paths) < 0.5, u, 0.9 + 0.1 * u)
            weights = 1.0 / (0.5 + 0.5 * (u > 0.9) / 0.1)
        losses = law.ppf(u)
        found = {
            "expected_loss": estimators.expected_loss(losses, weights),
            "var_99": estimators.value_at_risk(losses, 0.99, weights),
            "cvar_99": estimators.conditional_value_at_risk(losses, 0.99, weights),
        }
        for measure, value in truth.items():
            hits[measure] += found[measure].lower <= value <= found[measure].upper
    slack = 2 * np.sqrt(0.95 * 0.05 / n_runs)
    for measure, count in hits.items():
        assert 0.93 - slack < count / n_runs < 0.97 + slack, (measure, count / n_runs)


def test_the_interval_of_a_tail_mean_reaches_further_up_than_down():
    found = estimators.conditional_value_at_risk(LAWS["lognormal"].rvs(2_000, random_state=3), 0.99)
    assert found.upper - found.value > found.value - found.lower > 0
