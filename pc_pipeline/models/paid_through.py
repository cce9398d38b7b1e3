"""From sampled states to money, on tensors: schedules in closed form and the paid-through ledger.

Here: what a sampled loan history pays, loan by loan. Not here: the same rule to the cent on tables
(`loans.amortisation`), expected cash (`models.expectation`), how states are drawn (`loan_trajectory`).

A loan carries tau, the number of instalments paid; its balance is S(tau). In the month in which
instalment t falls due, a loan found k buckets late has paid max(tau, t - k) instalments; 90dpd and
default pay nothing; prepaid and matured pay the balance with accrued interest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pc_pipeline.schemas.states import LoanState

BALLOON_MONTHS = 360  # a balloon amortises over max(360, twice its term)


def scheduled_balances(
    balance: Tensor, annual_rate: Tensor, term: Tensor, is_bullet: Tensor, is_balloon: Tensor, months: int
) -> Tensor:
    """S(0..months) of each loan, unrounded; 0 from its term on.

    Annuity over n months at monthly rate j: S(tau) = S0 (1 - ((1+j)^tau - 1) / ((1+j)^n - 1)).

    Args:
        balance, annual_rate, term, is_bullet, is_balloon: (B,).
        months: last instalment wanted.

    Returns:
        (B, months+1) float64.
    """
    rate = (annual_rate.double() / 12.0).clamp(min=1e-9)[:, None]
    n = torch.where(is_balloon, (2.0 * term).clamp(min=BALLOON_MONTHS), term).double()[:, None]
    tau = torch.arange(months + 1, device=balance.device, dtype=torch.float64)[None]
    repaid = torch.expm1(tau * torch.log1p(rate)) / torch.expm1(n * torch.log1p(rate))
    repaid = torch.where(is_bullet[:, None], torch.zeros_like(repaid), repaid)
    left = balance.double()[:, None] * (1.0 - repaid).clamp(min=0.0)
    return torch.where(tau >= term[:, None], torch.zeros_like(left), left)


def instalments_paid(tau: Tensor, due: Tensor, state: Tensor, term: Tensor) -> Tensor:
    """tau after the month in which instalment `due` fell due, given the state reached; all (B,)."""
    current = torch.maximum(tau, torch.minimum(due, term) - state)
    paid = torch.where(state <= LoanState.dpd60, current, tau)
    return torch.where(state >= LoanState.prepaid, term, paid)


def month_cash(
    schedule: Tensor, tau: Tensor, due: Tensor, state: Tensor, term: Tensor, annual_rate: Tensor
) -> dict[str, Tensor]:
    """One month of the ledger; all (B,) except `schedule` (B,n+1).

    Returns:
        tau, interest, principal, charge_off, balance after the month. Principal and charge-off take
        the balance down to what is left, exactly.
    """
    paid_up = instalments_paid(tau, due, state, term)
    before = _at(schedule, tau)
    is_default = state == LoanState.default
    after = torch.where(is_default, torch.zeros_like(before), _at(schedule, paid_up))
    rate = annual_rate.double() / 12.0
    early = (state == LoanState.prepaid) & (due < term)
    accrued = (due - tau).clamp(min=0).double() * rate * before
    earned = _interest_between(schedule, tau, paid_up, rate)
    interest = torch.where(early, accrued, earned)
    interest = torch.where(is_default, torch.zeros_like(interest), interest)
    charge_off = torch.where(is_default, before, torch.zeros_like(before))
    return {
        "tau": torch.where(is_default, term, paid_up),  # nothing is owed after a charge-off
        "interest": interest,
        "principal": torch.where(is_default, torch.zeros_like(before), before - after),
        "charge_off": charge_off,
        "balance": after,
    }


def _at(schedule: Tensor, tau: Tensor) -> Tensor:
    return schedule.gather(1, tau.clamp(0, schedule.shape[1] - 1)[:, None])[:, 0]


def _interest_between(schedule: Tensor, tau: Tensor, paid_up: Tensor, rate: Tensor) -> Tensor:
    """rate * sum of S(u - 1) over instalments u in (tau, paid_up], at most a term of them."""
    total = torch.zeros_like(rate)
    longest = int((paid_up - tau).max()) if len(tau) else 0
    for step in range(min(longest, schedule.shape[1])):
        is_paid = tau + step < paid_up
        total = total + torch.where(is_paid, _at(schedule, tau + step), torch.zeros_like(total))
    return rate * total
