"""From pool cash to one `TrancheResult` per class, block of paths by block.

Here: running the deal so that memory stays bounded, picking each class's figures. Not here: who is paid what
and every figure (`waterfall`), averages over paths (`engines.results`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pc_pipeline.engines.results import TrancheResult
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall
from pc_pipeline.waterfall.metrics import irr, tranche_metrics, year_times
from pc_pipeline.waterfall.terms import Tranche

BLOCK_PATHS = 2048  # paths paid out at a time: 1 MB a recorded figure


def tranche_results(
    cash_PTC: np.ndarray,
    deal: Deal,
    pool_balance: float,
    index_rate_PT: Any,
    weights_P: np.ndarray,
    block_paths: int = BLOCK_PATHS,
) -> list[TrancheResult]:
    """Pay every path out by the deal; one result per class that has a balance, senior first.

    Args:
        cash_PTC: (P, T, 5) pool cash. index_rate_PT: (P, T), (T,), a number or None.
        pool_balance: original pool, currency. weights_P: what each path counts in means.
        block_paths: paths at a time; changes no bit of the result.
    """
    found: list[_Class] = []
    index = None if index_rate_PT is None else np.asarray(index_rate_PT, dtype=float)
    for low in range(0, len(cash_PTC), block_paths):
        rows = slice(low, min(low + block_paths, len(cash_PTC)))
        paid = run_waterfall(
            cash_PTC[rows],
            deal,
            pool_balance=pool_balance,
            index_rate_PT=index[rows] if index is not None and index.ndim == 2 else index,
            keep="classes",
        )
        found = found or [_Class(paid, place, len(cash_PTC)) for place in _with_balance(paid)]
        figures = tranche_metrics(paid)
        for one in found:
            one.take(paid, figures, rows)
    total = sum(one.original for one in found)
    return [one.result(total, weights_P) for one in found]


def _with_balance(paid: WaterfallResult) -> list[int]:
    return [
        place
        for place, terms in enumerate(paid.deal.tranches)
        if terms.kind != "io" and paid.original_balance[place] > 0
    ]


class _Class:
    """One class's figures over all paths, filled in block by block."""

    def __init__(self, paid: WaterfallResult, place: int, n_paths: int) -> None:
        self.place = place
        self.terms: Tranche = paid.deal.tranches[place]
        self.original = float(paid.original_balance[place])
        self.invested = -float(np.asarray(paid.opening_balance)[place]) * self.terms.price
        self.times = year_times(paid.payment_dates)
        self.losses, self.irr, self.life = (np.empty(n_paths) for _ in range(3))
        self.balance, self.cash = (np.empty((n_paths, paid.balance.shape[1])) for _ in range(2))
        self.tests = {
            kind: [
                k
                for k, test in enumerate(paid.deal.tests)
                if test.of == self.terms.name and test.kind == kind
            ]
            for kind in ("oc", "ic")
        }
        self.failed = {kind: np.empty(n_paths, dtype=bool) for kind, places in self.tests.items() if places}

    def take(self, paid: WaterfallResult, figures: Any, rows: slice) -> None:
        """Figures of a block of paths."""
        at = self.place
        self.losses[rows] = np.clip(figures.loss_share[:, at], 0.0, 1.0)
        self.irr[rows] = figures.irr[:, at]
        self.life[rows] = figures.wal_years[:, at]
        self.balance[rows] = paid.balance[:, :, at]
        np.add(paid.interest_paid[:, :, at], paid.principal_paid[:, :, at], out=self.cash[rows])
        for kind, failed in self.failed.items():
            failed[rows] = (np.asarray(paid.passed)[:, :, self.tests[kind]] < 0.5).any(axis=(1, 2))

    def result(self, total: float, weights_P: np.ndarray) -> TrancheResult:
        """All paths together."""
        mean_cash = np.average(self.cash, axis=0, weights=weights_P)
        mean_irr = float(irr(np.r_[self.invested, mean_cash], self.times).rate)
        coupon = getattr(self.terms.coupon, "rate", None)
        return TrancheResult(
            name=self.terms.name,
            original_balance=self.original,
            share=self.original / total,
            coupon=None if coupon is None else float(coupon),
            losses=self.losses,
            irr=self.irr,
            mean_irr=mean_irr if np.isfinite(mean_irr) else None,
            wal_years=self.life,
            oc_failed=self.failed.get("oc"),
            ic_failed=self.failed.get("ic"),
            balance=self.balance,
            cash=self.cash,
            weights=weights_P,
        )
