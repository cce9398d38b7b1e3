"""The compiled kernel: loan states and pool cash in one pass, nothing kept per loan and month.

Here: the numba loop over blocks of 64 loans, gangs of paths and months. Not here: its vector instructions
(`simulation.vectors`), packing loans into lanes (`simulation.lanes`), the same law in readable numpy and as
an exact expectation (`simulation.reference`), batching and threads (`simulation.monte_carlo`).

A loan's weights for month t are

    w[j] = P_cohort[path, cohort, t, state, j] * exp(r[loan, history class, j]),   j = 0..5,          (1)

with P's `matured` column folded into `prepaid`; from the final month on a move to 0 or 5 is `matured`.

A month of a block goes for eight paths together: draw, compare (one word of 64 bits says who leaves), list
the few lanes that leave or are late, walk that list, add up the instalments of all others. The list is
walked without branches but for rare ends, because guessing wrong costs more than the arithmetic. Months
of arrears are carried as what they owe, so a cure reads no path of the index again.

Each path is summed by one thread in a fixed order of blocks, so the bits do not depend on threads or
batches. Functions are compiled without reference counting: they allocate nothing, and counting the arrays of
`Lanes` at every call cost a third of the time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pc_pipeline.simulation.history import IN_STATE_FROM, SINCE_MISS_FROM
from pc_pipeline.simulation.lanes import LANES, N_HISTORY, ROW, STAYS, Lanes, pack_rows
from pc_pipeline.simulation.martingale import (
    Luck,
    add_luck,
    late_expectation,
    late_luck,
    left_luck,
    performing_luck,
)
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF
from pc_pipeline.simulation.rng import MOVE, SEVERITY, block_word, uniform
from pc_pipeline.simulation.vectors import (
    LISTED_AT_ONCE,
    choose,
    choose_own,
    count_bits,
    instalments,
    leave_bits,
    list_bits,
    lowest_bit,
    philox_lanes,
    reach_bits,
    read,
    write,
)

GANG = 8  # paths that go through a block together
_SINCE = np.array(SINCE_MISS_FROM, dtype=np.int64)
_N_SINCE, _N_BUCKET = len(SINCE_MISS_FROM), len(IN_STATE_FROM)
_LONGEST = SINCE_MISS_FROM[-1]
# History class of a performing lane by months since its last miss.
_CLASS_OF = np.searchsorted(SINCE_MISS_FROM, np.arange(_LONGEST + 1), side="right").astype(np.int64)
_FAST = {"reassoc", "contract", "nsz"}
_BARE: Any = {"_nrt": False, "nogil": True, "cache": True, "boundscheck": False}
_ONE, _NONE = np.uint64(1), np.uint64(0)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_THREE, _FOUR = np.uint64(3), np.uint64(4)
_WORD, _DRAWS, _WEIGHTS = LANES, 4 * LANES, 6 * LANES  # numbers a path keeps of lanes, draws, weights


class Scratch(NamedTuple):
    """Working memory of a block along a gang of paths, reused for the next; G paths, N lanes of them all."""

    u_G4L: np.ndarray
    weight_GJL: np.ndarray
    state_N: np.ndarray
    paid_N: np.ndarray  # schedule column paid through, of delinquent lanes
    owed_N: np.ndarray  # interest of the instalments missed, of delinquent lanes
    miss_N: np.ndarray  # month of the last miss, of lanes that have one
    entered_N: np.ndarray  # month at whose end a delinquent lane's state was first held
    class_N: np.ndarray  # history class of performing lanes
    change_GT: np.ndarray  # by month, bits of lanes whose months-since-miss class may change
    alive_G: np.ndarray
    late_G: np.ndarray
    out_G: np.ndarray  # bits of lanes that pay no instalment in the plain way this month
    gone_G: np.ndarray  # bits of performing lanes that end this month
    leaving: np.ndarray  # lists of lanes
    late: np.ndarray
    cash_GC: np.ndarray  # interest, scheduled, prepaid of the month


def new_scratch(n_months: int) -> Scratch:
    """Working memory for a horizon."""
    n = GANG * LANES

    def whole() -> np.ndarray:
        return np.zeros(n, np.int64)

    def bits() -> np.ndarray:
        return np.zeros(GANG, np.uint64)

    return Scratch(
        np.zeros((GANG, 4, LANES), np.float32),
        np.zeros((GANG, 6, LANES), np.float32),
        whole(),
        whole(),
        np.zeros(n),
        whole(),
        whole(),
        whole(),
        np.zeros((GANG, n_months + _LONGEST + 2), np.uint64),
        bits(),
        bits(),
        bits(),
        bits(),
        np.zeros(n + LISTED_AT_ONCE, np.int64),
        np.zeros(n + LISTED_AT_ONCE, np.int64),
        np.zeros((GANG, 3)),
    )


@njit(inline="always")
def severity_at(severity_GQ: Any, group: Any, u: Any) -> Any:
    """Loss given default: the quantile table read at u, linear between its points."""
    place = u * (severity_GQ.shape[1] - 1)
    low = int(place)
    share = place - low
    return severity_GQ[group, low] * (1.0 - share) + severity_GQ[group, low + 1] * share


@njit(inline="always")
def rate_in(lanes: Any, lane: Any, index_PT: Any, p: Any, column: Any) -> Any:
    """Monthly rate of the instalment that leads out of a column; arrears of old at month 0's index."""
    index = read(index_PT, p * index_PT.shape[1] + max(column - DUE_AT_CUTOFF, 0))
    return max(read(lanes.rate_BL, lane) + read(lanes.floating_BL, lane) * index, 0.0)


