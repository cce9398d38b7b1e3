"""Months in which a payment status changes its meaning: a break in the data to detect, not to learn.

Here: finding breaks in histories with dates, and the side of a break that can be learned from. The rule is
the card adapter's (`ingest.uci_cards`), on statuses instead of filed codes: a status that at least 100
histories carry in one month and whose share jumps more than twenty-fold against the month before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pc_pipeline.core.periods import month_from_index
from pc_pipeline.schemas.states import N_STATUSES, PAYMENT_STATUSES

BREAK_FACTOR: Final = 20.0
BREAK_COUNT: Final = 100
FIRST_COLUMNS: Final = 3  # a young history has yet to grow late; 90_days first occurs in column 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusBreak:
    """One break.

    Attributes:
        month: month index of the first month with the new meaning. status: code 0-7.
        before, after: histories that carry it in the month before and in that month.
    """

    month: int
    status: int
    before: int
    after: int

    def __str__(self) -> str:
        return (
            f"data break in {month_from_index(self.month):%Y-%m}: {PAYMENT_STATUSES[self.status]} goes from "
            f"{self.before:,} to {self.after:,} histories"
        )


def monthly_counts(codes_NT: np.ndarray, months: np.ndarray) -> tuple[int, np.ndarray]:
    """(first month index, (M, 8) histories by calendar month and status); terminal months count once."""
    known = codes_NT >= 0
    at = months[:, None] + np.arange(codes_NT.shape[1])
    first = int(at[known].min())
    place = (at[known] - first) * N_STATUSES + codes_NT[known]
    n_months = int(at[known].max()) - first + 1
    return first, np.bincount(place, minlength=n_months * N_STATUSES).reshape(n_months, N_STATUSES)


def find_breaks(codes_NT: np.ndarray, months: np.ndarray | None) -> list[StatusBreak]:
    """Breaks among living statuses, oldest first; none where dates are unknown or histories are too short.

    Args:
        codes_NT: (N, T) int8, -1 after the end. months: (N,) month index of column 0.
    """
    if months is None:
        return []
    if codes_NT.shape[1] <= FIRST_COLUMNS + 1 or not (codes_NT[:, FIRST_COLUMNS:] >= 0).any():
        return []
    first, counts = monthly_counts(codes_NT[:, FIRST_COLUMNS:], months + FIRST_COLUMNS)
    living = counts[:, :5]
    total = np.maximum(living.sum(axis=1, keepdims=True), 1)
    share = np.maximum(living / total, 1.0 / max(int((codes_NT >= 0).sum()), 1))
    ratio = share[1:] / share[:-1]
    jumped = (ratio > BREAK_FACTOR) | (ratio < 1.0 / BREAK_FACTOR)
    enough = np.maximum(living[1:], living[:-1]) >= BREAK_COUNT
    # A status that starts from nothing because loans are young is no break: both months need many histories.
    wide = np.minimum(total[1:], total[:-1]) >= 0.5 * total.max()
    return [
        StatusBreak(
            month=first + 1 + int(row),
            status=int(code),
            before=int(living[row, code]),
            after=int(living[row + 1, code]),
        )
        for row, code in np.argwhere(jumped & enough & wide)
    ]


def learnable(codes_NT: np.ndarray, months: np.ndarray, breaks: list[StatusBreak]) -> np.ndarray:
    """(N, T) bool: the columns between breaks on the side with most reports; all without a break."""
    at = months[:, None] + np.arange(codes_NT.shape[1])
    known = codes_NT >= 0
    if not breaks:
        return known
    side = np.searchsorted(sorted({found.month for found in breaks}), at, side="right")
    largest = np.bincount(side[known]).argmax()
    return known & (side == largest)
