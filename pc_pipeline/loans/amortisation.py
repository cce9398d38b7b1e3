"""Contractual schedules and the paid-through ledger, in whole cents.

Here: level payments, scheduled balances of annuity, bullet and balloon loans, and what one month pays
given the state reached. The formulas are those of docs/methods/loans.md, section 2 and 3. Not here: which
state a loan reaches (`truth`, `panel_generator`), nor recoveries.

A schedule has instalments 1..n. S(0) is the balance lent, S(n) = 0. A loan carries `tau`, the number of
instalments paid: its balance is S(tau). Amounts inside kernels are floats that hold whole cents, so sums
are exact.
"""

from __future__ import annotations

import numba
import numpy as np

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.asset_classes import BALLOON_AMORTISATION_MONTHS
from pc_pipeline.schemas.units import AMORTIZATION_TYPES

ANNUITY, BULLET, BALLOON = range(len(AMORTIZATION_TYPES))
MONTHS_PER_YEAR = 12
_MAX_TERM_MONTHS = 600


def amortisation_months(term_months: np.ndarray, amortization_code: np.ndarray) -> np.ndarray:
    """Months over which the level payment is computed: the term, or for a balloon max(360, 2 x term)."""
    term = np.asarray(term_months)
    balloon = np.maximum(BALLOON_AMORTISATION_MONTHS, 2 * term)
    return np.where(np.asarray(amortization_code) == BALLOON, balloon, term)


def level_payment(balance: np.ndarray, annual_rate: np.ndarray, n_months: np.ndarray) -> np.ndarray:
    """Level monthly payment P = S j / (1 - (1 + j)^-n), j = rate / 12; S / n at rate zero. Unrounded."""
    balance_, monthly, months = np.broadcast_arrays(
        np.asarray(balance, dtype=float),
        np.asarray(annual_rate, dtype=float) / MONTHS_PER_YEAR,
        np.asarray(n_months, dtype=float),
    )
    # -expm1(-n log1p(j)) keeps its digits for tiny rates, where 1 - (1 + j)^-n loses them.
    annuity = -np.expm1(-months * np.log1p(monthly))
    safe = np.where(annuity > 0.0, annuity, 1.0)
    return np.where(annuity > 0.0, balance_ * monthly / safe, balance_ / months)


def payment_cents(
    balance: np.ndarray, annual_rate: np.ndarray, term_months: np.ndarray, amortization_code: np.ndarray
) -> np.ndarray:
    """(L,) level payments in cents, the constant of the annuity and balloon recurrence."""
    months = amortisation_months(term_months, amortization_code)
    return np.rint(100.0 * level_payment(balance, annual_rate, months))


@numba.njit(cache=True, inline="always")
def instalment_principal(
    balance: float, annual_rate: float, payment: float, code: int, tau: int, term: int
) -> float:
    """Principal of instalment `tau` on the scheduled balance S(tau - 1), cents; clears at tau = term."""
    if tau >= term:
        return balance
    if code == BULLET:
        return 0.0
    principal = payment - np.rint(balance * annual_rate / MONTHS_PER_YEAR)
    return min(max(principal, 0.0), balance)


@numba.njit(cache=True)
def _balances(
    cents: np.ndarray,
    rate: np.ndarray,
    term: np.ndarray,
    code: np.ndarray,
    payment: np.ndarray,
    out: np.ndarray,
) -> None:
    for loan in range(out.shape[0]):
        balance = cents[loan]
        out[loan, 0] = balance / 100.0
        for tau in range(1, term[loan] + 1):
            balance -= instalment_principal(balance, rate[loan], payment[loan], code[loan], tau, term[loan])
            out[loan, tau] = balance / 100.0


