"""Internal rates of return of every sign pattern, lives and losses."""

from __future__ import annotations

import numpy as np
import pytest
import pyxirr
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_pipeline.waterfall import WaterfallConfig, irr, run_waterfall, tranche_metrics
from pc_pipeline.waterfall.metrics import weighted_life, year_times
from pc_pipeline_tests.waterfall.random_deals import POOL, collections


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0.0, 100.0), min_size=2, max_size=30).filter(lambda v: sum(v) > 1), st.floats(1, 1000)
)
def test_agrees_with_pyxirr(inflows: list[float], price: float) -> None:
    flows = np.array([-price, *inflows])
    expected = pyxirr.irr(flows)
    found = float(irr(flows).rate)
    if expected is not None and expected > -0.999:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    scale = np.abs(flows).max()
    assert abs(pyxirr.npv(found, flows)) < 1e-6 * scale * max(1.0, (1 + found) ** -len(flows))


def test_reasons() -> None:
    result = irr(np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]]))
    assert np.isnan(result.rate).all()
    assert [*result.reason] == [
        "nothing was invested: no outflow",
        "nothing came back: total loss",
        "no cash flows",
    ]
    several = irr(np.array([-100.0, 230.0, -132.0]))
    assert float(several.rate) == pytest.approx(0.1)
    assert int(several.n_roots) == 2


def test_a_class_bought_at_par_earns_its_coupon() -> None:
    cash = collections(2, 4, 36, default_rate=0.0, recovery=0.0)
    deal = WaterfallConfig(reinvestment_period=0).to_deal()
    result = run_waterfall(cash, deal, pool_balance=POOL)
    metrics = tranche_metrics(result)
    full = metrics.loss_share[:, 0] < 1e-12
    assert full.any()
    np.testing.assert_allclose(metrics.irr[full, 0], (1 + 0.05 / 12) ** 12 - 1, atol=3e-4)  # actual days
    assert metrics.mean_irr[0] == pytest.approx(0.0512, abs=5e-4)


def test_losses_and_first_failures() -> None:
    cash = collections(2, 50, 36, default_rate=0.03, recovery=0.2)
    result = run_waterfall(cash, WaterfallConfig().to_deal(), pool_balance=POOL)
    metrics = tranche_metrics(result)
    assert ((metrics.loss_share >= 0) & (metrics.loss_share <= 1)).all()
    assert (metrics.loss_share.mean(axis=0)[:-1] <= metrics.loss_share.mean(axis=0)[1:] + 1e-12).all()
    path = int(np.argmax(metrics.n_test_failures[:, 2] > 0))
    first = int(metrics.first_failure[path, 2])
    assert result.test_passed[path, : first - 1, 2].all()
    assert not result.test_passed[path, first - 1, 2]


def test_weighted_life_by_hand() -> None:
    """50 after one year and 50 after three: two years."""
    principal = np.array([[[50.0], [0.0], [50.0]]])
    assert weighted_life(principal, np.array([1.0, 2.0, 3.0]))[0, 0] == 2.0
    assert np.isnan(weighted_life(0 * principal, np.array([1.0, 2.0, 3.0]))[0, 0])


def test_year_times_are_actual_days() -> None:
    import datetime as dt

    assert year_times([dt.date(2023, 1, 1), dt.date(2024, 1, 1)]).tolist() == [0.0, 1.0]
