"""The two alphabets, loan states and payment statuses, and the map between them.

Nothing else in the package spells a state. Source: the seed documents; the order and the map are
settled in docs/naming.md.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np


class LoanState(IntEnum):
    """Loan states 0-6; the last three absorb."""

    performing = 0
    dpd30 = 1
    dpd60 = 2
    dpd90 = 3
    default = 4
    prepaid = 5
    matured = 6


LOAN_STATE_NAMES: Final = ("performing", "30dpd", "60dpd", "90dpd", "default", "prepaid", "matured")
N_STATES: Final = 7
LIVING_STATES: Final = (0, 1, 2, 3)
ABSORBING_STATES: Final = (4, 5, 6)
N_LIVING: Final = 4
PADDING: Final = -1  # in state tensors: no observation

PAYMENT_STATUSES: Final = (
    "on_time",
    "grace_period",
    "30_days",
    "60_days",
    "90_days",
    "default",
    "paid_off",
    "prepaid",
)
N_STATUSES: Final = 8
TERMINAL_STATUSES: Final = ("default", "paid_off", "prepaid")
STATUS_TO_STATE: Final = (0, 0, 1, 2, 3, 4, 6, 5)


def contract_moves() -> np.ndarray:
    """(7, 7) bool: monthly moves that a loan contract allows [from, to].

    One bucket worse, stay, cure from any bucket to any better one, prepay or mature from any
    living state, default from 90dpd; absorbing states stay.
    """
    allowed = np.eye(N_STATES, dtype=bool)
    for state in LIVING_STATES:
        allowed[state, : state + 1] = True
        allowed[state, min(state + 1, 3)] = True
        allowed[state, [LoanState.prepaid, LoanState.matured]] = True
    allowed[LoanState.dpd90, LoanState.default] = True
    return allowed


def observable_moves() -> np.ndarray:
    """(7, 7) bool: contract moves plus bucket jumps and early defaults that servicer data show."""
    allowed = contract_moves()
    allowed[:4, :5] = True
    return allowed


def mature_rows(probabilities: np.ndarray, is_final: np.ndarray | bool) -> np.ndarray:
    """Apply the contract's end: from the final month on, curing or prepaying *is* maturing.

    Args:
        probabilities: (..., 7, 7) rows from state to state.
        is_final: broadcastable to the leading shape; True in and after the last contractual month.

    Returns:
        Rows in which, where final, the mass on performing and prepaid has moved to matured, and
        elsewhere the mass on matured has moved to prepaid. Rows keep their sum.
    """
    rows = np.array(probabilities, dtype=float, copy=True)
    final = np.broadcast_to(np.asarray(is_final), rows.shape[:-2])
    for state in LIVING_STATES:
        row = rows[..., state, :]
        paid_up = row[..., LoanState.performing] + row[..., LoanState.prepaid] + row[..., LoanState.matured]
        early = row[..., LoanState.prepaid] + row[..., LoanState.matured]
        row[..., LoanState.performing] = np.where(final, 0.0, row[..., LoanState.performing])
        row[..., LoanState.prepaid] = np.where(final, 0.0, early)
        row[..., LoanState.matured] = np.where(final, paid_up, 0.0)
    return rows
