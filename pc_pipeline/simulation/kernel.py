"""The compiled kernel: loan states and pool cash in one pass, nothing kept per loan and month.

Here: packing loans into lanes, and the numba loop over paths, blocks of 64 loans and months. Not here: the
same law in readable numpy and as an exact expectation (`simulation.reference`), batching and threads
(`simulation.monte_carlo`).

A loan's weights for month t are

    w[j] = P_cohort[path, cohort, t, state, j] * exp(r[loan, history class, j]),   j = 0..5,          (1)

with P's `matured` column folded into `prepaid`; from the final month on w[0] + w[5] becomes `matured`.
Most loan-months stay performing and current. They are handled branch-free, lane by lane: draw, compare,
pay the instalment. Lanes with anything else to do are flagged and handled one by one. Each path is summed by
one thread in a fixed order of blocks, so the bits do not depend on threads or batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pc_pipeline.simulation.history import IN_STATE_FROM, N_HISTORY, SINCE_MISS_FROM
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, PoolArrays
from pc_pipeline.simulation.rng import MOVE, SEVERITY, UNIT, block_word, philox, uniform

LANES = 64
N_MOVES = 6  # performing, 30, 60, 90, default, prepaid; matured is settled by the contract
N_OUT = 5
NEVER = 1 << 30

_SINCE = np.array(SINCE_MISS_FROM, dtype=np.int64)
_N_SINCE = len(SINCE_MISS_FROM)
_N_BUCKET = len(IN_STATE_FROM)
_FAST = {"reassoc", "contract", "nsz"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """The pool sorted by cohort and cut into blocks of at most 64 lanes (B blocks, W columns).

    Empty lanes carry no balance and never move.

    Attributes:
        cohort_B, count_B: cohort of a block, and lanes in use rounded up to 16.
        schedule_BWL: scheduled balances.
        residual_BHJL: exp(residual) by history class and move; shape (1, 1, 1, 1) when there is none.
        others: one value per lane; see `PoolArrays`.
    """

    cohort_B: np.ndarray
    count_B: np.ndarray
    schedule_BWL: np.ndarray
    residual_BHJL: np.ndarray
    key_BL: np.ndarray
    state_BL: np.ndarray
    since_miss_BL: np.ndarray
    in_state_BL: np.ndarray
    arrears_BL: np.ndarray
    final_BL: np.ndarray
    rate_BL: np.ndarray
    floating_BL: np.ndarray
    group_BL: np.ndarray
    lag_BL: np.ndarray
    severity_GQ: np.ndarray


def pack_lanes(pool: PoolArrays, residual_LHJ: np.ndarray | None = None) -> Lanes:
    """Sort by (cohort, loan key) and cut into blocks of one cohort each.

    Args:
        pool: the loans.
        residual_LHJ: exp(residual) (L, 15, 6) float32, or None where every loan moves as its cohort.
    """
    order = np.lexsort((pool.loan_key_L, pool.cohort_L))
    cohort = pool.cohort_L[order]
    starts = np.flatnonzero(np.r_[True, cohort[1:] != cohort[:-1]])
    position = np.arange(order.size) - np.repeat(starts, np.diff(np.r_[starts, order.size]))
    fresh = np.r_[True, (cohort[1:] != cohort[:-1]) | (position[1:] % LANES == 0)]
    block = np.cumsum(fresh) - 1
    lane = position % LANES
    n_blocks = int(block[-1]) + 1

    def spread(values: np.ndarray, fill: float, dtype: type) -> np.ndarray:
        out: np.ndarray = np.full((n_blocks, LANES), fill, dtype=dtype)
        out[block, lane] = values[order]
        return out

    schedule = np.zeros((n_blocks, pool.schedule_LW.shape[1], LANES))
    schedule[block, :, lane] = pool.schedule_LW[order]
    if residual_LHJ is None:
        residual = np.ones((1, 1, 1, 1), np.float32)
    else:
        residual = np.ones((n_blocks, N_HISTORY, N_MOVES, LANES), np.float32)
        residual[block, :, :, lane] = residual_LHJ[order]
    used = np.bincount(block, minlength=n_blocks)
    return Lanes(
        cohort_B=cohort[fresh].astype(np.int64),
        count_B=(-(-used // 16) * 16).astype(np.int64),
        schedule_BWL=schedule,
        residual_BHJL=residual,
        key_BL=spread(pool.loan_key_L, 0, np.uint64),
        state_BL=spread(pool.state_L, -1, np.int64),
        since_miss_BL=spread(pool.since_miss_L, -1, np.int64),
        in_state_BL=spread(pool.in_state_L, 1, np.int64),
        arrears_BL=spread(pool.arrears_L, 0, np.int64),
        final_BL=spread(pool.final_L, NEVER, np.int64),
        rate_BL=spread(pool.rate_L / 12.0, 0.0, np.float64),
        floating_BL=spread(pool.is_floating_L, 0.0, np.float64),
        group_BL=spread(pool.loss_group_L, 0, np.int64),
        lag_BL=spread(pool.recovery_lag_L, 0, np.int64),
        severity_GQ=np.ascontiguousarray(pool.severity_GQ, dtype=np.float64),
    )


@njit(inline="always")
def severity_at(severity_GQ: np.ndarray, group: int, u: float) -> float:
    """Loss given default: the quantile table read at u, linear between its points."""
    place = u * (severity_GQ.shape[1] - 1)
    low = int(place)
    share = place - low
    return severity_GQ[group, low] * (1.0 - share) + severity_GQ[group, low + 1] * share


@njit(inline="always")
def class_and_change(state: int, last_miss: int, entered: int, month: int) -> tuple[int, int]:
    """History class that governs the move of `month`, and the month from which another one does.

    Args:
        last_miss: month of the last delinquent state, below -NEVER / 2 if never.
        entered: month at whose end the present state was first held.
    """
    if state == 0:
        since = month - 1 - last_miss
        if since > NEVER // 2:
            return 0, NEVER
        held = 0
        while held < _N_SINCE and since >= _SINCE[held]:
            held += 1
        if held < _N_SINCE:
            return held, last_miss + 1 + _SINCE[held]
        return held, NEVER
    held = min(month - entered, _N_BUCKET) - 1
    return 1 + _N_SINCE + _N_BUCKET * (state - 1) + held, 0


@njit(inline="always")
def choose(w0: float, w1: float, w2: float, w3: float, w4: float, w5: float, u: float, final: bool) -> int:
    """The state moved to: inverse of the cumulative weights (1) at u, contract's end applied."""
    total = ((w0 + w1) + (w2 + w3)) + (w4 + w5)
    x = u * total
    if final:
        ended = w0 + w5
        if x < w1:
            return 1
        if x < w1 + w2:
            return 2
        if x < w1 + w2 + w3:
            return 3
        if x < w1 + w2 + w3 + w4:
            return 4
        return 6 if ended > 0 else (4 if w4 > 0 else 3)
    if x < w0:
        return 0
    low = w0 + w1
    if x < low:
        return 1
    low += w2
    if x < low:
        return 2
    low += w3
    if x < low:
        return 3
    low += w4
    if x < low:
        return 4
    return 5


