"""What a class's cash flows amount to: loss, return, life, tests, by path and of the mean.

Here: figures from a `WaterfallResult`, and internal rates of return of many flows at once. Not here: price
and yield of an investor's purchase (`pricing`), quantiles over paths (`simulation`).

Why not pyxirr for each path: ten thousand paths by four classes are forty thousand calls of a scalar
solver; the vectorised bisection here finds the same root for all at once (tests hold it to pyxirr).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pc_pipeline.core.errors import DataError
from pc_pipeline.waterfall.engine import WaterfallResult, _plain

GREATEST_GROWTH = 700.0  # log of 1 + r: what a float64 can hold
BLOCK_ROWS = 512  # worked on together, so that they stay in cache
LOSS_TOLERANCE = 1e-6  # share of the original balance below which nothing was lost
_GRID = np.concatenate(
    [np.logspace(-13, -2, 45), np.linspace(0.02, 3.0, 300), np.logspace(np.log10(3.02), 6, 40)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IrrResult:
    """Internal rates of return per period of time.

    Attributes:
        rate: NaN where there is none.
        reason: '' or why there is none, or which of several roots is meant.
        n_roots: number of sign changes of NPV over the grid of rates.
    """

    rate: np.ndarray
    reason: np.ndarray
    n_roots: np.ndarray


def irr(flows: np.ndarray, times: np.ndarray | None = None) -> IrrResult:
    """Internal rate of return of each row: the rate r with sum_k flow_k (1 + r)^(-t_k) = 0.

    The whole range of rates above -100 % is searched, so that near-total losses are found. Of several
    roots the one with the sign of the net gain, and of these the nearest to zero, is given, and the reason
    says how many there are.

    Args:
        flows: (..., K) cash flows, an investment negative.
        times: (K,) in periods; default 0, 1, 2, ...

    Returns:
        Rates per period, shaped as the leading dimensions.

    Raises:
        DataError: flows are not finite, or times do not fit them.
    """
    values = np.atleast_2d(np.asarray(flows, dtype=np.float64))
    lead = np.asarray(flows).shape[:-1]
    values = values.reshape(-1, values.shape[-1])
    periods = np.arange(values.shape[-1], dtype=float) if times is None else np.asarray(times, dtype=float)
    if not np.isfinite(values).all() or periods.shape != values.shape[-1:]:
        raise DataError(
            "flows must be finite, with one time each", expected=values.shape[-1:], got=periods.shape
        )
    rates = np.full(len(values), np.nan)
    reasons = np.full(len(values), "", dtype=object)
    counts = np.zeros(len(values), dtype=np.int64)
    empty = ~np.any(values != 0, axis=1)
    one_sign = ~(np.any(values > 0, axis=1) & np.any(values < 0, axis=1)) & ~empty
    reasons[empty] = "no cash flows"
    reasons[one_sign & (values.min(axis=1) >= 0)] = "nothing was invested: no outflow"
    reasons[one_sign & (values.max(axis=1) <= 0)] = "nothing came back: total loss"
    is_plain = (
        ~(empty | one_sign) & (values[:, 0] < 0) & (values[:, 1:] >= 0).all(axis=1) & (periods[1:] > 0).all()
    )
    plain = np.flatnonzero(is_plain)
    for start in range(0, len(plain), BLOCK_ROWS):
        rows = plain[start : start + BLOCK_ROWS]
        rates[rows], counts[rows] = _conventional(values[rows], periods), 1
    todo = np.flatnonzero(~(empty | one_sign | is_plain))
    for start in range(0, len(todo), BLOCK_ROWS):
        _solve(values, periods, todo[start : start + BLOCK_ROWS], rates, reasons, counts)
    return IrrResult(rate=rates.reshape(lead), reason=reasons.reshape(lead), n_roots=counts.reshape(lead))


def _conventional(values: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """One outflow, then inflows: the only root, by Newton on the logarithm of present value.

    log sum_k v_k exp(-t_k g) is convex and falls in g, so Newton's steps end on the low side of the root
    after the first and then climb to it. They start where its parabola at g = 0 is zero; rows leave as they
    settle.
    """
    inflows, times, goal = values[:, 1:], periods[1:], np.log(-values[:, 0])
    total = inflows.sum(axis=1)
    mean = _by_row(inflows, times) / total
    spread = _by_row(inflows, times**2) / total - mean**2
    gap = np.log(total) - goal
    under_root = mean**2 - 2.0 * spread * gap
    growth = np.where(under_root > 0, 2.0 * gap / (mean + np.sqrt(np.maximum(under_root, 0.0))), gap / mean)
    with np.errstate(divide="ignore"):
        logs = np.log(inflows)
    left = np.arange(len(values))
    for _ in range(60):
        exponent = logs[left] - times * growth[left, None]
        top = exponent.max(axis=1)
        np.exp(np.subtract(exponent, top[:, None], out=exponent), out=exponent)
        total = exponent.sum(axis=1)
        step = (top + np.log(total) - goal[left]) * total / _by_row(exponent, times)
        growth[left] = np.minimum(growth[left] + step, GREATEST_GROWTH)
        left = left[np.abs(step) >= 1e-14 * (1.0 + np.abs(growth[left]))]
        if not len(left):
            break
    return np.expm1(growth)


def _by_row(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(N, K) by (K,) -> (N,); unlike `@`, a row's last bit does not depend on its company."""
    return np.einsum("nk,k->n", values, factors)


