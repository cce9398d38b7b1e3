"""The paid-through ledger: from the states of a loan to its cash, month by month, to the cent.

Here: the compiled kernel that walks the rule of `amortisation.instalments_paid` along given states and
writes every money column of a panel. docs/methods/loans.md, section 3, has a worked example. Not here: which
states occur, recoveries, or frames (`panel_generator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pc_pipeline.loans.amortisation import MONTHS_PER_YEAR, instalment_principal
from pc_pipeline.loans.cores import on_all_cores

SCHEDULED, ACTUAL, INTEREST, PRINCIPAL, PREPAID, CHARGED_OFF, BALANCE = range(7)
MONEY_COLUMNS = (
    "scheduled_payment",
    "actual_payment",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "outstanding_balance",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contracts:
    """Terms of L loans as the kernel reads them.

    Attributes:
        balance_cents, payment_cents: (L,) whole cents. coupon: (L,) fixes the principal schedule.
        spread: (L,) decimal over the index, or NaN for a fixed rate. term, code: (L,) months, 0-2.
    """

    balance_cents: np.ndarray
    payment_cents: np.ndarray
    coupon: np.ndarray
    spread: np.ndarray
    term: np.ndarray
    code: np.ndarray


@numba.njit(cache=True, inline="always")
def _rate(coupon: float, spread: float, index: float) -> float:
    """Rate accrued this month: the coupon, or index + spread, never below zero."""
    if np.isnan(spread):
        return coupon
    return max(index + spread, 0.0)


@numba.njit(cache=True, nogil=True)
def _walk(
    row: int,
    states: np.ndarray,
    n_rows: np.ndarray,
    index_row: np.ndarray,
    first: np.ndarray,
    index_rates: np.ndarray,
    balance_cents: np.ndarray,
    payment_cents: np.ndarray,
    coupon: np.ndarray,
    spread: np.ndarray,
    term: np.ndarray,
    code: np.ndarray,
    money: np.ndarray,
    rate_out: np.ndarray,
) -> None:
    for loan in range(states.shape[0]):
        n = term[loan]
        balance = balance_cents[loan]  # S(tau)
        schedule = balance  # S(min(t, n)), what a punctual borrower would owe
        tau = 0
        rates = index_rates[index_row[loan]]
        origin = first[loan] - 1  # month t of the loan is column origin + t
        for position in range(n_rows[loan]):
            t = position + 1
            state = states[loan, position]
            rate = _rate(coupon[loan], spread[loan], rates[origin + t])
            interest_due = 0.0
            principal_due = 0.0
            if t <= n:
                principal_due = instalment_principal(
                    schedule, coupon[loan], payment_cents[loan], code[loan], t, n
                )
                interest_due = np.rint(schedule * rate / MONTHS_PER_YEAR)
                schedule -= principal_due
            interest = 0.0
            principal = 0.0
            prepaid = 0.0
            charged_off = 0.0
            if state == 0 and tau == t - 1 and t <= n:  # punctual: what is paid is what is due
                tau = t
                interest = interest_due
                principal = principal_due
                balance = schedule
            elif state == 4:
                charged_off = balance
                balance = 0.0
            elif state == 5:
                accrued = 0.0
                for month in range(tau + 1, t + 1):
                    accrued += _rate(coupon[loan], spread[loan], rates[origin + month])
                interest = np.rint(balance * accrued / MONTHS_PER_YEAR)
                prepaid = min(schedule, balance)
                principal = balance
                balance = 0.0
            elif state != 3:
                paid_through = n if state == 6 else max(tau, min(t, n) - state)
                while tau < paid_through:
                    tau += 1
                    # A loan that matures late in the record was due by n; no instalment lies beyond column t.
                    due_rate = _rate(coupon[loan], spread[loan], rates[origin + min(tau, t)])
                    interest += np.rint(balance * due_rate / MONTHS_PER_YEAR)
                    part = instalment_principal(
                        balance, coupon[loan], payment_cents[loan], code[loan], tau, n
                    )
                    principal += part
                    balance -= part
            money[0, row] = (interest_due + principal_due) / 100.0
            money[1, row] = (interest + principal) / 100.0
            money[2, row] = interest / 100.0
            money[3, row] = principal / 100.0
            money[4, row] = prepaid / 100.0
            money[5, row] = charged_off / 100.0
            money[6, row] = balance / 100.0
            rate_out[row] = rate
            row += 1


def walk_ledger(
    states_LT: np.ndarray,
    n_rows: np.ndarray,
    contracts: Contracts,
    index_rates_PT: np.ndarray,
    index_row: np.ndarray,
    first: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Cash of given states.

    Args:
        states_LT: (L, T) int8; column j is the loan's month j + 1 (age). n_rows: (L,) months in use.
        index_rates_PT: (P, T) benchmark by path and calendar column. index_row: (L,) its path.
        first: (L,) calendar column of the loan's month 1, >= 1.

    Returns:
        money (7, N) in the order of MONEY_COLUMNS and the rate accrued (N,), N = n_rows.sum(), loan by loan.
    """
    total = int(n_rows.sum())
    money, rate = np.empty((len(MONEY_COLUMNS), total)), np.empty(total)
    starts = np.cumsum(n_rows) - n_rows
    rates = np.ascontiguousarray(index_rates_PT)
    terms = (
        contracts.balance_cents,
        contracts.payment_cents,
        contracts.coupon,
        contracts.spread,
        contracts.term,
        contracts.code,
    )

    def walk(part: slice) -> None:
        loans = [states_LT[part], n_rows[part], index_row[part], first[part]]
        mine = [values[part] for values in terms]
        arguments: list[Any] = [int(starts[part.start]), *loans, rates, *mine, money, rate]
        _walk(*arguments)

    on_all_cores(walk, len(n_rows))
    return money, rate
