"""Payment statuses of borrowers: the fallback matrix, names and codes, the map to and from a panel.

Here: the statistical cascade matrix as data (docs/methods/payment_cascade.md, table 2), ragged lists of names
to a padded array of codes and back, the status of a panel row. Works without torch. Not here: the alphabet
(`schemas.states`), the ten borrower features (`borrower_features`), amounts (`payment_records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.schemas.states import (
    LIVING_STATES,
    N_STATUSES,
    PADDING,
    PAYMENT_STATUSES,
    STATUS_TO_STATE,
    TERMINAL_STATUSES,
)

LSTM_ENGINE: Final = "LSTM"
FALLBACK_ENGINE: Final = "fallback matrix"
START: Final = N_STATUSES  # code of 'before the first month'
ON_TIME, GRACE, DAYS_30, DAYS_60, DAYS_90, DEFAULT, PAID_OFF, PREPAID = range(N_STATUSES)
LIVING_STATUSES: Final = tuple(range(DEFAULT))
TERMINAL_CODES: Final = tuple(PAYMENT_STATUSES.index(name) for name in TERMINAL_STATUSES)

# Monthly moves of the fallback engine; terminal statuses absorb.
FALLBACK_MATRIX: Final[Mapping[str, Mapping[str, float]]] = {
    "on_time": {
        "on_time": 0.92,
        "grace_period": 0.05,
        "30_days": 0.02,
        "paid_off": 0.005,
        "prepaid": 0.005,
    },
    "grace_period": {
        "on_time": 0.65,
        "grace_period": 0.15,
        "30_days": 0.18,
        "paid_off": 0.01,
        "prepaid": 0.01,
    },
    "30_days": {
        "on_time": 0.35,
        "grace_period": 0.10,
        "30_days": 0.15,
        "60_days": 0.38,
        "paid_off": 0.01,
        "prepaid": 0.01,
    },
    "60_days": {
        "on_time": 0.18,
        "grace_period": 0.05,
        "30_days": 0.10,
        "60_days": 0.17,
        "90_days": 0.48,
        "paid_off": 0.01,
        "prepaid": 0.01,
    },
    "90_days": {
        "on_time": 0.08,
        "grace_period": 0.02,
        "30_days": 0.03,
        "60_days": 0.07,
        "90_days": 0.34,
        "default": 0.45,
        "paid_off": 0.005,
        "prepaid": 0.005,
    },
    "default": {"default": 1.0},
    "paid_off": {"paid_off": 1.0},
    "prepaid": {"prepaid": 1.0},
}


def matrix_array(matrix: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """(8, 8) float64 rows of a matrix given by names."""
    rows = np.zeros((N_STATUSES, N_STATUSES))
    for origin, row in matrix.items():
        for target, probability in row.items():
            rows[status_code(origin), status_code(target)] = probability
    return rows


def matrix_names(rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Inverse of `matrix_array`; moves of probability 0 are left out."""
    return {
        origin: {target: float(rows[i, j]) for j, target in enumerate(PAYMENT_STATUSES) if rows[i, j] > 0.0}
        for i, origin in enumerate(PAYMENT_STATUSES)
    }


def possible_moves() -> np.ndarray:
    """(9, 8) bool: moves a contract allows, and first statuses; data may add jumps, never a resurrection.

    One bucket worse, stay, cure to any better status, pay off or prepay from any living status, default
    from 90_days. A month missed outright leads from on_time to 30_days.
    """
    allowed = np.zeros((N_STATUSES + 1, N_STATUSES), dtype=bool)
    for status in LIVING_STATUSES:
        allowed[status, : min(status + 1, DAYS_90) + 1] = True
        allowed[status, [PAID_OFF, PREPAID]] = True
    allowed[ON_TIME, DAYS_30] = True
    allowed[DAYS_90, DEFAULT] = True
    allowed[list(TERMINAL_CODES), list(TERMINAL_CODES)] = True
    allowed[START, list(LIVING_STATUSES)] = True
    return allowed


def status_code(status: str | int) -> int:
    """0-7 of a status name (codes pass).

    Raises:
        DataError: it is no status.
    """
    if isinstance(status, str) and status in PAYMENT_STATUSES:
        return PAYMENT_STATUSES.index(status)
    if isinstance(status, int | np.integer) and not isinstance(status, bool) and 0 <= status < N_STATUSES:
        return int(status)
    raise DataError("not a payment status", expected=", ".join(PAYMENT_STATUSES), got=repr(status))


