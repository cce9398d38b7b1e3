"""The working figures of one payment date: cash in, interest and fees due, tests, triggers, the call.

Here: `Month` and everything that happens before the first step of a waterfall, written in the operations
of `ops`. Not here: the steps (`steps`), the order of it all and the closing (`rules`). Equation numbers
refer to docs/methods/waterfall.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pc_pipeline.waterfall.ops import Ops
from pc_pipeline.waterfall.plan import Plan
from pc_pipeline.waterfall.terms import Coupon, Target

INFINITE = float("inf")
DUST = 1e-12  # of the original pool: what rounding leaves of a balance that has been paid
Flow = Callable[[str, str, str, Any], None]


class Month:
    """Working figures of one payment date (see the module)."""

    __slots__ = ("cash", "flow", "k", "opening", "ops", "out", "owed", "plan", "pots", "reached", "s")

    def __init__(
        self,
        ops: Ops,
        plan: Plan,
        state: Mapping[str, Any],
        cash: Mapping[str, Any],
        constants: Mapping[str, Any],
        flow: Flow | None = None,
    ) -> None:
        self.ops, self.plan, self.s, self.cash, self.k = ops, plan, dict(state), dict(cash), constants
        self.flow = flow
        self.opening = {account.name: state[f"account.{account.name}"] for account in plan.deal.accounts}
        self.pots: dict[str, Any] = {}
        self.owed: dict[str, Any] = {}
        self.reached: dict[str, Any] = {}
        self.out: dict[str, Any] = {}

    def add(self, name: str, amount: Any) -> None:
        """Add to a recorded figure."""
        self.out[name] = self.out[name] + amount if name in self.out else amount

    def tell(self, step: str, payer: str, payee: str, amount: Any) -> None:
        """Write a line of the ledger, if one is kept."""
        if self.flow is not None:
            self.flow(step, payer, payee, amount)


def total_of(items: Any) -> Any:
    """Sum from left to right."""
    total: Any = 0.0
    for item in items:
        total = item if isinstance(total, float) and total == 0.0 else total + item
    return total


def product_of(items: Any) -> Any:
    """Product from left to right."""
    total: Any = 1.0
    for item in items:
        total = item if isinstance(total, float) and total == 1.0 else total * item
    return total


# ---- opening: cash, interest and fees due --------------------------------------------------------


def collect(m: Month) -> None:
    """Scale the collections to the pool as it has grown, move the pool, fill the pots: eq. (1)-(3)."""
    s, ops, combined = m.s, m.ops, m.plan.is_combined
    defaulted, fade = m.cash["defaulted"], m.plan.recovery_fade
    for channel in ("interest", "scheduled", "prepaid", "defaulted"):
        m.cash[channel] = m.cash[channel] * s["multiplier"]
    if fade is None:
        m.cash["recovery"] = m.cash["recovery"] * s["multiplier"]
    else:
        then = ops.ratio(s["pending_scaled"], s["pending"], 1.0) if fade < 1.0 else s["multiplier"]
        m.cash["recovery"] = m.cash["recovery"] * then * (1.0 - s["called"])
        s["pending"] = s["pending"] * (1.0 - fade) + defaulted
        s["pending_scaled"] = s["pending_scaled"] * (1.0 - fade) + m.cash["defaulted"]
    m.cash["opening_pool"] = s["pool"]
    falls = m.cash["scheduled"] + m.cash["prepaid"] + m.cash["defaulted"]
    s["pool"] = ops.maximum(s["pool"] - falls, 0.0)
    s["defaulted"] = s["defaulted"] + m.cash["defaulted"]
    s["recovered"] = s["recovered"] + m.cash["recovery"]
    s["inventory"] = ops.maximum(s["inventory"] + m.cash["defaulted"] - m.cash["recovery"], 0.0)
    earned = m.cash["interest"] + m.cash["other_interest"]
    repaid = m.cash["scheduled"] + m.cash["prepaid"] + m.cash["other_principal"]
    if m.plan.deal.collateral.recoveries == "interest":
        earned = earned + m.cash["recovery"]
    else:
        repaid = repaid + m.cash["recovery"]
    m.out["collections"] = earned + repaid
    for account in m.plan.deal.accounts:
        key = f"account.{account.name}"
        if account.earnings_rate > 0:
            interest = s[key] * (account.earnings_rate * m.k["years"])
            if account.kind == "facility":
                s[key] = s[key] + interest
            else:
                earned = earned + interest
                m.add("account_earnings", interest)
    m.cash["principal_cash"], m.cash["interest_cash"] = repaid, earned
    if combined:
        m.pots["combined"] = earned + repaid
    else:
        m.pots["interest"], m.pots["principal"] = earned, repaid
    for pot, amount in m.pots.items():
        m.tell("collect", "collections", pot, amount)


def coupon_rate(m: Month, coupon: Coupon, level: Any) -> Any:
    """The rate of the period: fixed, or index + spread within floor and cap: eq. (4)."""
    rate = level if coupon.index is None else m.cash[f"index.{coupon.index}"] + level
    if coupon.floor is not None:
        rate = m.ops.maximum(rate, coupon.floor)
    if coupon.cap is not None:
        rate = m.ops.minimum(rate, coupon.cap)
    return rate


def notional_of(m: Month, names: list[str]) -> Any:
    """Opening pool, or the sum of classes' balances."""
    if names == ["pool"]:
        return m.cash["opening_pool"]
    return total_of(m.s[f"balance.{name}"] for name in names)


