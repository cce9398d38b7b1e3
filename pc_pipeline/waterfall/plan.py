"""A deal made ready to run: names, places, and everything that is constant across paths.

Here: `Plan` and `make_plan`, the numbers by payment date (year fractions, coupons, levels, flags) and the
state that a run starts from. Not here: the rules that read them (`rules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pc_pipeline.core.errors import DealError
from pc_pipeline.waterfall.dates import PaymentCalendar, level_path, payment_calendar
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.terms import Account, Step, Target, Tranche

DEFAULT_LAG = 12.0  # months from default to recovery in a deal that prefunds and does not reinvest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A deal, an original pool and a number of payments.

    Attributes:
        deal: the terms.
        pool: original pool balance.
        opening_pool: pool at the start of the run (differs when the deal is seasoned).
        calendar: payment dates.
        pots: waterfalls in order of execution: pot name -> its steps.
        constants: name -> (T,) numbers; every constant that a rule reads, by payment date.
        state: name -> number at the start.
        indices: names of the indices that coupons need.
        senior_fees: names of the fees that the IC tests deduct.
    """

    deal: Deal
    pool: float
    opening_pool: float
    calendar: PaymentCalendar
    pots: dict[str, list[Step]]
    constants: dict[str, np.ndarray]
    state: dict[str, float]
    indices: tuple[str, ...]
    senior_fees: tuple[str, ...]
    ranks: dict[str, int] = field(default_factory=dict)

    @property
    def n_periods(self) -> int:
        """Number of payments."""
        return self.calendar.n_periods

    @property
    def is_combined(self) -> bool:
        """Whether interest and principal share one pot."""
        return "combined" in self.pots

    @property
    def recovery_fade(self) -> float | None:
        """Share of pending defaults that is resolved in a period; None where the pool never grows."""
        grows = self.deal.reinvestment is not None or any(a.kind == "prefunding" for a in self.deal.accounts)
        if not grows:
            return None
        lag = DEFAULT_LAG if self.deal.reinvestment is None else self.deal.reinvestment.recovery_lag_months
        return 1.0 / max(lag / self.deal.payments.every_months, 1.0) if lag > 0 else 1.0

    def bearing(self) -> list[Tranche]:
        """Classes with a balance that are no residual, senior first."""
        return [t for t in self.deal.tranches if t.kind in ("note", "accrual")]

    def senior_to(self, name: str) -> list[str]:
        """The class `name` and all classes senior or equal to it."""
        return [t.name for t in self.bearing() if self.ranks[t.name] <= self.ranks[name]]

    def rank_groups(self, names: list[str]) -> list[list[str]]:
        """Classes in turn, those of equal rank together."""
        groups: dict[int, list[str]] = {}
        for name in sorted(names, key=lambda n: self.ranks[n]):
            groups.setdefault(self.ranks[name], []).append(name)
        return list(groups.values())


def initial_amount(target: Target, pool: float) -> float:
    """A target's amount at closing."""
    amount = target.amount + (target.share_of_original + target.share_of_pool) * pool
    return max(amount, target.floor_amount, target.floor_share_of_original * pool)


def make_plan(
    deal: Deal, pool_balance: float | None, n_periods: int, overrides: Mapping[str, Any] | None = None
) -> Plan:
    """Prepare a deal for a pool and a horizon.

    Args:
        pool_balance: original pool; None takes the deal's own.
        n_periods: number of payments.
        overrides: constants or starting balances replaced by name, e.g. {'coupon.Senior': 0.06,
            'balance.Senior': 7e7, 'trigger.oc_senior': 1.25}; values may be tensors.

    Raises:
        DealError: no pool balance anywhere, a non-positive one, or an override of an unknown name.
    """
    pool = deal.collateral.pool_balance if pool_balance is None else float(pool_balance)
    if pool is None or not pool > 0:
        raise DealError("a run needs the original pool balance", expected="> 0", got=pool, where=deal.name)
    if n_periods < 1:
        raise DealError("a run needs at least one payment", got=n_periods, where=deal.name)
    calendar = payment_calendar(deal.closing_date, deal.payments, n_periods)
    steps = deal.steps
    lists = (
        {"combined": steps.combined}
        if steps.combined
        else {"interest": steps.interest, "principal": steps.principal}
    )
    seasoned = deal.collateral.balance
    opening = pool if seasoned is None else seasoned
    state = _opening_state(deal, pool, opening)
    constants = _constants(deal, calendar, pool)
    for name, value in (overrides or {}).items():
        if name in state:
            state[name] = value
        elif name in constants:
            constants[name] = [value] * n_periods  # type: ignore[assignment]
        else:
            raise DealError(
                "no such term to override",
                expected=", ".join([*state, *constants]),
                got=name,
                where=deal.name,
            )
    indices = [c.index for c in _coupons(deal) if c.index is not None]
    return Plan(
        deal=deal,
        pool=pool,
        opening_pool=opening,
        calendar=calendar,
        pots=lists,
        constants=constants,
        state=state,
        indices=tuple(dict.fromkeys(indices)),
        senior_fees=_senior_fees(next(iter(lists.values()))),
        ranks={name: deal.rank(name) for name in deal.tranche_names},
    )


def _coupons(deal: Deal) -> list[Any]:
    legs = [leg for swap in deal.swaps for leg in (swap.pay, swap.receive)]
    return [t.coupon for t in deal.tranches if t.coupon is not None] + legs