@njit(nogil=True, cache=True, fastmath=_FAST, boundscheck=False)
def run_block(
    b, path_id, p, k0, k1, rows_PCTKJ, index_PT, use_residual,
    cohort_B, count_B, schedule_BWL, residual_BHJL, key_BL, state_BL, since_miss_BL, in_state_BL,
    arrears_BL, final_BL, rate_BL, floating_BL, group_BL, lag_BL, severity_GQ,
    u_4L, weight_JL, on_L, alive_L, event_L, state_L, paid_L, miss_L, entered_L, class_L, change_L, flag_L,
    out_PTC,
):  # fmt: skip
    """One block of lanes along one path; adds its cash to out_PTC[p]. Scratch arrays come from the caller."""
    n_months = out_PTC.shape[1]
    count, cohort = count_B[b], cohort_B[b]
    for i in range(count):
        state = state_BL[b, i]
        state_L[i] = state
        alive_L[i] = state >= 0
        on_L[i] = 1.0 if state == 0 else 0.0
        paid_L[i] = DUE_AT_CUTOFF - arrears_BL[b, i]
        since = since_miss_BL[b, i]
        miss_L[i] = -NEVER if since < 0 else -1 - (max(since, 1) if state == 0 else 0)
        entered_L[i] = -in_state_BL[b, i]
        class_L[i] = -1
        change_L[i] = 0
        event_L[i] = 0
        for j in range(6):
            weight_JL[j, i] = 1.0 if j == 0 else 0.0
        if state < 0:
            event_L[i] = NEVER
        elif state == 0:
            cell, change = class_and_change(0, miss_L[i], entered_L[i], 0)
            class_L[i] = cell
            change_L[i] = change
            event_L[i] = min(change, final_BL[b, i])
            if use_residual:
                for j in range(6):
                    weight_JL[j, i] = residual_BHJL[b, cell, j, i]
            else:
                for j in range(6):
                    weight_JL[j, i] = 1.0

    for t in range(n_months):
        if t & 3 == 0:
            word = block_word(MOVE, t)
            for i in range(count):
                key = key_BL[b, i]
                x0, x1, x2, x3 = philox(
                    key & np.uint64(0xFFFFFFFF), key >> np.uint64(32), np.uint64(path_id), word, k0, k1
                )
                u_4L[0, i] = np.float32(np.int32(x0 >> np.uint64(8))) * UNIT
                u_4L[1, i] = np.float32(np.int32(x1 >> np.uint64(8))) * UNIT
                u_4L[2, i] = np.float32(np.int32(x2 >> np.uint64(8))) * UNIT
                u_4L[3, i] = np.float32(np.int32(x3 >> np.uint64(8))) * UNIT
        slot = t & 3
        row = rows_PCTKJ[p, cohort, t]
        b0, b1, b2, b3, b4 = row[0, 0], row[0, 1], row[0, 2], row[0, 3], row[0, 4]
        b5 = row[0, 5] + row[0, 6]
        n_flagged = 0
        for i in range(count):
            w0 = b0 * weight_JL[0, i]
            total = ((w0 + b1 * weight_JL[1, i]) + (b2 * weight_JL[2, i] + b3 * weight_JL[3, i])) + (
                b4 * weight_JL[4, i] + b5 * weight_JL[5, i]
            )
            leaves = np.int32(u_4L[slot, i] * total >= w0)
            due = np.int32(event_L[i] <= t)
            flag_L[i] = leaves | due
            n_flagged += leaves | due
        column = t + DUE_AT_CUTOFF + 1
        index = index_PT[p, t] / 12.0
        interest = 0.0
        principal = 0.0
        for i in range(count):
            stays = on_L[i] * (1 - flag_L[i])
            before = schedule_BWL[b, column - 1, i]
            interest += stays * max(rate_BL[b, i] + floating_BL[b, i] * index, 0.0) * before
            principal += stays * (before - schedule_BWL[b, column, i])
        out_PTC[p, t, 0] += interest
        out_PTC[p, t, 1] += principal
        if n_flagged == 0:
            continue
        for i in range(count):
            if flag_L[i] == 0 or alive_L[i] == 0:
                continue
            state = state_L[i]
            if change_L[i] <= t:
                cell, change = class_and_change(state, miss_L[i], entered_L[i], t)
                change_L[i] = change
                if cell != class_L[i]:
                    class_L[i] = cell
                    for j in range(6):
                        weight_JL[j, i] = residual_BHJL[b, cell, j, i] if use_residual else np.float32(1.0)
            final = final_BL[b, i]
            new = choose(
                row[state, 0] * weight_JL[0, i],
                row[state, 1] * weight_JL[1, i],
                row[state, 2] * weight_JL[2, i],
                row[state, 3] * weight_JL[3, i],
                row[state, 4] * weight_JL[4, i],
                (row[state, 5] + row[state, 6]) * weight_JL[5, i],
                u_4L[slot, i],
                t >= final,
            )
            paid = paid_L[i]
            if state == 0:
                paid = column - 1
            due_column = min(t, final) + DUE_AT_CUTOFF + 1
            rate, floating = rate_BL[b, i], floating_BL[b, i]
            if new <= 3:
                target = paid
                if new < 3:
                    target = max(paid, due_column - new)
                interest = 0.0
                for c in range(paid, target):
                    month = max(c - DUE_AT_CUTOFF, 0)
                    interest += (
                        max(rate + floating * (index_PT[p, month] / 12.0), 0.0) * schedule_BWL[b, c, i]
                    )
                out_PTC[p, t, 0] += interest
                out_PTC[p, t, 1] += schedule_BWL[b, paid, i] - schedule_BWL[b, target, i]
                paid_L[i] = target
                if new != state:
                    entered_L[i] = t
                    if new == 0:
                        miss_L[i] = t - 1
                    state_L[i] = new
                    change_L[i] = 0
                if new == 0:
                    on_L[i] = 1.0
                    if change_L[i] <= t + 1:
                        cell, change = class_and_change(0, miss_L[i], entered_L[i], t + 1)
                        change_L[i] = change
                        if cell != class_L[i]:
                            class_L[i] = cell
                            for j in range(6):
                                weight_JL[j, i] = (
                                    residual_BHJL[b, cell, j, i] if use_residual else np.float32(1.0)
                                )
                    event_L[i] = min(change_L[i], final)
                else:
                    on_L[i] = 0.0
                    event_L[i] = 0
                continue
            balance = schedule_BWL[b, paid, i]
            if new == 4:
                u = uniform(
                    k0,
                    k1,
                    key_BL[b, i] & np.uint64(0xFFFFFFFF),
                    key_BL[b, i] >> np.uint64(32),
                    path_id,
                    t,
                    SEVERITY,
                )
                loss = severity_at(severity_GQ, group_BL[b, i], u)
                out_PTC[p, t, 3] += balance
                out_PTC[p, min(t + lag_BL[b, i], n_months - 1), 4] += (1.0 - loss) * balance
            elif new == 5:
                interest = 0.0
                for c in range(paid, due_column):
                    month = max(c - DUE_AT_CUTOFF, 0)
                    interest += max(rate + floating * (index_PT[p, month] / 12.0), 0.0)
                out_PTC[p, t, 0] += interest * balance
                out_PTC[p, t, 1] += balance - schedule_BWL[b, due_column, i]
                out_PTC[p, t, 2] += schedule_BWL[b, due_column, i]
            else:
                interest = 0.0
                for c in range(paid, due_column):
                    month = max(c - DUE_AT_CUTOFF, 0)
                    interest += (
                        max(rate + floating * (index_PT[p, month] / 12.0), 0.0) * schedule_BWL[b, c, i]
                    )
                out_PTC[p, t, 0] += interest
                out_PTC[p, t, 1] += balance
            alive_L[i] = 0
            on_L[i] = 0.0
            event_L[i] = NEVER
            for j in range(6):
                weight_JL[j, i] = 1.0 if j == 0 else 0.0

    last = n_months - 1
    for i in range(count):
        if alive_L[i] == 0:
            continue
        state = state_L[i]
        paid = n_months + DUE_AT_CUTOFF if state == 0 else paid_L[i]
        balance = schedule_BWL[b, paid, i]
        if state < 3:
            out_PTC[p, last, 2] += balance
        else:
            u = uniform(
                k0,
                k1,
                key_BL[b, i] & np.uint64(0xFFFFFFFF),
                key_BL[b, i] >> np.uint64(32),
                path_id,
                last,
                SEVERITY,
            )
            loss = severity_at(severity_GQ, group_BL[b, i], u)
            out_PTC[p, last, 3] += balance
            out_PTC[p, last, 4] += (1.0 - loss) * balance


