"""Payments that a person can check by hand, conservation, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pc_pipeline.core.errors import DataError, DealError
from pc_pipeline.waterfall import WaterfallConfig, load_deal, parse_deal, run_waterfall
from pc_pipeline_tests.shared_data import ROOT
from pc_pipeline_tests.waterfall.random_deals import POOL, collections

CENT = 0.005
TWO = {
    "name": "two classes",
    "tranches": [
        {"name": "A", "size": 0.8, "coupon": 0.06},
        {"name": "B", "size": 0.1, "coupon": 0.12},
        {"name": "E", "kind": "residual", "size": 0.1},
    ],
}


def cash_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array([rows], dtype=float)


def test_one_month_by_hand() -> None:
    """100 of pool; 80 A at 6 %, 10 B at 12 %: interest .40 and .10; principal 5 goes to A; .50 is left."""
    result = run_waterfall(cash_of((1.0, 4.0, 1.0, 0.0, 0.0)), parse_deal(TWO), pool_balance=100.0)
    np.testing.assert_allclose(result.interest_paid[0, 0], [0.40, 0.10, 0.50])
    np.testing.assert_allclose(result.principal_paid[0, 0], [5.0, 0.0, 0.0])
    np.testing.assert_allclose(result.balance[0, 0], [75.0, 10.0, 10.0])
    assert result.pool[0, 0] == 95.0


def test_shortfall_is_carried_and_paid_later() -> None:
    """Month 1 brings .42: A gets .40, B .02 of .10. Month 2 owes B .10 + .08 and pays it."""
    rows = ((0.42, 0.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0, 0.0))
    result = run_waterfall(cash_of(*rows), parse_deal(TWO), pool_balance=100.0)
    np.testing.assert_allclose(result.interest_shortfall[0, :, 1], [0.08, 0.0])
    np.testing.assert_allclose(result.interest_paid[0, :, 1], [0.02, 0.18])


def test_interest_on_shortfall_where_the_deal_says_so() -> None:
    """.08 carried for a month at 12 % is .0808."""
    terms = {**TWO, "tranches": [dict(t) for t in TWO["tranches"]]}
    terms["tranches"][1]["interest_on_shortfall"] = True
    rows = ((0.42, 0.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0, 0.0))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    assert result.interest_paid[0, 1, 1] == pytest.approx(0.1808)


def test_oc_cure_from_interest_then_principal_in_turn() -> None:
    """OC of A is (94 + 1) / 80 = 1.1875 < 1.20: 80 - 95 / 1.2 of interest repays A, then 1."""
    terms = {
        **TWO,
        "tests": [{"name": "oc", "kind": "oc", "of": "A", "trigger": 1.2}],
        "reinvestment": {"months": 9},
    }
    result = run_waterfall(cash_of((2.0, 1.0, 0.0, 5.0, 0.0)), parse_deal(terms), pool_balance=100.0)
    assert result.oc_ratio[0, 0, 0] == pytest.approx(1.1875)
    assert not result.test_passed[0, 0, 0]
    assert result.totals["cured"][0, 0] == pytest.approx(80 - 95 / 1.2)
    assert result.principal_paid[0, 0, 0] == pytest.approx(80 - 95 / 1.2 + 1.0)
    assert result.totals["reinvested"][0, 0] == 0.0


def test_reinvestment_buys_a_slice_of_the_pool() -> None:
    """5 of principal buys 5 / 95 of the pool; next month's collections are 100 / 95 of those given."""
    terms = {**TWO, "reinvestment": {"months": 1}}
    rows = ((1.0, 5.0, 0.0, 0.0, 0.0), (0.95, 9.5, 0.0, 0.0, 0.0))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    np.testing.assert_allclose(result.totals["reinvested"][0], [5.0, 0.0])
    np.testing.assert_allclose(result.pool[0], [100.0, 90.0])
    np.testing.assert_allclose(result.totals["collections"][0], [6.0, 11.0])
    assert result.principal_paid[0, 1, 0] == pytest.approx(10.0)


