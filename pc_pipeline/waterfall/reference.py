"""The oracle: one path of a deal in plain Python, written to be read, not to be fast.

Here: the same terms as the engine's, with ifs and floats, written apart from `month`, `steps` and `rules`
and sharing only the prepared constants (`plan`). Tests hold the engine to it. Not here: gates, arrays,
ledgers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.plan import Plan, make_plan
from pc_pipeline.waterfall.terms import Coupon, CoverageTest, Step, Target, Trigger

SLACK = 1e-9  # a ratio this close to its trigger passes


class PathBook:
    """The books of one path: what is owed, held and outstanding."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.deal = plan, plan.deal
        self.pool = plan.opening_pool
        self.dust = 1e-12 * plan.pool
        self.multiplier = 1.0
        self.pending = self.pending_scaled = 0.0
        self.defaulted = self.recovered = self.inventory = 0.0
        self.called = False
        self.late: list[float] = [0.0, 0.0]
        self.balance = {t.name: plan.state.get(f"balance.{t.name}", 0.0) for t in self.deal.tranches}
        self.carried = {t.name: 0.0 for t in self.deal.tranches}
        self.lost = {t.name: 0.0 for t in self.deal.tranches}
        self.arrears = {f.name: 0.0 for f in self.deal.fees} | {s.name: 0.0 for s in self.deal.swaps}
        self.hurdle = {f.name: plan.state[f"hurdle.{f.name}"] for f in self.deal.fees if f.share is not None}
        self.held = {a.name: plan.state[f"account.{a.name}"] for a in self.deal.accounts}
        self.on = {t.name: False for t in self.deal.triggers}

    # ---- one date ---------------------------------------------------------------------------

    def pay_date(self, t: int, cash: dict[str, float]) -> dict[str, float]:
        """Distribute one period's collections; returns what is recorded."""
        self.k = {name: float(values[t]) for name, values in self.plan.constants.items()}
        self.cash = {"ysoc": self.k["ysoc"], "delinquent": 0.0, "other_interest": 0.0, "other_principal": 0.0}
        self.cash |= cash
        self.out: dict[str, float] = {}
        self.exact: dict[str, float] = {}
        self.collect()
        self.accrue()
        if self.deal.call is not None:
            self.maybe_call()
        self.test()
        self.trip()
        for pot, steps in self.plan.pots.items():
            for index, step in enumerate(steps):
                if self.applies(step):
                    getattr(self, f"do_{step.verb}")(pot, index, step)
        self.close()
        return self.out

    def record(self, name: str, amount: float) -> None:
        self.out[name] = self.out.get(name, 0.0) + amount

    def collect(self) -> None:
        fade, defaulted = self.plan.recovery_fade, self.cash["defaulted"]
        if fade is None or fade == 1.0:
            self.cash["recovery"] *= self.multiplier
        else:
            self.cash["recovery"] *= self.pending_scaled / self.pending if self.pending > 0 else 1.0
            self.cash["recovery"] *= 0.0 if self.called else 1.0
        for channel in ("interest", "scheduled", "prepaid", "defaulted"):
            self.cash[channel] *= self.multiplier
        if fade is not None:
            self.pending = self.pending * (1 - fade) + defaulted
            self.pending_scaled = self.pending_scaled * (1 - fade) + self.cash["defaulted"]
        self.opening_pool = self.pool
        self.pool = max(
            self.pool - self.cash["scheduled"] - self.cash["prepaid"] - self.cash["defaulted"], 0.0
        )
        self.defaulted += self.cash["defaulted"]
        self.recovered += self.cash["recovery"]
        self.inventory = max(self.inventory + self.cash["defaulted"] - self.cash["recovery"], 0.0)
        self.interest_cash = self.cash["interest"] + self.cash["other_interest"]
        self.principal_cash = self.cash["scheduled"] + self.cash["prepaid"] + self.cash["other_principal"]
        if self.deal.collateral.recoveries == "interest":
            self.interest_cash += self.cash["recovery"]
        else:
            self.principal_cash += self.cash["recovery"]
        for account in self.deal.accounts:
            earned = self.held[account.name] * account.earnings_rate * self.k["years"]
            if account.kind == "facility":
                self.held[account.name] += earned
            else:
                self.interest_cash += earned
        if self.plan.is_combined:
            self.pots = {"combined": self.interest_cash + self.principal_cash}
        else:
            self.pots = {"interest": self.interest_cash, "principal": self.principal_cash}

    def rate(self, coupon: Coupon, level: float) -> float:
        rate = level if coupon.index is None else self.cash[f"index.{coupon.index}"] + level
        if coupon.floor is not None:
            rate = max(rate, coupon.floor)
        return rate if coupon.cap is None else min(rate, coupon.cap)

    def rounded(self, x: float) -> float:
        unit = self.deal.rounding
        return float(np.floor(x / unit + 0.5 + SLACK) * unit) if unit else x

    def notional(self, names: list[str]) -> float:
        return self.opening_pool if names == ["pool"] else sum(self.balance[name] for name in names)

    def accrue(self) -> None:
        self.owed: dict[str, float] = {}
        self.period_rate: dict[str, float] = {}
        for tranche in self.deal.tranches:
            if tranche.kind == "residual" or tranche.coupon is None:
                continue
            name, years = tranche.name, self.k[f"years.{tranche.name}"]
            rate = self.rate(tranche.coupon, self.k[f"coupon.{name}"])
            if tranche.coupon.available_funds_cap:
                base = self.opening_pool * years
                rate = min(rate, self.interest_cash / base if base > 0 else 0.0)
            base = self.notional(tranche.notional) if tranche.kind == "io" else self.balance[name]
            self.out[f"interest_due.{name}"] = self.rounded(base * rate * years)
            carried = self.carried[name] * (1 + rate * years if tranche.interest_on_shortfall else 1)
            self.period_rate[name] = rate * years
            self.owed[name] = carried + self.out[f"interest_due.{name}"]
        for fee in self.deal.fees:
            if fee.share is not None:
                self.hurdle[fee.name] *= self.k[f"growth.{fee.name}"]
                continue
            level, years = self.k[f"fee.{fee.name}"], self.k[f"years.{fee.name}"]
            if fee.rate is None:
                due = level * years
            elif fee.base == "interest":
                due = level * self.interest_cash
            else:
                base = {"pool": self.opening_pool, "notes": self.notes(), "original_pool": self.plan.pool}[
                    fee.base
                ]
                due = level * base * years
            self.owed[fee.name] = self.arrears[fee.name] + self.rounded(due)
        self.to_receive = {}
        for swap in self.deal.swaps:
            pay = self.rate(swap.pay, self.k[f"pay.{swap.name}"])
            receive = self.rate(swap.receive, self.k[f"receive.{swap.name}"])
            net = self.rounded(self.notional(swap.notional) * (pay - receive) * self.k[f"years.{swap.name}"])
            self.owed[swap.name] = self.arrears[swap.name] + max(net, 0.0)
            self.to_receive[swap.name] = max(-net, 0.0)

    # ---- tests, triggers, call --------------------------------------------------------------

    def notes(self) -> float:
        return sum(self.balance[t.name] for t in self.plan.bearing())

    def adjusted(self) -> float:
        return max(self.pool - self.cash["ysoc"], 0.0)

    def oc_numerator(self) -> float:
        terms, par = self.deal.collateral, self.adjusted()
        par -= terms.delinquent_haircut * min(self.cash["delinquent"], par)
        par += terms.default_credit * self.inventory
        return par if self.plan.is_combined else par + self.pots["principal"]

    def test(self) -> None:
        self.passed = {}
        senior_fees = sum(self.owed[name] for name in self.plan.senior_fees)
        self.ic_cash = max(self.interest_cash - senior_fees, 0.0)
        for test in self.deal.tests:
            names = self.plan.senior_to(test.of)
            if test.kind == "oc":
                above, below = self.oc_numerator(), sum(self.balance[name] for name in names)
            else:
                above, below = self.ic_cash, sum(self.out[f"interest_due.{name}"] for name in names)
            ratio = above / below if below > self.dust else float("inf")
            self.passed[test.name] = ratio - self.k[f"trigger.{test.name}"] >= -SLACK
            self.out[f"ratio.{test.name}"] = ratio
            self.out[f"passed.{test.name}"] = float(self.passed[test.name])

    def is_met(self, trigger: Trigger) -> bool:
        level = self.k.get(f"level.{trigger.name}", 0.0)
        if trigger.kind == "cumulative_loss":
            return (self.defaulted - self.recovered) / self.plan.pool - level >= -SLACK
        if trigger.kind == "delinquency":
            late = self.cash["delinquent"]
            if trigger.average_months == 3:
                late = (late + sum(self.late)) / 3
            return (late / self.pool if self.pool > 0 else 0.0) - level >= -SLACK
        if trigger.kind == "pool_factor":
            return level - self.pool / self.plan.pool >= -SLACK
        if trigger.kind == "test":
            return not all(self.passed[name] for name in trigger.tests)
        if trigger.kind == "date":
            return self.k[f"reached.{trigger.name}"] == 1.0
        if trigger.kind == "paid_off":
            return sum(self.balance[name] for name in trigger.classes) <= self.dust
        if trigger.kind == "interest_shortfall":
            return sum(self.carried[name] for name in trigger.classes) > self.dust
        if trigger.kind == "undercollateralized":
            owed, par = sum(self.balance[name] for name in trigger.classes), self.oc_numerator()
            if owed <= self.dust:
                return False
            return par <= 0 or owed / par - level > SLACK
        target = self.target_of(trigger.account or "")
        return target > 0 and self.held[trigger.account or ""] / target < 1 - SLACK

    def trip(self) -> None:
        for trigger in self.deal.triggers:
            sticks = trigger.cure == "never" and self.on[trigger.name]
            self.on[trigger.name] = self.is_met(trigger) or sticks
            self.out[f"on.{trigger.name}"] = float(self.on[trigger.name])

    def maybe_call(self) -> None:
        call = self.deal.call
        if call is None or self.called or self.pool <= self.dust:
            return
        is_open = self.k["callable"] == 1.0 or self.k["call_factor"] - self.pool / self.plan.pool >= -SLACK
        held = sum(self.held[a.name] for a in self.deal.accounts if a.kind != "facility")
        means = sum(self.pots.values()) + held + call.price * self.pool
        if is_open and (means - self.notes() - sum(self.owed.values())) / self.plan.pool >= -SLACK:
            self.pots["combined" if self.plan.is_combined else "principal"] += call.price * self.pool
            self.record("sale", call.price * self.pool)
            self.pool, self.multiplier, self.called = 0.0, 0.0, True

    def amount_of(self, target: Target) -> float:
        amount = (
            target.amount + target.share_of_original * self.plan.pool + target.share_of_pool * self.adjusted()
        )
        amount = max(amount, target.floor_amount, target.floor_share_of_original * self.plan.pool)
        return (
            amount if target.cap_notes_share is None else min(amount, target.cap_notes_share * self.notes())
        )

    def target_of(self, name: str) -> float:
        account = next(a for a in self.deal.accounts if a.name == name)
        if self.notes() <= self.dust or self.k["is_last"]:
            return 0.0
        means = self.held[name] + sum(self.pots.values()) - self.notes() - sum(self.owed.values())
        if account.releases_when_enough and means / self.plan.pool >= -SLACK:
            return 0.0
        return self.amount_of(account.target or account.initial)

    # ---- money --------------------------------------------------------------------------------

    def applies(self, step: Step) -> bool:
        def is_on(name: str) -> bool:
            return self.on[name] if name in self.on else not self.passed[name]

        return all(is_on(name) for name in step.when) and not any(is_on(name) for name in step.unless)

    def there_is(self, source: str) -> float:
        if source in self.pots:
            return self.pots[source]
        if f"limit.{source}" in self.k:
            return max(self.k[f"limit.{source}"] - self.held[source], 0.0)
        return self.held[source]

    def draw(self, sources: list[str], due: float) -> float:
        got = 0.0
        for source in sources:
            amount = min(due - got, self.there_is(source))
            got += amount
            if source in self.pots:
                self.pots[source] -= amount
            elif f"limit.{source}" in self.k:
                self.held[source] += amount
            else:
                self.held[source] -= amount
        return got

    def repay(self, groups: list[list[str]], amount: float) -> None:
        for group in groups:
            total = sum(self.balance[name] for name in group)
            given = min(amount, total)
            amount -= given
            shares = {n: self.balance[n] * given / total if total > 0 else 0.0 for n in group}
            if self.deal.rounding and len(group) > 1:
                rest = given
                for name in group:
                    self.exact[name] = self.exact.get(name, 0.0) + shares[name]
                    wanted = self.rounded(self.exact[name]) - self.out.get(f"principal_paid.{name}", 0.0)
                    share = rest if name == group[-1] else min(max(wanted, 0.0), rest)
                    shares[name] = min(share, self.balance[name])
                    rest -= shares[name]
                for name in group:
                    more = min(rest, self.balance[name] - shares[name])
                    shares[name] += more
                    rest -= more
            for name, share in shares.items():
                self.balance[name] -= share
                self.record(f"principal_paid.{name}", share)

    # ---- steps --------------------------------------------------------------------------------

    def do_fee(self, pot: str, index: int, step: Step) -> None:
        fee = next(f for f in self.deal.fees if f.name == step.fee)
        due = self.owed[fee.name]
        paid = self.draw(step.sources or [pot], due if fee.cap_amount is None else min(due, fee.cap_amount))
        self.owed[fee.name] -= paid
        self.record(f"fee.{fee.name}", paid)

    def do_interest(self, pot: str, index: int, step: Step) -> None:
        names = step.interest or []
        owed = sum(self.owed[name] for name in names)
        paid = self.draw(step.sources or [pot], owed)
        for name in names:
            part = self.owed[name] * paid / owed if owed > 0 else 0.0
            self.owed[name] -= part
            self.record(f"interest_paid.{name}", part)

    def to_cure(self, test: CoverageTest, from_principal: bool) -> float:
        names, level = self.plan.senior_to(test.of), self.k[f"trigger.{test.name}"]
        balance = sum(self.balance[name] for name in names)
        if test.kind == "oc":
            collateral = self.oc_numerator()
            if not from_principal:
                return max(balance - collateral / level, 0.0)
            short = level * balance - collateral
            return 0.0 if short <= self.dust else balance if level <= 1 else min(short / (level - 1), balance)
        excess = sum(self.balance[n] * self.period_rate[n] for n in names) - self.ic_cash / level
        amount = 0.0
        for group in self.plan.rank_groups(names):
            interest = sum(self.balance[n] * self.period_rate[n] for n in group)
            if excess > 0 and interest > 0:
                part = min(excess / interest, 1.0)
                amount += part * sum(self.balance[n] for n in group)
                excess -= part * interest
        return amount

    def do_cure(self, pot: str, index: int, step: Step) -> None:
        tests = [t for t in self.deal.tests if t.name in (step.cure or [])]
        lowest = max(tests, key=lambda test: self.plan.ranks[test.of]).of
        for source in step.sources or [pot]:
            needed = max(self.to_cure(test, source == "principal") for test in tests)
            paid = self.draw([source], needed)
            self.repay(self.plan.rank_groups(self.plan.senior_to(lowest)), paid)
            self.record("cured", paid)

    def do_principal(self, pot: str, index: int, step: Step) -> None:
        terms = step.principal
        if terms is None:
            return
        listed = [name for group in terms.groups for name in group]
        balance = sum(self.balance[name] for name in listed)
        everything = sum(self.balance[t.name] for t in self.deal.tranches if t.kind != "io")
        senior = balance / everything if everything > 0 else 0.0
        if terms.amount == "all":
            due = balance
        elif terms.amount == "to_target":
            oc = terms.target or self.deal.collateral.oc_target
            aim = max(self.adjusted() - (self.amount_of(oc) if oc else 0.0), 0.0)
            due = min(max((self.notes() if terms.target is None else balance) - aim, 0.0), balance)
        elif terms.amount == "planned":
            due = max(balance - self.k[f"plan.{pot}.{index}"], 0.0)
        elif terms.amount == "parity":
            matured = sum(self.balance[n] for n in listed if self.k.get(f"matured.{n}") == 1.0)
            due = max(balance - self.adjusted(), 0.0, matured)
        elif terms.amount == "collections":
            due = min(self.principal_cash + self.cash["defaulted"], balance)
        elif terms.amount == "share":
            due = min(senior * self.principal_cash, balance)
        else:
            shifted = senior + self.k[f"shift.{pot}.{index}"] * (1 - senior)
            unscheduled = max(self.principal_cash - self.cash["scheduled"], 0.0)
            due = min(senior * self.cash["scheduled"] + shifted * unscheduled, balance)
        self.repay(terms.groups, self.draw(step.sources or [pot], min(self.rounded(due), balance)))

    def do_fund(self, pot: str, index: int, step: Step) -> None:
        name = step.fund or ""
        self.held[name] += self.draw(step.sources or [pot], max(self.target_of(name) - self.held[name], 0.0))

    def do_release(self, pot: str, index: int, step: Step) -> None:
        name = step.release or ""
        if f"spend.{name}" in self.k:
            if self.pool / self.plan.pool >= 1e-6 - SLACK:
                spent = self.held[name] * self.k[f"spend.{name}"]
                self.held[name] -= spent
                self.buy(spent, 1.0)
            freed = self.held[name] if self.k[f"ended.{name}"] or self.k["is_last"] else 0.0
        else:
            freed = max(self.held[name] - self.target_of(name), 0.0)
        self.held[name] -= freed
        self.pots[pot] += freed

    def buy(self, spent: float, price: float) -> None:
        if self.pool > 0:
            self.multiplier *= 1 + spent / price / self.pool
        self.pool += spent / price
        self.record("reinvested", spent)

    def do_reinvest(self, pot: str, index: int, step: Step) -> None:
        terms = self.deal.reinvestment
        if terms is None or not self.k["is_reinvesting"]:
            return
        tests = [t.name for t in self.deal.tests] if terms.tests is None else terms.tests
        floor = max(terms.min_pool_factor, 1e-6)
        if all(self.passed[name] for name in tests) and self.pool / self.plan.pool >= floor - SLACK:
            for source in step.sources or [pot]:
                self.buy(self.draw([source], self.there_is(source)), terms.price)

    def do_residual(self, pot: str, index: int, step: Step) -> None:
        name = step.residual or ""
        for source in step.sources or [pot]:
            given = self.draw([source], self.there_is(source))
            repays = source == "principal" or (source != "interest" and self.notes() <= self.dust)
            back = min(given, self.balance[name]) if repays else 0.0
            self.balance[name] -= back
            self.record(f"principal_paid.{name}", back)
            self.record(f"interest_paid.{name}", given - back)
            self.record("residual", given)
            for fee in self.deal.fees:
                if fee.hurdle_class == name:
                    self.hurdle[fee.name] = max(self.hurdle[fee.name] - given, 0.0)

    def do_incentive(self, pot: str, index: int, step: Step) -> None:
        name = step.incentive or ""
        above = max(self.there_is(pot) - self.hurdle[name], 0.0)
        self.record(f"fee.{name}", self.draw([pot], self.k[f"share.{name}"] * above))

    def do_move(self, pot: str, index: int, step: Step) -> None:
        for source in step.sources or [pot]:
            self.pots[step.move or ""] += self.draw([source], self.there_is(source))

    def do_accrue(self, pot: str, index: int, step: Step) -> None:
        tranche = next(t for t in self.deal.tranches if t.name == step.accrue)
        if sum(self.balance[name] for name in tranche.accrues_until_paid) <= self.dust:
            return
        added, self.owed[tranche.name] = self.owed[tranche.name], 0.0
        self.balance[tranche.name] += added
        self.record(f"capitalized.{tranche.name}", added)
        if pot != "combined":
            self.pots["principal"] += self.draw(step.sources or [pot], added)

    def do_swap(self, pot: str, index: int, step: Step) -> None:
        name = step.swap or ""
        self.pots[pot] += self.to_receive[name]
        self.record("swap_received", self.to_receive[name])
        paid = self.draw(step.sources or [pot], self.owed[name])
        self.owed[name] -= paid
        self.record("swap_paid", paid)

    def do_repay(self, pot: str, index: int, step: Step) -> None:
        paid = self.draw(step.sources or [pot], self.held[step.repay or ""])
        self.held[step.repay or ""] -= paid
        self.record("facility_repaid", paid)

    def close(self) -> None:
        for tranche in self.deal.tranches:
            if tranche.name in self.owed:
                unpaid = self.owed[tranche.name]
                if tranche.pik:
                    self.balance[tranche.name] += unpaid
                    self.record(f"capitalized.{tranche.name}", unpaid)
                    unpaid = 0.0
                self.carried[tranche.name] = unpaid
                self.out[f"shortfall.{tranche.name}"] = unpaid
        for fee in self.deal.fees:
            if fee.share is None:
                self.arrears[fee.name] = self.owed[fee.name] if fee.carry else 0.0
        for swap in self.deal.swaps:
            self.arrears[swap.name] = self.owed[swap.name]
        if self.deal.losses == "write_down":
            self.write_down()
        self.record("residual", sum(self.pots.values()))
        self.late = [self.cash["delinquent"], self.late[0]]
        for tranche in self.deal.tranches:
            if tranche.kind != "io":
                self.out[f"balance.{tranche.name}"] = self.balance[tranche.name]
        for name, amount in self.held.items():
            self.out[f"account.{name}"] = amount
        self.out["pool"], self.out["multiplier"] = self.pool, self.multiplier

    def write_down(self) -> None:
        classes = [t.name for t in self.deal.tranches if t.kind != "io"]
        gap = sum(self.balance[name] for name in classes) - self.adjusted()
        loss, room = max(gap, 0.0), max(-gap, 0.0)
        for name in reversed(classes):
            cut = min(loss, self.balance[name])
            loss -= cut
            self.balance[name] -= cut
            self.lost[name] += cut
        for name in classes:
            back = min(room, self.lost[name])
            room -= back
            self.balance[name] += back
            self.lost[name] -= back
            self.out[f"written_down.{name}"] = self.lost[name]


def run_reference(
    cash_TC: np.ndarray,
    deal: Deal,
    *,
    pool_balance: float | None = None,
    index_rate_T: Any = None,
    extra_T: dict[str, np.ndarray] | None = None,
) -> list[dict[str, float]]:
    """Distribute one path of monthly collections (T, 5), for a deal that pays monthly.

    Args:
        index_rate_T: mapping from index name to (T,).
        extra_T: further collections by name, (T,) each.

    Returns:
        What is recorded on each payment date, by the names of the engine's figures.
    """
    book = PathBook(make_plan(deal, pool_balance, len(cash_TC)))
    channels = ("interest", "scheduled", "prepaid", "defaulted", "recovery")
    rows = []
    for t, amounts in enumerate(np.asarray(cash_TC, dtype=float)):
        cash = dict(zip(channels, amounts.tolist(), strict=True))
        cash |= {name: float(values[t]) for name, values in (extra_T or {}).items()}
        cash |= {f"index.{name}": float(values[t]) for name, values in (index_rate_T or {}).items()}
        rows.append(book.pay_date(t, cash))
    return rows