def accrue_interest(m: Month) -> None:
    """Interest due = balance x rate x years, on top of what is carried: eq. (4)-(5)."""
    for tranche in m.plan.deal.tranches:
        if tranche.coupon is None or tranche.kind == "residual":
            continue
        name, years = tranche.name, m.k[f"years.{tranche.name}"]
        rate = coupon_rate(m, tranche.coupon, m.k[f"coupon.{name}"])
        if tranche.coupon.available_funds_cap:
            earned = m.ops.ratio(m.cash["interest_cash"], m.cash["opening_pool"] * years, 0.0)
            rate = m.ops.minimum(rate, earned)
        base = notional_of(m, tranche.notional) if tranche.kind == "io" else m.s[f"balance.{name}"]
        due = m.ops.round_to(base * rate * years, m.plan.deal.rounding)
        carried = m.s[f"carried.{name}"]
        if tranche.interest_on_shortfall:
            carried = carried + carried * (rate * years)
        m.reached[f"rate.{name}"] = rate * years
        m.out[f"interest_due.{name}"] = due
        m.owed[name] = carried + due


def accrue_fees(m: Month) -> None:
    """Fee due = rate x base x years, or the yearly amount x years, on top of arrears: eq. (6)."""
    for fee in m.plan.deal.fees:
        level, years = m.k[f"fee.{fee.name}"], m.k[f"years.{fee.name}"]
        if fee.share is not None:
            m.s[f"hurdle.{fee.name}"] = m.s[f"hurdle.{fee.name}"] * m.k[f"growth.{fee.name}"]
            m.out[f"fee.{fee.name}"] = 0.0 * m.s["pool"]
            continue
        bases: dict[str, Callable[[], Any]] = {
            "pool": lambda: m.cash["opening_pool"],
            "notes": lambda: notes_outstanding(m),
            "original_pool": lambda: m.plan.pool,
            "interest": lambda: m.cash["interest_cash"],
        }
        if fee.rate is None:
            due = level * years
        else:
            due = bases[fee.base]() * level * (1.0 if fee.base == "interest" else years)
        m.owed[fee.name] = m.s[f"arrears.{fee.name}"] + m.ops.round_to(due, m.plan.deal.rounding)
    for swap in m.plan.deal.swaps:
        years = m.k[f"years.{swap.name}"]
        pay = coupon_rate(m, swap.pay, m.k[f"pay.{swap.name}"])
        receive = coupon_rate(m, swap.receive, m.k[f"receive.{swap.name}"])
        net = m.ops.round_to(notional_of(m, swap.notional) * (pay - receive) * years, m.plan.deal.rounding)
        m.owed[swap.name] = m.s[f"swap_arrears.{swap.name}"] + m.ops.maximum(net, 0.0)
        m.reached[f"receive.{swap.name}"] = m.ops.maximum(-net, 0.0)


# ---- tests, triggers, call -------------------------------------------------------------------------


def is_there(m: Month, amount: Any) -> Any:
    """1 where an amount is more than dust."""
    return m.ops.positive(amount - DUST * m.plan.pool)


def notes_outstanding(m: Month) -> Any:
    """Sum of the balances of all classes that are no residual."""
    return total_of(m.s[f"balance.{tranche.name}"] for tranche in m.plan.bearing())


def adjusted_pool(m: Month) -> Any:
    """Pool less yield-supplement overcollateralisation: eq. (7)."""
    return m.ops.maximum(m.s["pool"] - m.cash["ysoc"], 0.0)


def oc_numerator(m: Month) -> Any:
    """Adjusted pool less haircuts, plus credit for defaulted par and principal cash: eq. (8)."""
    terms = m.plan.deal.collateral
    par = adjusted_pool(m)
    if terms.delinquent_haircut > 0:
        par = par - terms.delinquent_haircut * m.ops.minimum(m.cash["delinquent"], par)
    if terms.default_credit > 0:
        par = par + terms.default_credit * m.s["inventory"]
    return par if m.plan.is_combined else par + m.pots["principal"]


def ic_numerator(m: Month) -> Any:
    """Interest collections less senior fees due: eq. (10)."""
    fees = total_of([m.owed[name] for name in m.plan.senior_fees])
    return m.ops.maximum(m.cash["interest_cash"] - fees, 0.0)


