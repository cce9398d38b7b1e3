"""Expected cash of a pool given each macro path: exact, of every loan, without sampling.

Here: the kernel's law (`simulation.kernel`, eq. (1)) carried forward as probabilities instead of draws,
64 loans at a time. Not here: the draws, the same law loan by loan in plain Python (`simulation.reference`,
to which tests hold this), gradients (`simulation.gradient_cash`).

Given the rows, loans are independent, and a loan's future depends on its history class and on the
instalment that it is paid through. Performing loans are paid through alike; 30dpd is one instalment behind,
60dpd one or two, 90dpd any number. From three on, every cure ends at the same instalment, so four moments
of what lies behind (mass, balance, interest paid, rate sum times balance) replace the distribution.

Slots of a lane: 0-12 performing, by months since the last miss (0 never, 12 that or more); then for each
(state, instalments behind) of `_KNOWN` three by months in the state; then the moments of 90dpd, 3 and more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numba import njit

from pc_pipeline.schemas.units import N_CASH
from pc_pipeline.simulation.history import IN_STATE_FROM, N_PERFORMING_CLASSES, SINCE_MISS_FROM
from pc_pipeline.simulation.lanes import LANES, Lanes, pack_lanes
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, PoolArrays

_CLOCKS: Final = SINCE_MISS_FROM[-1] + 1  # performing slots
_DAYS: Final = len(IN_STATE_FROM)  # slots by months in a state
_KNOWN: Final = np.array([(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)])  # (state, instalments behind)
_N_KNOWN: Final = _CLOCKS + _DAYS * len(_KNOWN)
_CLASS_OF_CLOCK: Final = np.searchsorted(SINCE_MISS_FROM, np.arange(_CLOCKS), side="right")
_MASS, _BALANCE, _INTEREST, _RATED = range(4)
_FAST: Final = {"reassoc", "contract", "nsz", "arcp"}
PATHS_PER_TASK: Final = 4


@njit(inline="always")
def _slot(place: Any, held: Any) -> Any:
    """Slot of the place-th known (state, instalments behind) in its held-th month."""
    return _CLOCKS + _DAYS * place + held


@njit(nogil=True, cache=True, fastmath=_FAST, boundscheck=False)
def _columns(lanes: Any, b: int, index_T: Any, paid_WL: Any, rated_WL: Any) -> None:
    """Interest of all instalments before a schedule column, and the sum of their rates."""
    count = lanes.count_B[b]
    for i in range(LANES):
        paid_WL[0, i] = 0.0
        rated_WL[0, i] = 0.0
    for c in range(paid_WL.shape[0] - 1):
        index = index_T[min(max(c - DUE_AT_CUTOFF, 0), index_T.size - 1)]
        for i in range(count):
            rate = max(lanes.rate_BL[b, i] + lanes.floating_BL[b, i] * index, 0.0)
            paid_WL[c + 1, i] = paid_WL[c, i] + rate * lanes.schedule_BWL[b, c, i]
            rated_WL[c + 1, i] = rated_WL[c, i] + rate


@njit(nogil=True, cache=True, boundscheck=False)
def _begin(lanes: Any, b: int, paid_WL: Any, rated_WL: Any, now: Any, behind: Any) -> None:
    """All mass where the cut-off finds it."""
    now[:] = 0.0
    behind[:] = 0.0
    for i in range(lanes.count_B[b]):
        state = lanes.state_BL[b, i]
        if state < 0:
            continue
        held = min(lanes.in_state_BL[b, i], _DAYS) - 1
        arrears = max(lanes.arrears_BL[b, i], 1)
        if state == 0:
            since = -1 - lanes.miss_BL[b, i]
            now[0 if since >= 1 << 19 else min(since, _CLOCKS - 1), i] = 1.0
        elif state == 3 and arrears >= 3:
            column = DUE_AT_CUTOFF - arrears
            balance = lanes.schedule_BWL[b, column, i]
            behind[_MASS, held, i] = 1.0
            behind[_BALANCE, held, i] = balance
            behind[_INTEREST, held, i] = paid_WL[column, i]
            behind[_RATED, held, i] = rated_WL[column, i] * balance
        else:
            place = 0 if state == 1 else (arrears if state == 2 else 2 + arrears)
            now[_slot(place, held), i] = 1.0


@njit(inline="always")
def _odds(lanes: Any, b: Any, t: Any, row: Any, held: Any, state: Any, use_residual: Any, p: Any) -> None:
    """p[j, i]: probabilities of a history class's moves, the contract's end applied (row 6 matured)."""
    w = row[state]
    for i in range(lanes.count_B[b]):
        if use_residual:
            p[0, i] = w[0] * lanes.residual_BHJL[b, held, 0, i]
            p[1, i] = w[1] * lanes.residual_BHJL[b, held, 1, i]
            p[2, i] = w[2] * lanes.residual_BHJL[b, held, 2, i]
            p[3, i] = w[3] * lanes.residual_BHJL[b, held, 3, i]
            p[4, i] = w[4] * lanes.residual_BHJL[b, held, 4, i]
            p[5, i] = (w[5] + w[6]) * lanes.residual_BHJL[b, held, 5, i]
        else:
            p[0, i], p[1, i], p[2, i] = w[0], w[1], w[2]
            p[3, i], p[4, i], p[5, i] = w[3], w[4], w[5] + w[6]
    for i in range(lanes.count_B[b]):
        share = 1.0 / (((p[0, i] + p[1, i]) + (p[2, i] + p[3, i])) + (p[4, i] + p[5, i]))
        final = np.float64(lanes.final_BL[b, i] <= t)
        p[6, i] = (p[0, i] + p[5, i]) * share * final
        p[0, i] *= share * (1.0 - final)
        p[5, i] *= share * (1.0 - final)
        p[1, i] *= share
        p[2, i] *= share
        p[3, i] *= share
        p[4, i] *= share


@njit(nogil=True, cache=True, fastmath=_FAST, boundscheck=False)
def expected_block(
    lanes: Any,
    rows_CTKJ: Any,
    index_T: Any,
    b: int,
    use_residual: bool,
    severity_G: Any,
    out_TC: Any,
    lost_L: Any,
) -> None:
    """One block along one path: adds its expected cash to out_TC and each lane's expected loss to lost_L."""
    n_months, count = out_TC.shape[0], lanes.count_B[b]
    width = lanes.schedule_BWL.shape[1]
    paid_WL, rated_WL = np.empty((width, LANES)), np.empty((width, LANES))
    now, later = np.empty((_N_KNOWN, LANES)), np.empty((_N_KNOWN, LANES))
    behind, further = np.empty((4, _DAYS, LANES)), np.empty((4, _DAYS, LANES))
    p = np.zeros((7, LANES))
    s_due, i_due, r_due = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    grows = np.empty(LANES)
    interest, scheduled, ahead, charged = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    to_30, to_60, to_90 = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    _columns(lanes, b, index_T, paid_WL, rated_WL)
    _begin(lanes, b, paid_WL, rated_WL, now, behind)
    for t in range(n_months):
        later[:] = 0.0
        further[:] = 0.0
        to_30[:] = 0.0
        to_60[:] = 0.0
        to_90[:] = 0.0
        row = rows_CTKJ[lanes.cohort_B[b], t]
        source = t + DUE_AT_CUTOFF  # column of performing lanes
        for i in range(count):
            due = min(t, lanes.final_BL[b, i]) + DUE_AT_CUTOFF + 1
            s_due[i] = lanes.schedule_BWL[b, due, i]
            i_due[i], r_due[i] = paid_WL[due, i], rated_WL[due, i]
            grows[i] = np.float64(t <= lanes.final_BL[b, i])
            interest[i], scheduled[i], ahead[i], charged[i] = 0.0, 0.0, 0.0, 0.0
        # performing: by clock; sums of what stays or matures, defaults, prepays
        held_before = -1
        for clock in range(_CLOCKS):
            held = _CLASS_OF_CLOCK[clock]
            if held != held_before:
                _odds(lanes, b, t, row, held, 0, use_residual, p)
                held_before = held
            onward = clock if clock == 0 else min(clock + 1, _CLOCKS - 1)
            for i in range(count):
                q = now[clock, i]
                later[onward, i] += q * p[0, i]
                to_30[i] += q * p[1, i]
                to_60[i] += q * p[2, i]
                to_90[i] += q * p[3, i]
                charged[i] += q * p[4, i]
                ahead[i] += q * p[5, i]
                scheduled[i] += q * (p[0, i] + p[6, i])
        for i in range(count):
            balance, i_from = lanes.schedule_BWL[b, source, i], paid_WL[source, i]
            stays, early = scheduled[i], ahead[i]
            interest[i] = stays * (i_due[i] - i_from) + early * (r_due[i] - rated_WL[source, i]) * balance
            scheduled[i] = (stays + early) * (balance - s_due[i])
            ahead[i] = early * s_due[i]
            charged[i] *= balance
            later[_slot(0, 0), i] += to_30[i]
            later[_slot(1, 0), i] += to_60[i]
            later[_slot(3, 0), i] += to_90[i]
        # late, instalments behind known
        for place in range(5):
            state = _KNOWN[place, 0]
            arrears = _KNOWN[place, 1]
            for held in range(_DAYS):
                _odds(
                    lanes,
                    b,
                    t,
                    row,
                    N_PERFORMING_CLASSES + _DAYS * (state - 1) + held,
                    state,
                    use_residual,
                    p,
                )
                on = min(held + 1, _DAYS - 1)
                at_30 = _slot(0, on if state == 1 else 0)
                held_60, held_90 = (on if state == 2 else 0), (on if state == 3 else 0)
                for i in range(count):
                    q = now[_slot(place, held), i]
                    column = min(t + DUE_AT_CUTOFF, lanes.final_BL[b, i] + DUE_AT_CUTOFF + 1) - arrears
                    due = min(t, lanes.final_BL[b, i]) + DUE_AT_CUTOFF + 1
                    balance, i_from = lanes.schedule_BWL[b, column, i], paid_WL[column, i]
                    cures, early = q * (p[0, i] + p[6, i]), q * p[5, i]
                    a30, a60, a90 = q * p[1, i], q * p[2, i], q * p[3, i]
                    reach = max(column, due - 2)
                    interest[i] += (
                        cures * (i_due[i] - i_from)
                        + a30 * (paid_WL[due - 1, i] - i_from)
                        + a60 * (paid_WL[reach, i] - i_from)
                        + early * (r_due[i] - rated_WL[column, i]) * balance
                    )
                    scheduled[i] += (
                        (cures + early) * (balance - s_due[i])
                        + a30 * (balance - lanes.schedule_BWL[b, due - 1, i])
                        + a60 * (balance - lanes.schedule_BWL[b, reach, i])
                    )
                    ahead[i] += early * s_due[i]
                    charged[i] += q * p[4, i] * balance
                    later[1, i] += q * p[0, i]
                    later[at_30, i] += a30
                    to_60[i] = a60
                    to_90[i] = a90
                    if arrears == 1:
                        later[_slot(1, held_60), i] += a60 * (1.0 - grows[i])
                        later[_slot(2, held_60), i] += a60 * grows[i]
                        later[_slot(3, held_90), i] += a90 * (1.0 - grows[i])
                        later[_slot(4, held_90), i] += a90 * grows[i]
                    else:
                        later[_slot(2, held_60), i] += a60
                        later[_slot(4, held_90), i] += a90 * (1.0 - grows[i])
                        deep = a90 * grows[i]
                        further[_MASS, held_90, i] += deep
                        further[_BALANCE, held_90, i] += deep * balance
                        further[_INTEREST, held_90, i] += deep * i_from
                        further[_RATED, held_90, i] += deep * rated_WL[column, i] * balance
        # 90dpd, three instalments behind or more
        for held in range(_DAYS):
            _odds(lanes, b, t, row, N_PERFORMING_CLASSES + _DAYS * 2 + held, 3, use_residual, p)
            on = min(held + 1, _DAYS - 1)
            for i in range(count):
                q, balance = behind[_MASS, held, i], behind[_BALANCE, held, i]
                i_from, rated = behind[_INTEREST, held, i], behind[_RATED, held, i]
                due = min(t, lanes.final_BL[b, i]) + DUE_AT_CUTOFF + 1
                cures, early = p[0, i] + p[6, i], p[5, i]
                interest[i] += (
                    cures * (q * i_due[i] - i_from)
                    + p[1, i] * (q * paid_WL[due - 1, i] - i_from)
                    + p[2, i] * (q * paid_WL[due - 2, i] - i_from)
                    + early * (r_due[i] * balance - rated)
                )
                scheduled[i] += (
                    (cures + early) * (balance - q * s_due[i])
                    + p[1, i] * (balance - q * lanes.schedule_BWL[b, due - 1, i])
                    + p[2, i] * (balance - q * lanes.schedule_BWL[b, due - 2, i])
                )
                ahead[i] += early * q * s_due[i]
                charged[i] += p[4, i] * balance
                later[1, i] += q * p[0, i]
                later[_slot(0, 0), i] += q * p[1, i]
                later[_slot(2, 0), i] += q * p[2, i]
                for m in range(4):
                    further[m, on, i] += behind[m, held, i] * p[3, i]
        sums = np.zeros(4)
        for i in range(count):
            sums[0] += interest[i]
            sums[1] += scheduled[i]
            sums[2] += ahead[i]
            sums[3] += charged[i]
        for c in range(4):
            out_TC[t, c] += sums[c]
        for i in range(count):
            severity = severity_G[lanes.group_BL[b, i]]
            lost_L[i] += severity * charged[i]
            out_TC[min(t + lanes.lag_BL[b, i], n_months - 1), 4] += (1.0 - severity) * charged[i]
        now, later = later, now
        behind, further = further, behind
    _sell(lanes, b, now, behind, severity_G, out_TC, lost_L)


