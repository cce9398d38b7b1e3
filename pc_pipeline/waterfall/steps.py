"""What each step of a waterfall does with money.

Here: one function per verb of `terms.Step`, the cure amounts and the principal amounts, written in the
operations of `ops`. Not here: what is due and tested (`month`), the order (`rules`). Equation numbers refer
to docs/methods/waterfall.md. Whatever is paid leaves a pot or an account by `_draw` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pc_pipeline.waterfall.month import (
    INFINITE,
    Month,
    account_target,
    adjusted_pool,
    is_there,
    notes_outstanding,
    oc_numerator,
    product_of,
    target_amount,
    total_of,
)
from pc_pipeline.waterfall.terms import Step

DEAD_POOL = 1e-6  # of the original pool: below this nothing can be bought pro rata


def gate_of(m: Month, step: Step) -> Any:
    """1 where the step applies: all of `when` are on (failing), none of `unless`."""

    def is_on(name: str) -> Any:
        return m.s[f"on.{name}"] if f"on.{name}" in m.s else 1.0 - m.out[f"passed.{name}"]

    return product_of([is_on(name) for name in step.when] + [1.0 - is_on(name) for name in step.unless])


def available(m: Month, source: str) -> Any:
    """Cash in a pot or account; of a facility, what may still be drawn."""
    if source in m.pots:
        return m.pots[source]
    if f"limit.{source}" in m.k:
        return m.ops.maximum(m.k[f"limit.{source}"] - m.s[f"account.{source}"], 0.0)
    return m.s[f"account.{source}"]


def _draw(m: Month, sources: list[str], due: Any) -> tuple[Any, dict[str, Any]]:
    """Take up to `due` from the sources in turn; returns what was got, in all and by source."""
    left, taken = due, {}
    for source in sources:
        amount = m.ops.minimum(left, available(m, source))
        taken[source] = amount
        left = left - amount
        if source in m.pots:
            m.pots[source] = m.pots[source] - amount
        elif f"limit.{source}" in m.k:
            m.s[f"account.{source}"] = m.s[f"account.{source}"] + amount
            m.add("facility_draws", amount)
        else:
            m.s[f"account.{source}"] = m.s[f"account.{source}"] - amount
    return total_of(taken.values()), taken


def _share_out(m: Month, label: str, taken: dict[str, Any], paid: dict[str, Any]) -> None:
    """Ledger lines: each source pays each payee in proportion."""
    if m.flow is None:
        return
    total = total_of(taken.values())
    for source, amount in taken.items():
        for payee, received in paid.items():
            m.tell(label, source, payee, received * m.ops.ratio(amount, total, 0.0))


def _repay(m: Month, groups: list[list[str]], amount: Any) -> dict[str, Any]:
    """Principal to groups in turn, within a group pro rata by balance: eq. (13)."""
    left = amount
    paid: dict[str, Any] = {}
    for group in groups:
        total = total_of(m.s[f"balance.{name}"] for name in group)
        given = m.ops.minimum(left, total)
        left = left - given
        for name, share in _split(m, group, given, total).items():
            m.s[f"balance.{name}"] = m.s[f"balance.{name}"] - share
            m.add(f"principal_paid.{name}", share)
            paid[name] = share
    return paid


def _split(m: Month, group: list[str], given: Any, total: Any) -> dict[str, Any]:
    """Shares of a group. In a deal that rounds, each class's payments of the month add up to its rounded
    share and the last class takes what rounding leaves."""
    if len(group) == 1:
        return {group[0]: given}
    part, unit = m.ops.ratio(given, total, 0.0), m.plan.deal.rounding
    shares = {name: m.s[f"balance.{name}"] * part for name in group}
    if unit <= 0:
        return shares
    rest = given
    for name in group:
        exact = m.reached.get(f"exact.{name}", 0.0) + shares[name]
        m.reached[f"exact.{name}"] = exact
        wanted = m.ops.round_to(exact, unit) - m.out.get(f"principal_paid.{name}", 0.0)
        share = rest if name == group[-1] else m.ops.minimum(m.ops.maximum(wanted, 0.0), rest)
        shares[name] = m.ops.minimum(share, m.s[f"balance.{name}"])
        rest = rest - shares[name]
    for name in group:  # what the last class could not take: nobody is paid more than the balance
        more = m.ops.minimum(rest, m.s[f"balance.{name}"] - shares[name])
        shares[name] = shares[name] + more
        rest = rest - more
    return shares


def _sources(pot: str, step: Step) -> list[str]:
    return step.sources or [pot]


# ---- steps ----------------------------------------------------------------------------------------


def pay_fee(m: Month, pot: str, index: int, step: Step) -> None:
    """Fee with its arrears, up to its cap."""
    fee = next(f for f in m.plan.deal.fees if f.name == step.fee)
    due = m.owed[fee.name]
    if fee.cap_amount is not None:
        due = m.ops.minimum(due, fee.cap_amount)
    paid, taken = _draw(m, _sources(pot, step), gate_of(m, step) * due)
    m.owed[fee.name] = m.owed[fee.name] - paid
    m.add(f"fee.{fee.name}", paid)
    _share_out(m, step.label, taken, {fee.name: paid})


def pay_interest(m: Month, pot: str, index: int, step: Step) -> None:
    """Interest owed, pro rata by amount owed: eq. (5)."""
    names = step.interest or []
    owed = total_of(m.owed[name] for name in names)
    paid, taken = _draw(m, _sources(pot, step), gate_of(m, step) * owed)
    received = {}
    for name in names:
        part = paid if len(names) == 1 else m.owed[name] * m.ops.ratio(paid, owed, 0.0)
        m.owed[name] = m.owed[name] - part
        m.add(f"interest_paid.{name}", part)
        received[name] = part
    _share_out(m, step.label, taken, received)


def cure_amount(m: Month, test_name: str, from_principal: bool) -> Any:
    """Principal to pay so that a test just passes, all else equal: eq. (14)-(16).

    From interest cash the collateral stands, x = N - C / k. From principal cash both fall,
    x = (k N - C) / (k - 1); with k <= 1 no payment helps and all is paid. An IC test is cured class by
    class, senior first, until interest due is the cash divided by the trigger.
    """
    test = next(t for t in m.plan.deal.tests if t.name == test_name)
    names, level = m.plan.senior_to(test.of), m.k[f"trigger.{test_name}"]
    balance = total_of(m.s[f"balance.{name}"] for name in names)
    if test.kind == "oc":
        collateral = m.reached["oc_numerator"]
        if not from_principal:
            return m.ops.maximum(balance - collateral / level, 0.0)
        short = m.ops.maximum(level * balance - collateral, 0.0)
        return m.ops.minimum(m.ops.ratio(short, level - 1.0, INFINITE), balance) * is_there(m, short)
    excess = total_of(m.s[f"balance.{n}"] * m.reached[f"rate.{n}"] for n in names)
    excess = m.ops.maximum(excess - m.reached["ic_numerator"] / level, 0.0)
    amount: Any = 0.0
    for group in m.plan.rank_groups(names):
        total = total_of(m.s[f"balance.{n}"] for n in group)
        interest = total_of(m.s[f"balance.{n}"] * m.reached[f"rate.{n}"] for n in group)
        needed = m.ops.minimum(m.ops.ratio(excess, interest, 0.0), 1.0)
        amount = amount + needed * total
        excess = excess - needed * interest
    return amount


def cure_tests(m: Month, pot: str, index: int, step: Step) -> None:
    """Pay principal, senior first, until the tests of the step pass; source by source: section 4."""
    gate = gate_of(m, step)
    names = step.cure or []
    classes = [t.of for t in m.plan.deal.tests if t.name in names]
    widest = max(classes, key=lambda name: m.plan.ranks[name])
    groups = m.plan.rank_groups(m.plan.senior_to(widest))
    for source in _sources(pot, step):
        m.reached["oc_numerator"] = oc_numerator(m)
        needed: Any = 0.0
        for name in names:
            needed = m.ops.maximum(needed, cure_amount(m, name, from_principal=source == "principal"))
        paid, taken = _draw(m, [source], gate * needed)
        received = _repay(m, groups, paid)
        m.add("cured", paid)
        _share_out(m, step.label, taken, received)


def principal_due(m: Month, pot: str, index: int, step: Step) -> Any:
    """How much principal the step may pay, before what there is: eq. (17)-(21)."""
    ops, terms = m.ops, step.principal
    assert terms is not None  # the verb says so
    listed = [name for group in terms.groups for name in group]
    balance = total_of(m.s[f"balance.{name}"] for name in listed)
    if terms.amount == "all":
        return balance
    if terms.amount == "to_target":
        oc = terms.target or m.plan.deal.collateral.oc_target
        target = 0.0 if oc is None else target_amount(m, oc)
        excess = (notes_outstanding(m) if terms.target is None else balance) - ops.maximum(
            adjusted_pool(m) - target, 0.0
        )
        return ops.minimum(ops.maximum(excess, 0.0), balance)
    if terms.amount == "planned":
        return ops.maximum(balance - m.k[f"plan.{pot}.{index}"], 0.0)
    if terms.amount == "parity":
        matured = total_of(
            m.s[f"balance.{name}"] * m.k[f"matured.{name}"] for name in listed if f"matured.{name}" in m.k
        )
        return ops.maximum(ops.maximum(balance - adjusted_pool(m), 0.0), matured)
    if terms.amount == "collections":
        return ops.minimum(m.cash["principal_cash"] + m.cash["defaulted"], balance)
    everything = total_of(m.s[f"balance.{t.name}"] for t in m.plan.deal.tranches if t.kind != "io")
    senior = ops.ratio(balance, everything, 0.0)
    if terms.amount == "share":
        return ops.minimum(senior * m.cash["principal_cash"], balance)
    shifted = senior + m.k[f"shift.{pot}.{index}"] * (1.0 - senior)
    unscheduled = ops.maximum(m.cash["principal_cash"] - m.cash["scheduled"], 0.0)
    return ops.minimum(senior * m.cash["scheduled"] + shifted * unscheduled, balance)


def pay_principal(m: Month, pot: str, index: int, step: Step) -> None:
    """Principal to the listed classes."""
    assert step.principal is not None  # the verb says so
    due = gate_of(m, step) * principal_due(m, pot, index, step)
    listed = total_of(m.s[f"balance.{name}"] for group in step.principal.groups for name in group)
    due = m.ops.minimum(m.ops.round_to(due, m.plan.deal.rounding), listed)
    paid, taken = _draw(m, _sources(pot, step), due)
    _share_out(m, step.label, taken, _repay(m, step.principal.groups, paid))


def fund_account(m: Month, pot: str, index: int, step: Step) -> None:
    """Fill an account to its target."""
    name = step.fund or ""
    short = m.ops.maximum(account_target(m, name) - m.s[f"account.{name}"], 0.0)
    paid, taken = _draw(m, _sources(pot, step), gate_of(m, step) * short)
    m.s[f"account.{name}"] = m.s[f"account.{name}"] + paid
    _share_out(m, step.label, taken, {name: paid})


def release_account(m: Month, pot: str, index: int, step: Step) -> None:
    """What an account holds above its target into the pot; a prefunding account buys first."""
    name = step.release or ""
    key, gate = f"account.{name}", gate_of(m, step)
    if f"spend.{name}" in m.k:
        spent = m.s[key] * m.k[f"spend.{name}"] * gate * m.ops.gate(m.s["pool"] / m.plan.pool, DEAD_POOL)
        m.s[key] = m.s[key] - spent
        _buy(m, step.label, name, spent, 1.0)
        freed = m.s[key] * m.ops.maximum(m.k[f"ended.{name}"], m.k["is_last"]) * gate
    else:
        freed = gate * m.ops.maximum(m.s[key] - account_target(m, name), 0.0)
    m.s[key] = m.s[key] - freed
    m.pots[pot] = m.pots[pot] + freed
    m.tell(step.label, name, pot, freed)


def _buy(m: Month, label: str, payer: str, spent: Any, price: float) -> None:
    """Buy a pro rata slice of the living pool: eq. (22)."""
    par = spent / price if price != 1.0 else spent
    m.s["multiplier"] = m.s["multiplier"] * (1.0 + m.ops.ratio(par, m.s["pool"], 0.0))
    m.s["pool"] = m.s["pool"] + par
    m.add("reinvested", spent)
    m.tell(label, payer, "collateral", spent)


def reinvest(m: Month, pot: str, index: int, step: Step) -> None:
    """Buy collateral with the pot while the period lasts and its tests pass: eq. (22)."""
    terms = m.plan.deal.reinvestment
    assert terms is not None  # checked with the deal
    tests = [t.name for t in m.plan.deal.tests] if terms.tests is None else terms.tests
    allowed = (
        gate_of(m, step) * m.k["is_reinvesting"] * product_of([m.out[f"passed.{name}"] for name in tests])
    )
    floor = max(terms.min_pool_factor, DEAD_POOL)
    allowed = allowed * m.ops.gate(m.s["pool"] / m.plan.pool, floor)
    for source in _sources(pot, step):
        spent, _ = _draw(m, [source], allowed * available(m, source))
        _buy(m, step.label, source, spent, terms.price)


def pay_residual(m: Month, pot: str, index: int, step: Step) -> None:
    """All that is left to a residual class.

    Interest cash is income; principal cash repays the class's balance first; combined cash does so once
    the notes are paid.
    """
    name = step.residual or ""
    for source in _sources(pot, step):
        given, taken = _draw(m, [source], gate_of(m, step) * available(m, source))
        if source == "interest":
            back = 0.0 * given
        else:
            back = m.ops.minimum(given, m.s[f"balance.{name}"])
            if source != "principal":
                back = back * (1.0 - is_there(m, notes_outstanding(m)))
        m.s[f"balance.{name}"] = m.s[f"balance.{name}"] - back
        m.add(f"principal_paid.{name}", back)
        m.add(f"interest_paid.{name}", given - back)
        m.add("residual", given)
        for fee in m.plan.deal.fees:
            if fee.hurdle_class == name:
                hurdle = m.s[f"hurdle.{fee.name}"]
                m.s[f"hurdle.{fee.name}"] = m.ops.maximum(hurdle - given, 0.0)
        _share_out(m, step.label, taken, {name: given})


def pay_incentive(m: Month, pot: str, index: int, step: Step) -> None:
    """A share of what is left above the residual class's hurdle: eq. (23)."""
    fee = next(f for f in m.plan.deal.fees if f.name == step.incentive)
    above = m.ops.maximum(available(m, pot) - m.s[f"hurdle.{fee.name}"], 0.0)
    paid, taken = _draw(m, [pot], gate_of(m, step) * m.k[f"share.{fee.name}"] * above)
    m.add(f"fee.{fee.name}", paid)
    _share_out(m, step.label, taken, {fee.name: paid})


