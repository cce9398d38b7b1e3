"""Schedules and the ledger: worked examples, an independent decimal schedule, and identities."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.amortisation import (
    amortisation_schedule,
    amortization_codes,
    instalments_paid,
    level_payment,
    payment_cents,
    scheduled_interest,
)
from pc_pipeline.loans.ledger import MONEY_COLUMNS, Contracts, walk_ledger

CENT = 0.005


def contract(balance: float, rate: float, term: int, kind: str, spread: float = np.nan) -> Contracts:
    codes = amortization_codes(np.array([kind]))
    terms = np.array([term])
    return Contracts(
        balance_cents=np.rint(np.array([balance]) * 100),
        payment_cents=payment_cents(np.array([balance]), np.array([rate]), terms, codes),
        coupon=np.array([rate]),
        spread=np.array([spread]),
        term=terms,
        code=codes,
    )


def walk(terms: Contracts, states: list[int], index: np.ndarray | None = None) -> dict[str, np.ndarray]:
    array = np.array([states], dtype=np.int8)
    rates = np.zeros((1, len(states) + 1)) if index is None else index[None]
    money, _ = walk_ledger(array, np.array([len(states)]), terms, rates, np.array([0]), np.array([1]))
    return dict(zip(MONEY_COLUMNS, money, strict=True))


def test_a_four_month_annuity_by_hand():
    # 1,200 at 1 % a month: level payment 307.54; interest 12.00, 9.04, 6.06, 3.04.
    balances = amortisation_schedule(1200.0, 0.12, 4, np.array(["annuity"]))
    assert balances.tolist() == [[1200.00, 904.46, 605.96, 304.48, 0.00]]
    assert scheduled_interest(balances, np.array([0.12])).tolist() == [[12.00, 9.04, 6.06, 3.04]]


def test_zero_rate_pays_equal_parts_and_the_remainder_last():
    balances = amortisation_schedule(100.0, 0.0, 3, np.array(["annuity"]))
    assert balances.tolist() == [[100.00, 66.67, 33.34, 0.00]]


def test_bullet_pays_all_at_the_end_and_a_balloon_leaves_a_remainder():
    balances = amortisation_schedule(
        np.array([5000.0, 100000.0]),
        np.array([0.06, 0.06]),
        np.array([3, 60]),
        np.array(["bullet", "balloon"]),
    )
    assert balances[0, :5].tolist() == [5000.0, 5000.0, 5000.0, 0.0, 0.0]
    # A 360-month loan of 100,000 at 6 % pays 599.55 and owes 93,054.36 after 60 payments.
    assert balances[1, 59] == pytest.approx(93054.36 * (1 / 1.005) + 599.55 / 1.005, abs=1.0)
    assert balances[1, 60] == 0.0


def test_level_payment_agrees_with_the_textbook_and_survives_tiny_rates():
    assert level_payment(100000.0, 0.06, 360) == pytest.approx(599.5505, abs=1e-4)
    assert level_payment(1200.0, 1e-12, 12) == pytest.approx(100.0, rel=1e-9)


def test_a_schedule_refuses_what_is_no_loan():
    with pytest.raises(ConfigError, match="term outside"):
        amortisation_schedule(100.0, 0.05, 0, np.array([0]))
    with pytest.raises(ConfigError, match="zero or more"):
        amortisation_schedule(100.0, -0.05, 12, np.array([0]))
    with pytest.raises(DataError, match="unknown amortization type"):
        amortisation_schedule(100.0, 0.05, 12, np.array(["interest_only"]))


def decimal_schedule(balance: Decimal, rate: Decimal, term: int) -> list[Decimal]:
    """Annuity in decimal arithmetic, written independently."""
    cent, monthly = Decimal("0.01"), rate / 12
    if monthly:
        payment = balance * monthly / (1 - (1 + monthly) ** -term)
    else:
        payment = balance / term
    payment = payment.quantize(cent, ROUND_HALF_EVEN)
    balances = [balance]
    for tau in range(1, term + 1):
        interest = (balances[-1] * monthly).quantize(cent, ROUND_HALF_EVEN)
        principal = balances[-1] if tau == term else min(max(payment - interest, Decimal(0)), balances[-1])
        balances.append(balances[-1] - principal)
    return balances


@given(cents=st.integers(10_000, 10**9), bps=st.integers(0, 3000), term=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_schedule_agrees_with_decimal_arithmetic(cents: int, bps: int, term: int):
    got = amortisation_schedule(cents / 100, bps / 1e4, term, np.array([0]))[0]
    expected = [float(value) for value in decimal_schedule(Decimal(cents) / 100, Decimal(bps) / 10**4, term)]
    # A half-cent tie may round the other way in binary; it then moves each later balance by a cent.
    np.testing.assert_allclose(got, expected, atol=0.011 * term)
    assert got[-1] == 0.0
    assert (np.diff(got) <= 0).all()


def test_ledger_example_of_the_docs():
    """docs/methods/loans.md, section 3: miss month 2, stay one behind, settle a month late."""
    got = walk(contract(1200.0, 0.12, 4, "annuity"), [0, 1, 1, 1, 6])
    assert got["scheduled_payment"].tolist() == [307.54, 307.54, 307.54, 307.52, 0.0]
    assert got["actual_payment"].tolist() == [307.54, 0.0, 307.54, 307.54, 307.52]
    assert got["interest_paid"].tolist() == [12.00, 0.0, 9.04, 6.06, 3.04]
    assert got["outstanding_balance"].tolist() == [904.46, 904.46, 605.96, 304.48, 0.0]


def test_ledger_cure_pays_all_arrears():
    got = walk(contract(1200.0, 0.12, 4, "annuity"), [1, 2, 0, 6])
    assert got["actual_payment"].tolist() == [0.0, 0.0, 922.62, 307.52]  # 3 x 307.54
    assert got["interest_paid"][2] == pytest.approx(12.00 + 9.04 + 6.06)


def test_ledger_prepayment_pays_arrears_interest_and_balance():
    got = walk(contract(1200.0, 0.12, 4, "annuity"), [0, 1, 5])
    assert got["interest_paid"][2] == pytest.approx(18.09)  # two months at 1 % on 904.46
    assert got["principal_paid"][2] == pytest.approx(904.46)
    assert got["prepayment_amount"][2] == pytest.approx(304.48)  # S(3); the rest was due


def test_ledger_default_charges_off_what_is_owed():
    got = walk(contract(1200.0, 0.12, 12, "bullet"), [0, 1, 2, 3, 4])
    assert got["charge_off_amount"].tolist() == [0.0, 0.0, 0.0, 0.0, 1200.0]
    assert got["interest_paid"].tolist() == [12.0, 0.0, 0.0, 0.0, 0.0]


def test_ledger_floating_accrues_index_plus_spread_of_the_instalment_month():
    index = np.array([0.03, 0.03, 0.06, 0.09, -0.50])
    got = walk(contract(1200.0, 0.12, 4, "bullet", spread=0.06), [0, 1, 0, 6], index)
    # months at 9 %, 12 %, 15 % and, the index far below zero, 0 %
    assert got["interest_paid"].tolist() == [9.0, 0.0, 27.0, 0.0]


@given(
    kind=st.sampled_from(["annuity", "bullet", "balloon"]),
    cents=st.integers(100, 10**9),
    bps=st.integers(0, 2500),
    term=st.integers(1, 40),
    draws=st.lists(st.integers(0, 3), min_size=1, max_size=45),
    end=st.sampled_from([None, 4, 5, 6]),
)
@settings(max_examples=150, deadline=None)
def test_ledger_identities_hold_for_any_history(
    kind: str, cents: int, bps: int, term: int, draws: list[int], end: int | None
):
    states = [*draws, end] if end is not None else draws
    terms = contract(cents / 100, bps / 1e4, term, kind)
    got = walk(terms, states)
    gone = np.cumsum(got["principal_paid"] + got["charge_off_amount"])
    np.testing.assert_allclose(cents / 100 - gone, got["outstanding_balance"], atol=CENT)
    np.testing.assert_allclose(got["actual_payment"], got["interest_paid"] + got["principal_paid"], atol=CENT)
    assert min(values.min() for values in got.values()) >= 0.0
    assert (got["prepayment_amount"] <= got["principal_paid"] + CENT).all()
    schedule = amortisation_schedule(cents / 100, bps / 1e4, term, np.array([kind]))[0]
    tau = 0
    for month, state in enumerate(states, start=1):
        if state < 4:
            tau = int(instalments_paid(tau, month, state, term))
            assert got["outstanding_balance"][month - 1] == pytest.approx(schedule[tau], abs=CENT)


def test_punctual_borrower_pays_the_schedule():
    schedule = amortisation_schedule(25_000.0, 0.075, 24, np.array(["annuity"]))
    got = walk(contract(25_000.0, 0.075, 24, "annuity"), [0] * 23 + [6])
    np.testing.assert_allclose(got["outstanding_balance"], schedule[0, 1:], atol=1e-9)
    np.testing.assert_allclose(got["actual_payment"], got["scheduled_payment"], atol=1e-9)
    np.testing.assert_allclose(
        got["interest_paid"], scheduled_interest(schedule, np.array([0.075]))[0], atol=1e-9
    )
