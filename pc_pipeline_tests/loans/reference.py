"""The synthetic panel once more, loan by loan in plain Python: slow, readable, written from the docs.

Used as the reference of the compiled generator (`test_reference.py`) and as the yardstick of its speed
(`benchmarks/panel_generation.py`). It shares with the package the assumption tables, the hidden effects and
the random numbers, and nothing of the law's or the ledger's code.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import polars as pl

from pc_pipeline.core.periods import month_end, month_from_index, month_index
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.asset_classes import asset_classes, base_moves
from pc_pipeline.loans.counter import normals, uniforms
from pc_pipeline.loans.effects import loan_effects
from pc_pipeline.loans.macro_index import macro_index, macro_paths
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES

MISS, WORSEN, CURE, PREPAY = range(4)
LENGTHS = [math.sqrt(2.0**2 + 1.5**2 + 0.8**2), math.sqrt(1.5**2 + 1.0**2 + 0.5**2)]
LENGTHS += [math.sqrt(1.0**2 + 0.8**2 + 0.3**2), math.sqrt(0.5**2 + 0.3**2 + 0.2**2)]
SEASON = {11: 0.30, 1: -0.25, 2: -0.25}


def kind_of(state: int, to: int) -> int | None:
    """Kind of a move, None for staying."""
    if to == 5:
        return PREPAY
    if to == state:
        return None
    if state == 0:
        return MISS
    return WORSEN if to == state + 1 else CURE


def probabilities(
    loan: dict[str, Any],
    own: float,
    index: list[float],
    state: int,
    since_miss: int,
    month: int,
    is_final: bool,
) -> list[float]:
    """Seven probabilities of one loan in one month."""
    base = base_moves()[ASSET_CLASSES.index(loan["asset_class"])][state]
    low, high = asset_classes()[loan["asset_class"]].range("rate")  # type: ignore[misc]
    odds = []
    for to in range(7):
        if base[to] == 0.0:
            odds.append(0.0)
            continue
        logit = math.log(base[to])
        kind = kind_of(state, to)
        if kind is not None:
            strength = 0.80 * LENGTHS[kind] / LENGTHS[MISS]
            sign = 1.0 if kind in (MISS, WORSEN) else -1.0
            logit += strength * (math.sqrt(0.60) * index[kind] + sign * own)
        if kind == MISS:
            logit += SEASON.get(month % 12, 0.0)
            if 1 <= since_miss <= 12:
                logit += math.log(3.0) * math.exp(-(since_miss - 1) / 4.0)
        if kind == PREPAY and loan["rate_type"] == "fixed":
            logit += 8.0 * (loan["interest_rate"] - (low + high) / 2)
        odds.append(math.exp(logit))
    total = sum(odds)
    row = [value / total for value in odds]
    if is_final:
        row[6], row[0], row[5] = row[6] + row[0] + row[5], 0.0, 0.0
    return row


class LoanAccount:
    """The paid-through ledger of one loan, whole cents."""

    def __init__(self, loan: dict[str, Any], index_rates: list[float], origin: int) -> None:
        self.loan, self.index_rates, self.origin = loan, index_rates, origin
        self.term, self.tau = loan["term_months"], 0
        self.schedule = self._schedule(round(loan["original_balance"] * 100))
        self.months_in_state, self.state = 0, -1

    def _schedule(self, lent: int) -> list[int]:
        monthly, kind = self.loan["interest_rate"] / 12, self.loan["amortization_type"]
        months = max(360, 2 * self.term) if kind == "balloon" else self.term
        level = lent * monthly / (1 - (1 + monthly) ** -months) if monthly else lent / months
        balances = [lent]
        for tau in range(1, self.term + 1):
            owed = balances[-1]
            part = (
                0
                if kind == "bullet"
                else min(max(round(level) - round(owed * self.loan["interest_rate"] / 12), 0), owed)
            )
            balances.append(0 if tau == self.term else owed - part)
        return balances

    def rate(self, month: int) -> float:
        """Rate of the loan's month (1 is the first)."""
        if self.loan["rate_type"] == "fixed":
            return self.loan["interest_rate"]
        return max(self.index_rates[self.origin + month] + self.loan["spread_bps"] / 1e4, 0.0)

    def interest(self, tau: int) -> int:
        """Interest of instalment tau."""
        return round(self.schedule[tau - 1] * self.rate(tau) / 12)

    def month(self, t: int, state: int) -> dict[str, float]:
        """Cash of month t in the state reached."""
        due = 0
        if t <= self.term:
            due = self.interest_due(t) + self.schedule[t - 1] - self.schedule[t]
        owed, interest, principal, prepaid, charged = self.schedule[self.tau], 0, 0, 0, 0
        if state == 4:
            charged = owed
        elif state == 5:
            interest = round(owed * sum(self.rate(m) for m in range(self.tau + 1, t + 1)) / 12)
            principal, prepaid = owed, self.schedule[min(t, self.term)]
        elif state != 3:
            through = self.term if state == 6 else max(self.tau, min(t, self.term) - state)
            interest = sum(self.interest(tau) for tau in range(self.tau + 1, through + 1))
            principal = owed - self.schedule[through]
            self.tau = through
        balance = owed - principal - charged
        self.months_in_state = self.months_in_state + 1 if state == self.state else 1
        self.state = state
        cents = (due, interest + principal, interest, principal, prepaid, charged, balance)
        return dict(zip(MONEY, (value / 100 for value in cents), strict=True))

    def interest_due(self, t: int) -> int:
        """Interest a punctual borrower owes in month t."""
        return round(self.schedule[t - 1] * self.rate(t) / 12)