def _npv(values: np.ndarray, periods: np.ndarray, log_growth: np.ndarray) -> np.ndarray:
    """NPV of rows at one log growth each, scaled by the largest discount factor so that nothing overflows."""
    exponent = -periods[None, :] * log_growth[:, None]
    scale = np.where(values != 0, exponent, -np.inf).max(axis=1, keepdims=True)
    return (values * np.exp(exponent - scale)).sum(axis=1)


def _solve(
    values: np.ndarray,
    periods: np.ndarray,
    rows: np.ndarray,
    rates: np.ndarray,
    reasons: np.ndarray,
    counts: np.ndarray,
) -> None:
    chosen = values[rows]
    growth = np.log(_GRID)
    nets = np.stack([_npv(chosen, periods, np.full(len(rows), g)) for g in growth], axis=1)
    changes = (np.sign(nets[:, :-1]) * np.sign(nets[:, 1:]) < 0) | (nets[:, :-1] == 0)
    counts[rows] = changes.sum(axis=1)
    found = changes.any(axis=1)
    middle_growth = 0.5 * (growth[:-1] + growth[1:])
    gains = (chosen.sum(axis=1) >= 0)[:, None]
    distance = np.where(changes, np.abs(middle_growth), np.inf)
    distance = distance + np.where(changes & ((middle_growth >= 0) != gains), 1e3, 0.0)
    place = distance.argmin(axis=1)
    low, high = growth[place], growth[place + 1]
    sign_low = np.sign(nets[np.arange(len(rows)), place])
    for _ in range(100):
        middle = 0.5 * (low + high)
        same = np.sign(_npv(chosen, periods, middle)) == sign_low
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    exact = sign_low == 0
    root = np.where(exact, growth[place], 0.5 * (low + high))
    rates[rows] = np.where(found, np.expm1(root), np.nan)
    reasons[rows[~found]] = "no rate above -100 % brings the present value to zero"
    several = counts[rows] > 1
    reasons[rows[several]] = [
        f"{n} roots; the one nearest zero with the sign of the net gain" for n in counts[rows[several]]
    ]


def year_times(dates: Sequence[dt.date]) -> np.ndarray:
    """Years from the first date, actual / 365: the convention of XIRR."""
    return np.array([(date - dates[0]).days / 365.0 for date in dates])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrancheMetrics:
    """Per path (P) and class (N), and of the cash flows averaged over paths.

    Attributes:
        loss_share: principal unpaid at the end, or written down, over the original balance; 0 for a
            class without a balance. A residual class's balance is what principal has not repaid.
        has_loss: loss_share above `LOSS_TOLERANCE`.
        irr: per year (actual / 365 compounding) of buying at the issue price; NaN with `irr_reason`.
        wal_years: mean time of principal received, weighted by amount; NaN where none came.
        shortfall_share: interest still carried at the end over the original balance.
        n_test_failures: (P, N) payment dates on which a test of the class failed.
        first_failure: (P, N) number of the first such date from 1; 0 where none.
        mean_irr, mean_irr_reason, mean_wal_years: (N,) of the mean cash flows.
    """

    tranche_names: tuple[str, ...]
    loss_share: np.ndarray
    has_loss: np.ndarray
    irr: np.ndarray
    irr_reason: np.ndarray
    wal_years: np.ndarray
    shortfall_share: np.ndarray
    n_test_failures: np.ndarray
    first_failure: np.ndarray
    mean_irr: np.ndarray
    mean_irr_reason: np.ndarray
    mean_wal_years: np.ndarray


def tranche_metrics(result: WaterfallResult, weights_P: np.ndarray | None = None) -> TrancheMetrics:
    """Figures of every path and class of a run; `weights_P` count in the means over paths."""
    original, opening = result.original_balance, np.asarray(_plain(result.opening_balance))
    owned = np.where(original > 0, original, 1.0)
    lost = _plain(result.balance)[:, -1] + _plain(result.written_down)[:, -1]
    shortfall = _plain(result.interest_shortfall)[:, -1]
    loss_share = np.where(original > 0, lost / owned, 0.0)
    times = year_times(result.payment_dates)
    cash = _plain(result.cash)
    prices = np.array([tranche.price for tranche in result.deal.tranches])
    invested = np.broadcast_to(-opening * prices, (len(cash), len(original)))
    flows = np.concatenate([invested[:, None, :], cash], axis=1).transpose(0, 2, 1)
    each, mean = irr(flows, times), irr(np.average(flows, axis=0, weights=weights_P), times)
    principal = _plain(result.principal_paid)
    failed = ~result.test_passed
    return TrancheMetrics(
        tranche_names=result.tranche_names,
        loss_share=loss_share,
        has_loss=loss_share > LOSS_TOLERANCE,
        irr=each.rate,
        irr_reason=each.reason,
        wal_years=weighted_life(principal, times[1:]),
        shortfall_share=np.where(original > 0, shortfall / owned, 0.0),
        n_test_failures=failed.sum(axis=1),
        first_failure=np.where(failed.any(axis=1), failed.argmax(axis=1) + 1, 0),
        mean_irr=mean.rate,
        mean_irr_reason=mean.reason,
        mean_wal_years=weighted_life(np.average(principal, axis=0, weights=weights_P)[None], times[1:])[0],
    )


def weighted_life(principal_PTN: np.ndarray, times_T: np.ndarray) -> np.ndarray:
    """(P, N) weighted average life in the unit of `times_T`; NaN where no principal came."""
    by_row = np.ascontiguousarray(principal_PTN.transpose(0, 2, 1))  # so that no bit depends on the layout
    total = by_row.sum(axis=2)
    weighted = np.einsum("pnt,t->pn", by_row, times_T)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan)
