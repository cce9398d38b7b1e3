"""95 % intervals by replication: plain paths of five laws, controlled paths along the loss of three."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pc_pipeline.simulation import estimators
from pc_pipeline.simulation.control import Control
from pc_pipeline.simulation.tails import Surface, TailConfig, design, quadratic

N_RUNS, N_TERMS = 400, 40
SLACK = 2 * np.sqrt(0.95 * 0.05 / N_RUNS)  # two standard errors of a coverage


def vasicek(u):
    """Large-pool loss: 3 % default, correlation 0.15 (Vasicek 2002)."""
    return stats.norm.cdf((stats.norm.ppf(0.03) + np.sqrt(0.15) * stats.norm.ppf(u)) / np.sqrt(0.85))


LAWS = {
    "lognormal 0.8": stats.lognorm(0.8, scale=0.02).ppf,
    "lognormal 0.3": stats.lognorm(0.3, scale=0.02).ppf,
    "beta": stats.beta(1.2, 40).ppf,
    "gamma": stats.gamma(2, scale=0.01).ppf,
    "vasicek": vasicek,
}


def truth_of(quantile):
    """Every measure, by the midpoint rule."""
    found = {"expected_loss": quantile((np.arange(1_000_000) + 0.5) / 1e6).mean()}
    for name, level in estimators.VAR_LEVELS.items():
        found[f"var_{name}"] = float(quantile(np.array([level]))[0])
        beyond = level + (1 - level) * (np.arange(200_000) + 0.5) / 2e5
        found[f"cvar_{name}"] = quantile(beyond).mean()
    return found


def coverage(truth, run, n_runs=N_RUNS):
    """{measure: share of runs whose interval holds the truth}."""
    hits = dict.fromkeys(truth, 0)
    for seed in range(n_runs):
        found = run(seed)
        for name, value in truth.items():
            hits[name] += found[name].lower <= value <= found[name].upper
    return {name: count / n_runs for name, count in hits.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_intervals_of_plain_paths_cover(name):
    """10,000 paths, the default of a run: 93-97 % for every measure."""
    quantile, draws = LAWS[name], np.random.default_rng(11)
    found = coverage(truth_of(quantile), lambda _: estimators.pool_measures(quantile(draws.random(10_000))))
    for measure, share in found.items():
        assert 0.93 - SLACK < share < 0.97 + SLACK, (measure, share)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_a_tail_beyond_the_sample_is_fitted(name):
    """2,000 plain paths hold two beyond VaR 99.9: a fitted tail carries the upper ends, on the safe side."""
    quantile, draws = LAWS[name], np.random.default_rng(3)

    def run(_):
        losses = quantile(draws.random(2_000))
        return {
            "var_999": estimators.value_at_risk(losses, 0.999),
            "cvar_999": estimators.conditional_value_at_risk(losses, 0.999),
        }

    truth = {key: value for key, value in truth_of(quantile).items() if key.endswith("999")}
    for measure, share in coverage(truth, run).items():
        assert 0.93 - SLACK < share <= 0.995, (measure, share)


# ---- drawn along the loss, own luck taken out ---------------------------------------------------------

# coefficients of the surface, relative sd that it misses, relative sd of own luck at the centre
SURFACES = {
    "lognormal 0.4": ([-4.0, 0.4, 0.0, 0.0, 0.05, 0.0], 0.02, 0.05),
    "lognormal 0.8": ([-4.0, 0.8, 0.0, 0.0, 0.0, 0.0], 0.02, 0.10),
    "thin": ([-2.0, 0.12, 0.03, 0.0, 0.01, 0.01], 0.006, 0.03),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SURFACES)
def test_intervals_of_tail_paths_cover(name):
    """400 paths: 93-97 %, but CVaR 99.9 (a mean over a thousandth) 84 % or more: too narrow, as stated."""
    coefficients, spread, luck = SURFACES[name]
    level = np.exp(coefficients[0])
    surface = Surface(coefficients=np.array(coefficients), spread=spread, share=0.9, luck=luck**2 * level)
    config = TailConfig(n_directions=2)

    def expected(s_PK, z_P):
        return np.exp(quadratic(s_PK) @ surface.coefficients + spread * z_P)

    def run(seed):
        plan = design([surface], np.array([1.0]), 400, config, seed)
        draws = np.random.default_rng(10_000 + seed)
        mean = expected(plan.s_PK, draws.standard_normal(400))
        scale = luck * np.sqrt(mean * level / N_TERMS)
        terms = draws.exponential(1.0, (400, N_TERMS)) - 1.0
        own = scale * terms.sum(axis=1)
        control = Control(
            luck_P=own,
            square_P=scale**2 * (terms**2).sum(axis=1),
            predicted_P=mean * np.exp(0.002 * draws.standard_normal(400)),
            offset_P=plan.offset_P,
        )
        return estimators.pool_measures(mean + own, plan.weights_P, plan.strata_P, control)

    # The truth on a net of 2^21 points: 4 million random ones would err by as much as 400 of these paths.
    u = np.clip(stats.qmc.Sobol(4, rng=np.random.default_rng(1)).random_base2(21), 1e-12, 1 - 1e-12)
    z = stats.norm.ppf(u[:, :3])
    grid = (np.arange(200_001) + 0.5) / 200_001
    erlang = np.interp(u[:, 3], grid, stats.gamma.ppf(grid, N_TERMS)) - N_TERMS
    mean = expected(z[:, :2], z[:, 2])
    losses = mean + luck * np.sqrt(mean * level / N_TERMS) * erlang
    truth = {key: estimate.value for key, estimate in estimators.pool_measures(losses).items()}
    found = coverage(truth, run)
    assert found.pop("cvar_999") > 0.85  # a mean over a thousandth: too narrow, as stated
    for measure, share in found.items():
        assert 0.93 - SLACK < share < 0.97 + SLACK, (measure, share)
