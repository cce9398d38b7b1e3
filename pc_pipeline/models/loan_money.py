"""Money of drawn histories: the paid-through ledger or proposed payment ratios, month by month.

Here: `run_ledger`. Not here: the draws (`loan_trajectory`), one month of the ledger (`paid_through`).

Principal + charge-off + balance = amount owed at the start, every month, under either convention.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models.paid_through import month_cash, scheduled_balances
from pc_pipeline.schemas.states import N_LIVING, LoanState
from pc_pipeline.schemas.units import LOAN_FEATURES, MACRO_NAMES, N_MACRO

_COLUMN: Final = {name: number for number, name in enumerate(LOAN_FEATURES)}


def run_ledger(
    features: Tensor,
    states: Tensor,
    begin: Tensor,
    values: Tensor,
    macro_path: Tensor | None,
    schedule: Tensor | None,
    cash: str,
    n_samples: int,
) -> dict[str, Tensor]:
    """Money (S*B,T) of drawn histories."""
    f = {name: features[:, column].double() for name, column in _COLUMN.items()}
    term = torch.nan_to_num(f["term_months"], nan=60.0).round().long().clamp(min=1)
    age0 = torch.nan_to_num(f["age_months"], nan=0.0).round().long()
    months = states.shape[1]
    if schedule is None:
        plan = scheduled_balances(
            torch.nan_to_num(f["log_balance"]).exp(),
            torch.nan_to_num(f["interest_rate"]),
            term,
            f["amortization_bullet"] > 0.5,
            f["amortization_balloon"] > 0.5,
            int(max(term.max(), (age0 + months).max())),
        )
    else:
        plan = schedule.double().repeat(n_samples, 1)
    tau = torch.minimum((age0 - begin).clamp(min=0), term)
    balance = plan.gather(1, tau.clamp(max=plan.shape[1] - 1)[:, None])[:, 0]
    unpaid_interest = torch.zeros_like(balance)
    out: dict[str, list[Tensor]] = {name: [] for name in ("payments", "principal", "balances", "charge_offs")}
    for month in range(months):
        rate = coupon(f, macro_path, month, n_samples)
        state = states[:, month]
        due = age0 + month + 1
        step = month_cash(plan, tau, due, state, term, rate)
        if cash == "ratios":
            level = (
                plan.gather(1, (due - 1).clamp(0, plan.shape[1] - 1)[:, None])
                - plan.gather(1, due.clamp(0, plan.shape[1] - 1)[:, None])
            )[:, 0]
            unpaid_interest = unpaid_interest + rate / 12.0 * balance
            scheduled = level.clamp(min=0.0) + rate / 12.0 * balance
            step = pay_ratio(balance, unpaid_interest, scheduled, values[:, month, 0].double(), state)
            unpaid_interest = step["unpaid_interest"]
        else:
            tau = step["tau"]
        balance = step["balance"]
        out["payments"].append(step["interest"] + step["principal"])
        out["principal"].append(step["principal"])
        out["balances"].append(balance)
        out["charge_offs"].append(step["charge_off"])
    money = {name: torch.stack(columns, dim=1) for name, columns in out.items()}
    is_default = states == LoanState.default
    severity = torch.where(is_default, values[..., 1].double(), torch.zeros_like(money["balances"]))
    money["losses"] = severity * money["charge_offs"]
    money["payment_ratios"] = torch.where(
        states < N_LIVING, values[..., 0].double(), torch.zeros_like(money["balances"])
    )
    money["severities"] = severity
    return money


def coupon(f: dict[str, Tensor], macro_path: Tensor | None, month: int, n_samples: int) -> Tensor:
    fixed = torch.nan_to_num(f["interest_rate"])
    if macro_path is None:
        return fixed
    if macro_path.shape[-1] != N_MACRO:
        raise ModelError("macro path does not fit", expected=f"{N_MACRO} series", got=tuple(macro_path.shape))
    policy = macro_path[..., month, MACRO_NAMES.index("policy_rate")].double()
    policy = policy.repeat(n_samples) if policy.dim() else policy
    floating = (policy + torch.nan_to_num(f["spread"])).clamp(min=0.0)
    return torch.where((f["is_floating"] > 0.5) & torch.isfinite(f["spread"]), floating, fixed)


def pay_ratio(
    balance: Tensor, owed_interest: Tensor, scheduled: Tensor, ratio: Tensor, state: Tensor
) -> dict[str, Tensor]:
    """Interest first, then principal; a loan that ends by paying pays all it owes."""
    pays_all = state >= LoanState.prepaid
    is_default = state == LoanState.default
    offered = torch.where(pays_all, balance + owed_interest, ratio * scheduled)
    offered = torch.where(is_default, torch.zeros_like(offered), offered)
    interest = torch.minimum(offered, owed_interest)
    principal = torch.minimum(offered - interest, balance)
    charge_off = torch.where(is_default, balance, torch.zeros_like(balance))
    return {
        "interest": interest,
        "principal": principal,
        "charge_off": charge_off,
        "balance": balance - principal - charge_off,
        "unpaid_interest": torch.where(is_default, torch.zeros_like(interest), owed_interest - interest),
    }