@njit(nogil=True, cache=True, fastmath=_FAST, boundscheck=False)
def run_paths(
    first_path, low, high, k0, k1, rows_PCTKJ, index_PT, use_residual,
    cohort_B, count_B, schedule_BWL, residual_BHJL, key_BL, state_BL, since_miss_BL, in_state_BL,
    arrears_BL, final_BL, rate_BL, floating_BL, group_BL, lag_BL, severity_GQ, out_PTC,
):  # fmt: skip
    """Paths low..high-1 of a batch whose first path is `first_path`: all blocks, in order, into out_PTC."""
    u_4L = np.empty((4, LANES), np.float32)
    weight_JL = np.empty((6, LANES), np.float32)
    on_L = np.empty(LANES, np.float64)
    alive_L = np.empty(LANES, np.int32)
    event_L = np.empty(LANES, np.int32)
    state_L = np.empty(LANES, np.int64)
    paid_L = np.empty(LANES, np.int64)
    miss_L = np.empty(LANES, np.int64)
    entered_L = np.empty(LANES, np.int64)
    class_L = np.empty(LANES, np.int64)
    change_L = np.empty(LANES, np.int64)
    flag_L = np.empty(LANES, np.int32)
    for b in range(cohort_B.size):
        for p in range(low, high):
            run_block(
                b, first_path + p, p, k0, k1, rows_PCTKJ, index_PT, use_residual,
                cohort_B, count_B, schedule_BWL, residual_BHJL, key_BL, state_BL, since_miss_BL, in_state_BL,
                arrears_BL, final_BL, rate_BL, floating_BL, group_BL, lag_BL, severity_GQ,
                u_4L, weight_JL, on_L, alive_L, event_L, state_L, paid_L, miss_L, entered_L, class_L,
                change_L, flag_L, out_PTC,
            )  # fmt: skip


