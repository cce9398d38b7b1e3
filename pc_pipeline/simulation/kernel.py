"""The compiled kernel: loan states and pool cash in one pass, nothing kept per loan and month.

Here: the numba loop over blocks of 64 loans, paths and months. Not here: packing loans into lanes
(`simulation.lanes`), the same law in readable numpy and as an exact expectation (`simulation.reference`),
batching and threads (`simulation.monte_carlo`).

A loan's weights for month t are

    w[j] = P_cohort[path, cohort, t, state, j] * exp(r[loan, history class, j]),   j = 0..5,          (1)

with P's `matured` column folded into `prepaid`; from the final month on w[0] + w[5] becomes `matured`.

Most loan-months stay performing and pay one instalment. Those are handled branch-free: a month of a block is
one pass that draws, one that compares and sets a bit for each lane that leaves, one that adds up the cash
of the lanes that stay. Only set bits (moves, delinquent lanes, final months) are visited one by one. Each
path is summed by one thread in a fixed order of blocks, so the bits do not depend on threads or batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pc_pipeline.simulation.history import IN_STATE_FROM, SINCE_MISS_FROM
from pc_pipeline.simulation.lanes import LANES, Lanes
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF
from pc_pipeline.simulation.rng import MOVE, SEVERITY, UNIT, block_word, philox, uniform

_SINCE = np.array(SINCE_MISS_FROM, dtype=np.int64)
_N_SINCE = len(SINCE_MISS_FROM)
_N_BUCKET = len(IN_STATE_FROM)
_FAST = {"reassoc", "contract", "nsz"}
_ONE, _NONE = np.uint64(1), np.uint64(0)
_GATHER, _TOP = np.uint64(0x0102040810204080), np.uint64(56)
_LOW, _HALF, _EIGHT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(8)


class Scratch(NamedTuple):
    """Working memory of one block on one path (64 lanes), reused for the next."""

    u_4L: np.ndarray
    weight_JL: np.ndarray
    on_L: np.ndarray  # 1.0 where the lane is performing and will pay this month's instalment
    state_L: np.ndarray
    paid_L: np.ndarray  # schedule column paid through, of delinquent lanes
    miss_L: np.ndarray  # month of the last miss, of lanes that have one
    entered_L: np.ndarray  # month at whose end a delinquent lane's state was first held
    class_L: np.ndarray
    leaves_L: np.ndarray  # one byte a lane, and the same memory as
    leaves_8: np.ndarray  # eight words
    change_T: np.ndarray  # by month, bits of lanes whose months-since-miss class may change


def new_scratch(n_months: int) -> Scratch:
    """Working memory for a horizon."""
    leaves = np.zeros(LANES, np.uint8)
    return Scratch(
        np.empty((4, LANES), np.float32),
        np.empty((6, LANES), np.float32),
        np.empty(LANES, np.float64),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
        leaves,
        leaves.view(np.uint64),
        np.zeros(n_months + SINCE_MISS_FROM[-1] + 2, np.uint64),
    )


@intrinsic
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Place of the lowest set bit of a uint64 that is not zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), emit


lowest_bit: Any = _lowest_bit


@njit(inline="always")
def severity_at(severity_GQ: Any, group: Any, u: Any) -> Any:
    """Loss given default: the quantile table read at u, linear between its points."""
    place = u * (severity_GQ.shape[1] - 1)
    low = int(place)
    share = place - low
    return severity_GQ[group, low] * (1.0 - share) + severity_GQ[group, low + 1] * share


@njit(inline="always")
def since_class(since: Any) -> Any:
    """History class of a performing lane that last missed `since` months ago."""
    held = 0
    while held < _N_SINCE and since >= _SINCE[held]:
        held += 1
    return held


@njit(inline="always")
def choose(w0: Any, w1: Any, w2: Any, w3: Any, w4: Any, w5: Any, u: Any, final: Any) -> Any:
    """The state moved to: inverse of the cumulative weights (1) at u, contract's end applied."""
    ended = w0 + w5
    x = u * ((ended + w1) + (w2 + w3) + w4)
    if final:
        w0 = np.float32(0.0)
    low = w0 + w1
    lower = low + w2
    lowest = lower + w3
    new = np.int64(x >= w0) + np.int64(x >= low) + np.int64(x >= lower) + np.int64(x >= lowest)
    new += np.int64(x >= lowest + w4)
    if final and new == 5:
        return 6 if ended > 0 else (4 if w4 > 0 else 3)
    return new