def test_a_ratio_at_its_trigger_passes() -> None:
    terms = {**TWO, "tests": [{"name": "oc", "kind": "oc", "of": "A", "trigger": 1.25}]}
    result = run_waterfall(cash_of((1.0, 0.0, 0.0, 0.0, 0.0)), parse_deal(terms), pool_balance=100.0)
    assert result.oc_ratio[0, 0, 0] == 1.25
    assert result.test_passed[0, 0, 0]


def test_reserve_is_drawn_refilled_and_released() -> None:
    terms = {**TWO, "accounts": [{"name": "reserve", "initial": {"amount": 1.0}}]}
    rows = ((0.1, 0.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    np.testing.assert_allclose(result.reserve[0], [0.6, 1.0, 0.0])  # .40 of A and B were drawn
    np.testing.assert_allclose(result.interest_shortfall[0, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(result.residual[0], [0.0, 2.0 - 0.5 - 0.4, 1.0 - 0.5 + 1.0])


def test_quarterly_deal_sums_months() -> None:
    terms = {**TWO, "payments": {"every_months": 3}}
    rows = tuple((0.5, 1.0, 0.0, 0.0, 0.0) for _ in range(6))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    assert result.balance.shape == (1, 2, 3)
    np.testing.assert_allclose(result.interest_paid[0, 0, :2], [80 * 0.06 / 4, 10 * 0.12 / 4])
    np.testing.assert_allclose(result.balance[0, :, 0], [77.0, 74.0])


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "data" / "deals").glob("*.yaml"))])
def test_every_shipped_deal_runs_and_conserves(name: str) -> None:
    deal = load_deal(ROOT / "data" / "deals" / f"{name}.yaml")
    pool = deal.collateral.pool_balance or POOL
    seasoned = deal.collateral.balance or pool
    cash = collections(3, 20, 48, default_rate=0.004, recovery=0.4) * (seasoned / POOL)
    indices = {c.index: 0.04 for t in deal.tranches if (c := t.coupon) is not None and c.index is not None}
    indices |= {
        leg.index: 0.04 for swap in deal.swaps for leg in (swap.pay, swap.receive) if leg.index is not None
    }
    result = run_waterfall(cash, deal, pool_balance=pool, index_rate_PT=indices)
    assert result.conservation_error <= 1e-9
    assert (result.balance >= -1e-9 * pool).all()


def test_config_equals_the_shipped_deal() -> None:
    cash = collections(1, 5, 36, default_rate=0.01, recovery=0.4)
    shipped = load_deal(ROOT / "data" / "deals" / "clo_four_tranche.yaml")
    one, other = (
        run_waterfall(cash, deal, pool_balance=POOL) for deal in (shipped, WaterfallConfig().to_deal())
    )
    assert np.array_equal(one.cash, other.cash)


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_bad_collections_are_refused(value: float) -> None:
    cash = collections(1, 2, 6, 0.0, 0.0)
    cash[1, 2, 0] = value
    with pytest.raises(DataError, match="path 1, month 3, interest"):
        run_waterfall(cash, WaterfallConfig().to_deal(), pool_balance=POOL)


def test_misshapen_and_excessive_collections_are_refused() -> None:
    deal = WaterfallConfig().to_deal()
    with pytest.raises(DataError, match="misshapen"):
        run_waterfall(np.zeros((3, 6, 4)), deal, pool_balance=POOL)
    with pytest.raises(DataError, match="exceed the pool"):
        run_waterfall(collections(1, 2, 6, 0.0, 0.0), deal, pool_balance=POOL / 2)
    with pytest.raises(DealError, match="pool balance"):
        run_waterfall(np.zeros((3, 6, 5)), deal)


def test_no_notes_left_means_every_test_passes() -> None:
    terms = {**TWO, "tests": [{"name": "oc", "kind": "oc", "of": "A", "trigger": 1.25}]}
    rows = ((1.0, 100.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    assert np.isinf(result.oc_ratio[0, 1, 0])
    assert result.test_passed[0, 1, 0]
    np.testing.assert_allclose(result.balance[0, -1], 0.0)
