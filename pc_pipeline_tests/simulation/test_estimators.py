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


@pytest.mark.slow
def test_intervals_cover():
    """95 % intervals cover in 93-97 % of runs; 1,500 replications have a standard error of 0.6 %."""
    law, n_paths, n_runs = stats.lognorm(0.8, scale=0.02), 5_000, 1_500
    draws = law.rvs((n_runs, n_paths), random_state=7)
    tail = law.ppf(0.99 + 0.01 * (np.arange(100_000) + 0.5) / 100_000)
    truth = {"expected_loss": law.mean(), "var_99": law.ppf(0.99), "cvar_99": tail.mean()}
    hits = dict.fromkeys(truth, 0)
    for losses in draws:
        for name, value in truth.items():
            if name == "expected_loss":
                found = estimators.expected_loss(losses)
            elif name == "var_99":
                found = estimators.value_at_risk(losses, 0.99)
            else:
                found = estimators.conditional_value_at_risk(losses, 0.99)
            hits[name] += found.lower <= value <= found.upper
    for name, count in hits.items():
        assert 0.93 - 0.012 < count / n_runs < 0.97 + 0.012, (name, count / n_runs)
