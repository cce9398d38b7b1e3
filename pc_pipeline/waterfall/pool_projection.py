"""Collections of a pool at stated speeds, without a model.

Here: `Speeds`, `project_pool` over loans or rep lines, in two named conventions. Not here: the conversion
of speeds (`rates`), models of prepayment and default (other rooms), the waterfall (`engine`).

Conventions (docs/methods/waterfall.md section 9):
  bma            defaults and prepayments both off the opening performing balance, prepayments off what
                 scheduled amortisation would have left of it (Standard Formulas, section C.6);
  default_first  defaults leave first, then scheduled principal, then prepayments off the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.waterfall.rates import (
    cdr_from_sda,
    cpr_from_psa,
    monthly_from_annual,
    scheduled_balance,
    smm_from_abs,
)

LONGEST_TERM = 1200  # months
LARGEST_BALANCE = 1e15
CONVENTIONS = ("bma", "default_first")
LINE_ALIASES = {
    "current_balance": "balance",
    "outstanding_balance": "balance",
    "interest_rate": "rate",
    "coupon": "rate",
    "wac": "rate",
    "term_months": "original_term",
    "original_term_months": "original_term",
    "remaining_term_months": "remaining_term",
    "remaining_months": "remaining_term",
    "wam": "remaining_term",
    "age_months": "age",
    "seasoning": "age",
    "wala": "age",
    "amortization_term_months": "amortization_term",
}
LINE_COLUMNS = ("balance", "rate", "original_term", "remaining_term", "age")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Assumptions of a projection. A vector gives one value per month; its last value holds on.

    Attributes:
        cpr, smm, psa, abs_speed: prepayment, one of them at most (decimals; psa 1.0 is 100 %).
        cdr, mdr, sda: default, one of them at most.
        severity: share of the defaulted balance that is lost.
        lag_months: from default to liquidation; 0 recovers in the month of default.
        advances: the servicer advances principal of defaulted loans until liquidation.
        advance_interest: and their interest.
        stop_defaults: no new defaults in the last `lag_months` months of a loan (BMA).
        roll_months, roll_rate: delinquent balance reported = defaults of the next `roll_months` months
            over `roll_rate`, the share of delinquent balance that defaults.
        convention: 'bma' or 'default_first'.
    """

    cpr: Any = None
    smm: Any = None
    psa: Any = None
    abs_speed: Any = None
    cdr: Any = None
    mdr: Any = None
    sda: Any = None
    severity: Any = 0.0
    lag_months: int = 0
    advances: bool = False
    advance_interest: bool = False
    stop_defaults: bool = True
    roll_months: int = 0
    roll_rate: float = 1.0
    convention: str = "bma"

    def __post_init__(self) -> None:
        for group in (("cpr", "smm", "psa", "abs_speed"), ("cdr", "mdr", "sda")):
            given = [name for name in group if getattr(self, name) is not None]
            if len(given) > 1:
                raise ConfigError("one speed of a kind at most", expected=" or ".join(group), got=given)
        for name in ("cpr", "smm", "abs_speed", "cdr", "mdr", "severity"):
            values = np.asarray(0.0 if getattr(self, name) is None else getattr(self, name), dtype=float)
            if not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
                raise ConfigError(f"{name} is a share between 0 and 1", got=getattr(self, name))
        for name in ("psa", "sda"):
            values = np.asarray(0.0 if getattr(self, name) is None else getattr(self, name), dtype=float)
            if not np.isfinite(values).all() or (values < 0).any():
                raise ConfigError(f"{name} is a multiple, not negative", got=getattr(self, name))
        if self.lag_months < 0 or self.roll_months < 0 or not 0 < self.roll_rate <= 1:
            raise ConfigError("lags are not negative, the roll rate lies in (0, 1]", got=self)
        if self.convention not in CONVENTIONS:
            raise ConfigError("unknown convention", expected=", ".join(CONVENTIONS), got=self.convention)

    def smm_at(self, month: int, age_L: np.ndarray) -> np.ndarray:
        """(L,) SMM in month `month` (from 1) at the loans' ages."""
        if self.psa is not None:
            return monthly_from_annual(cpr_from_psa(_at(self.psa, month), age_L))
        if self.abs_speed is not None:
            return smm_from_abs(_at(self.abs_speed, month), age_L)
        if self.cpr is not None:
            return np.full(age_L.shape, monthly_from_annual(_at(self.cpr, month)))
        return np.full(age_L.shape, _at(0.0 if self.smm is None else self.smm, month))

    def mdr_at(self, month: int, age_L: np.ndarray) -> np.ndarray:
        """(L,) MDR in month `month` (from 1) at the loans' ages."""
        if self.sda is not None:
            return monthly_from_annual(cdr_from_sda(_at(self.sda, month), age_L))
        if self.cdr is not None:
            return np.full(age_L.shape, monthly_from_annual(_at(self.cdr, month)))
        return np.full(age_L.shape, _at(0.0 if self.mdr is None else self.mdr, month))


