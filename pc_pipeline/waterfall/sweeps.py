"""Deals under many speeds: scenario grid, break-even speeds, first loss, decrement tables.

Here: projections of one pool at many speeds run through one waterfall call, and all points where a class
begins or ceases to lose. Not here: the projection (`pool_projection`), the deal (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall
from pc_pipeline.waterfall.metrics import LOSS_TOLERANCE, tranche_metrics
from pc_pipeline.waterfall.pool_projection import PoolLines, Speeds, project_pool

SECTIONS, REFINEMENTS = 16, 7  # of a grid step: 16^-7 = 4e-9 of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A point where a measure passes its target.

    Attributes:
        at: the speed. rising: the measure goes up through the target there.
    """

    at: float
    rising: bool


def run_speeds(
    deal: Deal,
    lines: PoolLines,
    cases: Sequence[Speeds],
    *,
    n_months: int | None = None,
    index_rate: Any = None,
    pool_balance: float | None = None,
) -> WaterfallResult:
    """One path per case, projected over a common horizon and run together.

    Raises:
        ConfigError: there are no cases.
    """
    if not cases:
        raise ConfigError("a sweep needs at least one case")
    longest = max(case.lag_months for case in cases)
    horizon = n_months or int(lines.remaining_term.max()) + longest
    pools = [project_pool(lines, case, horizon) for case in cases]
    cash = np.stack([pool.cash for pool in pools])
    late = np.stack([pool.delinquent for pool in pools])
    balance = pool_balance or deal.collateral.pool_balance or float(lines.balance.sum())
    return run_waterfall(
        cash, deal, pool_balance=balance, index_rate_PT=index_rate, extra_PT={"delinquent": late}
    )


def scenario_grid(
    deal: Deal,
    lines: PoolLines,
    base: Speeds,
    *,
    cpr: Sequence[float],
    cdr: Sequence[float],
    severity: Sequence[float],
    index_rate: Any = None,
) -> pl.DataFrame:
    """Loss, WAL and IRR of every class over CPR x CDR x severity (decimals), one row each."""
    points = [(p, d, s) for p in cpr for d in cdr for s in severity]
    cases = [replace(base, cpr=p, cdr=d, severity=s, smm=None, mdr=None) for p, d, s in points]
    result = run_speeds(deal, lines, cases, index_rate=index_rate)
    measures = tranche_metrics(result)
    rows = [
        {
            "cpr": p,
            "cdr": d,
            "severity": s,
            "tranche": name,
            "loss_share": float(measures.loss_share[i, n]),
            "wal_years": float(measures.wal_years[i, n]),
            "irr": float(measures.irr[i, n]),
        }
        for i, (p, d, s) in enumerate(points)
        for n, name in enumerate(result.tranche_names)
    ]
    return pl.DataFrame(rows)


def crossings(measure: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, target: float) -> list[Crossing]:
    """All points of the grid's span where `measure` passes `target`, each refined section by section.

    A step between two grid points that hides an even number of crossings is not seen: refine the grid.

    Args:
        measure: of an array of speeds, an array.
        grid: increasing.
    """
    above = measure(grid) > target
    found = []
    for place in np.flatnonzero(above[1:] != above[:-1]):
        low, high = float(grid[place]), float(grid[place + 1])
        for _ in range(REFINEMENTS):
            points = np.linspace(low, high, SECTIONS + 1)
            same = (measure(points[1:-1]) > target) == above[place]
            first = int(np.argmin(np.append(same, False)))
            low, high = float(points[first]), float(points[first + 1])
        found.append(Crossing(at=0.5 * (low + high), rising=bool(above[place + 1])))
    return found


def break_even_cdr(
    deal: Deal,
    lines: PoolLines,
    base: Speeds,
    tranche: str,
    *,
    target_irr: float | None = None,
    grid: np.ndarray | None = None,
    index_rate: Any = None,
) -> list[Crossing]:
    """CDRs at which a class begins (or ceases) to lose principal, or its IRR passes `target_irr`.

    Args:
        base: the other assumptions; its own default speed is not used. A grid from zero default works.
        grid: CDRs, decimals; default 0 to 60 % in steps of 1 %.

    Returns:
        All crossings found, lowest first; empty if the class never loses (or always does) on the grid.
    """
    span = np.linspace(0.0, 0.6, 61) if grid is None else grid
    place = deal.tranche_names.index(deal.tranche(tranche).name)

    def measure(rates: np.ndarray) -> np.ndarray:
        cases = [replace(base, cdr=float(rate), mdr=None, sda=None) for rate in rates]
        figures = tranche_metrics(run_speeds(deal, lines, cases, index_rate=index_rate))
        if target_irr is None:
            return figures.loss_share[:, place]
        return np.where(np.isnan(figures.irr[:, place]), -1.0, figures.irr[:, place])

    return crossings(measure, span, LOSS_TOLERANCE if target_irr is None else target_irr)


def break_even_multiple(
    cash: np.ndarray,
    deal: Deal,
    tranche: str,
    *,
    pool_balance: float,
    severity: float,
    grid: np.ndarray | None = None,
    index_rate: Any = None,
) -> list[Crossing]:
    """Multiples of a loss path at which a class begins to lose: collections (T, 5) with charge-offs scaled.

    Charge-offs are multiplied, recoveries follow at 1 - `severity`, and the performing balance that
    is left pays interest and principal in the proportions of the given path.
    """
    span = np.linspace(0.0, 10.0, 101) if grid is None else grid
    place = deal.tranche_names.index(deal.tranche(tranche).name)

    def measure(multiples: np.ndarray) -> np.ndarray:
        paths = np.stack([scale_losses(cash, pool_balance, float(m), severity) for m in multiples])
        result = run_waterfall(paths, deal, pool_balance=pool_balance, index_rate_PT=index_rate)
        return tranche_metrics(result).loss_share[:, place]

    return crossings(measure, span, LOSS_TOLERANCE)


def scale_losses(cash: np.ndarray, pool_balance: float, multiple: float, severity: float) -> np.ndarray:
    """(T, 5) collections with charge-off rates times `multiple`, everything else at its old rate."""
    scaled = np.zeros_like(cash)
    old = new = pool_balance
    for t, (interest, scheduled, prepaid, defaulted, _) in enumerate(cash):
        rate = min(multiple * defaulted / old, 1.0) if old > 0 else 0.0
        lost = new * rate
        rest = old - defaulted
        part = (new - lost) / rest if rest > 0 else 0.0
        scaled[t] = (interest * part, scheduled * part, prepaid * part, lost, (1.0 - severity) * lost)
        old -= scheduled + prepaid + defaulted
        new -= scaled[t, 1:4].sum()
    return scaled


def decrement_table(result: WaterfallResult, path: int = 0) -> pl.DataFrame:
    """Percent of original balance outstanding after each payment, one column per class; the closing first."""
    columns: dict[str, Any] = {"payment_date": list(result.payment_dates)}
    for place, name in enumerate(result.tranche_names):
        original = float(result.original_balance[place])
        opening = float(np.asarray(result.opening_balance)[..., place])
        balances = np.concatenate([[opening], np.asarray(result.balance)[path, :, place]])
        columns[name] = 100.0 * balances / original if original > 0 else 0.0 * balances
    return pl.DataFrame(columns)
