"""Loans packed into lanes, rows into vectors: what the kernel reads.

Here: sorting by cohort, cutting into blocks of 64, start positions as bits, rows checked. Not here: the
loop over them (`simulation.kernel`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pc_pipeline.simulation.history import N_HISTORY, SINCE_MISS_FROM, history_class
from pc_pipeline.simulation.pool import PoolArrays

LANES = 64
N_MOVES = 6  # performing, 30, 60, 90, default, prepaid; matured is settled by the contract
NEVER = 1 << 20
LANE_MULTIPLE = 8
ROW = 8  # a row of moves takes eight places, one vector: six moves, nothing, share that stays performing
STAYS = 7


class Lanes(NamedTuple):
    """The pool sorted by (cohort, loan key) and cut into blocks of one cohort and at most 64 lanes.

    B blocks, W schedule columns, L 64 lanes. Empty lanes carry no balance and are never alive.

    Attributes:
        cohort_B, count_B: cohort of a block, and lanes in use rounded up to 8.
        schedule_BWL: scheduled balances.
        residual_BHJL: exp(residual) by history class and move; (1, 1, 1, 1) when there is none or it is not
            wanted. own_BLHJ: the same by lane, rows of eight of which six are used, (1, 1, 1, 8) when none.
        start_weight_BJL: the residual row of each lane's class at the cut-off.
        final_BT: bits of the lanes whose final month is or lies before a month.
        change_BT: bits of performing lanes whose months-since-miss class changes, by month.
        alive_B, late_B: bits of the living and of the delinquent lanes at the cut-off.
        on_BL: 1.0 where performing.
        others: one value per lane; see `PoolArrays`; rates are monthly.
    """

    cohort_B: np.ndarray
    count_B: np.ndarray
    schedule_BWL: np.ndarray
    residual_BHJL: np.ndarray
    own_BLHJ: np.ndarray
    start_weight_BJL: np.ndarray
    final_BT: np.ndarray
    change_BT: np.ndarray
    alive_B: np.ndarray
    late_B: np.ndarray
    on_BL: np.ndarray
    key_BL: np.ndarray
    state_BL: np.ndarray
    miss_BL: np.ndarray
    in_state_BL: np.ndarray
    class_BL: np.ndarray
    arrears_BL: np.ndarray
    final_BL: np.ndarray
    rate_BL: np.ndarray
    floating_BL: np.ndarray
    group_BL: np.ndarray
    lag_BL: np.ndarray
    severity_GQ: np.ndarray


def pack_lanes(
    pool: PoolArrays, residual_LHJ: np.ndarray | None = None, *, is_sampled_only: bool = False
) -> Lanes:
    """Sort by (cohort, loan key) and cut into blocks of one cohort each.

    Args:
        pool: the loans.
        residual_LHJ: exp(residual) (L, 15, 6) float32, or None where every loan moves as its cohort.
        is_sampled_only: leave out `residual_BHJL`, which the sampling kernel does not read.
    """
    order = np.lexsort((pool.loan_key_L, pool.cohort_L))
    cohort = pool.cohort_L[order]
    starts = np.flatnonzero(np.r_[True, cohort[1:] != cohort[:-1]])
    position = np.arange(order.size) - np.repeat(starts, np.diff(np.r_[starts, order.size]))
    fresh = position % LANES == 0
    block, lane = np.cumsum(fresh) - 1, position % LANES
    n_blocks = int(block[-1]) + 1

    def spread(values: np.ndarray, fill: float, dtype: type) -> np.ndarray:
        out: np.ndarray = np.full((n_blocks, LANES), fill, dtype=dtype)
        out[block, lane] = values[order]
        return out

    schedule = np.zeros((n_blocks, pool.schedule_LW.shape[1], LANES))
    schedule[block, :, lane] = pool.schedule_LW[order]
    state = spread(pool.state_L, -1, np.int32)
    since = spread(pool.since_miss_L, -1, np.int64)
    in_state = spread(pool.in_state_L, 1, np.int32)
    classes = history_class(np.maximum(state, 0), since, in_state).astype(np.int32)
    miss = np.where(since < 0, -NEVER, np.where(state > 0, -1, -1 - np.maximum(since, 1))).astype(np.int32)
    final = spread(np.minimum(pool.final_L, NEVER), NEVER, np.int32)
    months = np.arange(pool.n_months)
    if residual_LHJ is None:
        residual, own = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, ROW), np.float32)
        start = residual[0]
    else:
        own = np.ones((n_blocks, LANES, N_HISTORY, ROW), np.float32)
        own[block, lane, :, :N_MOVES] = residual_LHJ[order]
        picked = np.take_along_axis(own, classes[:, :, None, None].astype(np.int64), axis=2)[:, :, 0]
        start = picked[:, :, :N_MOVES].transpose(0, 2, 1)
        residual = np.ones((1, 1, 1, 1), np.float32)
        if not is_sampled_only:
            residual = np.ascontiguousarray(own[..., :N_MOVES].transpose(0, 2, 3, 1))
    return Lanes(
        cohort_B=cohort[fresh].astype(np.int64),
        count_B=_rounded_up(np.bincount(block, minlength=n_blocks)),
        schedule_BWL=schedule,
        residual_BHJL=residual,
        own_BLHJ=own,
        start_weight_BJL=np.ascontiguousarray(start),
        final_BT=_bits(final[:, None, :] <= months[None, :, None]),
        change_BT=_class_changes(state, miss, pool.n_months),
        alive_B=_bits((state >= 0)[:, None, :])[:, 0].copy(),
        late_B=_bits((state > 0)[:, None, :])[:, 0].copy(),
        on_BL=(state == 0).astype(np.float64),
        key_BL=spread(pool.loan_key_L, 0, np.uint64),
        state_BL=state,
        miss_BL=miss,
        in_state_BL=in_state,
        class_BL=classes,
        arrears_BL=spread(pool.arrears_L, 0, np.int32),
        final_BL=final,
        rate_BL=spread(pool.rate_L / 12.0, 0.0, np.float64),
        floating_BL=spread(pool.is_floating_L, 0.0, np.float64),
        group_BL=spread(pool.loss_group_L, 0, np.int32),
        lag_BL=spread(pool.recovery_lag_L, 0, np.int32),
        severity_GQ=np.ascontiguousarray(pool.severity_GQ, dtype=np.float64),
    )


def _rounded_up(used_B: np.ndarray) -> np.ndarray:
    return (-(-used_B // LANE_MULTIPLE) * LANE_MULTIPLE).astype(np.int64)


def _bits(mask_BTL: np.ndarray) -> np.ndarray:
    """(B, T) uint64 with one bit a lane."""
    packed = np.packbits(mask_BTL, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8")[..., 0].astype(np.uint64)


def _class_changes(state_BL: np.ndarray, miss_BL: np.ndarray, n_months: int) -> np.ndarray:
    """(B, T + 14) bits of lanes performing at the cut-off that enter a new months-since-miss class."""
    length = n_months + SINCE_MISS_FROM[-1] + 2
    changes = np.zeros((*state_BL.shape[:1], length, LANES), dtype=bool)
    block, lane = np.nonzero((state_BL == 0) & (miss_BL > -NEVER))
    for low in SINCE_MISS_FROM[1:]:
        month = miss_BL[block, lane] + 1 + low
        inside = (month >= 0) & (month < length)
        changes[block[inside], month[inside], lane[inside]] = True
    return _bits(changes)


@njit(nogil=True, cache=True)
def pack_rows(rows_PCTKJ: Any) -> Any:
    """Rows as the kernel reads them, (P, C, T, 4, 8), and how far they are from probabilities.

    Returns:
        packed rows; largest |sum - 1|, infinite where an entry is not a number; smallest entry.
    """
    n_paths, n_cohorts, n_months, n_living, n_states = rows_PCTKJ.shape
    out = np.zeros((n_paths, n_cohorts, n_months, n_living, ROW), np.float32)
    gap, lowest = np.float32(0.0), np.float32(0.0)
    for t in range(n_months):  # the order in which a network's rows lie
        for p in range(n_paths):
            for c in range(n_cohorts):
                for k in range(n_living):
                    row, packed = rows_PCTKJ[p, c, t, k], out[p, c, t, k]
                    total = np.float32(0.0)
                    for j in range(n_states):
                        total += row[j]
                        lowest = min(lowest, row[j])
                    off = abs(total - np.float32(1.0)) if total == total else np.float32(np.inf)
                    gap = max(gap, off)
                    for j in range(5):
                        packed[j] = row[j]
                    packed[5] = row[5] + row[6]
                    packed[STAYS] = row[0] / total if total > 0 else np.float32(0.0)
    return out, float(gap), float(lowest)
