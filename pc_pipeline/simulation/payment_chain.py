"""Payment histories from a matrix: the fallback engine of the payment cascade, compiled.

Here: sampling a chain over the eight statuses, each borrower and month with a uniform of its own, so that a
history does not depend on its batch. Not here: the matrix (`loans.payment_status`), the network's sampler
(`models.cascade_sampler`).
"""

from __future__ import annotations

import numba
import numpy as np

from pc_pipeline.loans.counter import counter_uniform
from pc_pipeline.schemas.states import N_STATUSES

_LIVING = 5  # statuses 0-4 live
_PAID_OFF, _PREPAID = 6, 7


@numba.njit(cache=True)
def status_uniforms(seed: np.uint64, numbers: np.ndarray, n_months: int) -> np.ndarray:
    """(N, T) float64 uniforms in (0, 1): a function of (seed, borrower number, month) only."""
    out = np.empty((numbers.size, n_months))
    for row in range(numbers.size):
        for month in range(n_months):
            out[row, month] = counter_uniform(seed, numbers[row], np.uint64(month), np.uint64(0))
    return out


@numba.njit(cache=True)
def _walk(
    cumulative: np.ndarray,
    which: np.ndarray,
    first: np.ndarray,
    final_month: np.ndarray,
    seed: np.uint64,
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    months = out.shape[1]
    for row in range(out.shape[0]):
        status = first[row]
        for month in range(months):
            if month > 0 and status < _LIVING:
                u = counter_uniform(seed, numbers[row], np.uint64(month), np.uint64(0))
                to = 0
                while to < 7 and u >= cumulative[which[row], month, status, to]:
                    to += 1
                status = to
                if month + 1 >= final_month[row] and (status <= 1 or status == _PREPAID):
                    status = _PAID_OFF
            out[row, month] = status


def sample_chain(
    matrices: np.ndarray,
    first: np.ndarray,
    n_months: int,
    seed: int,
    *,
    numbers: np.ndarray | None = None,
    final_month: np.ndarray | None = None,
    which: np.ndarray | None = None,
) -> np.ndarray:
    """(N, T) int8 statuses; month 1 is `first`, terminal statuses repeat.

    Args:
        matrices: (8, 8), or (P, T, 8, 8) rows by path and month (row [.., t] moves month t to t + 1,
            entry 0 unused). first: (N,) status of month 1.
        numbers: (N,) each borrower's own number, the key of its random numbers; default 0..N-1.
        final_month: (N,) last contractual month, from which a borrower without arrears is paid off.
        which: (N,) path of each borrower; default 0.
    """
    count = len(first)
    rows = np.asarray(matrices, dtype=float)
    if rows.ndim == 2:
        rows = np.broadcast_to(rows, (1, n_months, N_STATUSES, N_STATUSES))
    cumulative = np.ascontiguousarray(np.cumsum(rows, axis=-1))
    last = np.asarray([np.flatnonzero(row > 0)[-1] for row in rows.reshape(-1, N_STATUSES)])
    flat = cumulative.reshape(-1, N_STATUSES)
    flat[np.arange(N_STATUSES) >= last[:, None]] = 2.0  # rounding of the sum never opens an impossible move
    out = np.empty((count, n_months), dtype=np.int8)
    _walk(
        flat.reshape(cumulative.shape),
        np.zeros(count, np.int64) if which is None else np.asarray(which, np.int64),
        np.asarray(first, dtype=np.int64),
        np.full(count, 1 << 30, np.int64) if final_month is None else np.asarray(final_month, np.int64),
        np.uint64(seed),
        np.arange(count, dtype=np.uint64) if numbers is None else np.asarray(numbers, np.uint64),
        out,
    )
    return out
