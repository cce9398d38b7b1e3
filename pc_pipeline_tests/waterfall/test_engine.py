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


def test_a_purchase_brings_no_share_of_older_defaults() -> None:
    """2 default on a pool of 100, then half of the rest is bought anew; 1 recovered later stays 1."""
    terms = {**TWO, "reinvestment": {"months": 1, "recovery_lag_months": 2}}
    rows = ((1.0, 49.0, 0.0, 2.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0))
    result = run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=100.0)
    assert result.multiplier[0, 0] == pytest.approx(2.0)
    assert result.totals["collections"][0, 1] == pytest.approx(2.0 + 1.0)


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


def one_month(terms: dict, *rows: tuple[float, ...], pool: float = 100.0, **options: object):  # type: ignore[no-untyped-def]
    return run_waterfall(cash_of(*rows), parse_deal(terms), pool_balance=pool, **options)


def test_swap_nets_and_is_paid_before_the_classes() -> None:
    """Pays 4 %, receives 3 % on 80 for 31/360 of a year: .0689 out; the other way round it comes in."""
    steps = {
        "interest": [{"swap": "s"}, {"interest": "A"}, {"interest": "B"}, {"residual": "E"}],
        "principal": [{"principal": ["A", "B"]}, {"residual": "E"}],
    }
    swap = {
        "name": "s",
        "notional": ["A"],
        "pay": {"rate": 0.04},
        "receive": {"index": "SOFR", "spread": 0.0},
    }
    terms = {**TWO, "swaps": [swap], "waterfall": steps}
    out = one_month(terms, (1.0, 0, 0, 0, 0), index_rate_PT=0.03)
    assert out.totals["swap_paid"][0, 0] == pytest.approx(80 * 0.01 * 31 / 360)
    back = one_month(terms, (1.0, 0, 0, 0, 0), index_rate_PT=0.05)
    assert back.residual[0, 0] == pytest.approx(1.0 - 0.5 + 80 * 0.01 * 31 / 360)


def test_facility_lends_and_is_repaid_with_interest() -> None:
    """Interest due .50 meets .10 of cash: the facility lends its limit .30; it is repaid at 12 % a year."""
    steps = {
        "interest": [{"repay": "f"}, {"interest": ["A", "B"], "from": ["interest", "f"]}, {"residual": "E"}],
        "principal": [{"principal": ["A", "B"]}, {"residual": "E"}],
    }
    lender = {"name": "f", "kind": "facility", "initial": {"amount": 0.3}, "earnings_rate": 0.12}
    terms = {**TWO, "accounts": [lender], "waterfall": steps}
    result = one_month(terms, (0.1, 0, 0, 0, 0), (2.0, 0, 0, 0, 0))
    np.testing.assert_allclose(result.interest_paid[0, 0, :2].sum(), 0.4)
    assert result.totals["facility_repaid"][0, 1] == pytest.approx(0.3 * (1 + 0.12 * 29 / 365))
    assert result.accounts[0, 1, 0] == pytest.approx(0.0, abs=1e-15)


def test_prefunding_buys_in_equal_parts_and_releases_the_rest() -> None:
    terms = {
        **TWO,
        "accounts": [{"name": "p", "kind": "prefunding", "initial": {"amount": 10.0}, "until_month": 2}],
    }
    result = one_month(terms, *[(1.0, 0, 0, 0, 0)] * 3)
    np.testing.assert_allclose(result.totals["reinvested"][0], [5.0, 5.0, 0.0])
    np.testing.assert_allclose(result.pool[0], [105.0, 110.0, 110.0])


def test_accrual_class_grows_and_pays_the_classes_before_it() -> None:
    """Z accrues 1 % of 10 a month; the cash goes to A as principal until A is paid."""
    terms = {
        "name": "z",
        "tranches": [
            {"name": "A", "size": 0.9, "coupon": 0.06},
            {"name": "Z", "kind": "accrual", "size": 0.1, "coupon": 0.12, "accrues_until_paid": ["A"]},
        ],
    }
    result = one_month(terms, (1.0, 5.0, 0, 0, 0), (1.0, 90.0, 0, 0, 0), (1.0, 0, 0, 0, 0))
    assert result.balance[0, 0, 1] == pytest.approx(10.1)
    assert result.principal_paid[0, 0, 0] == pytest.approx(5.1)
    assert result.balance[0, 1, 0] == 0.0
    assert result.interest_paid[0, 2, 1] == pytest.approx(result.balance[0, 1, 1] * 0.01)