def move_cash(m: Month, pot: str, index: int, step: Step) -> None:
    """All that is left in this pot to the other."""
    given, taken = _draw(
        m, _sources(pot, step), gate_of(m, step) * total_of(available(m, s) for s in _sources(pot, step))
    )
    m.pots[step.move or ""] = m.pots[step.move or ""] + given
    _share_out(m, step.label, taken, {step.move or "": given})


def accrue_class(m: Month, pot: str, index: int, step: Step) -> None:
    """While an accrual class waits, its interest is added to its balance and the cash is principal."""
    tranche = next(t for t in m.plan.deal.tranches if t.name == step.accrue)
    name = tranche.name
    waits = is_there(m, total_of(m.s[f"balance.{other}"] for other in tranche.accrues_until_paid))
    added = gate_of(m, step) * waits * m.owed[name]
    m.owed[name] = m.owed[name] - added
    m.s[f"balance.{name}"] = m.s[f"balance.{name}"] + added
    m.add(f"capitalized.{name}", added)
    if pot != "combined":
        given, taken = _draw(m, _sources(pot, step), added)
        m.pots["principal"] = m.pots["principal"] + given
        _share_out(m, step.label, taken, {"principal": given})


def settle_swap(m: Month, pot: str, index: int, step: Step) -> None:
    """Receive the net leg into the pot, or pay it."""
    name = step.swap or ""
    received = m.reached[f"receive.{name}"] * gate_of(m, step)
    m.pots[pot] = m.pots[pot] + received
    m.add("swap_received", received)
    m.tell(step.label, name, pot, received)
    paid, taken = _draw(m, _sources(pot, step), gate_of(m, step) * m.owed[name])
    m.owed[name] = m.owed[name] - paid
    m.add("swap_paid", paid)
    _share_out(m, step.label, taken, {name: paid})


def repay_facility(m: Month, pot: str, index: int, step: Step) -> None:
    """Give back what a facility lent, with its interest."""
    key = f"account.{step.repay}"
    paid, taken = _draw(m, _sources(pot, step), gate_of(m, step) * m.s[key])
    m.s[key] = m.s[key] - paid
    m.add("facility_repaid", paid)
    _share_out(m, step.label, taken, {step.repay or "": paid})


STEPS: dict[str, Callable[[Month, str, int, Step], None]] = {
    "fee": pay_fee,
    "interest": pay_interest,
    "cure": cure_tests,
    "principal": pay_principal,
    "fund": fund_account,
    "release": release_account,
    "reinvest": reinvest,
    "residual": pay_residual,
    "move": move_cash,
    "accrue": accrue_class,
    "swap": settle_swap,
    "repay": repay_facility,
    "incentive": pay_incentive,
}