@njit(nogil=True, cache=True, boundscheck=False)
def _sell(lanes: Any, b: int, now: Any, behind: Any, severity_G: Any, out_TC: Any, lost_L: Any) -> None:
    """Convention `horizon_sale`."""
    last = out_TC.shape[0] - 1
    for i in range(lanes.count_B[b]):
        living = 0.0
        for clock in range(_CLOCKS):
            living += now[clock, i]
        saleable = living * lanes.schedule_BWL[b, last + 1 + DUE_AT_CUTOFF, i]
        late = 0.0
        due = min(last, lanes.final_BL[b, i]) + DUE_AT_CUTOFF + 1
        for held in range(_DAYS):
            for place in range(5):
                balance = now[_slot(place, held), i] * lanes.schedule_BWL[b, due - _KNOWN[place, 1], i]
                if _KNOWN[place, 0] < 3:
                    saleable += balance
                else:
                    late += balance
            late += behind[_BALANCE, held, i]
        severity = severity_G[lanes.group_BL[b, i]]
        out_TC[last, 2] += saleable
        out_TC[last, 3] += late
        out_TC[last, 4] += (1.0 - severity) * late
        lost_L[i] += severity * late


@njit(nogil=True, cache=True, boundscheck=False)
def _run(
    lanes: Any,
    rows_PCTKJ: Any,
    index_PT: Any,
    severity_G: Any,
    tilt_PK: Any,
    low: int,
    high: int,
    out_PTC: Any,
    split_BLK: Any,
) -> None:
    """Paths low..high-1; split_BLK gathers sum_p tilt[p, k] times each lane's expected loss."""
    use_residual = lanes.residual_BHJL.shape[1] > 1
    lost = np.empty(LANES)
    for b in range(lanes.cohort_B.size):
        for p in range(low, high):
            lost[:] = 0.0
            expected_block(lanes, rows_PCTKJ[p], index_PT[p], b, use_residual, severity_G, out_PTC[p], lost)
            for k in range(tilt_PK.shape[1]):
                for i in range(lanes.count_B[b]):
                    split_BLK[b, i, k] += tilt_PK[p, k] * lost[i]


