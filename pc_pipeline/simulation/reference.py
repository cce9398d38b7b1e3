"""The same law as the kernel, written to be read: numpy over loans, and the exact expectation.

Here: `simulate_reference` (the vectorised baseline of the speed claims; with the counter's numbers it
follows the kernel path by path), `cash_of_states` (the paid-through ledger applied to given states), and
`expected_cash` (no sampling: probabilities over history class and arrears are carried forward). Not here:
the kernel itself (`simulation.kernel`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pc_pipeline.simulation.history import HISTORY_STATE, N_HISTORY, advance, history_class
from pc_pipeline.simulation.pool import DUE_AT_CUTOFF, PoolArrays, mean_severity
from pc_pipeline.simulation.rng import MOVE, SEVERITY, uniforms

Uniforms = Callable[[int, int], np.ndarray]  # (month, purpose) -> (L,)
TERMINAL_PAYMENT = 6


def counter_numbers(seed: int, pool: PoolArrays, path_id: int) -> Uniforms:
    """The very numbers the kernel draws for one path."""
    return lambda month, purpose: uniforms(seed, pool.loan_key_L, path_id, month, purpose)


def generator_numbers(generator: np.random.Generator, pool: PoolArrays) -> Uniforms:
    """Fast numbers of a numpy generator; same law, other draws."""
    return lambda month, purpose: generator.random(pool.n_loans, dtype=np.float32)


def move_weights(
    row_CKJ: np.ndarray,
    residual_LHJ: np.ndarray | None,
    pool: PoolArrays,
    state_L: np.ndarray,
    class_L: np.ndarray,
) -> np.ndarray:
    """(L, 6) weights of eq. (1) of `simulation.kernel`."""
    living = np.minimum(state_L, 3)
    folded = row_CKJ[..., :6].copy()
    folded[..., 5] += row_CKJ[..., 6]
    weights = np.take(folded.reshape(-1, 6), 4 * pool.cohort_L + living, axis=0)
    if residual_LHJ is not None:
        weights *= residual_LHJ[np.arange(pool.n_loans), class_L]
    return weights


def at_contract_end(new_L: np.ndarray, is_final_L: np.ndarray) -> np.ndarray:
    """From the final month on, what would stay performing or prepay has matured."""
    return np.where(is_final_L & ((new_L == 0) | (new_L == 5)), 6, new_L)


def settle_maturity(weights_LJ: np.ndarray, is_final_L: np.ndarray) -> np.ndarray:
    """(L, 7) weights after the contract's end: performing and prepaid become matured."""
    ended = np.where(is_final_L, weights_LJ[:, 0] + weights_LJ[:, 5], 0.0)
    settled = np.concatenate([weights_LJ, ended[:, None]], axis=1)
    settled[:, 0] = np.where(is_final_L, 0.0, settled[:, 0])
    settled[:, 5] = np.where(is_final_L, 0.0, settled[:, 5])
    return settled


def draw(weights_LJ: np.ndarray, u_L: np.ndarray) -> np.ndarray:
    """(L,) state moved to: inverse of the cumulative weights at u, column by column for speed."""
    columns = np.ascontiguousarray(weights_LJ.T)
    cumulative = np.cumsum(columns, axis=0, out=columns)
    drawn = u_L * cumulative[-1]
    new = np.zeros(u_L.size, np.int64)
    for level in cumulative[:5]:
        new += drawn >= level
    return new