def encode_sequences(sequences: Iterable[Sequence[str]]) -> np.ndarray:
    """(N, T) int8 codes of ragged status lists, -1 after each one's end.

    Raises:
        DataError: no sequence, an empty one, an unknown status, or months after a terminal status.
    """
    rows = [list(sequence) for sequence in sequences]
    if not rows or min(map(len, rows)) == 0:
        raise DataError("payment sequences are empty", expected="at least one status in each", got=len(rows))
    lengths = np.array([len(row) for row in rows])
    flat = pl.Series([status for row in rows for status in row], strict=False, dtype=pl.String)
    codes = flat.replace_strict(
        list(PAYMENT_STATUSES), list(range(N_STATUSES)), default=-9, return_dtype=pl.Int8
    ).fill_null(-9)
    if (codes < 0).any():
        place = int((codes < 0).arg_max() or 0)
        owner = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
        raise DataError(
            "not a payment status",
            expected=", ".join(PAYMENT_STATUSES),
            got=repr([status for row in rows for status in row][place]),
            where=f"sequence {owner}",
        )
    out = np.full((len(rows), int(lengths.max())), PADDING, dtype=np.int8)
    out[np.arange(out.shape[1]) < lengths[:, None]] = codes.to_numpy()
    check_codes(out)
    return out


def check_codes(codes_NT: np.ndarray) -> None:
    """Raise DataError where a history goes on after a terminal status, or has a gap."""
    known = codes_NT >= 0
    ended = np.isin(codes_NT, TERMINAL_CODES)
    revived = (ended[:, :-1] & known[:, 1:] & (codes_NT[:, 1:] != codes_NT[:, :-1])).any(axis=1)
    gaps = (~known[:, :-1] & known[:, 1:]).any(axis=1) | ~known[:, 0]
    if (codes_NT >= N_STATUSES).any() or gaps.any():
        raise DataError("payment codes must be 0..7 without gaps", where=f"sequence {int(gaps.argmax())}")
    if revived.any():
        raise DataError(
            "a history goes on after a terminal status",
            expected=f"nothing after {', '.join(TERMINAL_STATUSES)}",
            got=decode_row(codes_NT[revived.argmax()]),
            where=f"sequence {int(revived.argmax())}",
        )


def trim_after_end(codes_NT: np.ndarray) -> np.ndarray:
    """The codes with -1 after the first terminal month (a rectangular table repeats it)."""
    ended = np.isin(codes_NT, TERMINAL_CODES)
    before = np.cumsum(ended, axis=1) - ended > 0
    return np.where(before, np.int8(PADDING), codes_NT)


def decode_row(codes_T: np.ndarray) -> list[str]:
    """Status names of one history, up to and with its terminal month."""
    names = []
    for code in codes_T.tolist():
        if code < 0:
            break
        names.append(PAYMENT_STATUSES[code])
        if code in TERMINAL_CODES:
            break
    return names


def state_of_status(codes: np.ndarray) -> np.ndarray:
    """Loan states of status codes (`schemas.states.STATUS_TO_STATE`); -1 stays."""
    return np.array([*STATUS_TO_STATE, PADDING], dtype=np.int8)[codes]


def status_of_state(states: np.ndarray, days_past_due: np.ndarray | None = None) -> np.ndarray:
    """Status codes of loan states; -1 stays. Performing with 1 to 29 days past due is the grace period."""
    lookup = np.full(N_STATUSES, PADDING, dtype=np.int8)
    for status in (ON_TIME, DAYS_30, DAYS_60, DAYS_90, DEFAULT, PAID_OFF, PREPAID):
        lookup[STATUS_TO_STATE[status]] = status
    lookup[-1] = PADDING
    codes = lookup[np.asarray(states)]
    if days_past_due is not None:
        days = np.asarray(days_past_due)
        codes = np.where((codes == ON_TIME) & (days >= 1) & (days < 30), np.int8(GRACE), codes)
    return codes.astype(np.int8)


def state_probabilities(statuses: np.ndarray) -> np.ndarray:
    """(..., 8) probabilities of statuses -> (..., 7) of loan states."""
    out = np.zeros((*statuses.shape[:-1], len(LIVING_STATES) + 3))
    for status, state in enumerate(STATUS_TO_STATE):
        out[..., state] += statuses[..., status]
    return out


def as_codes(sequences: Any) -> np.ndarray:
    """(N, T) int8 of sequences as lists of names, an array of codes, or anything with `.codes`."""
    codes = getattr(sequences, "codes", sequences)
    if isinstance(codes, np.ndarray) and codes.ndim == 2 and codes.dtype.kind in "iu":
        trimmed = trim_after_end(codes.astype(np.int8))
        check_codes(trimmed)
        return trimmed
    return encode_sequences(codes)