class ConditionalPool:
    """A pool's expected cash and losses along given macro paths.

    Args:
        pool: the loans.
        residual_LHJ: exp(residual) (L, 15, 6), or None where every loan moves as its cohort.
        n_threads: paths are spread over them; sums do not depend on it.
    """

    def __init__(self, pool: PoolArrays, residual_LHJ: np.ndarray | None = None, n_threads: int = 2) -> None:
        self.pool, self.n_threads = pool, n_threads
        self.lanes: Lanes = pack_lanes(pool, residual_LHJ)
        table = pool.severity_GQ
        self._severity_G = (table[:, 1:] + table[:, :-1]).mean(axis=1) / 2.0
        self._loan_BL = _loan_of_lane(pool, self.lanes)

    def cash(self, rows_PCTKJ: np.ndarray, index_PT: np.ndarray) -> np.ndarray:
        """(P, T, 5) expected cash given each path, currency."""
        return self._carry(rows_PCTKJ, index_PT, np.zeros((len(index_PT), 0)))[0]

    def losses(self, rows_PCTKJ: np.ndarray, index_PT: np.ndarray) -> np.ndarray:
        """(P,) expected loss given each path, share of the pool balance."""
        cash = self.cash(rows_PCTKJ, index_PT)
        return (cash[:, :, 3] - cash[:, :, 4]).sum(axis=1) / self.pool.total_balance

    def split(
        self, rows_PCTKJ: np.ndarray, index_PT: np.ndarray, tilt_PK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expected losses by loan.

        Args:
            tilt_PK: (P, K) what a path counts in each of K sums.

        Returns:
            ((P, T, 5) expected cash, (L, K) sum over paths of tilt times the loan's expected loss, currency).
        """
        cash, split_BLK = self._carry(rows_PCTKJ, index_PT, np.asarray(tilt_PK, dtype=float))
        used = self._loan_BL >= 0
        by_loan = np.zeros((self.pool.n_loans, split_BLK.shape[2]))
        by_loan[self._loan_BL[used]] = split_BLK[used]
        return cash, by_loan

    def _carry(
        self, rows_PCTKJ: np.ndarray, index_PT: np.ndarray, tilt_PK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = np.ascontiguousarray(rows_PCTKJ, dtype=np.float32)
        index = np.ascontiguousarray(index_PT, dtype=float) / 12.0
        n_paths, n_months = index.shape
        out = np.zeros((n_paths, n_months, N_CASH))
        starts = range(0, n_paths, PATHS_PER_TASK)
        tilt = np.ascontiguousarray(tilt_PK)
        parts = (
            [np.zeros((self.lanes.cohort_B.size, LANES, tilt.shape[1])) for _ in starts] if tilt.size else []
        )
        nothing = np.zeros((self.lanes.cohort_B.size, LANES, 0))
        with ThreadPoolExecutor(self.n_threads) as threads:
            tasks = [
                threads.submit(
                    _run,
                    self.lanes,
                    rows,
                    index,
                    self._severity_G,
                    tilt,
                    low,
                    min(low + PATHS_PER_TASK, n_paths),
                    out,
                    parts[place] if parts else nothing,
                )
                for place, low in enumerate(starts)
            ]
            for task in tasks:
                task.result()
        return out, np.sum(parts, axis=0) if parts else nothing


def _loan_of_lane(pool: PoolArrays, lanes: Lanes) -> np.ndarray:
    """(B, 64) row of the pool in each lane, -1 in empty ones: the order of `pack_lanes`."""
    order = np.lexsort((pool.loan_key_L, pool.cohort_L))
    cohort = pool.cohort_L[order]
    starts = np.flatnonzero(np.r_[True, cohort[1:] != cohort[:-1]])
    position = np.arange(order.size) - np.repeat(starts, np.diff(np.r_[starts, order.size]))
    block = np.cumsum(position % LANES == 0) - 1
    loan_BL = np.full((lanes.cohort_B.size, LANES), -1)
    loan_BL[block, position % LANES] = order
    return loan_BL