class Ledger:
    """The paid-through ledger of every loan along one path; `settle` turns a month's moves into cash."""

    def __init__(self, pool: PoolArrays, index_T: np.ndarray) -> None:
        self.pool, self.rows = pool, np.arange(pool.n_loans)
        self.paid_L = DUE_AT_CUTOFF - pool.arrears_L
        months = np.maximum(np.arange(pool.schedule_LW.shape[1] - 1) - DUE_AT_CUTOFF, 0)
        self.index_W = index_T[np.minimum(months, index_T.size - 1)]
        self.cash_TC = np.zeros((index_T.size, 5))

    def balance(self) -> np.ndarray:
        """(L,) scheduled balance at the paid-through instalment."""
        return self.pool.schedule_LW[self.rows, self.paid_L]

    def interest(self, target_L: np.ndarray, moving_L: np.ndarray, on_balance: bool) -> float:
        """Interest of instalments (paid, target], each on its opening balance or all on today's balance."""
        pool, total, balance = self.pool, 0.0, self.balance()
        column = self.paid_L.copy()
        rows = np.flatnonzero(moving_L & (column < target_L))
        while rows.size:
            at = column[rows]
            rate = np.maximum(pool.rate_L[rows] + pool.is_floating_L[rows] * self.index_W[at], 0.0) / 12.0
            total += float((rate * (balance[rows] if on_balance else pool.schedule_LW[rows, at])).sum())
            column[rows] += 1
            rows = rows[column[rows] < target_L[rows]]
        return total

    def settle(self, month: int, state_L: np.ndarray, new_L: np.ndarray, severity_L: np.ndarray) -> None:
        """Book the cash of one month; loans already ended have state_L > 3 and are left alone."""
        pool, cash = self.pool, self.cash_TC
        alive = state_L <= 3
        due = np.minimum(month, pool.final_L) + DUE_AT_CUTOFF + 1
        balance = self.balance()
        target = np.where(new_L < 3, np.maximum(self.paid_L, due - new_L), self.paid_L)
        target = np.where(new_L == TERMINAL_PAYMENT, due, target)
        pays = alive & ((new_L < 3) | (new_L == TERMINAL_PAYMENT))
        cash[month, 0] += self.interest(target, pays, on_balance=False)
        cash[month, 1] += (balance - pool.schedule_LW[self.rows, target])[pays].sum()
        prepays = alive & (new_L == 5)
        ahead = pool.schedule_LW[self.rows, due]
        cash[month, 0] += self.interest(due, prepays, on_balance=True)
        cash[month, 1] += (balance - ahead)[prepays].sum()
        cash[month, 2] += ahead[prepays].sum()
        self.charge_off(month, alive & (new_L == 4), severity_L, pool.recovery_lag_L)
        self.paid_L = np.where(pays, target, self.paid_L)

    def charge_off(
        self, month: int, defaults_L: np.ndarray, severity_L: np.ndarray, lag_L: np.ndarray
    ) -> None:
        """Write off the balance; the recovery arrives after the lag, at the horizon at the latest."""
        if not defaults_L.any():
            return
        balance = self.balance()[defaults_L]
        self.cash_TC[month, 3] += balance.sum()
        arrival = np.minimum(month + lag_L[defaults_L], self.cash_TC.shape[0] - 1)
        np.add.at(self.cash_TC[:, 4], arrival, (1.0 - severity_L[defaults_L]) * balance)

    def sell(self, state_L: np.ndarray, severity_L: np.ndarray) -> np.ndarray:
        """Convention `horizon_sale`: states 0-2 at par, 90dpd charged off with its recovery; all cash."""
        last = self.cash_TC.shape[0] - 1
        self.cash_TC[last, 2] += self.balance()[state_L < 3].sum()
        self.charge_off(last, state_L == 3, severity_L, np.zeros_like(self.pool.recovery_lag_L))
        return self.cash_TC


def severity_from(pool: PoolArrays, u_L: np.ndarray) -> np.ndarray:
    """(L,) loss given default at quantile u of each loan's group."""
    place = u_L * (pool.severity_GQ.shape[1] - 1)
    low = place.astype(np.int64)
    share = place - low
    return (
        pool.severity_GQ[pool.loss_group_L, low] * (1 - share)
        + pool.severity_GQ[pool.loss_group_L, low + 1] * share
    )


def simulate_reference(
    pool: PoolArrays,
    rows_CTKJ: np.ndarray,
    index_T: np.ndarray,
    residual_LHJ: np.ndarray | None,
    numbers: Uniforms,
) -> np.ndarray:
    """(T, 5) cash of one path, numpy over loans."""
    state, since, in_state = pool.state_L.copy(), pool.since_miss_L.copy(), pool.in_state_L.copy()
    ledger = Ledger(pool, index_T)
    classes = state
    for month in range(index_T.size):
        if residual_LHJ is not None:
            classes = history_class(np.minimum(state, 3), since, in_state)
        weights = move_weights(rows_CTKJ[:, month], residual_LHJ, pool, state, classes)
        new = at_contract_end(draw(weights, numbers(month, MOVE)), month >= pool.final_L)
        new = np.where(state <= 3, new, state)
        severity = severity_from(pool, numbers(month, SEVERITY)) if (new == 4).any() else pool.rate_L
        ledger.settle(month, state, new, severity)
        if residual_LHJ is not None:
            since, in_state = advance(state, new, since, in_state)
        state = new
    return ledger.sell(state, severity_from(pool, numbers(index_T.size - 1, SEVERITY)))


def cash_of_states(
    pool: PoolArrays, states_LT: np.ndarray, index_T: np.ndarray, severity_L: np.ndarray | None = None
) -> np.ndarray:
    """(T, 5) pool cash when every loan's states are given (exact mode, observed histories).

    Args:
        states_LT: state at each month's end; after an end it repeats. The contract's end is applied here:
            performing or prepaid from the final month on is matured.
        severity_L: loss given default per loan; the group means without it.
    """
    losses = mean_severity(pool)[pool.loss_group_L] if severity_L is None else severity_L
    ledger, state = Ledger(pool, index_T), pool.state_L.copy()
    for month in range(index_T.size):
        new = np.where(state <= 3, states_LT[:, month], state)
        at_end = (month >= pool.final_L) & (state <= 3)
        new = np.where(at_end & ((new == 0) | (new == 5)), 6, new)
        new = np.where(~at_end & (state <= 3) & (new == 6), 5, new)
        ledger.settle(month, state, new, losses)
        state = new
    return ledger.sell(state, losses)