MONEY = (
    "scheduled_payment",
    "actual_payment",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "outstanding_balance",
)


def days_past_due(state: int, run: int, before: int) -> int:
    """30 a bucket; 90dpd grows by 30 a month; a default is 30 days on; settled loans owe none."""
    if state <= 2:
        return 30 * state
    return {3: 60 + 30 * run, 4: before + 30}.get(state, 0)


def severity(loan: dict[str, Any], seed: int, month: int, path_id: int) -> float:
    """Loss given default of one loan."""
    parameters = asset_classes()[loan["asset_class"]]
    noise = float(
        normals(derive_seed(seed, "severity", "baseline"), int(loan["loan_id"][1:]), month, path_id)[0]
    )
    if parameters.range("ltv"):
        low, high = parameters.range("ltv")  # type: ignore[misc]
        z_ltv = (loan["ltv_origination"] - (low + high) / 2) / ((high - low) / math.sqrt(12))
        noise = 0.5 * z_ltv + math.sqrt(0.75) * noise
    low, high = parameters.range("lgd")  # type: ignore[misc]
    return low + NormalDist().cdf(noise) * (high - low)


def loop_panel(loans: pl.DataFrame, macro: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Table `loan_panel` of the baseline scenario, loan by loan."""
    paths = macro_paths(macro)
    indices, rows = macro_index(paths.values), []
    effects = loan_effects(loans, seed)
    draws_seed = derive_seed(seed, "loan_panel", "baseline")
    policy, bond, prices = (
        MACRO_NAMES.index(n) for n in ("policy_rate", "yield_10y", "property_price_index")
    )
    for place, loan in enumerate(loans.iter_rows(named=True)):
        path = int(loan["loan_id"][1:]) % len(paths.keys)
        path_id = paths.keys[path][1]
        own = float(effects[place] @ [math.sqrt(0.25), math.sqrt(0.10), math.sqrt(0.05)])
        cls = ASSET_CLASSES.index(loan["asset_class"])
        origin = month_index(loan["vintage_month"]) - paths.start_month
        lived = paths.values[path]
        account = LoanAccount(loan, lived[:, policy].tolist(), origin)
        n_months = paths.n_months - origin - 1
        calendar_months = [paths.start_month + origin + 1 + step for step in range(n_months)]
        draws = uniforms(draws_seed, int(loan["loan_id"][1:]), calendar_months, path_id)
        state, since_miss, days = 0, -1, 0
        for t, month in enumerate(calendar_months, start=1):
            index = indices[path, origin + t, cls].tolist()
            row = probabilities(loan, own, index, state, since_miss, month, t >= loan["term_months"])
            state = pick(row, draws[t - 1])
            since_miss = 0 if 1 <= state <= 3 else since_miss + 1 if since_miss >= 0 else -1
            cash = account.month(t, state)
            days = days_past_due(state, account.months_in_state, days)
            charged, recovery = cash["charge_off_amount"], 0.0
            if state == 4:
                recovery = round(charged * (1.0 - severity(loan, seed, month, path_id)), 2)
            value = loan["collateral_value_origination"]
            if value is not None and loan["asset_class"] == "realestate":
                value *= lived[origin + t, prices] / lived[origin, prices]
            first = month_from_index(month)
            rows.append(
                {
                    "loan_id": loan["loan_id"],
                    "reporting_month": first,
                    "scenario": "baseline",
                    "macro_path_id": path_id,
                    "asset_class": loan["asset_class"],
                    "vintage_month": loan["vintage_month"],
                    "original_balance": loan["original_balance"],
                    "loan_state": state,
                    "days_past_due": days,
                    "months_in_state": account.months_in_state,
                    **cash,
                    "recovery_amount": recovery,
                    "loss_amount": round(charged - recovery, 2),
                    "ltv_current": None if value is None else round(cash["outstanding_balance"] / value, 4),
                    "rate_incentive": round(account.rate(t) - lived[origin + t, bond], 6),
                    "month_end_weekday": month_end(first).isoweekday(),
                }
            )
            if state >= 4:
                break
    return pl.DataFrame(rows).select(columns("loan_panel"))


def pick(row: list[float], draw: float) -> int:
    """First state at which the cumulative probability exceeds the draw."""
    total, reached = 0.0, 0
    for to, probability in enumerate(row):
        if probability > 0.0:
            total += probability
            reached = to
            if draw < total:
                break
    return reached
