"""What callers give the payment cascade, made into arrays: known statuses, macro paths, terms, ids.

Here: checks and shapes, without torch. Not here: features (`cascade_data`), generation (`payment_cascade`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.periods import parse_month
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.payment_status import status_code
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO

MOST_MONTHS: Final = 600


@dataclass(frozen=True, slots=True)
class CascadeSettings:
    """What the constructor of the generator was given; kept on the model card."""

    hidden_dim: int
    num_layers: int
    learning_rate: float
    epochs: int | None
    batch_size: int
    dropout: float
    random_seed: int
    precision: str

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError("epochs is too small", expected=">= 1", got=self.epochs)
        if self.batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                "batch_size and learning_rate must be positive", got=(self.batch_size, self.learning_rate)
            )
        if self.hidden_dim < 2 or self.hidden_dim % 2 or not 1 <= self.num_layers <= 8:
            raise ConfigError(
                "no such LSTM",
                expected="hidden_dim even, num_layers 1..8",
                got=(self.hidden_dim, self.num_layers),
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout is no share", expected="0 <= dropout < 1", got=self.dropout)


def check_months(num_months: int) -> None:
    """Raise ConfigError unless 1 <= num_months <= MOST_MONTHS."""
    if isinstance(num_months, bool) or not isinstance(num_months, int) or not 1 <= num_months <= MOST_MONTHS:
        raise ConfigError("num_months out of range", expected=f"1..{MOST_MONTHS}", got=num_months)


def forced_statuses(initial: Any, count: int, num_months: int, can_draw: bool) -> np.ndarray:
    """(N, k) statuses of the first months; k = 0 where month 1 is drawn."""
    if initial is None:
        return np.zeros((count, 0), np.int64) if can_draw else np.zeros((count, 1), np.int64)
    if isinstance(initial, np.ndarray):
        known = np.asarray(initial, dtype=np.int64).reshape(count, -1)
    else:
        names = [initial] if isinstance(initial, str) else list(initial)
        known = np.tile([status_code(name) for name in names], (count, 1))
    if not 1 <= known.shape[1] <= num_months:
        raise ConfigError(
            "known statuses do not fit the months", expected=f"1..{num_months}", got=known.shape[1]
        )
    return known


def macro_array(macro: Any, num_months: int, start_date: str | date | None) -> np.ndarray:
    """(P, T, 9) raw series from month 1; the last month is repeated where a path is shorter."""
    if hasattr(macro, "columns"):
        frame = to_polars(macro, MACRO_NAMES, "macro")
        if "month" in frame.columns:
            frame = frame.sort("month")
            if start_date is not None:
                frame = frame.filter(pl.col("month") >= parse_month(start_date))
        values = frame.select(MACRO_NAMES).to_numpy()
    else:
        values = np.asarray(macro, dtype=float)
    values = values[None] if values.ndim == 2 else values
    if (
        values.ndim != 3
        or values.shape[-1] != N_MACRO
        or values.shape[1] == 0
        or not np.isfinite(values).all()
    ):
        raise DataError(
            "not a macro path", expected=f"(T, {N_MACRO}) or (P, T, {N_MACRO}) finite", got=values.shape
        )
    place = np.minimum(np.arange(num_months), values.shape[1] - 1)
    return values[:, place]


def column(borrowers: Any, name: str, count: int) -> np.ndarray:
    """(N,) float of one key of borrowers, NaN where it is missing."""
    if isinstance(borrowers, Mapping):
        borrowers = [borrowers]
    if hasattr(borrowers, "columns"):
        if name not in borrowers.columns:
            return np.full(count, np.nan)
        return to_polars(borrowers, [name], "borrowers")[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    found = [borrower.get(name) for borrower in borrowers]
    return np.array([np.nan if value is None else float(value) for value in found], dtype=float)


def ids(borrowers: Any, count: int, offset: int) -> tuple[list[str], list[str]]:
    """(loan ids, borrower ids); made from the row number where missing."""
    both = []
    for name, prefix in (("loan_id", "L"), ("borrower_id", "B")):
        if hasattr(borrowers, "columns"):
            given = to_polars(borrowers, [], "borrowers")
            values = given[name].to_list() if name in given.columns else [None] * count
        else:
            values = [borrower.get(name) for borrower in borrowers]
        both.append(
            [
                f"{prefix}{offset + row + 1:08d}" if value is None else str(value)
                for row, value in enumerate(values)
            ]
        )
    return both[0], both[1]