def _senior_fees(steps: list[Step]) -> tuple[str, ...]:
    names: list[str] = []
    for step in steps:
        if step.interest is not None:
            break
        if step.fee is not None:
            names.append(step.fee)
    return tuple(names)


def _opening_state(deal: Deal, pool: float, opening: float) -> dict[str, float]:
    """Starting value of everything that is carried from one payment to the next."""
    state: dict[str, float] = {"pool": opening, "multiplier": 1.0, "defaulted": 0.0, "recovered": 0.0}
    state |= {"called": 0.0, "delinquent_1": 0.0, "delinquent_2": 0.0, "inventory": 0.0}
    state |= {"pending": 0.0, "pending_scaled": 0.0}
    for tranche, amount in zip(deal.tranches, deal.balances(pool), strict=True):
        if tranche.kind != "io":
            state[f"balance.{tranche.name}"] = amount if tranche.balance is None else tranche.balance
            if deal.losses == "write_down":
                state[f"written_down.{tranche.name}"] = 0.0
        if tranche.kind != "residual":
            state[f"carried.{tranche.name}"] = 0.0
    for fee in deal.fees:
        if fee.share is None:
            state[f"arrears.{fee.name}"] = 0.0
        else:
            names = deal.tranche_names
            holder = deal.tranche(fee.hurdle_class or "")
            state[f"hurdle.{fee.name}"] = deal.balances(pool)[names.index(holder.name)] * holder.price
    for account in deal.accounts:
        start = initial_amount(account.initial, pool)
        state[f"account.{account.name}"] = (
            0.0 if account.kind == "facility" else start if account.balance is None else account.balance
        )
    for trigger in deal.triggers:
        state[f"on.{trigger.name}"] = 0.0
    for swap in deal.swaps:
        state[f"swap_arrears.{swap.name}"] = 0.0
    return state


def _constants(deal: Deal, calendar: PaymentCalendar, pool: float) -> dict[str, np.ndarray]:
    """Everything that changes by payment date and not by path."""
    n = calendar.n_periods
    numbers = np.arange(1, n + 1)
    values: dict[str, np.ndarray] = {"is_last": (numbers == n).astype(float), "years": _years(calendar)}
    reinvesting = deal.reinvestment.months if deal.reinvestment else 0
    values["is_reinvesting"] = (numbers * deal.payments.every_months <= reinvesting).astype(float)
    ysoc = deal.collateral.ysoc
    later = ysoc[1 : n + 1] if ysoc else []
    values["ysoc"] = np.array([*later, *([0.0] * (n - len(later)))])
    for tranche in deal.tranches:
        if tranche.coupon is not None:
            values[f"years.{tranche.name}"] = calendar.year_fractions(tranche.day_count)
            values[f"coupon.{tranche.name}"] = calendar.coupon_levels(tranche.coupon)
        if tranche.maturity is not None:
            values[f"matured.{tranche.name}"] = calendar.on_or_after(tranche.maturity)
    for fee in deal.fees:
        values[f"years.{fee.name}"] = calendar.year_fractions(fee.day_count)
        values[f"fee.{fee.name}"] = np.full(n, fee.rate if fee.rate is not None else fee.amount or 0.0)
        if fee.share is not None:
            values[f"share.{fee.name}"] = np.full(n, fee.share)
            values[f"growth.{fee.name}"] = (1.0 + (fee.hurdle_irr or 0.0)) ** values["years"]
    for test in deal.tests:
        values[f"trigger.{test.name}"] = level_path(test.trigger, test.schedule, n)
    for trigger in deal.triggers:
        if trigger.level is not None:
            values[f"level.{trigger.name}"] = level_path(trigger.level, trigger.schedule, n)
        if trigger.kind == "date":
            values[f"reached.{trigger.name}"] = calendar.on_or_after(trigger.date, trigger.from_month)
    for swap in deal.swaps:
        values[f"years.{swap.name}"] = calendar.year_fractions(swap.day_count)
        values[f"pay.{swap.name}"] = calendar.coupon_levels(swap.pay)
        values[f"receive.{swap.name}"] = calendar.coupon_levels(swap.receive)
    for account in deal.accounts:
        values |= _account_constants(account, numbers, pool)
    if deal.call is not None:
        values["callable"] = calendar.on_or_after(deal.call.date, deal.call.from_month)
        values["call_factor"] = np.full(
            n, deal.call.pool_factor if deal.call.pool_factor is not None else -1.0
        )
    for pot in ("interest", "principal", "combined"):
        for index, step in enumerate(getattr(deal.steps, pot)):
            if step.principal is not None and step.principal.shift:
                values[f"shift.{pot}.{index}"] = level_path(0.0, step.principal.shift, n)
            if step.principal is not None and step.principal.plan:
                values[f"plan.{pot}.{index}"] = level_path(0.0, step.principal.plan, n)
    return values


def _years(calendar: PaymentCalendar) -> np.ndarray:
    return np.array(
        [(b - a).days / 365.0 for a, b in zip(calendar.payment, calendar.payment[1:], strict=False)]
    )


def _account_constants(account: Account, numbers: np.ndarray, pool: float) -> dict[str, np.ndarray]:
    values = {}
    if account.kind == "facility":
        values[f"limit.{account.name}"] = np.full(len(numbers), initial_amount(account.initial, pool))
    if account.kind == "prefunding":
        left = np.maximum(account.until_month - numbers + 1, 0)
        values[f"spend.{account.name}"] = np.where(left > 0, 1.0 / np.maximum(left, 1), 0.0)
        values[f"ended.{account.name}"] = (left == 0).astype(float)
    return values
