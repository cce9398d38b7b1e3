"""One payment date of a deal, from cash in to balances out: the one definition of every rule.

Here: the order of work and the closing. Not here: what comes before the first step (`month`), the steps
(`steps`), the loop over dates (`engine`), the machine code (`compiled`). Equation numbers refer to
docs/methods/waterfall.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pc_pipeline.waterfall.month import (
    Flow,
    Month,
    accrue_fees,
    accrue_interest,
    adjusted_pool,
    call_deal,
    collect,
    measure_tests,
    total_of,
    watch_triggers,
)
from pc_pipeline.waterfall.ops import Ops
from pc_pipeline.waterfall.plan import Plan
from pc_pipeline.waterfall.steps import STEPS


def run_month(
    ops: Ops,
    plan: Plan,
    state: Mapping[str, Any],
    cash: Mapping[str, Any],
    constants: Mapping[str, Any],
    flow: Flow | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Distribute one period's cash.

    Args:
        state: carried in, by the names of `Plan.state`.
        cash: 'interest', 'scheduled', 'prepaid', 'defaulted', 'recovery', 'other_interest',
            'other_principal', 'delinquent', 'ysoc', 'index.<name>'.
        constants: of the date, by the names of `Plan.constants`.
        flow: told of every payment (step, payer, payee, amount).

    Returns:
        The state carried out and the figures to record.
    """
    month = Month(ops, plan, state, cash, constants, flow)
    collect(month)
    accrue_interest(month)
    accrue_fees(month)
    if plan.deal.call is not None:
        call_deal(month)
    measure_tests(month)
    watch_triggers(month)
    for pot, steps in plan.pots.items():
        for index, step in enumerate(steps):
            STEPS[step.verb](month, pot, index, step)
    close_month(month)
    return month.s, month.out


def close_month(m: Month) -> None:
    """Carry shortfalls, write down where the deal says so, hand on what nobody was owed."""
    for tranche in m.plan.deal.tranches:
        if tranche.name in m.owed:
            unpaid = m.owed[tranche.name]
            if tranche.pik:
                m.s[f"balance.{tranche.name}"] = m.s[f"balance.{tranche.name}"] + unpaid
                m.add(f"capitalized.{tranche.name}", unpaid)
                unpaid = 0.0 * unpaid
            m.s[f"carried.{tranche.name}"] = unpaid
            m.out[f"shortfall.{tranche.name}"] = unpaid
    for fee in m.plan.deal.fees:
        if fee.share is None:
            m.s[f"arrears.{fee.name}"] = m.owed[fee.name] if fee.carry else 0.0 * m.owed[fee.name]
    for swap in m.plan.deal.swaps:
        m.s[f"swap_arrears.{swap.name}"] = m.owed[swap.name]
    if m.plan.deal.losses == "write_down":
        write_down(m)
    left = total_of(m.pots.values())
    m.add("residual", left)
    m.tell("left over", "pots", "residual holders", left)
    m.s["delinquent_2"], m.s["delinquent_1"] = m.s["delinquent_1"], m.cash["delinquent"]
    for tranche in m.plan.deal.tranches:
        if tranche.kind != "io":
            m.out[f"balance.{tranche.name}"] = m.s[f"balance.{tranche.name}"]
        m.add(f"interest_paid.{tranche.name}", 0.0 * left)
        if tranche.kind != "io":
            m.add(f"principal_paid.{tranche.name}", 0.0 * left)
    for account in m.plan.deal.accounts:
        m.out[f"account.{account.name}"] = m.s[f"account.{account.name}"]
    m.out["pool"], m.out["multiplier"] = m.s["pool"], m.s["multiplier"]
    m.out["imbalance"] = imbalance(m)


def imbalance(m: Month) -> Any:
    """Cash in less cash out of the date, eq. (24); zero but for rounding, or a rule is wrong.

    In: collections, sale, earnings, facility draws, swap receipts, opening accounts. Out: fees, classes,
    residual, collateral bought, facility and swap payments, closing accounts.
    """
    deal = m.plan.deal
    gains = ["collections", "sale", "account_earnings", "facility_draws", "swap_received"]
    uses = ["residual", "reinvested", "facility_repaid", "swap_paid"]
    uses += [
        f"{part}_paid.{tranche.name}"
        for tranche in deal.tranches
        if tranche.kind != "residual"  # whose cash is the residual
        for part in ("interest", "principal")
    ]
    uses += [f"fee.{fee.name}" for fee in deal.fees]
    held = [account.name for account in deal.accounts if account.kind != "facility"]
    came = [m.out[name] for name in gains if name in m.out] + [m.opening[name] for name in held]
    went = [m.out[name] for name in uses if name in m.out] + [m.out[f"account.{name}"] for name in held]
    return total_of(came) - total_of(went)


def write_down(m: Month) -> None:
    """Balances above the adjusted pool are written down, junior first; room writes up, senior first."""
    classes = [t.name for t in m.plan.deal.tranches if t.kind != "io"]
    gap = total_of(m.s[f"balance.{name}"] for name in classes) - adjusted_pool(m)
    loss, room = m.ops.maximum(gap, 0.0), m.ops.maximum(-gap, 0.0)
    for name in reversed(classes):
        cut = m.ops.minimum(loss, m.s[f"balance.{name}"])
        loss = loss - cut
        m.s[f"balance.{name}"] = m.s[f"balance.{name}"] - cut
        m.s[f"written_down.{name}"] = m.s[f"written_down.{name}"] + cut
    for name in classes:
        back = m.ops.minimum(room, m.s[f"written_down.{name}"])
        room = room - back
        m.s[f"balance.{name}"] = m.s[f"balance.{name}"] + back
        m.s[f"written_down.{name}"] = m.s[f"written_down.{name}"] - back
        m.out[f"written_down.{name}"] = m.s[f"written_down.{name}"]
