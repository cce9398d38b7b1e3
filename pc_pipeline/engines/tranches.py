"""From a waterfall's arrays to one `TrancheResult` per class.

Here: picking each class's figures. Not here: who was paid what and every figure (`waterfall.metrics`),
averages over paths (`engines.results`).
"""

from __future__ import annotations

import numpy as np

from pc_pipeline.engines.results import TrancheResult
from pc_pipeline.waterfall.engine import WaterfallResult
from pc_pipeline.waterfall.metrics import tranche_metrics


def tranche_results(result: WaterfallResult, weights_P: np.ndarray) -> list[TrancheResult]:
    """One result per class that has a balance, senior first."""
    original = np.asarray(result.original_balance, dtype=float)
    figures = tranche_metrics(result, weights_P)
    total = float(sum(o for o, t in zip(original, result.deal.tranches, strict=True) if t.kind != "io"))
    found = []
    for place, name in enumerate(result.tranche_names):
        terms = result.deal.tranche(name)
        if terms.kind == "io" or original[place] <= 0:
            continue
        mean_irr = float(figures.mean_irr[place])
        found.append(
            TrancheResult(
                name=name,
                original_balance=float(original[place]),
                share=float(original[place]) / total,
                coupon=_coupon(terms.coupon),
                losses=np.clip(figures.loss_share[:, place], 0.0, 1.0),
                irr=figures.irr[:, place],
                mean_irr=mean_irr if np.isfinite(mean_irr) else None,
                wal_years=figures.wal_years[:, place],
                oc_failed=_failed(result, name, "oc"),
                ic_failed=_failed(result, name, "ic"),
                balance=np.asarray(result.balance[:, :, place]),
                cash=np.asarray(result.cash[:, :, place]),
                weights=weights_P,
            )
        )
    return found


def _coupon(coupon: object) -> float | None:
    rate = getattr(coupon, "rate", None)
    return None if rate is None else float(rate)


def _failed(result: WaterfallResult, name: str, kind: str) -> np.ndarray | None:
    """(P,) bool: a test of this kind failed at least once; None where the class has none."""
    places = [k for k, test in enumerate(result.deal.tests) if test.of == name and test.kind == kind]
    if not places:
        return None
    passed = np.asarray(result.passed)[:, :, places] >= 0.5
    return np.asarray(~passed.all(axis=(1, 2)))