@njit(inline="always")
def lose(lanes: Any, lane: Any, path_id: Any, t: Any, k0: Any, k1: Any) -> Any:
    """Loss given default drawn for a lane that defaults in month t."""
    key = read(lanes.key_BL, lane)
    u = uniform(k0, k1, key & _LOW, key >> _HALF, path_id, t, SEVERITY)
    return severity_at(lanes.severity_GQ, read(lanes.group_BL, lane), u)


@njit(inline="always")
def charge_off(
    lanes: Any, out_PTC: Any, lane: Any, p: Any, path_id: Any, t: Any, balance: Any, k0: Any, k1: Any
) -> None:
    """Write off a balance; its recovery arrives after the lane's lag, at the horizon at the latest."""
    recovered = 1.0 - lose(lanes, lane, path_id, t, k0, k1)
    out_PTC[p, t, 3] += balance
    out_PTC[p, min(t + read(lanes.lag_BL, lane), out_PTC.shape[1] - 1), 4] += recovered * balance


@njit(inline="always")
def take_class(lanes: Any, work: Any, b: Any, n: Any, held: Any) -> None:
    """Put a performing lane's weights for a history class in place."""
    write(work.class_N, n, held)
    own = ((b * LANES + (n & 63)) * N_HISTORY + held) * ROW
    for j in range(6):
        write(work.weight_GJL, (n >> 6) * _WEIGHTS + j * LANES + (n & 63), read(lanes.own_BLHJ, own + j))


@njit(inline="always")
def listed(bits: Any, base: Any, out: Any, n: Any) -> Any:
    """Write base + place of every set bit to out[n:]; the new length."""
    total = n + count_bits(bits)
    bits = list_bits(bits, base, out, n)
    n += LISTED_AT_ONCE
    while bits != _NONE:
        write(out, n, base + lowest_bit(bits))
        bits &= bits - _ONE
        n += 1
    return total


@njit(inline="always")
def moved_luck(
    lanes: Any, work: Any, luck: Any, b: Any, n: Any, p: Any, path_id: Any, t: Any, k0: Any, k1: Any
) -> None:
    """Own luck of a lane that has left performing."""
    new, i, lost = read(work.state_N, n), n & 63, 0.0
    if new == 4:
        at = (b * lanes.schedule_BWL.shape[1] + t + DUE_AT_CUTOFF) * LANES + i
        lost = read(lanes.schedule_BWL, at) * lose(lanes, b * LANES + i, path_id, t, k0, k1)
    left_luck(luck, b, n >> 6, i, read(lanes.cohort_B, b), p, t, new, lost)