def expected_cash(
    pool: PoolArrays, rows_CTKJ: np.ndarray, index_T: np.ndarray, residual_LHJ: np.ndarray | None
) -> np.ndarray:
    """(T, 5) exact expected cash given one macro path: the oracle of the kernel.

    Given the rows, loans are independent; each carries a distribution over (history clock, column paid
    through), which is propagated without error. Cost O(L T^2): for tests and small pools.
    """
    total = np.zeros((index_T.size, 5))
    for loan in range(pool.n_loans):
        total += _expected_loan(pool.take(np.array([loan])), rows_CTKJ, index_T, _one(residual_LHJ, loan))
    return total


def _one(residual_LHJ: np.ndarray | None, loan: int) -> np.ndarray | None:
    return None if residual_LHJ is None else residual_LHJ[loan : loan + 1]


def _expected_loan(
    pool: PoolArrays, rows_CTKJ: np.ndarray, index_T: np.ndarray, residual: np.ndarray | None
) -> np.ndarray:
    """One loan: positions (state, clocks, column paid) as a dictionary of probabilities."""
    n_months, final, lag = index_T.size, int(pool.final_L[0]), int(pool.recovery_lag_L[0])
    schedule, group = pool.schedule_LW[0], int(pool.loss_group_L[0])
    recovered = 1.0 - float(mean_severity(pool)[group])
    months = np.maximum(np.arange(schedule.size - 1) - DUE_AT_CUTOFF, 0).clip(max=n_months - 1)
    rate_W = np.maximum(pool.rate_L[0] + pool.is_floating_L[0] * index_T[months], 0.0) / 12.0
    interest_W = np.concatenate([[0.0], np.cumsum(rate_W * schedule[:-1])])
    accrual_W = np.concatenate([[0.0], np.cumsum(rate_W)])
    cash = np.zeros((n_months, 5))
    weights_THJ = _weights_of_classes(pool, rows_CTKJ, residual)
    start = (int(pool.state_L[0]), int(pool.since_miss_L[0]), int(pool.in_state_L[0]))
    mass = {(*start, DUE_AT_CUTOFF - int(pool.arrears_L[0])): 1.0}
    for t in range(n_months):
        due = min(t, final) + DUE_AT_CUTOFF + 1
        later: dict[tuple[int, int, int, int], float] = {}
        for (state, since, inside, paid), p in mass.items():
            weights = weights_THJ[t, int(history_class(np.array(state), np.array(since), np.array(inside)))]
            moves = settle_maturity(weights[None], np.array([t >= final]))[0]
            balance = schedule[paid]
            for new, q in enumerate(p * moves / moves.sum()):
                if q == 0.0:
                    continue
                if new == 4:
                    cash[t, 3] += q * balance
                    cash[min(t + lag, n_months - 1), 4] += q * recovered * balance
                elif new == 5:
                    cash[t, 0] += q * (accrual_W[due] - accrual_W[paid]) * balance
                    cash[t, 1:3] += q * (balance - schedule[due]), q * schedule[due]
                else:
                    target = due if new == 6 else (max(paid, due - new) if new < 3 else paid)
                    cash[t, 0] += q * (interest_W[target] - interest_W[paid])
                    cash[t, 1] += q * (balance - schedule[target])
                    if new < 4:
                        key = (new, *_clocks(state, new, since, inside), target)
                        later[key] = later.get(key, 0.0) + q
        mass = later
    for (state, _, _, paid), p in mass.items():
        if state < 3:
            cash[-1, 2] += p * schedule[paid]
        else:
            cash[-1, 3:] += p * schedule[paid], p * recovered * schedule[paid]
    return cash


def _weights_of_classes(pool: PoolArrays, rows_CTKJ: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    rows = rows_CTKJ[pool.cohort_L[0]].astype(float)  # (T, 4, 7)
    folded = rows[:, HISTORY_STATE, :6].copy()
    folded[:, :, 5] += rows[:, HISTORY_STATE, 6]
    return folded if residual is None else folded * residual[0][None].astype(float)


def _clocks(state: int, new: int, since: int, inside: int) -> tuple[int, int]:
    """Both clocks, capped where the class no longer changes so that positions merge."""
    if new == 0:
        return (min(since + 1, 12) if since >= 0 else -1), 1
    return 0, (min(inside + 1, 3) if new == state else 1)


def neutral_residual(n_loans: int) -> np.ndarray:
    """(L, 15, 6) float32 of ones: every loan moves as its cohort."""
    return np.ones((n_loans, N_HISTORY, 6), np.float32)