def run_lanes(
    lanes: Lanes,
    rows_PCTKJ: np.ndarray,
    index_PT: np.ndarray,
    key: tuple[int, int],
    first_path: int,
    out_PTC: np.ndarray,
    low: int = 0,
    high: int | None = None,
) -> None:
    """Simulate paths low..high-1 of a batch into out_PTC (zeroed by the caller); safe to call in threads.

    Args:
        rows_PCTKJ: cohort probabilities (P, C, T, 4, 7) float32 from each living state.
        index_PT: index rate of floating loans, decimal per year.
        key: Philox key, `rng.seed_key(seed)`.
        first_path: global number of the batch's first path.
        out_PTC: (P, T, 5) float64.
    """
    run_paths(
        first_path,
        low,
        out_PTC.shape[0] if high is None else high,
        np.uint64(key[0]),
        np.uint64(key[1]),
        rows_PCTKJ,
        index_PT,
        lanes.residual_BHJL.shape[1] > 1,
        lanes.cohort_B,
        lanes.count_B,
        lanes.schedule_BWL,
        lanes.residual_BHJL,
        lanes.key_BL,
        lanes.state_BL,
        lanes.since_miss_BL,
        lanes.in_state_BL,
        lanes.arrears_BL,
        lanes.final_BL,
        lanes.rate_BL,
        lanes.floating_BL,
        lanes.group_BL,
        lanes.lag_BL,
        lanes.severity_GQ,
        out_PTC,
    )