@njit(inline="always")
def late_terms(
    lanes: Any, work: Any, luck: Any, rows: Any, b: Any, n: Any, row: Any, p: Any, t: Any, use_residual: Any
) -> Any:
    """Balance of a late lane, and what it is worth on average after the month; read before it moves."""
    i, state = n & 63, read(work.state_N, n)
    lane = b * LANES + i
    at = (b * lanes.schedule_BWL.shape[1] + read(work.paid_N, n)) * LANES + i
    balance = read(lanes.schedule_BWL, at)
    held = 1 + _N_SINCE + _N_BUCKET * (state - 1) + min(t - read(work.entered_N, n), _N_BUCKET) - 1
    expected = late_expectation(
        luck,
        rows,
        row + state * ROW,
        lanes.own_BLHJ,
        (lane * N_HISTORY + held) * ROW,
        b,
        read(lanes.cohort_B, b),
        p,
        t,
        i,
        balance * read(luck.severity_G, read(lanes.group_BL, lane)),
        use_residual,
    )
    return balance, expected


@njit(**_BARE)
def begin(lanes: Any, work: Any, index_PT: Any, b: Any, g: Any, p: Any, use_residual: Any) -> None:
    """Positions of a block at the cut-off, for one path of the gang."""
    first = g * _WORD
    for i in range(LANES):
        work.state_N[first + i] = lanes.state_BL[b, i]
        work.class_N[first + i] = lanes.class_BL[b, i]
        work.miss_N[first + i] = lanes.miss_BL[b, i]
        work.owed_N[first + i] = 0.0
    work.alive_G[g] = lanes.alive_B[b]
    late = lanes.late_B[b]
    work.late_G[g] = late
    while late != _NONE:
        i = lowest_bit(late)
        late &= late - _ONE
        paid, owed = DUE_AT_CUTOFF - lanes.arrears_BL[b, i], 0.0
        for c in range(paid, DUE_AT_CUTOFF):
            owed += rate_in(lanes, b * LANES + i, index_PT, p, c) * lanes.schedule_BWL[b, c, i]
        work.paid_N[first + i] = paid
        work.owed_N[first + i] = owed
        work.entered_N[first + i] = -lanes.in_state_BL[b, i]
    if use_residual:
        for t in range(work.change_GT.shape[1]):
            work.change_GT[g, t] = lanes.change_BT[b, t]
        for j in range(6):
            for i in range(LANES):
                work.weight_GJL[g, j, i] = lanes.start_weight_BJL[b, j, i]


@njit(inline="always")
def draw_months(
    lanes: Any, work: Any, b: Any, n_gang: Any, first_path: Any, t: Any, k0: Any, k1: Any
) -> None:
    """Uniforms of months t..t+3 for every lane and path."""
    word = block_word(MOVE, t)
    for g in range(n_gang):
        for i in range(0, lanes.count_B[b], 8):
            philox_lanes(
                lanes.key_BL,
                b * LANES + i,
                np.uint64(first_path + g),
                word,
                k0,
                k1,
                work.u_G4L,
                g * _DRAWS + i,
            )


@njit(inline="always")
def change_classes(lanes: Any, work: Any, b: Any, n_gang: Any, t: Any) -> None:
    """New weights for performing lanes whose last miss lies a class further back than a month ago."""
    n_changing = 0
    for g in range(n_gang):
        changing = work.change_GT[g, t] & work.alive_G[g] & ~work.late_G[g]
        n_changing = listed(changing, g * _WORD, work.leaving, n_changing)
    for k in range(n_changing):
        n = read(work.leaving, k)
        since = min(max(t - 1 - read(work.miss_N, n), 0), _LONGEST)
        take_class(lanes, work, b, n, _CLASS_OF[since])


@njit(inline="always")
def list_visits(
    lanes: Any, work: Any, rows: Any, b: Any, row_0: Any, step: Any, n_gang: Any, t: Any, use_residual: Any
) -> Any:
    """Fill the lists of lanes that leave performing and of lanes that are late; their lengths."""
    final = read(lanes.final_BT, b * lanes.final_BT.shape[1] + t)
    n_leaving, n_late = 0, 0
    for g in range(n_gang):
        row, at = row_0 + g * step, g * _DRAWS + (t & 3) * LANES
        if use_residual:
            leaves = leave_bits(work.u_G4L, at, work.weight_GJL, g * _WEIGHTS, rows, row)
        else:
            leaves = reach_bits(work.u_G4L, at, read(rows, row + STAYS))
        late = work.late_G[g] & work.alive_G[g]
        performing = work.alive_G[g] & ~work.late_G[g]
        n_leaving = listed(leaves & performing, g * _WORD, work.leaving, n_leaving)
        n_late = listed(late, g * _WORD, work.late, n_late)
        work.out_G[g] = late
        work.gone_G[g] = final & performing
    return n_leaving, n_late


