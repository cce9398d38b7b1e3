"""Prepayment and default speeds, level payments: the market's standard formulas.

Here: SMM, CPR, PSA, MDR, CDR, SDA and ABS into one another, scheduled balances, speeds from pool factors.
Not here: cash flows of a pool (`pool_projection`).

Source: Bond Market Association (now SIFMA), Uniform Practices, Standard Formulas (1999), chapter SF; ABS
speed after the same, counted from origination. All rates are decimals; ages are months since origination,
the first month of a loan's life is 1. Numbers or arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pc_pipeline.core.errors import DataError

PSA_PEAK, PSA_RAMP = 0.06, 30.0
SDA_PEAK, SDA_TAIL = 0.006, 0.0003


def annual_from_monthly(monthly: Any) -> Any:
    """CPR from SMM, CDR from MDR: 1 - (1 - m)^12."""
    return 1.0 - (1.0 - np.asarray(monthly, dtype=float)) ** 12


def monthly_from_annual(annual: Any) -> Any:
    """SMM from CPR, MDR from CDR: 1 - (1 - a)^(1/12).

    Raises:
        DataError: a rate outside 0..1.
    """
    values = np.asarray(annual, dtype=float)
    if ((values < 0) | (values > 1)).any():
        raise DataError("an annual speed is a share between 0 and 1", got=annual)
    return 1.0 - (1.0 - values) ** (1.0 / 12.0)


def cpr_from_psa(psa: Any, age: Any) -> Any:
    """CPR of a PSA speed (1.0 is 100 % PSA): 6 % x psa, reached linearly at month 30."""
    return np.minimum(
        PSA_PEAK * np.asarray(psa, dtype=float) * np.minimum(np.asarray(age) / PSA_RAMP, 1.0), 1.0
    )


def psa_from_cpr(cpr: Any, age: Any) -> Any:
    """PSA speed of a CPR at an age."""
    return np.asarray(cpr, dtype=float) / (PSA_PEAK * np.minimum(np.asarray(age) / PSA_RAMP, 1.0))


def cdr_from_sda(sda: Any, age: Any) -> Any:
    """CDR of an SDA speed: .02 % a month up to .6 % at 30, flat to 60, down to .03 % at 120, flat."""
    months = np.asarray(age, dtype=float)
    curve = np.interp(months, [0.0, 30.0, 60.0, 120.0], [0.0, SDA_PEAK, SDA_PEAK, SDA_TAIL])
    return np.minimum(np.asarray(sda, dtype=float) * curve, 1.0)


def smm_from_abs(speed: Any, age: Any) -> Any:
    """SMM of an ABS speed at an age: a / (1 - a (age - 1)); 1 once every loan has gone."""
    rate, months = np.asarray(speed, dtype=float), np.asarray(age, dtype=float)
    left = 1.0 - rate * (months - 1.0)
    return np.where(left > rate, rate / np.where(left > 0, left, 1.0), np.where(rate > 0, 1.0, 0.0))


def abs_from_smm(smm: Any, age: Any) -> Any:
    """ABS speed of an SMM at an age: s / (1 + s (age - 1))."""
    rate = np.asarray(smm, dtype=float)
    return rate / (1.0 + rate * (np.asarray(age) - 1.0))


def level_payment(balance: Any, rate: Any, n_months: Any) -> Any:
    """Level monthly payment that repays `balance` over `n_months` at a yearly `rate`; zero rate included."""
    monthly, n = np.asarray(rate, dtype=float) / 12.0, np.asarray(n_months, dtype=float)
    safe = np.where(np.abs(monthly) > 1e-12, monthly, 1.0)
    annuity = np.where(np.abs(monthly) > 1e-12, safe / -np.expm1(-n * np.log1p(safe)), 1.0 / n)
    return np.asarray(balance, dtype=float) * annuity


def scheduled_balance(rate: Any, original_months: Any, remaining_months: Any) -> Any:
    """Share of the original balance that a level-payment loan still owes."""
    monthly = np.asarray(rate, dtype=float) / 12.0
    total, left = np.asarray(original_months, dtype=float), np.asarray(remaining_months, dtype=float)
    safe = np.where(np.abs(monthly) > 1e-12, monthly, 1.0)
    level = np.expm1(-left * np.log1p(safe)) / np.expm1(-total * np.log1p(safe))
    return np.where(np.abs(monthly) > 1e-12, level, left / total)


def smm_from_factors(before: Any, after: Any, scheduled_ratio: Any, n_months: Any = 1) -> Any:
    """Average SMM between two pool factors (or balances).

    Args:
        scheduled_ratio: what scheduled payments alone would have left of `before`.
    """
    survival = np.asarray(after, dtype=float) / (np.asarray(before, dtype=float) * scheduled_ratio)
    return 1.0 - survival ** (1.0 / np.asarray(n_months, dtype=float))


def abs_from_factors(before: Any, after: Any, scheduled_ratio: Any, age_before: Any, age_after: Any) -> Any:
    """Constant ABS speed between two pool factors: of the loans at origination, 1 - a x age survive."""
    survival = np.asarray(after, dtype=float) / (np.asarray(before, dtype=float) * scheduled_ratio)
    return (1.0 - survival) / (np.asarray(age_after) - survival * np.asarray(age_before))
