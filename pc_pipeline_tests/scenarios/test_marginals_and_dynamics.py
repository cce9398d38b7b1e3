"""The curve into the bounds, nearest correlations, and the latent process behind the paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.assumptions import decided_assumptions
from pc_pipeline.scenarios.dynamics import LatentDynamics, condition, nearest_correlation
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, ROOM, UPPER_M, fit_curve, limit_sd
from pc_pipeline.schemas.units import MACRO_SERIES

shares = st.lists(st.floats(0.002, 0.998), min_size=9, max_size=9)
widths = st.lists(st.floats(1e-4, 0.6), min_size=9, max_size=9)


@given(share=shares, width=widths)
def test_curve_has_the_moments_asked_for(share, width):
    mean = LOWER_M + RANGE_M * np.array(share)
    sd = RANGE_M * np.array(width)
    curve = fit_curve(mean, sd)
    got_mean, got_sd = curve.moments()
    np.testing.assert_allclose((got_mean - mean) / RANGE_M, 0, atol=1e-8)
    np.testing.assert_allclose(got_sd, limit_sd(mean, sd), rtol=1e-4)


@given(share=shares, z=st.floats(-4, 4))
def test_curve_and_inverse(share, z):
    curve = fit_curve(LOWER_M + RANGE_M * np.array(share), 0.05 * RANGE_M)
    values = curve.values(np.full(9, z))
    assert ((values > LOWER_M) & (values < UPPER_M)).all()
    inner = (values - LOWER_M > 1e-5 * RANGE_M) & (UPPER_M - values > 1e-5 * RANGE_M)
    np.testing.assert_allclose(curve.normals(values)[inner], z, atol=1e-6)


def test_monte_carlo_agrees_with_quadrature():
    """The moments of the decided spreads, whose lower bounds lie 1.7 and 2 standard deviations away."""
    decided = decided_assumptions()
    curve = decided.curve()
    values = curve.values(np.random.default_rng(1).standard_normal((400_000, 9)))
    error = decided.sd / np.sqrt(400_000)
    assert (np.abs(values.mean(axis=0) - decided.mean) < 4 * error).all()
    np.testing.assert_allclose(values.std(axis=0), decided.sd, rtol=0.02)


def test_dispersion_is_limited_by_the_room():
    mean = np.array([series.lower for series in MACRO_SERIES]) + 0.001 * RANGE_M
    assert limit_sd(mean, RANGE_M) == pytest.approx(ROOM * 0.001 * RANGE_M)


def test_mean_on_a_bound_is_refused():
    with pytest.raises(ConfigError, match="outside the bounds"):
        fit_curve(LOWER_M, 0.01 * RANGE_M)


def test_nearest_correlation_worked_example():
    """Higham (2002), section 4: the nearest correlation matrix to a tridiagonal one."""
    matrix = np.array([[2.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 2]])
    np.fill_diagonal(matrix, 1.0)
    expected = np.array(
        [
            [1.0000, -0.8084, 0.1916, 0.1068],
            [-0.8084, 1.0000, -0.6562, 0.1916],
            [0.1916, -0.6562, 1.0000, -0.8084],
            [0.1068, 0.1916, -0.8084, 1.0000],
        ]
    )
    np.testing.assert_allclose(nearest_correlation(matrix, floor=0.0), expected, atol=2e-4)


@given(seed=st.integers(0, 10_000))
def test_nearest_correlation_is_one(seed):
    random = np.random.default_rng(seed).uniform(-1, 1, (9, 9))
    matrix = np.triu(random, 1) + np.triu(random, 1).T + np.eye(9)
    repaired = nearest_correlation(matrix)
    np.testing.assert_allclose(np.diag(repaired), 1.0)
    assert np.linalg.eigvalsh(repaired).min() > 0
    np.testing.assert_allclose(nearest_correlation(repaired), repaired, atol=1e-9)


def test_decided_shocks_are_a_correlation_matrix_as_stated():
    shocks = decided_assumptions().shock_correlation
    assert np.linalg.eigvalsh(shocks).min() == pytest.approx(0.0728, abs=1e-4)
    assert nearest_correlation(shocks) is not shocks
    np.testing.assert_array_equal(nearest_correlation(shocks), shocks)


def test_stationary_law_reproduces_itself():
    law = decided_assumptions().dynamics()
    again = law.transition @ law.stationary @ law.transition.T + law.shock_covariance
    np.testing.assert_allclose(again, law.stationary, atol=1e-12)
    np.testing.assert_allclose(np.diag(law.stationary), 1.0)
    started = law.variances(600, stationary_start=False)
    np.testing.assert_allclose(started[-1], law.stationary, atol=1e-6)


def test_exploding_dynamics_are_refused():
    with pytest.raises(ConfigError, match="explode"):
        LatentDynamics.from_matrices(1.01 * np.eye(9), np.eye(9))


def test_conditioning_against_the_joint_normal():
    """Formula against the textbook conditional of the stacked covariance, 6 months, two pins."""
    law = decided_assumptions().dynamics()
    covariance = law.variances(6, stationary_start=False)
    full = np.zeros((54, 54))
    for t in range(6):
        for s in range(t + 1):
            block = np.linalg.matrix_power(law.transition, t - s) @ covariance[s]
            full[9 * t : 9 * t + 9, 9 * s : 9 * s + 9] = block
            full[9 * s : 9 * s + 9, 9 * t : 9 * t + 9] = block.T
    scale = np.sqrt(np.diag(full))
    full /= np.outer(scale, scale)
    pins, target = np.array([9 * 2 + 0, 9 * 4 + 5]), np.array([-1.0, 0.5])
    gain = full[:, pins] @ np.linalg.inv(full[np.ix_(pins, pins)])
    result = condition(law, covariance, np.array([2, 4]), np.array([0, 5]), target)
    np.testing.assert_allclose(result.mean.reshape(-1), gain @ target, atol=1e-10)
    variance = 1 - np.einsum("ij,ij->i", gain, full[:, pins])
    np.testing.assert_allclose(result.sd.reshape(-1) ** 2, np.clip(variance, 0, None), atol=1e-8)
