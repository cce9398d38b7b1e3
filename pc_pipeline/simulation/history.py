"""History classes: the finite memory that the compiled simulator keeps of a loan's past.

Here: the classes and their two clocks. Not here: the residual weights that hang on them
(`simulation.distil`), the sampling (`simulation.kernel`).

A performing loan remembers how many months ago it last missed (never, 1, 2, 3-5, 6-11, 12 and more); a
delinquent one how long it has sat in its bucket (1, 2, 3 and more months).
"""

from __future__ import annotations

import numpy as np

SINCE_MISS_FROM = (1, 2, 3, 6, 12)
IN_STATE_FROM = (1, 2, 3)
N_PERFORMING_CLASSES = 1 + len(SINCE_MISS_FROM)
N_HISTORY = N_PERFORMING_CLASSES + 3 * len(IN_STATE_FROM)
HISTORY_STATE = np.repeat([0, 1, 2, 3], [N_PERFORMING_CLASSES, *[len(IN_STATE_FROM)] * 3])
HISTORY_NAMES = (
    "performing, never missed",
    *(f"performing, {low}+ months since a miss" for low in SINCE_MISS_FROM),
    *(f"{bucket}, month {low}" for bucket in ("30dpd", "60dpd", "90dpd") for low in IN_STATE_FROM),
)


def history_class(state: np.ndarray, since_miss: np.ndarray, in_state: np.ndarray) -> np.ndarray:
    """Class 0..14 of living loans.

    Args:
        state: living states 0-3.
        since_miss: months since the last delinquent month, -1 never; read where performing.
        in_state: months in the present state, from 1; read where delinquent.
    """
    state, since_miss, in_state = np.broadcast_arrays(state, since_miss, in_state)
    since = np.where(since_miss >= 0, np.maximum(since_miss, 1), -1)
    performing = np.searchsorted(SINCE_MISS_FROM, since, side="right")
    bucket = np.searchsorted(IN_STATE_FROM, np.maximum(in_state, 1), side="right") - 1
    delinquent = N_PERFORMING_CLASSES + len(IN_STATE_FROM) * (state - 1) + bucket
    return np.where(state == 0, performing, delinquent).astype(np.int64)


def history_along(states_LT: np.ndarray, initial_L: np.ndarray, since_miss_L: np.ndarray) -> np.ndarray:
    """(L, T) class held *before* each month's move, -1 once the loan has ended.

    Args:
        states_LT: state at the end of each month; anything but 0-3 ends the loan.
        initial_L: living state before the first month.
        since_miss_L: months since miss at that moment, -1 never.
    """
    n_loans, n_months = states_LT.shape
    classes = np.full((n_loans, n_months), -1, dtype=np.int64)
    state = np.array(initial_L, dtype=np.int64)
    since = np.array(since_miss_L, dtype=np.int64)
    in_state = np.ones(n_loans, dtype=np.int64)
    alive = (state >= 0) & (state <= 3)
    for month in range(n_months):
        classes[alive, month] = history_class(state, since, in_state)[alive]
        new = states_LT[:, month].astype(np.int64)
        since, in_state = advance(state, new, since, in_state)
        state, alive = new, alive & (new >= 0) & (new <= 3)
    return classes


def advance(
    state: np.ndarray, new: np.ndarray, since_miss: np.ndarray, in_state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both clocks after a month that moved loans from `state` to `new`."""
    missed = (new >= 1) & (new <= 3)
    since = np.where(missed, 0, np.where(since_miss >= 0, since_miss + 1, -1))
    return since, np.where(new == state, in_state + 1, 1)