def _at(values: Any, month: int) -> float:
    series = np.atleast_1d(np.asarray(values, dtype=float))
    return float(series[min(month - 1, len(series) - 1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLines:
    """Loans or rep lines (L).

    Attributes:
        balance: current, > 0. rate: yearly, decimal.
        original_term, remaining_term, age: months; age counts from origination.
        amortization_term: months over which the level payment would repay the current balance; longer
            than `remaining_term` makes a balloon; 0 is interest only (bullet).
    """

    balance: np.ndarray
    rate: np.ndarray
    original_term: np.ndarray
    remaining_term: np.ndarray
    age: np.ndarray
    amortization_term: np.ndarray

    def __post_init__(self) -> None:
        for name in ("balance", "rate", "original_term", "remaining_term", "age", "amortization_term"):
            values = getattr(self, name)
            if values.shape != self.balance.shape or not np.isfinite(values).all() or (values < 0).any():
                raise DataError(f"pool lines: {name} must be finite and not negative", got=values)
        if (self.balance > LARGEST_BALANCE).any():
            raise DataError("pool lines: balance is out of range", expected=f"at most {LARGEST_BALANCE:g}")
        if (self.rate > 1).any():
            raise DataError(
                "pool lines: rate looks like percent", expected="decimal per year", got=self.rate.max()
            )
        terms = self.remaining_term
        if not len(self.balance) or (terms < 1).any() or (terms > LONGEST_TERM).any():
            raise DataError(
                "pool lines: remaining_term is out of range", expected=f"1..{LONGEST_TERM} months", got=terms
            )


def pool_lines(frame: Any) -> PoolLines:
    """Rep lines from a table with balance, rate, remaining_term and optionally original_term, age,
    amortization_term; usual other names (`LINE_ALIASES`) are known.

    Args:
        frame: polars or pandas.

    Raises:
        DataError: a column is missing or not a number.
    """
    table = nw.from_native(frame, eager_only=True)
    plain = {name: name.strip().lower().replace(" ", "_").replace("-", "_") for name in table.columns}
    names = {LINE_ALIASES.get(known, known): name for name, known in plain.items()}

    def column(name: str, otherwise: np.ndarray | None = None) -> np.ndarray:
        if name in names:
            try:
                return table[names[name]].cast(nw.Float64).to_numpy().astype(float)
            except Exception as error:  # polars and pandas raise types of their own
                raise DataError(f"pool lines: {name} is not a number", got=str(error)) from error
        if otherwise is None:
            raise DataError(
                "pool lines lack a column", expected=", ".join(LINE_COLUMNS), got=list(names), where=name
            )
        return otherwise

    if "remaining_term" not in names and {"original_term", "age"} <= set(names):
        remaining = column("original_term") - column("age")
    else:
        remaining = column("remaining_term")
    age = column("age", column("original_term", remaining) - remaining)
    return PoolLines(
        balance=column("balance"),
        rate=column("rate"),
        original_term=column("original_term", remaining + age),
        remaining_term=remaining,
        age=age,
        amortization_term=column("amortization_term", remaining),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProjection:
    """Monthly figures of a projected pool, (T,) each, summed over lines; month 1 first.

    Attributes:
        opening_balance: number. performing_balance: at month end. new_defaults, in_foreclosure.
        amort_factor: scheduled balance over the opening balance, without defaults and prepayments.
        expected_amort, amort_from_defaults, actual_amort: scheduled principal in all, of defaulted loans,
            of performing loans. voluntary_prepay. expected_interest, interest_lost, actual_interest.
        principal_recovery, principal_loss, liquidated_balance: at liquidation.
        delinquent: balance reported late.
        cash: (T, 5) by channel: interest, scheduled, prepaid, defaulted, recovery; advanced principal of
            defaulted loans is in recovery, advanced interest in interest.
    """

    opening_balance: float
    performing_balance: np.ndarray
    new_defaults: np.ndarray
    in_foreclosure: np.ndarray
    amort_factor: np.ndarray
    expected_amort: np.ndarray
    amort_from_defaults: np.ndarray
    actual_amort: np.ndarray
    voluntary_prepay: np.ndarray
    expected_interest: np.ndarray
    interest_lost: np.ndarray
    actual_interest: np.ndarray
    principal_recovery: np.ndarray
    principal_loss: np.ndarray
    liquidated_balance: np.ndarray
    delinquent: np.ndarray
    cash: np.ndarray


_FIGURES = (
    "performing_balance", "new_defaults", "in_foreclosure", "expected_amort", "amort_from_defaults",
    "actual_amort", "voluntary_prepay", "expected_interest", "interest_lost", "actual_interest",
    "principal_recovery", "principal_loss", "liquidated_balance",
)  # fmt: skip


def amortization_ratios(lines: PoolLines, n_months: int) -> np.ndarray:
    """(L, T) scheduled balance at month end over that at its start; 0 in the last month and after."""
    months = np.arange(n_months + 1)
    left = lines.remaining_term[:, None] - months
    term = lines.amortization_term[:, None]
    span = np.maximum(term, 1.0)
    shares = scheduled_balance(lines.rate[:, None], span, np.maximum(term - months, 0.0))
    shares = np.where(term > 0, shares, 1.0)
    shares = np.where(left > 0, shares, 0.0)
    before = np.where(shares[:, :-1] > 0, shares[:, :-1], 1.0)
    return np.where(shares[:, :-1] > 0, shares[:, 1:] / before, 0.0)


def project_pool(lines: PoolLines | Any, speeds: Speeds, n_months: int | None = None) -> PoolProjection:
    """Project a pool month by month: eq. (25)-(29) of docs/methods/waterfall.md.

    Args:
        lines: `PoolLines`, or a table for `pool_lines`.
        speeds: assumptions.
        n_months: horizon; default to the last maturity plus the recovery lag.

    Returns:
        Monthly figures and the five cash channels.

    Raises:
        DataError, ConfigError: lines or horizon make no sense.
    """
    if not isinstance(lines, PoolLines):
        lines = pool_lines(lines)
    lag = speeds.lag_months
    horizon = int(lines.remaining_term.max()) + lag if n_months is None else n_months
    if horizon < 1:
        raise ConfigError("a projection needs at least one month", got=horizon)
    ratios = amortization_ratios(lines, horizon)
    out = {name: np.zeros(horizon) for name in _FIGURES}
    performing = lines.balance.copy()
    batches: list[tuple[np.ndarray, np.ndarray]] = []  # defaulted, and what is left of it, by month
    monthly = lines.rate / 12.0
    for t in range(horizon):
        age, ratio = lines.age + t + 1, ratios[:, t]
        mdr, smm = speeds.mdr_at(t + 1, age), speeds.smm_at(t + 1, age)
        if speeds.stop_defaults:
            mdr = np.where(lines.remaining_term - t > lag, mdr, 0.0)
        late = sum((left for _, left in batches), np.zeros_like(performing))
        defaults = performing * mdr
        scheduled = (performing - defaults) * (1.0 - ratio)
        base = performing * ratio if speeds.convention == "bma" else performing - defaults - scheduled
        prepaid = np.minimum(base * smm, performing - defaults - scheduled)
        nothing = 0.0 * performing
        due = (nothing, nothing)  # the batch liquidated now: what it was, what is left of it
        if lag == 0:
            due = (defaults, defaults)
        else:
            if len(batches) >= lag:
                due = batches.pop(0)
            batches.append((defaults, defaults.copy()))
        waiting = sum((left for _, left in batches), nothing)
        amortised = waiting * (1.0 - ratio) if speeds.advances else nothing
        if speeds.advances:
            batches = [(whole, left * ratio) for whole, left in batches]
        loss = np.minimum(due[0] * _at(speeds.severity, max(t + 1 - lag, 1)), due[1])
        row = {
            "new_defaults": defaults,
            "expected_amort": scheduled + amortised,
            "amort_from_defaults": amortised,
            "actual_amort": scheduled,
            "voluntary_prepay": prepaid,
            "expected_interest": (performing + late) * monthly,
            "interest_lost": (late + defaults) * monthly,
            "actual_interest": (performing - defaults) * monthly,
            "principal_recovery": due[1] - loss,
            "principal_loss": loss,
            "liquidated_balance": due[1],
        }
        performing = performing - defaults - scheduled - prepaid
        row["performing_balance"] = performing
        row["in_foreclosure"] = sum((left for _, left in batches), np.zeros_like(performing))
        for name, values in row.items():
            out[name][t] = values.sum()
    return _projection(lines, speeds, out, ratios)


def _projection(
    lines: PoolLines, speeds: Speeds, out: dict[str, np.ndarray], ratios: np.ndarray
) -> PoolProjection:
    opening = float(lines.balance.sum())
    interest = out["actual_interest"] + (out["interest_lost"] if speeds.advance_interest else 0.0)
    recovery = out["principal_recovery"] + out["amort_from_defaults"]
    cash = np.stack(
        [interest, out["actual_amort"], out["voluntary_prepay"], out["new_defaults"], recovery], 1
    )
    coming = np.concatenate([out["new_defaults"], np.zeros(speeds.roll_months)])
    horizon = len(interest)
    late = np.array([coming[t + 1 : t + 1 + speeds.roll_months].sum() for t in range(horizon)])
    return PoolProjection(
        opening_balance=opening,
        amort_factor=(lines.balance[:, None] * np.cumprod(ratios, axis=1)).sum(axis=0) / opening,
        delinquent=np.minimum(late / speeds.roll_rate, out["performing_balance"]),
        cash=np.maximum(cash, 0.0),
        **out,
    )
