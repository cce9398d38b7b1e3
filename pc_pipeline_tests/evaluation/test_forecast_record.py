"""What a record of forecasts says of the next ones: level, common shock; by hand and against known laws."""

from __future__ import annotations

import numpy as np
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.forecast_record import CommonShock, at_level, better_level, common_shock


def test_counts_that_only_their_own_luck_moves_ask_for_no_shock() -> None:
    random = np.random.default_rng(0)
    expected = np.full(24, 50.0)
    found = [common_shock(expected, random.poisson(expected)).sd for _ in range(20)]
    assert np.median(found) <= 0.05
    assert common_shock(np.full(6, 2.0), np.full(6, 2.0)).sd == 0.0


def test_a_common_shock_is_found_within_its_error() -> None:
    random = np.random.default_rng(1)
    expected = np.full(200, 300.0)
    happened = random.poisson(expected * np.exp(0.3 * random.normal(size=200) - 0.045))
    assert common_shock(expected, happened).sd == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(400))


def test_shocks_keep_expected_counts_and_widen_with_few_months() -> None:
    random = np.random.default_rng(2)
    few, many = (CommonShock(sd=0.2, n_months=n).draw((3, 50_000), random) for n in (6, 500))
    assert np.exp(few).mean(axis=1) == pytest.approx(np.ones(3))
    assert few.std() > 1.15 * many.std() > 0.2
    assert not CommonShock(sd=0.0, n_months=6).draw((2, 10), random).any()


def test_the_level_is_taken_from_whoever_came_nearest() -> None:
    happened = np.array([10.0, 12.0, 8.0])
    assert better_level({"network": np.full(3, 15.0), "cohort": np.full(3, 9.0)}, happened) == "cohort"
    assert better_level({"network": np.full(3, 10.0), "cohort": np.full(3, 9.0)}, happened) == "network"


def test_a_level_moves_sums_and_keeps_the_order_of_loans() -> None:
    random = np.random.default_rng(3)
    own, wanted = random.uniform(0.02, 0.5, 300), random.uniform(0.01, 0.2, 300)
    group = np.arange(300) % 3
    moved = at_level(own, wanted, group)
    for number in range(3):
        at = group == number
        assert moved[at].sum() == pytest.approx(wanted[at].sum(), rel=1e-8)
        assert (np.argsort(moved[at]) == np.argsort(own[at])).all()
    odds = np.log(moved / (1 - moved)) - np.log(own / (1 - own))
    assert np.ptp(odds[group == 0]) < 1e-9


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="a month"):
        common_shock(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="a month"):
        common_shock(np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="nothing to choose"):
        better_level({}, np.ones(2))