def amortization_codes(names: np.ndarray) -> np.ndarray:
    """(L,) codes 0-2 of amortization type names.

    Raises:
        DataError: a name is none of AMORTIZATION_TYPES.
    """
    found = np.asarray(names, dtype=object)
    codes = np.full(found.shape, -1, dtype=np.int64)
    for code, name in enumerate(AMORTIZATION_TYPES):
        codes[found == name] = code
    if (codes < 0).any():
        raise DataError("unknown amortization type", expected=AMORTIZATION_TYPES, got=found[codes < 0][0])
    return codes


def amortisation_schedule(
    balance: np.ndarray,
    annual_rate: np.ndarray,
    term_months: np.ndarray,
    amortization_type: np.ndarray,
    n_months: int | None = None,
) -> np.ndarray:
    """Scheduled balances S(0)..S(n), rounded to cents.

    Args:
        balance: (L,) currency, >= 0. annual_rate: (L,) decimal per year, >= 0 (the origination coupon).
        term_months: (L,) instalments, 1..600. amortization_type: (L,) names or codes 0-2.
        n_months: columns after the first; default the longest term. Shorter than a term: cut off.

    Returns:
        (L, T+1) currency; zero from each loan's term on.

    Raises:
        ConfigError: a negative amount or rate, or a term outside 1..600.
    """
    money = np.atleast_1d(np.asarray(balance, dtype=float))
    types = np.atleast_1d(np.asarray(amortization_type))
    codes = types if types.dtype.kind in "iu" else amortization_codes(types)
    arrays = np.broadcast_arrays(money, np.asarray(annual_rate, dtype=float), np.asarray(term_months), codes)
    money, rate, term, codes = (np.array(array) for array in arrays)  # own, contiguous
    if money.size and (money.min() < 0 or rate.min() < 0 or not np.isfinite(money + rate).all()):
        raise ConfigError("a schedule needs finite amounts and rates of zero or more")
    if term.size and not (term.min() >= 1 and term.max() <= _MAX_TERM_MONTHS):
        raise ConfigError("term outside the calendar", expected="1..600 months", got=(term.min(), term.max()))
    term = term.astype(np.int64)
    longest = int(term.max(initial=1))
    out = np.zeros((money.size, longest + 1))
    cents = np.rint(100.0 * money)
    payment = payment_cents(money, rate, term, codes)
    _balances(cents, rate, term, codes.astype(np.int64), payment, out)
    if n_months is None or n_months == longest:
        return out
    if n_months < longest:
        return np.ascontiguousarray(out[:, : n_months + 1])
    return np.pad(out, ((0, 0), (0, n_months - longest)))


def scheduled_interest(balances: np.ndarray, annual_rate: np.ndarray) -> np.ndarray:
    """i(tau) = rate / 12 x S(tau - 1), rounded to cents.

    Args:
        balances: (L, T+1) from `amortisation_schedule`. annual_rate: (L,) fixed or (L, T) by month.

    Returns:
        (L, T) currency; column tau - 1 belongs to instalment tau.
    """
    rate = np.asarray(annual_rate, dtype=float)
    rate = rate[:, None] if rate.ndim == 1 else rate
    cents = np.rint(100.0 * np.asarray(balances)[:, :-1])
    return np.rint(cents * rate / MONTHS_PER_YEAR) / 100.0


def instalments_paid(tau: np.ndarray, month: np.ndarray, state: np.ndarray, term: np.ndarray) -> np.ndarray:
    """tau after `month`, given the state reached: the paid-through rule.

    States 0-2 leave `state` instalments in arrears of those due by now, min(month, term); never fewer
    are paid than before. 90dpd and default pay nothing. Prepaid and matured pay all.
    """
    tau_, state_ = np.asarray(tau), np.asarray(state)
    term_ = np.broadcast_to(np.asarray(term), np.broadcast_shapes(tau_.shape, state_.shape))
    due = np.minimum(np.asarray(month), term_)
    current = np.maximum(tau_, due - state_)
    return np.where(state_ <= 2, current, np.where(state_ >= 5, term_, tau_))
