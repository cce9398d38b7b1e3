"""VaR backtests against figures worked by hand, and against laws that are right or wrong by design."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.backtests import (
    SIGNIFICANCE,
    _joint_places,
    _uniform,
    backtest,
    conditional_coverage,
    exceptions,
    holm,
    independence,
    kupiec,
    transform,
)


def hits(n: int, at: list[int]) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[at] = True
    return found


def test_kupiec_by_hand() -> None:
    """250 days at 1 %, 7 exceptions."""
    statistic, p_value = kupiec(hits(250, list(range(0, 70, 10))), 0.99)
    by_hand = -2 * (243 * np.log(0.99) + 7 * np.log(0.01) - 243 * np.log(243 / 250) - 7 * np.log(7 / 250))
    assert statistic == pytest.approx(by_hand)
    # Counts at least as far off: 7 and more; none at all (LR 5.03) is nearer than 7 (LR 5.50).
    assert p_value == pytest.approx(stats.binom.sf(6, 250, 0.01), rel=1e-9)


def test_no_exception_at_all_in_a_short_record_is_no_failure() -> None:
    assert kupiec(hits(12, []), 0.95)[1] > SIGNIFICANCE
    assert kupiec(hits(250, []), 0.95)[1] < SIGNIFICANCE


def test_independence_by_hand() -> None:
    """Hits in months 3, 4, 8 of 10: n00 = 4, n01 = 2, n10 = 2, n11 = 1, all shares 1/3, so LR = 0."""
    record = hits(10, [3, 4, 8])
    statistic, p_value = independence(record)
    assert statistic == pytest.approx(0.0, abs=1e-12)
    assert p_value == 1.0
    runs, _ = independence(hits(10, [3, 4, 5]))  # n00 = 5, n01 = 1, n10 = 1, n11 = 2
    free = 5 * np.log(5 / 6) + np.log(1 / 6) + np.log(1 / 3) + 2 * np.log(2 / 3)
    pooled = 6 * np.log(6 / 9) + 3 * np.log(3 / 9)
    assert runs == pytest.approx(-2 * (pooled - free))


def test_clustered_exceptions_fail_independence_and_scattered_ones_pass() -> None:
    assert independence(hits(120, [40, 41, 42, 43, 80, 81]))[1] < SIGNIFICANCE
    assert independence(hits(120, [5, 30, 55, 70, 95, 110]))[1] > SIGNIFICANCE


def test_sequences_are_pooled_without_joining_their_ends() -> None:
    ends = np.stack([hits(10, [9]), hits(10, [0])])
    assert independence(ends)[0] < independence(ends.reshape(1, -1))[0]


def test_ties_are_broken_so_that_counts_are_tested_fairly() -> None:
    """Poisson(0.3) defaults a month: a strict 'above the 95 % quantile' has 3.7 %, the transform 5 %."""
    random = np.random.default_rng(0)
    realised, draws = random.poisson(0.3, 20_000), random.poisson(0.3, (20_000, 200))
    share = exceptions(realised, draws, 0.95).mean()
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20_000))
    assert transform(realised, draws).mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 20_000))


def test_right_laws_pass_about_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(1)
    rejected = [kupiec(random.random(240) < 0.05, 0.95)[1] < SIGNIFICANCE for _ in range(400)]
    assert np.mean(rejected) <= SIGNIFICANCE + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_law_too_narrow_is_caught_and_the_right_one_is_not() -> None:
    random = np.random.default_rng(2)
    realised, draws = random.normal(size=(4, 60)), random.normal(size=(4, 60, 500))
    right, narrow = backtest(realised, draws), backtest(realised, 0.6 * draws)
    assert right["passed"].all()
    by_test = {(row["test"], row["level"]): row for row in narrow.iter_rows(named=True)}
    assert not by_test["Kupiec", 0.95]["passed"]
    assert not by_test["uniform transform", None]["passed"]
    assert by_test["Kupiec", 0.95]["n"] == 240
    assert by_test["Kupiec", 0.95]["expected"] == pytest.approx(12.0)


def test_conditional_coverage_adds_the_two() -> None:
    record = hits(100, [10, 11, 50])
    both = conditional_coverage(record, 0.95)[0]
    assert both == pytest.approx(kupiec(record, 0.95)[0] + independence(record)[0])


def test_forecasts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="one row of draws"):
        transform(np.zeros(3), np.zeros((4, 10)))
    with pytest.raises(DataError, match="finite"):
        transform(np.array([np.nan]), np.zeros((1, 10)))
    with pytest.raises(DataError, match="probability"):
        kupiec(np.zeros(5, dtype=bool), 95.0)


def shared_shock(random: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 4 sub-pools over 18 months under one log-normal shock a month, and draws of that law."""
    rate = 40 * np.exp(0.3 * random.normal(size=18))
    rates = 40 * np.exp(0.3 * random.normal(size=(18, draws)))
    return random.poisson(rate, (4, 18)), random.poisson(rates, (4, 18, draws))


def test_sequences_under_one_shock_are_tested_as_one_world() -> None:
    """The right law, 60 records: taken as independent it fails far too often, taken jointly about 1 in 20."""
    random = np.random.default_rng(3)
    rejected = np.zeros(2)
    for seed in range(60):
        realised, draws = shared_shock(random, 200)
        for place, are_joint in enumerate((False, True)):
            where = transform(realised.ravel(), draws.reshape(72, -1), seed).reshape(4, 18)
            null = _joint_places(draws, seed)[:300] if are_joint else None
            rejected[place] += _uniform(where, null)[1] < SIGNIFICANCE
    assert rejected[0] / 60 > 0.2
    assert rejected[1] / 60 <= SIGNIFICANCE + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_a_joint_backtest_still_catches_a_law_too_narrow() -> None:
    realised, draws = shared_shock(np.random.default_rng(4), 300)
    assert backtest(realised, draws, (0.95,), are_joint=True)["passed"].all()
    flat = np.random.default_rng(5).poisson(40, draws.shape)
    found = backtest(realised, flat, (0.95,), are_joint=True)
    assert not found.filter(found["test"] == "uniform transform")["passed"].item()


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .04 times 3, 2, 1: .03, .04, .04; never above 1, never out of order."""
    assert holm(np.array([0.04, 0.01, 0.02])) == pytest.approx([0.04, 0.03, 0.04])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])