@njit(inline="always")
def rate_in(lanes: Any, b: Any, i: Any, index_PT: Any, p: Any, column: Any) -> Any:
    """Monthly rate of the instalment that leads out of a column; arrears of old at month 0's index."""
    index = index_PT[p, max(column - DUE_AT_CUTOFF, 0)]
    return max(lanes.rate_BL[b, i] + lanes.floating_BL[b, i] * index, 0.0)


@njit(inline="always")
def take_class(lanes: Any, work: Any, b: Any, i: Any, held: Any) -> None:
    """Put a performing lane's weights for a history class in place."""
    work.class_L[i] = held
    for j in range(6):
        work.weight_JL[j, i] = lanes.residual_BHJL[b, held, j, i]


@njit(inline="always")
def lose(lanes: Any, b: Any, i: Any, path_id: Any, t: Any, k0: Any, k1: Any) -> Any:
    """Loss given default drawn for a lane that defaults in month t."""
    key = lanes.key_BL[b, i]
    u = uniform(k0, k1, key & _LOW, key >> _HALF, path_id, t, SEVERITY)
    return severity_at(lanes.severity_GQ, lanes.group_BL[b, i], u)


@njit(inline="always")
def draw_months(lanes: Any, work: Any, b: Any, count: Any, path_id: Any, t: Any, k0: Any, k1: Any) -> None:
    """Uniforms of months t..t+3 for every lane."""
    word = block_word(MOVE, t)
    for i in range(count):
        key = lanes.key_BL[b, i]
        x0, x1, x2, x3 = philox(key & _LOW, key >> _HALF, np.uint64(path_id), word, k0, k1)
        work.u_4L[0, i] = np.float32(np.int32(x0 >> _EIGHT)) * UNIT
        work.u_4L[1, i] = np.float32(np.int32(x1 >> _EIGHT)) * UNIT
        work.u_4L[2, i] = np.float32(np.int32(x2 >> _EIGHT)) * UNIT
        work.u_4L[3, i] = np.float32(np.int32(x3 >> _EIGHT)) * UNIT


@njit(inline="always")
def leavers(work: Any, row: Any, slot: Any, count: Any, use_residual: Any) -> Any:
    """Bits of the lanes whose draw, read in the performing row, does not stay performing."""
    b0, b1, b2, b3, b4 = row[0, 0], row[0, 1], row[0, 2], row[0, 3], row[0, 4]
    b5 = row[0, 5] + row[0, 6]
    if use_residual:
        for i in range(count):
            w0 = b0 * work.weight_JL[0, i]
            total = (
                (w0 + b1 * work.weight_JL[1, i]) + (b2 * work.weight_JL[2, i] + b3 * work.weight_JL[3, i])
            ) + (b4 * work.weight_JL[4, i] + b5 * work.weight_JL[5, i])
            work.leaves_L[i] = np.uint8(work.u_4L[slot, i] * total >= w0)
    else:
        total = ((b0 + b1) + (b2 + b3)) + (b4 + b5)
        for i in range(count):
            work.leaves_L[i] = np.uint8(work.u_4L[slot, i] * total >= b0)
    bits = _NONE
    for eight in range(8):  # gather the low bit of each of eight bytes
        bits |= ((work.leaves_8[eight] * _GATHER) >> _TOP) << np.uint64(8 * eight)
    return bits