@njit(inline="always")
def leave_performing(
    lanes: Any,
    work: Any,
    rows: Any,
    index_PT: Any,
    out_PTC: Any,
    b: Any,
    n: Any,
    row: Any,
    p: Any,
    path_id: Any,
    t: Any,
    k0: Any,
    k1: Any,
    use_residual: Any,
) -> None:
    """Move a performing lane whose draw does not stay: to arrears, to an end, or after all to performing."""
    g, i = n >> 6, n & 63
    lane, bit = b * LANES + i, np.uint64(i)
    u = read(work.u_G4L, g * _DRAWS + (t & 3) * LANES + i)
    if use_residual:
        held = read(work.class_N, n)
        new = choose_own(rows, row, lanes.own_BLHJ, (lane * N_HISTORY + held) * ROW, u)
    else:
        new = choose(rows, row, u)
    column = t + DUE_AT_CUTOFF
    at = (b * lanes.schedule_BWL.shape[1] + column) * LANES + i
    before, after = read(lanes.schedule_BWL, at), read(lanes.schedule_BWL, at + LANES)
    write(work.state_N, n, new)
    write(work.paid_N, n, column)
    write(work.entered_N, n, t)
    write(work.owed_N, n, rate_in(lanes, lane, index_PT, p, column) * before)
    missed = np.uint64(np.uint64(new - 1) < _THREE) << bit
    write(work.out_G, g, read(work.out_G, g) | (np.uint64(np.uint64(new - 1) < _FOUR) << bit))
    write(work.late_G, g, read(work.late_G, g) | missed)
    write(work.gone_G, g, (read(work.gone_G, g) & ~missed) | (np.uint64(new >= 4) << bit))
    write(work.cash_GC, 3 * g + 2, read(work.cash_GC, 3 * g + 2) + (after if new == 5 else 0.0))
    if new == 4:
        charge_off(lanes, out_PTC, lane, p, path_id, t, before, k0, k1)


@njit(inline="always")
def move_late(
    lanes: Any,
    work: Any,
    rows: Any,
    index_PT: Any,
    out_PTC: Any,
    b: Any,
    n: Any,
    row: Any,
    p: Any,
    path_id: Any,
    t: Any,
    k0: Any,
    k1: Any,
    use_residual: Any,
) -> None:
    """Move a delinquent lane and settle what it pays."""
    g, i = n >> 6, n & 63
    lane, bit = b * LANES + i, np.uint64(i)
    state = read(work.state_N, n)
    u = read(work.u_G4L, g * _DRAWS + (t & 3) * LANES + i)
    if use_residual:
        held = 1 + _N_SINCE + _N_BUCKET * (state - 1) + min(t - read(work.entered_N, n), _N_BUCKET) - 1
        new = choose_own(rows, row + state * ROW, lanes.own_BLHJ, (lane * N_HISTORY + held) * ROW, u)
    else:
        new = choose(rows, row + state * ROW, u)
    final = np.int64(read(lanes.final_BL, lane))
    ends = np.uint64(new >= 4)
    if t >= final and (new == 0 or new == 5):  # the contract's end: all arrears and the balance are paid
        new, ends = 0, _ONE
    due: int = min(final, t) + DUE_AT_CUTOFF + 1
    top = b * lanes.schedule_BWL.shape[1] * LANES + i
    paid, owed = read(work.paid_N, n), read(work.owed_N, n)
    balance = read(lanes.schedule_BWL, top + paid * LANES)
    newest = rate_in(lanes, lane, index_PT, p, due - 1) * read(lanes.schedule_BWL, top + (due - 1) * LANES)
    second = rate_in(lanes, lane, index_PT, p, due - 2) * read(lanes.schedule_BWL, top + (due - 2) * LANES)
    # One arithmetic for every move: pay up to `target`; what stays owed are the instalments after it.
    target = max(paid, due - (new if new < 3 else 0))
    target = paid if (new == 3) | (new == 4) else target
    left = read(lanes.schedule_BWL, top + target * LANES)
    total = owed + (newest if t <= final else 0.0)
    keeps = (newest if new > 0 else 0.0) + (second if new == 2 else 0.0)
    keeps = keeps if (target > paid) & (new < 3) else total
    interest = total - keeps
    write(work.owed_N, n, keeps)
    write(work.paid_N, n, target)
    write(work.entered_N, n, read(work.entered_N, n) if new == state else t)
    write(work.state_N, n, new)
    write(work.alive_G, g, read(work.alive_G, g) & ~(ends << bit))
    write(work.late_G, g, read(work.late_G, g) & ~(np.uint64(np.uint64(new - 1) >= _THREE) << bit))
    if new == 4:
        charge_off(lanes, out_PTC, lane, p, path_id, t, balance, k0, k1)
    elif new == 5:
        interest = 0.0
        for c in range(paid, target):
            interest += rate_in(lanes, lane, index_PT, p, c) * balance
        write(work.cash_GC, 3 * g + 2, read(work.cash_GC, 3 * g + 2) + left)
    write(work.cash_GC, 3 * g, read(work.cash_GC, 3 * g) + interest)
    write(work.cash_GC, 3 * g + 1, read(work.cash_GC, 3 * g + 1) + (balance - left))
    if use_residual and new == 0:
        write(work.miss_N, n, t - 1)
        take_class(lanes, work, b, n, 1)
        for c in range(1, _N_SINCE):
            work.change_GT[g, t + _SINCE[c]] |= _ONE << bit


