"""What a loan stands to lose in each state, so that its own luck can be told from the macro path's.

Here: `OwnLuck`: worths by loan from a backward induction on reference rows, factors by macro path and cohort,
the loss that a path's rows alone predict. Not here: adding luck up in the kernel (`simulation.martingale`),
what it is good for (`simulation.estimators`).

A loan's worth U(t, k) is the loss to come if it stands in state k after month t. It is carried back through
its own rows (cohort x residual, all 22 clock positions), once, on reference rows. A path's own rows move it
by a factor: the ratio of the same induction on cohorts alone, without residuals, on the path's rows and on
the reference rows. None of this has to be right: whatever U is, luck has mean zero. Where it is nearly
right, luck is nearly all of L - E[L | macro].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.schemas.states import N_LIVING
from pc_pipeline.simulation.history import HISTORY_STATE, IN_STATE_FROM, N_HISTORY, SINCE_MISS_FROM
from pc_pipeline.simulation.lanes import LANES, NEVER, Lanes, pack_lanes
from pc_pipeline.simulation.martingale import N_WORTH, Luck
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, PoolArrays, mean_severity

_CLOCKS: Final = SINCE_MISS_FROM[-1] + 1  # performing: never missed, 1 .. 12 months since
_DAYS: Final = len(IN_STATE_FROM)
_PLACES: Final = _CLOCKS + 3 * _DAYS
_CLASS: Final = np.r_[
    np.searchsorted(SINCE_MISS_FROM, np.arange(_CLOCKS), side="right"),
    np.arange(1 + len(SINCE_MISS_FROM), N_HISTORY),
]
_STATE: Final = HISTORY_STATE[_CLASS]
REFERENCE_PATHS: Final = 16
_FURTHEST: Final = 20.0  # a factor beyond that says that nothing is left to lose


class OwnLuck:
    """Worths of a pool's loans on reference rows.

    Args:
        pool: the loans. residual_LHJ: exp(residual) (L, 15, 6), or None.
        rows_CTKJ: reference rows (C, T, 4, 7), e.g. the mean over some macro paths.

    Attributes:
        lanes: the pool packed. worth_BTJL: see `martingale.Luck`. start_CK: worth at the cut-off of all loans
            of a cohort by state, currency.
    """

    def __init__(self, pool: PoolArrays, residual_LHJ: np.ndarray | None, rows_CTKJ: np.ndarray) -> None:
        if (
            rows_CTKJ.ndim != 4
            or rows_CTKJ.shape[1] != pool.n_months
            or pool.cohort_L.max() >= len(rows_CTKJ)
        ):
            raise SimulationError(
                "reference rows do not fit the pool",
                expected=f"(cohorts, {pool.n_months}, 4, 7)",
                got=rows_CTKJ.shape,
            )
        self.pool = pool
        self.lanes: Lanes = pack_lanes(pool, residual_LHJ, is_sampled_only=True)
        self.severity_G = mean_severity(pool)
        rows = np.ascontiguousarray(rows_CTKJ, dtype=np.float32)
        self._exposed_CT = exposed_losses(pool, len(rows), self.severity_G)
        self._reference = _cohort_worth(rows, self._exposed_CT)
        self._least = np.float32(1e-6 * max(float(self._exposed_CT.max()), 1e-30))
        self.worth_BTJL = np.zeros((*self.lanes.alive_B.shape, pool.n_months, N_WORTH, LANES), np.float32)
        self.start_CK = np.zeros((len(rows), N_LIVING))
        _worths(self.lanes, rows, self.severity_G, residual_LHJ is not None, self.worth_BTJL, self.start_CK)

    def begin(self, rows_PCTKJ: np.ndarray) -> tuple[Luck, np.ndarray]:
        """What the kernel needs for a batch of paths, and the loss (P,) that their rows predict, currency."""
        rows = np.asarray(rows_PCTKJ, dtype=np.float32)
        factor = _factors(rows, self._exposed_CT, self._reference, self._least)
        predicted = np.einsum("pck,ck->p", factor[:, :, 0], self.start_CK, dtype=np.float64)
        luck = Luck(
            worth_BTJL=self.worth_BTJL,
            factor_PCTK=factor,
            severity_G=self.severity_G,
            expected_GL=np.zeros((1, LANES), np.float32),
            out_PX=np.zeros((len(rows_PCTKJ), 2)),
        )
        return luck, predicted


def luck_along(
    pool: PoolArrays,
    residual_LHJ: np.ndarray | None,
    transition_rows: Callable[[np.ndarray], np.ndarray],
    macro_PTM: np.ndarray,
) -> OwnLuck:
    """`OwnLuck` whose reference rows are the mean over a few of the paths given, evenly spaced."""
    some = np.unique(np.linspace(0, len(macro_PTM) - 1, min(REFERENCE_PATHS, len(macro_PTM))).astype(int))
    return OwnLuck(pool, residual_LHJ, np.asarray(transition_rows(macro_PTM[some])).mean(axis=0))


def exposed_losses(pool: PoolArrays, n_cohorts: int, severity_G: np.ndarray) -> np.ndarray:
    """(C, T + 1) mean loss if a whole cohort defaulted from performing in month t; last: at the end."""
    start = DUE_AT_CUTOFF
    lost = severity_G[pool.loss_group_L][:, None] * pool.schedule_LW[:, start : start + pool.n_months + 1]
    exposed = np.zeros((n_cohorts, pool.n_months + 1))
    np.add.at(exposed, pool.cohort_L, lost)
    return exposed


@njit(inline="always")
def _carried(row: Any, lost: Any, later: Any) -> Any:
    """Loss to come before a month's move, from what it is worth after it."""
    return (row[4] * lost + row[0] * later[0]) + ((row[1] * later[1] + row[2] * later[2]) + row[3] * later[3])


