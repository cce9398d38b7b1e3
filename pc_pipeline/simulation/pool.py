"""The pool as the simulator holds it: one position, schedule and loss law per loan.

Here: `PoolArrays`, its checks, and the amortisation from the cut-off on. Not here: how a tape becomes a
pool (`loans`), how the arrays are packed into lanes (`simulation.kernel`).

Schedule columns. The paid-through ledger counts instalments. Column `DUE_AT_CUTOFF + m` of `schedule_LW`
is the scheduled balance when all instalments due up to the end of the m-th simulated month are paid; a loan k
instalments in arrears at the cut-off stands in column `DUE_AT_CUTOFF - k`. So the month's column is the
same for every loan, and only arrears look back.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.loans.amortisation import amortisation_schedule
from pc_pipeline.schemas.units import ASSET_CLASSES
from pc_pipeline.simulation.rng import loan_keys

DUE_AT_CUTOFF = 3  # a loan is carried with at most three instalments of arrears into the simulation
CENTS = 100.0
LOANS_AT_ONCE = 65_536  # whose whole schedules are held while the rest is cut out of them


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolArrays:
    """Everything the kernel knows of the loans; L loans, W = months + 4 schedule columns, G loss groups.

    Attributes:
        loan_key_L: uint64 key of the loan's random numbers.
        cohort_L: row of the cohort table.
        state_L: living state at the cut-off, 0-3.
        since_miss_L: months since last miss at the cut-off, -1 never.
        in_state_L: months in the present state, from 1.
        arrears_L: instalments in arrears at the cut-off, 0-3.
        final_L: simulated month (from 0) of the final instalment; may lie beyond the horizon.
        schedule_LW: scheduled balances, currency, cents.
        rate_L: coupon of a fixed loan, margin over the index of a floating one, decimal per year.
        is_floating_L: whether the index is added to `rate_L`.
        loss_group_L: row of `severity_GQ`.
        severity_GQ: quantiles of loss given default at Q evenly spaced probabilities 0..1, decimal.
        recovery_lag_L: months from default to recovery cash.
    """

    loan_key_L: np.ndarray
    cohort_L: np.ndarray
    state_L: np.ndarray
    since_miss_L: np.ndarray
    in_state_L: np.ndarray
    arrears_L: np.ndarray
    final_L: np.ndarray
    schedule_LW: np.ndarray
    rate_L: np.ndarray
    is_floating_L: np.ndarray
    loss_group_L: np.ndarray
    severity_GQ: np.ndarray
    recovery_lag_L: np.ndarray

    @property
    def n_loans(self) -> int:
        """Number of loans."""
        return self.loan_key_L.size

    @property
    def n_months(self) -> int:
        """Months the schedules reach beyond the cut-off."""
        return self.schedule_LW.shape[1] - DUE_AT_CUTOFF - 1

    @property
    def balance_L(self) -> np.ndarray:
        """Outstanding balance at the cut-off, currency."""
        return self.schedule_LW[np.arange(self.n_loans), DUE_AT_CUTOFF - self.arrears_L]

    @property
    def total_balance(self) -> float:
        """Pool balance at the cut-off, the denominator of every loss rate, currency."""
        return float(self.balance_L.sum())

    def take(self, rows: np.ndarray) -> PoolArrays:
        """The sub-pool of some loans, in that order; each loan keeps its random numbers."""
        per_loan = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "severity_GQ"}
        return replace(self, **per_loan)

    def __post_init__(self) -> None:
        check_pool(self)


def check_pool(pool: PoolArrays) -> None:
    """Refuse a pool that cannot be simulated.

    Raises:
        SimulationError: empty, zero or negative balance, past maturity, not a living state, misshapen.
    """
    n_loans = pool.loan_key_L.size
    if n_loans == 0:
        raise SimulationError("the pool is empty", expected="at least one living loan", got=0)
    for field in fields(pool):
        if field.name != "severity_GQ" and getattr(pool, field.name).shape[0] != n_loans:
            raise SimulationError(
                f"{field.name} does not cover the pool",
                expected=f"{n_loans} loans",
                got=getattr(pool, field.name).shape[0],
            )
    _refuse(pool, (pool.state_L < 0) | (pool.state_L > 3), "loans already ended", "state 0-3", pool.state_L)
    _refuse(pool, pool.final_L < 0, "loans past maturity", "final month >= 0", pool.final_L)
    arrears_ok = (pool.arrears_L >= 0) & (pool.arrears_L <= DUE_AT_CUTOFF)
    _refuse(pool, ~arrears_ok, "arrears out of range", "0..3 instalments", pool.arrears_L)
    balance = pool.balance_L
    _refuse(pool, ~(np.isfinite(balance) & (balance > 0)), "loans without balance", "balance > 0", balance)
    _refuse(pool, ~np.isfinite(pool.rate_L), "loans without rate", "a finite rate", pool.rate_L)
    rising = np.diff(pool.schedule_LW, axis=1).max(axis=1) > 1e-6
    _refuse(pool, rising, "schedules that rise", "scheduled balances that never rise", balance)
    _refuse(pool, pool.recovery_lag_L < 0, "negative recovery lags", ">= 0 months", pool.recovery_lag_L)
    severity = pool.severity_GQ
    if severity.ndim != 2 or severity.shape[1] < 2 or not np.isfinite(severity).all():
        raise SimulationError("severity quantiles are misshapen", expected="(G, Q >= 2)", got=severity.shape)
    if pool.loss_group_L.min() < 0 or pool.loss_group_L.max() >= severity.shape[0]:
        raise SimulationError("a loan has no severity row", expected=f"group 0..{severity.shape[0] - 1}")


def _refuse(pool: PoolArrays, bad_L: np.ndarray, what: str, expected: str, values_L: np.ndarray) -> None:
    if bad_L.any():
        first = int(np.flatnonzero(bad_L)[0])
        raise SimulationError(
            f"the pool holds {what}: {int(bad_L.sum())} of {pool.loan_key_L.size}",
            expected=expected,
            got=values_L[first],
            where=f"pool row {first}",
        )


def remaining_schedule(
    balance_L: np.ndarray,
    rate_L: np.ndarray,
    remaining_L: np.ndarray,
    arrears_L: np.ndarray,
    amortization_L: np.ndarray,
    n_months: int,
    age_L: np.ndarray | None = None,
    original_L: np.ndarray | None = None,
) -> np.ndarray:
    """(L, n_months + 4) scheduled balances from the cut-off on, in the columns of this module.

    The schedule since origination (`loans.amortisation`), scaled so that the instalment paid through
    carries the outstanding balance: exact for a loan on schedule, proportional for one that is ahead
    or behind. More than three instalments of arrears are carried as three, of which the first is the larger.

    Args:
        balance_L: outstanding balance at the cut-off, currency.
        rate_L: rate at which the annuity is cut, decimal per year.
        remaining_L: contractual months still to come.
        arrears_L: instalments in arrears, at most the age.
        amortization_L: 'annuity', 'bullet' or 'balloon'.
        age_L: months since origination; without it the loan is as young as its arrears allow.
        original_L: balance at origination, so that instalments round to the cents of the contract.
    """
    age = arrears_L if age_L is None else age_L
    original = balance_L if original_L is None else original_L
    schedule = np.empty((balance_L.size, n_months + DUE_AT_CUTOFF + 1))
    for low in range(0, balance_L.size, LOANS_AT_ONCE):
        part = slice(low, low + LOANS_AT_ONCE)
        schedule[part] = _remaining(
            balance_L[part],
            amortisation_schedule(
                original[part], rate_L[part], (remaining_L + age)[part], amortization_L[part]
            ),
            age[part],
            arrears_L[part],
            low,
            schedule.shape[1],
        )
    return schedule


def _remaining(
    balance_L: np.ndarray,
    full_LX: np.ndarray,
    age_L: np.ndarray,
    arrears_L: np.ndarray,
    first: int,
    width: int,
) -> np.ndarray:
    """`remaining_schedule` of some loans, from their schedules since origination."""
    offset = np.arange(width) - DUE_AT_CUTOFF
    instalment = np.clip(age_L[:, None] + offset[None, :], (age_L - arrears_L)[:, None], full_LX.shape[1] - 1)
    share = np.take_along_axis(full_LX, instalment, axis=1)
    paid_through = share[np.arange(age_L.size), DUE_AT_CUTOFF - arrears_L]
    on_schedule = paid_through == balance_L  # then the contract's own cents, untouched
    scale = np.where(on_schedule, 1.0, balance_L / np.where(paid_through > 0, paid_through, 1.0))
    if not (paid_through > 0).all():
        raise SimulationError(
            "a loan has a balance where its schedule has none",
            expected="an age before the final month",
            where=f"pool row {first + int(np.flatnonzero(paid_through <= 0)[0])}",
        )
    return np.asarray(np.round(share * scale[:, None] * CENTS) / CENTS)


def uniform_severity(lower: np.ndarray, upper: np.ndarray, n_quantiles: int = 33) -> np.ndarray:
    """(G, Q) quantiles of a uniform severity between two bounds per group."""
    return np.linspace(lower, upper, n_quantiles, axis=1)


def mean_severity(pool: PoolArrays) -> np.ndarray:
    """(G,) exact mean of the piecewise linear quantile tables."""
    table = pool.severity_GQ
    return (table[:, 1:] + table[:, :-1]).mean(axis=1) / 2.0


DEFAULT_SEVERITY = uniform_severity(np.array([0.30, 0.60, 0.15, 0.20]), np.array([0.60, 0.90, 0.40, 0.50]))
DEFAULT_RECOVERY_LAG = 12


def pool_arrays(
    pool: pl.DataFrame,
    cohorts: pl.DataFrame,
    n_months: int,
    *,
    severity_GQ: np.ndarray = DEFAULT_SEVERITY,
    recovery_lag_months: int | np.ndarray = DEFAULT_RECOVERY_LAG,
) -> PoolArrays:
    """The arrays of a `pool` table that also carries the tape's columns.

    Args:
        pool: table `pool` with the tape columns, one row per living loan.
        cohorts: frame with `asset_class`, `vintage_month`; its row order numbers the cohorts.
        n_months: horizon, months.
        severity_GQ: loss given default by asset class (rows in the order of ASSET_CLASSES).
        recovery_lag_months: one lag, or one per loan.

    Raises:
        SimulationError: a loan's cohort is missing, or the pool cannot be simulated.
    """
    if pool.height == 0:
        raise SimulationError("the pool is empty", expected="at least one living loan", got=0)
    keys = ["asset_class", "vintage_month"]
    numbered = cohorts.select(keys).with_row_index("cohort")
    placed = pool.join(numbered, on=keys, how="left", maintain_order="left")
    if placed["cohort"].null_count():
        lost = placed.filter(pl.col("cohort").is_null()).select("loan_id", *keys).row(0)
        raise SimulationError("a loan belongs to no cohort", expected="its class and vintage", got=lost)
    past = placed.filter(pl.col("remaining_term_months") < 1)
    if past.height:
        raise SimulationError(
            f"{past.height} loans are past maturity", expected="remaining term >= 1", got=past["loan_id"][0]
        )
    state = placed["loan_state"].to_numpy().astype(np.int64)
    age = placed["age_months"].to_numpy().astype(np.int64)
    arrears = np.minimum(np.minimum(state, DUE_AT_CUTOFF), age)
    remaining = placed["remaining_term_months"].to_numpy().astype(np.int64)
    floating = (placed["rate_type"] == "floating").to_numpy()
    coupon = placed["interest_rate"].to_numpy().astype(float)
    spread = placed["spread_bps"].fill_null(0.0).to_numpy() / 1e4
    in_state = (
        placed["months_in_state"].to_numpy() if "months_in_state" in placed.columns else np.ones(pool.height)
    )
    group = placed["asset_class"].replace_strict({name: i for i, name in enumerate(ASSET_CLASSES)})
    return PoolArrays(
        loan_key_L=loan_keys(placed["loan_id"].to_list()),
        cohort_L=placed["cohort"].to_numpy().astype(np.int64),
        state_L=state,
        since_miss_L=placed["months_since_miss"].to_numpy().astype(np.int64),
        in_state_L=in_state.astype(np.int64),
        arrears_L=arrears,
        final_L=remaining - 1,
        schedule_LW=remaining_schedule(
            placed["current_balance"].to_numpy().astype(float),
            coupon,
            remaining,
            arrears,
            placed["amortization_type"].to_numpy(),
            n_months,
            age,
            placed["original_balance"].to_numpy().astype(float),
        ),
        rate_L=np.where(floating, spread, coupon),
        is_floating_L=floating,
        loss_group_L=group.to_numpy().astype(np.int64),
        severity_GQ=np.ascontiguousarray(severity_GQ, dtype=float),
        recovery_lag_L=np.broadcast_to(np.asarray(recovery_lag_months, np.int64), (pool.height,)).copy(),
    )