def measure_tests(m: Month) -> None:
    """Every coverage ratio on the determination date, before anything is paid: eq. (9), (11)."""
    for test in m.plan.deal.tests:
        names = m.plan.senior_to(test.of)
        if test.kind == "oc":
            below = total_of(m.s[f"balance.{name}"] for name in names)
            ratio = m.ops.ratio(oc_numerator(m), below * is_there(m, below), INFINITE)
        else:
            m.reached["ic_numerator"] = ic_numerator(m)
            below = total_of(m.out[f"interest_due.{name}"] for name in names)
            ratio = m.ops.ratio(m.reached["ic_numerator"], below * is_there(m, below), INFINITE)
        m.out[f"ratio.{test.name}"] = ratio
        m.out[f"passed.{test.name}"] = m.ops.gate(ratio, m.k[f"trigger.{test.name}"])


def watch_triggers(m: Month) -> None:
    """Each trigger's condition now, and whether it is on: section 5."""
    s, ops, pool = m.s, m.ops, m.plan.pool
    for trigger in m.plan.deal.triggers:
        level = m.k.get(f"level.{trigger.name}")
        if trigger.kind == "cumulative_loss":
            met = ops.gate((s["defaulted"] - s["recovered"]) / pool, level)
        elif trigger.kind == "delinquency":
            late = m.cash["delinquent"]
            if trigger.average_months == 3:
                late = (late + s["delinquent_1"] + s["delinquent_2"]) / 3.0
            met = ops.gate(ops.ratio(late, s["pool"], 0.0), level)
        elif trigger.kind == "pool_factor":
            met = ops.gate(level, s["pool"] / pool)
        elif trigger.kind == "test":
            met = 1.0 - product_of([m.out[f"passed.{name}"] for name in trigger.tests])
        elif trigger.kind == "date":
            met = m.k[f"reached.{trigger.name}"] + 0.0 * s["pool"]
        elif trigger.kind == "paid_off":
            met = 1.0 - is_there(m, total_of(s[f"balance.{name}"] for name in trigger.classes))
        elif trigger.kind == "interest_shortfall":
            met = is_there(m, total_of(s[f"carried.{name}"] for name in trigger.classes))
        elif trigger.kind == "undercollateralized":
            owed = total_of(s[f"balance.{name}"] for name in trigger.classes)
            met = 1.0 - ops.gate(level, ops.ratio(owed * is_there(m, owed), oc_numerator(m), INFINITE))
        else:
            held = s[f"account.{trigger.account}"]
            met = 1.0 - ops.gate(ops.ratio(held, account_target(m, trigger.account or ""), 1.0), 1.0)
        if trigger.cure == "never":
            met = 1.0 - (1.0 - met) * (1.0 - s[f"on.{trigger.name}"])
        s[f"on.{trigger.name}"] = met
        m.out[f"on.{trigger.name}"] = met


def call_deal(m: Month) -> None:
    """Sell the pool if the call is open and its price pays every class: section 6."""
    call, ops, s = m.plan.deal.call, m.ops, m.s
    if call is None:
        return
    open_now = ops.maximum(m.k["callable"], ops.gate(m.k["call_factor"], s["pool"] / m.plan.pool))
    proceeds = call.price * s["pool"]
    held = total_of([s[f"account.{a.name}"] for a in m.plan.deal.accounts if a.kind != "facility"])
    owed = notes_outstanding(m) + total_of(m.owed.values())
    enough = ops.gate((total_of(m.pots.values()) + held + proceeds - owed) / m.plan.pool, 0.0)
    called = open_now * enough * is_there(m, s["pool"]) * (1.0 - s["called"])
    sold = called * proceeds
    pot = "combined" if m.plan.is_combined else "principal"
    m.pots[pot] = m.pots[pot] + sold
    m.add("sale", sold)
    s["pool"] = s["pool"] * (1.0 - called)
    s["multiplier"] = s["multiplier"] * (1.0 - called)
    s["called"] = s["called"] + called
    m.out["called"] = called
    m.tell("call", "buyer of the pool", pot, sold)


def target_amount(m: Month, target: Target) -> Any:
    """A target now: eq. (12)."""
    pool = adjusted_pool(m)
    amount = target.amount + target.share_of_original * m.plan.pool + target.share_of_pool * pool
    floor = max(target.floor_amount, target.floor_share_of_original * m.plan.pool)
    amount = m.ops.maximum(amount, floor)
    if target.cap_notes_share is not None:
        amount = m.ops.minimum(amount, target.cap_notes_share * notes_outstanding(m))
    return amount


def account_target(m: Month, name: str) -> Any:
    """What an account should hold; nothing once the notes are paid, or on the last date."""
    account = next(a for a in m.plan.deal.accounts if a.name == name)
    amount = target_amount(m, account.target or account.initial)
    amount = amount * is_there(m, notes_outstanding(m)) * (1.0 - m.k["is_last"])
    if account.releases_when_enough:
        means = m.s[f"account.{name}"] + total_of(m.pots.values())
        owed = notes_outstanding(m) + total_of(m.owed.values())
        amount = amount * (1.0 - m.ops.gate((means - owed) / m.plan.pool, 0.0))
    return amount