@njit(nogil=True, cache=True)
def _cohort_worth(rows_CTKJ: Any, exposed_CT: Any) -> Any:
    """(C, T + 1, 4) loss to come of a cohort that stands in a state after month t - 1 (0: at the cut-off)."""
    n_cohorts, n_months = rows_CTKJ.shape[:2]
    out = np.zeros((n_cohorts, n_months + 1, 4), np.float32)
    for c in range(n_cohorts):
        out[c, n_months, 3] = exposed_CT[c, n_months]
        for t in range(n_months - 1, -1, -1):
            for k in range(4):
                out[c, t, k] = _carried(rows_CTKJ[c, t, k], np.float32(exposed_CT[c, t]), out[c, t + 1])
    return out


def predicted_losses(rows_PCTKJ: np.ndarray, exposed_CT: np.ndarray, share_CK: np.ndarray) -> np.ndarray:
    """(P,) loss that rows alone predict, currency; `share_CK`: how a cohort stands at the cut-off."""
    found = [_cohort_worth(np.asarray(rows, dtype=np.float32), exposed_CT)[:, 0] for rows in rows_PCTKJ]
    return np.einsum("pck,ck->p", np.stack(found), share_CK)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _factors(rows_PCTKJ: Any, exposed_CT: Any, reference_CTK: Any, least: Any) -> Any:
    """(P, C, T + 1, 4) worth on each path's rows over worth on the reference rows, within 1/20 and 20."""
    n_paths, n_cohorts, n_months = rows_PCTKJ.shape[:3]
    out = np.ones((n_paths, n_cohorts, n_months + 1, 4), np.float32)
    later = np.zeros((n_paths, n_cohorts, 4), np.float32)
    later[:, :, 3] = exposed_CT[:, n_months]
    now = np.zeros(4, np.float32)
    low, high = np.float32(1 / _FURTHEST), np.float32(_FURTHEST)
    for t in range(n_months - 1, -1, -1):  # the order in which a network's rows lie
        for p in range(n_paths):
            for c in range(n_cohorts):
                lost = np.float32(exposed_CT[c, t])
                for k in range(4):
                    now[k] = _carried(rows_PCTKJ[p, c, t, k], lost, later[p, c])
                for k in range(4):
                    later[p, c, k] = now[k]
                    if reference_CTK[c, t, k] > least:
                        out[p, c, t, k] = min(max(now[k] / reference_CTK[c, t, k], low), high)
    return out


@njit(inline="always")
def _standing(lanes: Any, b: Any, i: Any, month: Any, state: Any) -> Any:
    """Balance of a lane that stands in a state before a month, paid through as that state usually is."""
    due = min(month - 1, lanes.final_BL[b, i]) + DUE_AT_CUTOFF + 1
    return lanes.schedule_BWL[b, max(due - state, 0), i]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _worths(
    lanes: Any, rows_CTKJ: Any, severity_G: Any, use_residual: bool, out_BTJL: Any, start_CK: Any
) -> None:
    """Fill (B, T, 5, 64) worths and what each cohort and state is worth at the cut-off."""
    n_months = out_BTJL.shape[1]
    p = np.zeros((N_HISTORY, 6))
    later, now = np.zeros(_PLACES), np.zeros(_PLACES)
    for b in range(lanes.cohort_B.size):
        cohort = lanes.cohort_B[b]
        for i in range(LANES):
            state = lanes.state_BL[b, i]
            if state < 0:
                continue
            severity = severity_G[lanes.group_BL[b, i]]
            clean = 0 if state == 0 and lanes.miss_BL[b, i] <= -NEVER else _CLOCKS - 1
            later[:] = 0.0
            for place in range(_CLOCKS + 2 * _DAYS, _PLACES):
                later[place] = severity * _standing(lanes, b, i, n_months, 3)
            for t in range(n_months - 1, -1, -1):
                matures = t >= lanes.final_BL[b, i]
                out = out_BTJL[b, t]
                out[0, i] = 0.0 if matures else later[clean]
                for k in range(1, 4):
                    out[k, i] = later[_CLOCKS + _DAYS * (k - 1)]
                out[4, i] = severity * lanes.schedule_BWL[b, t + DUE_AT_CUTOFF, i]
                for held in range(N_HISTORY):
                    row, total = rows_CTKJ[cohort, t, HISTORY_STATE[held]], 0.0
                    for j in range(6):
                        w = row[j] + (row[6] if j == 5 else np.float32(0.0))
                        p[held, j] = w * lanes.own_BLHJ[b, i, held, j] if use_residual else w
                        total += p[held, j]
                    for j in range(6):
                        p[held, j] /= total
                for place in range(_PLACES):
                    at, moves = _STATE[place], p[_CLASS[place]]
                    if at == 0:
                        onward = place if place == 0 else min(place + 1, _CLOCKS - 1)
                    else:
                        onward = 1
                    value = moves[4] * severity * _standing(lanes, b, i, t, at)
                    if not matures:
                        value += moves[0] * later[onward]
                    for k in range(1, 4):
                        first = _CLOCKS + _DAYS * (k - 1)
                        value += moves[k] * later[min(place + 1, first + _DAYS - 1) if at == k else first]
                    now[place] = value
                later, now = now, later
            place = (
                clean
                if state == 0
                else _CLOCKS + _DAYS * (state - 1) + min(lanes.in_state_BL[b, i], _DAYS) - 1
            )
            if state == 0 and clean > 0:
                place = min(max(-1 - lanes.miss_BL[b, i], 1), _CLOCKS - 1)
            start_CK[cohort, state] += later[place]