@njit(**_BARE)
def sell(
    lanes: Any, work: Any, out_PTC: Any, b: Any, g: Any, p: Any, path_id: Any, k0: Any, k1: Any, luck: Any
) -> None:
    """Convention `horizon_sale`: states 0-2 at par, 90dpd charged off with its recovery at once."""
    last, alive = out_PTC.shape[1] - 1, work.alive_G[g]
    while alive != _NONE:
        i = lowest_bit(alive)
        alive &= alive - _ONE
        state = work.state_N[g * _WORD + i]
        paid = last + 1 + DUE_AT_CUTOFF if state == 0 else work.paid_N[g * _WORD + i]
        balance = lanes.schedule_BWL[b, paid, i]
        if state < 3:
            out_PTC[p, last, 2] += balance
        else:
            lost = lose(lanes, b * LANES + i, path_id, last, k0, k1)
            out_PTC[p, last, 3] += balance
            out_PTC[p, last, 4] += (1.0 - lost) * balance
            if luck is not None:
                term = balance * (lost - luck.severity_G[lanes.group_BL[b, i]])
                add_luck(luck, p, term, term * term)


@njit(fastmath=_FAST, **_BARE)
def run_block(
    lanes: Any,
    work: Any,
    rows: Any,
    index_PT: Any,
    out_PTC: Any,
    b: int,
    low: int,
    n_gang: int,
    first_path: int,
    k0: Any,
    k1: Any,
    use_residual: bool,
    luck: Any,
) -> None:
    """One block of lanes along paths low..low+n_gang-1; adds its cash to out_PTC, own luck where asked."""
    n_months, n_cohorts, width = out_PTC.shape[1], rows.shape[1], lanes.schedule_BWL.shape[1]
    step = n_cohorts * n_months * 4 * ROW  # from a path's rows to the next path's
    for g in range(n_gang):
        begin(lanes, work, index_PT, b, g, low + g, use_residual)
    if luck is not None and not use_residual:
        work.weight_GJL[:] = 1.0
    for t in range(n_months):
        if t & 3 == 0:
            draw_months(lanes, work, b, n_gang, first_path + low, t, k0, k1)
        if use_residual:
            change_classes(lanes, work, b, n_gang, t)
        row_0 = low * step + (lanes.cohort_B[b] * n_months + t) * 4 * ROW
        n_leaving, n_late = list_visits(lanes, work, rows, b, row_0, step, n_gang, t, use_residual)
        for g in range(n_gang):
            work.cash_GC[g, 2] = 0.0
            if luck is not None:
                performing_luck(luck, work, rows, row_0 + g * step, b, lanes.cohort_B[b], g, low + g, t)
        for k in range(n_leaving):
            n = read(work.leaving, k)
            p, row = low + (n >> 6), row_0 + (n >> 6) * step
            leave_performing(
                lanes, work, rows, index_PT, out_PTC, b, n, row, p, first_path + p, t, k0, k1, use_residual
            )
            if luck is not None:
                moved_luck(lanes, work, luck, b, n, p, first_path + p, t, k0, k1)
        at = (b * width + t + DUE_AT_CUTOFF) * LANES
        for g in range(n_gang):
            pays = work.alive_G[g] & ~work.out_G[g]
            work.cash_GC[g, 0], work.cash_GC[g, 1] = instalments(
                pays,
                lanes.schedule_BWL,
                at,
                lanes.rate_BL,
                lanes.floating_BL,
                b * LANES,
                index_PT[low + g, t],
            )
            work.alive_G[g] &= ~work.gone_G[g]
        for k in range(n_late):
            n = read(work.late, k)
            p, row = low + (n >> 6), row_0 + (n >> 6) * step
            if luck is not None:
                balance, expected = late_terms(lanes, work, luck, rows, b, n, row, p, t, use_residual)
            move_late(
                lanes, work, rows, index_PT, out_PTC, b, n, row, p, first_path + p, t, k0, k1, use_residual
            )
            if luck is not None:
                new, lost = read(work.state_N, n), 0.0
                if new == 4:
                    lost = balance * lose(lanes, b * LANES + (n & 63), first_path + p, t, k0, k1)
                late_luck(luck, b, n & 63, lanes.cohort_B[b], p, t, new, lost, expected)
        for g in range(n_gang):
            for c in range(3):
                out_PTC[low + g, t, c] += work.cash_GC[g, c]
    for g in range(n_gang):
        sell(lanes, work, out_PTC, b, g, low + g, first_path + low + g, k0, k1, luck)


