"""What a macro path does to payment statuses where data cannot say: the stated elasticities, by status.

Here: their effect on log-odds, and the fallback matrix tilted month by month. Neutral is the baseline mean of
each series: there the effect is 0 and the fallback matrix exact. Not here: the effects a network learned.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pc_pipeline.loans.macro_index import pooled_moments, sensitivities
from pc_pipeline.loans.payment_status import (
    DAYS_30,
    DAYS_90,
    DEFAULT,
    GRACE,
    LIVING_STATUSES,
    ON_TIME,
    PAID_OFF,
    PREPAID,
    state_of_status,
)
from pc_pipeline.loans.truth import KIND_OF_MOVE, LawConfig, kind_strengths
from pc_pipeline.schemas.states import N_STATUSES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_SERIES, N_MACRO


@cache
def macro_scale() -> tuple[np.ndarray, np.ndarray]:
    """(9,) baseline means and (9,) standard deviations over all scenarios: z = (x - mean) / sd."""
    mean = np.array([series.mean for series in MACRO_SERIES], dtype=np.float32)
    return mean, pooled_moments().sd.astype(np.float32)


@cache
def stated_status_effect() -> np.ndarray:
    """(9, 8, 9) float32 log-odds per unit of z [status before, status after, series].

    The sensitivities of consumer loans by kind of move (docs/methods/loans.md, section 1). A short delay
    (grace_period) takes half the effect of a miss; paying off takes that of prepaying.
    """
    law, moments = LawConfig(), pooled_moments()
    weights = sensitivities()[:, ASSET_CLASSES.index("consumer")]
    length = np.sqrt(np.einsum("fm,mn,fn->f", weights, moments.correlation, weights))
    strength = kind_strengths(law) * np.sqrt(law.macro_share)
    by_kind = weights / length[:, None] * strength[:, None]
    states = state_of_status(np.arange(N_STATUSES)).astype(int)
    states[PAID_OFF] = LoanState.prepaid
    effect = np.zeros((N_STATUSES + 1, N_STATUSES, N_MACRO), dtype=np.float32)
    for origin in LIVING_STATUSES:
        for target in range(N_STATUSES):
            kind = KIND_OF_MOVE[states[origin], states[target]]
            if kind >= 0:
                effect[origin, target] = by_kind[kind]
    effect[ON_TIME, GRACE] = 0.5 * effect[ON_TIME, DAYS_30]
    effect[GRACE, ON_TIME] = -0.5 * effect[ON_TIME, DAYS_30]
    effect[DAYS_90, DEFAULT] = by_kind[1]
    effect[LIVING_STATUSES[1], PREPAID] = effect[ON_TIME, PREPAID]
    effect.flags.writeable = False
    return effect


def tilted_matrices(matrix: np.ndarray, macro: np.ndarray) -> np.ndarray:
    """(8, 8) and macro (..., T, 9) raw -> (..., T, 8, 8): rows tilted by the stated effect."""
    mean, sd = macro_scale()
    z = np.clip((np.asarray(macro, dtype=float) - mean) / sd, -8.0, 8.0)
    odds = np.exp(np.einsum("...m,ijm->...ij", z, stated_status_effect()[:N_STATUSES]))
    rows = matrix * odds
    return rows / rows.sum(axis=-1, keepdims=True)