@njit(inline="always")
def begin(lanes: Any, work: Any, b: Any, use_residual: Any) -> None:
    """Positions at the cut-off."""
    for i in range(LANES):
        work.state_L[i] = lanes.state_BL[b, i]
        work.on_L[i] = lanes.on_BL[b, i]
        work.class_L[i] = lanes.class_BL[b, i]
        work.miss_L[i] = lanes.miss_BL[b, i]
    if lanes.late_B[b] != _NONE:
        for i in range(LANES):
            work.paid_L[i] = DUE_AT_CUTOFF - lanes.arrears_BL[b, i]
            work.entered_L[i] = -lanes.in_state_BL[b, i]
    if use_residual:
        for t in range(work.change_T.size):
            work.change_T[t] = lanes.change_BT[b, t]
        for j in range(6):
            for i in range(LANES):
                work.weight_JL[j, i] = lanes.start_weight_BJL[b, j, i]


@njit(nogil=True, cache=True, fastmath=_FAST, boundscheck=False)
def run_block(
    lanes: Any,
    work: Any,
    rows_PCTKJ: Any,
    index_PT: Any,
    out_PTC: Any,
    b: int,
    p: int,
    path_id: int,
    k0: Any,
    k1: Any,
    use_residual: bool,
) -> None:
    """One block of lanes along one path; adds its cash to out_PTC[p]."""
    n_months = out_PTC.shape[1]
    count, cohort = lanes.count_B[b], lanes.cohort_B[b]
    alive, late = lanes.alive_B[b], lanes.late_B[b]
    begin(lanes, work, b, use_residual)
    for t in range(n_months):
        if alive == _NONE:
            break
        if t & 3 == 0:
            draw_months(lanes, work, b, count, path_id, t, k0, k1)
        slot = t & 3
        row = rows_PCTKJ[p, cohort, t]
        if use_residual:
            changing = work.change_T[t] & alive & ~late
            while changing != _NONE:
                i = lowest_bit(changing)
                changing &= changing - _ONE
                take_class(lanes, work, b, i, since_class(t - 1 - work.miss_L[i]))
        visit = (leavers(work, row, slot, count, use_residual) | late | lanes.final_BT[b, t]) & alive
        cured = _NONE
        column = t + DUE_AT_CUTOFF + 1
        while visit != _NONE:
            i = lowest_bit(visit)
            visit &= visit - _ONE
            bit = _ONE << np.uint64(i)
            state = np.int64(work.state_L[i])
            was_late = state > 0
            w0, w1, w2, w3 = row[state, 0], row[state, 1], row[state, 2], row[state, 3]
            w4, w5 = row[state, 4], row[state, 5] + row[state, 6]
            if use_residual:
                late_class = _N_SINCE + _N_BUCKET * (state - 1) + min(t - work.entered_L[i], _N_BUCKET)
                held = late_class if was_late else np.int64(work.class_L[i])
                w0 *= lanes.residual_BHJL[b, held, 0, i]
                w1 *= lanes.residual_BHJL[b, held, 1, i]
                w2 *= lanes.residual_BHJL[b, held, 2, i]
                w3 *= lanes.residual_BHJL[b, held, 3, i]
                w4 *= lanes.residual_BHJL[b, held, 4, i]
                w5 *= lanes.residual_BHJL[b, held, 5, i]
            final = int(lanes.final_BL[b, i])
            new = choose(w0, w1, w2, w3, w4, w5, work.u_4L[slot, i], t >= final)
            if new == 0 and not was_late:
                continue
            # One arithmetic for every move, so that only rare ones branch: pay up to `target`, and what a
            # prepayment leaves of the balance is ahead of schedule.
            due: int = min(t, final) + DUE_AT_CUTOFF + 1
            paid = np.int64(work.paid_L[i]) if was_late else column - 1
            target = max(paid, due - (new if new < 3 else 0))
            target = paid if new == 3 or new == 4 else target
            balance, left = lanes.schedule_BWL[b, paid, i], lanes.schedule_BWL[b, target, i]
            interest = np.float64(target > paid) * rate_in(lanes, b, i, index_PT, p, paid) * balance
            for c in range(paid + 1, target):
                accrues = balance if new == 5 else lanes.schedule_BWL[b, c, i]
                interest += rate_in(lanes, b, i, index_PT, p, c) * accrues
            out_PTC[p, t, 0] += interest
            out_PTC[p, t, 1] += balance - left
            out_PTC[p, t, 2] += np.float64(new == 5) * left
            if new == 4:
                loss = lose(lanes, b, i, path_id, t, k0, k1)
                out_PTC[p, t, 3] += balance
                out_PTC[p, min(t + lanes.lag_BL[b, i], n_months - 1), 4] += (1.0 - loss) * balance
            is_late, ended = 1 <= new <= 3, new >= 4
            work.on_L[i] = 0.0
            work.paid_L[i] = target
            work.entered_L[i] = work.entered_L[i] if new == state else t
            work.state_L[i] = new
            alive &= ~(np.uint64(ended) << np.uint64(i))
            late = (late & ~bit) | (np.uint64(is_late) << np.uint64(i))
            cured |= np.uint64(new == 0) << np.uint64(i)
            if use_residual and new == 0:
                work.miss_L[i] = t - 1
                take_class(lanes, work, b, i, 1)
                for n in range(1, _N_SINCE):
                    work.change_T[t + _SINCE[n]] |= bit
        index = index_PT[p, t]
        interest = 0.0
        principal = 0.0
        for i in range(count):
            before = lanes.schedule_BWL[b, column - 1, i]
            pays = work.on_L[i] * before
            interest += max(lanes.rate_BL[b, i] + lanes.floating_BL[b, i] * index, 0.0) * pays
            principal += pays - work.on_L[i] * lanes.schedule_BWL[b, column, i]
        out_PTC[p, t, 0] += interest
        out_PTC[p, t, 1] += principal
        while cured != _NONE:
            work.on_L[lowest_bit(cured)] = 1.0
            cured &= cured - _ONE

    last = n_months - 1
    while alive != _NONE:
        i = lowest_bit(alive)
        alive &= alive - _ONE
        state = work.state_L[i]
        paid = n_months + DUE_AT_CUTOFF if state == 0 else np.int64(work.paid_L[i])
        balance = lanes.schedule_BWL[b, paid, i]
        if state < 3:
            out_PTC[p, last, 2] += balance
        else:
            out_PTC[p, last, 3] += balance
            out_PTC[p, last, 4] += (1.0 - lose(lanes, b, i, path_id, last, k0, k1)) * balance


@njit(nogil=True, cache=True)
def run_paths(
    lanes: Any,
    work: Any,
    rows_PCTKJ: Any,
    index_PT: Any,
    out_PTC: Any,
    first_path: int,
    low: int,
    high: int,
    k0: Any,
    k1: Any,
    use_residual: bool,
) -> None:
    """Paths low..high-1 of a batch whose first path is `first_path`: all blocks, in order, into out_PTC."""
    for b in range(lanes.cohort_B.size):
        for p in range(low, high):
            run_block(lanes, work, rows_PCTKJ, index_PT, out_PTC, b, p, first_path + p, k0, k1, use_residual)


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
        lanes,
        new_scratch(out_PTC.shape[1]),
        np.ascontiguousarray(rows_PCTKJ, dtype=np.float32),
        np.ascontiguousarray(index_PT, dtype=np.float64) / 12.0,
        out_PTC,
        first_path,
        low,
        out_PTC.shape[0] if high is None else high,
        np.uint64(key[0]),
        np.uint64(key[1]),
        lanes.residual_BHJL.shape[1] > 1,
    )