def test_pik_interest_is_added_to_the_balance() -> None:
    terms = {**TWO, "tranches": [dict(t) for t in TWO["tranches"]]}
    terms["tranches"][1]["pik"] = True
    result = one_month(terms, (0.42, 0, 0, 0, 0))
    assert result.balance[0, 0, 1] == pytest.approx(10.08)
    assert result.interest_shortfall[0, 0, 1] == 0.0


def test_write_down_is_junior_first_and_written_up_again() -> None:
    """12 of charge-offs: E loses its 10, B 2. A recovery paid to A leaves room for 1.5 of B again."""
    terms = {**TWO, "losses": "write_down"}
    result = one_month(terms, (0.5, 0, 0, 12.0, 0), (0.5, 0, 0, 0, 1.5))
    np.testing.assert_allclose(result.balance[0, 0], [80.0, 8.0, 0.0])
    np.testing.assert_allclose(result.written_down[0, 0], [0.0, 2.0, 10.0])
    np.testing.assert_allclose(result.balance[0, 1], [78.5, 9.5, 0.0])


def test_cleanup_call_pays_everyone_and_ends_the_deal() -> None:
    terms = {**TWO, "call": {"pool_factor": 0.3}}
    rows = ((1.0, 60.0, 0, 0, 0), (0.5, 12.0, 0, 0, 0), (0.3, 10.0, 0, 0, 0))
    result = one_month(terms, *rows)
    np.testing.assert_allclose(result.totals["called"][0], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(result.balance[0, 1, :2], 0.0)
    assert result.totals["sale"][0, 1] == 28.0
    np.testing.assert_allclose(result.totals["collections"][0, 2], 0.0)


def test_call_waits_until_it_pays_every_class() -> None:
    result = one_month({**TWO, "call": {"pool_factor": 0.3}}, (1.0, 60.0, 0, 12.0, 0))
    assert result.totals["called"][0, 0] == 0.0
    assert result.balance[0, 0, 0] == 20.0


def test_available_funds_cap_and_floor() -> None:
    """The pool earns 3.6 % a year: a capped 6 % class is due 3.6 %."""
    terms = {**TWO, "tranches": [dict(t) for t in TWO["tranches"]]}
    terms["tranches"][0]["coupon"] = {"rate": 0.06, "available_funds_cap": True}
    assert one_month(terms, (0.3, 0, 0, 0, 0)).interest_due[0, 0, 0] == pytest.approx(80 * 0.036 / 12)
    terms["tranches"][0]["coupon"] = {"index": "SOFR", "spread": 0.01, "floor": 0.02, "cap": 0.05}
    for index, rate in ((-0.01, 0.02), (0.03, 0.04), (0.09, 0.05)):
        due = one_month(terms, (1, 0, 0, 0, 0), index_rate_PT=index).interest_due[0, 0, 0]
        assert due == pytest.approx(80 * rate / 12)


def test_incentive_fee_above_the_hurdle() -> None:
    """E was bought for 10 and must earn 10 % a year first; of what is above it the manager takes a fifth."""
    fee = {"name": "inc", "hurdle_irr": 0.1, "share": 0.2, "hurdle_class": "E"}
    result = one_month({**TWO, "fees": [fee]}, (30.5, 0, 0, 0, 0))
    hurdle = 10 * 1.1 ** (31 / 365)
    assert result.fees[0, 0, 0] == pytest.approx(0.2 * (30.0 - hurdle))


def test_trigger_sticks_or_cures() -> None:
    base = {"name": "loss", "kind": "cumulative_loss", "level": 0.02}
    rows = ((1.0, 0, 0, 3.0, 0), (1.0, 0, 0, 0, 2.0))
    for cure, expected in (("never", [1.0, 1.0]), ("passing", [1.0, 0.0])):
        result = one_month({**TWO, "triggers": [{**base, "cure": cure}]}, *rows)
        assert result.triggers[0, :, 0].tolist() == expected


def test_event_of_default_accelerates() -> None:
    """Once A's interest is short, interest after A's goes to principal instead of B."""
    terms = {
        **TWO,
        "triggers": [{"name": "eod", "kind": "interest_shortfall", "classes": ["A"], "cure": "never"}],
        "waterfall": {
            "interest": [
                {"interest": "A"},
                {"move": "principal", "when": ["eod"]},
                {"interest": "B"},
                {"residual": "E"},
            ],
            "principal": [{"principal": ["A", "B"]}, {"residual": "E"}],
        },
    }
    result = one_month(terms, (0.1, 0, 0, 0, 0), (2.0, 0, 0, 0, 0))
    assert result.interest_paid[0, 1, 0] == pytest.approx(0.7)
    assert result.principal_paid[0, 1, 0] == pytest.approx(1.3)
    assert result.interest_paid[0, 1, 1] == 0.0


def test_step_down_to_pro_rata() -> None:
    """Sequential until month 2, then pro rata unless losses exceed their trigger."""
    terms = {
        **TWO,
        "triggers": [
            {"name": "early", "kind": "pool_factor", "level": 0.95},
            {"name": "later", "kind": "date", "from_month": 2},
        ],
        "waterfall": {
            "interest": [{"interest": "A"}, {"interest": "B"}, {"residual": "E"}],
            "principal": [
                {"principal": ["A", "B"], "unless": ["later"]},
                {"principal": [["A", "B"]], "when": ["later"]},
                {"residual": "E"},
            ],
        },
    }
    result = one_month(terms, (1.0, 8.0, 0, 0, 0), (1.0, 8.2, 0, 0, 0))
    np.testing.assert_allclose(result.principal_paid[0, 0, :2], [8.0, 0.0])
    np.testing.assert_allclose(result.principal_paid[0, 1, :2], [8.2 * 72 / 82, 1.0])


def test_planned_balances_and_own_enhancement() -> None:
    """A is paid to its plan of 77; then A and B down to 85 % of the pool of 96 (81.6); the rest is E's."""
    terms = {
        **TWO,
        "waterfall": {
            "combined": [
                {"interest": ["A", "B"]},
                {"principal": {"to": ["A"], "amount": "planned", "plan": [{"from_month": 1, "level": 77.0}]}},
                {"principal": {"to": ["A", "B"], "amount": "to_target", "target": {"share_of_pool": 0.15}}},
                {"residual": "E"},
            ]
        },
    }
    result = one_month(terms, (6.5, 4.0, 0, 0, 0))
    assert result.principal_paid[0, 0, 0] == pytest.approx(90 - 0.85 * 96)
    assert result.residual[0, 0] == pytest.approx(10.5 - 0.5 - (90 - 0.85 * 96))
    poor = one_month(terms, (0.5, 4.0, 0, 0, 0))
    assert poor.balance[0, 0, 0] == pytest.approx(76.0)


def test_reserve_pays_the_deal_off_when_it_is_enough() -> None:
    """5 of A, 0 of B left, 2 of cash and 4 of reserve: released before the last date, and E gets the rest."""
    account = {"name": "r", "initial": {"amount": 4.0}, "releases_when_enough": True}
    steps = [
        {"release": "r"},
        {"interest": ["A", "B"]},
        {"principal": ["A", "B"]},
        {"fund": "r"},
        {"residual": "E"},
    ]
    terms = {**TWO, "accounts": [account], "waterfall": {"combined": steps}}
    deal = parse_deal(terms).as_of(
        parse_deal(terms).closing_date, pool=5.0, balances={"A": 5.0}, accounts={"r": 4.0}
    )
    result = run_waterfall(cash_of((0.0, 2.0, 0, 0, 0), (0, 0, 0, 0, 0)), deal, pool_balance=100.0)
    assert result.balance[0, 0, 0] == 0.0
    assert result.residual[0, 0] == pytest.approx(1.0 - 5 * 0.06 / 12)