@njit(**_BARE)
def run_paths(
    lanes: Any,
    work: Any,
    rows: Any,
    index_PT: Any,
    out_PTC: Any,
    first_path: int,
    k0: Any,
    k1: Any,
    use_residual: bool,
    luck: Any,
) -> None:
    """All blocks, in order, along all paths of the arrays; a block's loans are read once for all paths."""
    n_paths = out_PTC.shape[0]
    for b in range(lanes.cohort_B.size):
        for low in range(0, n_paths, GANG):
            n_gang = min(GANG, n_paths - low)
            run_block(
                lanes, work, rows, index_PT, out_PTC, b, low, n_gang, first_path, k0, k1, use_residual, luck
            )


def run_lanes(
    lanes: Lanes,
    rows_PCTKJ: np.ndarray,
    index_PT: np.ndarray,
    key: tuple[int, int],
    first_path: int,
    out_PTC: np.ndarray,
    low: int = 0,
    high: int | None = None,
    luck: Luck | None = None,
) -> tuple[float, float]:
    """Simulate paths low..high-1 of a batch into out_PTC (zeroed by the caller); safe to call in threads.

    Args:
        rows_PCTKJ: cohort probabilities (P, C, T, 4, 7) float32 from each living state.
        index_PT: index rate of floating loans, decimal per year.
        key: Philox key, `rng.seed_key(seed)`.
        first_path: global number of the batch's first path.
        out_PTC: (P, T, 5) float64.
        luck: add up the loans' own luck too, for all P paths; `out_PX` zeroed by the caller.

    Returns:
        Largest |sum - 1| of a row and smallest entry: what the caller refuses rows by.
    """
    high = out_PTC.shape[0] if high is None else high
    rows, gap, lowest = pack_rows(np.asarray(rows_PCTKJ[low:high], dtype=np.float32))
    run_paths(
        lanes,
        new_scratch(out_PTC.shape[1]),
        rows,
        np.ascontiguousarray(index_PT[low:high], dtype=np.float64) / 12.0,
        out_PTC[low:high],
        first_path + low,
        np.uint64(key[0]),
        np.uint64(key[1]),
        lanes.own_BLHJ.shape[2] > 1,
        None
        if luck is None
        else luck._replace(
            factor_PCTK=luck.factor_PCTK[low:high],
            expected_GL=np.zeros((GANG, LANES), np.float32),
            out_PX=luck.out_PX[low:high],
        ),
    )
    return gap, lowest
