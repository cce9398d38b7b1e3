"""Measures against numbers a person can check, and against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.metrics import (
    accuracy,
    calibration_slope,
    clustered_mean,
    gap_closed,
    happened_over_expected,
    log_losses,
)


def test_log_losses_by_hand() -> None:
    p = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    assert log_losses(p, np.array([0, 1, 0])).tolist() == pytest.approx([np.log(2), -np.log(0.75), 0.0])
    assert log_losses(p, np.array([0, 1, 1]))[2] == pytest.approx(27.63, abs=0.01)
    assert accuracy(p, np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_clustered_error_by_hand_and_wider_than_naive_when_loans_repeat() -> None:
    # Two loans, values 1,1 and 3,3: mean 2, cluster sums of deviations -2 and 2; se = sqrt(8 * 2) / 4 = 1.
    found = clustered_mean(np.array([1.0, 1.0, 3.0, 3.0]), np.array([7, 7, 9, 9]))
    assert (found.value, found.se, found.n) == (2.0, 1.0, 4)
    assert np.isnan(clustered_mean(np.array([1.0, 2.0]), np.array([0, 0])).se)


def test_clustered_error_covers_the_truth() -> None:
    """Means of 400 samples with a loan effect lie within 1.96 standard errors 91-98 % of the time."""
    rng = np.random.default_rng(0)
    cluster, covered = np.repeat(np.arange(60), 12), 0
    for _ in range(400):
        values = rng.standard_normal(60)[cluster] + 0.5 * rng.standard_normal(len(cluster))
        found = clustered_mean(values, cluster)
        covered += abs(found.value) < 1.96 * found.se
    assert 0.91 < covered / 400 < 0.98


def test_the_oracle_closes_all_and_the_reference_nothing() -> None:
    rng = np.random.default_rng(1)
    reference, oracle = rng.gamma(1.0, size=500) + 0.5, rng.gamma(1.0, size=500)
    cluster = np.arange(500) // 5
    assert gap_closed(oracle, reference, oracle, cluster).value == pytest.approx(1.0)
    assert gap_closed(oracle, reference, oracle, cluster).se == pytest.approx(0.0, abs=1e-12)
    assert gap_closed(reference, reference, oracle, cluster).value == 0.0
    half = gap_closed(0.5 * (reference + oracle), reference, oracle, cluster)
    assert (half.value, half.se) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))


def test_calibration_slope_finds_what_was_put_there() -> None:
    rng = np.random.default_rng(2)
    logit = rng.standard_normal(20_000) - 1.0
    truth = 1 / (1 + np.exp(-logit))
    event = rng.random(20_000) < truth
    slope, se, intercept = calibration_slope(truth, event)
    assert abs(slope - 1) < 4 * se
    assert abs(intercept) < 0.15
    too_extreme = 1 / (1 + np.exp(-2 * logit))
    assert calibration_slope(too_extreme, event)[0] == pytest.approx(0.5, abs=4 * se)
    assert np.isnan(calibration_slope(truth, np.zeros(20_000, dtype=bool))[0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        log_losses(np.full((2, 3), 0.5), np.array([0, 1]))
    with pytest.raises(DataError, match="one row per event"):
        log_losses(np.full((2, 2), 0.5), np.array([0]))
    with pytest.raises(DataError, match="average"):
        clustered_mean(np.empty(0), np.empty(0))


def test_happened_over_expected_by_hand_and_wider_when_a_few_loans_miss_every_month() -> None:
    """Two loans of two months at one half: 3 of 2 expected; excesses 1 and 0 by loan."""
    p, cluster = np.full(4, 0.5), np.array([0, 0, 1, 1])
    found = happened_over_expected(p, np.array([1, 1, 1, 0]), cluster)
    assert found.value == pytest.approx(1.5)
    assert found.se == pytest.approx(np.sqrt(2 * (0.5**2 + 0.5**2)) / 2)
    steady = np.repeat(np.arange(50) < 5, 20)
    clustered = happened_over_expected(np.full(1000, 0.1), steady, np.repeat(np.arange(50), 20))
    assert clustered.se > 3 / np.sqrt(100)
    with pytest.raises(DataError, match="nothing was expected"):
        happened_over_expected(np.zeros(2), np.zeros(2), np.arange(2))
