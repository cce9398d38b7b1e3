"""Generated payment histories that say which engine made them.

Here: one history (a list of names) and many (a sequence of histories over an array of codes). Not here: how
they are generated (`engines.payment_cascade`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import polars as pl

from pc_pipeline.loans.payment_status import decode_row, trim_after_end
from pc_pipeline.schemas.states import PAYMENT_STATUSES


class PaymentSequence(list[str]):
    """Status names of one history, month by month, up to and with a terminal status.

    Attributes:
        engine: 'LSTM' or 'fallback matrix'. seed: of the draws; the same seed gives the same history.
    """

    def __init__(self, statuses: Sequence[str], *, engine: str, seed: int) -> None:
        super().__init__(statuses)
        self.engine, self.seed = engine, seed


class PaymentSequences(Sequence[PaymentSequence]):
    """N histories.

    Attributes:
        codes: (N, T) int8 statuses; a terminal one is repeated.
        engine: 'LSTM' or 'fallback matrix'. reason: why this engine. seed: of the draws.
    """

    def __init__(self, codes: np.ndarray, *, engine: str, reason: str, seed: int) -> None:
        self.codes, self.engine, self.reason, self.seed = codes, engine, reason, seed

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> PaymentSequence: ...
    @overload
    def __getitem__(self, index: slice) -> PaymentSequences: ...
    def __getitem__(self, index: int | slice) -> PaymentSequence | PaymentSequences:
        if isinstance(index, slice):
            return PaymentSequences(self.codes[index], engine=self.engine, reason=self.reason, seed=self.seed)
        return PaymentSequence(decode_row(self.codes[index]), engine=self.engine, seed=self.seed)

    def __iter__(self) -> Iterator[PaymentSequence]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, PaymentSequences):
            return self.engine == other.engine and np.array_equal(self.codes, other.codes)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PaymentSequences({len(self)} x {self.codes.shape[1]} months, engine={self.engine!r})"

    def to_frame(self) -> pl.DataFrame:
        """Columns sequence, month (from 1), payment_status, engine; one row a month up to the end."""
        trimmed = trim_after_end(self.codes)
        sequence, month = np.nonzero(trimmed >= 0)
        names = pl.Series(PAYMENT_STATUSES)
        return pl.DataFrame(
            {
                "sequence": sequence.astype(np.int64),
                "month": month.astype(np.int64) + 1,
                "payment_status": names.gather(trimmed[sequence, month]),
            }
        ).with_columns(engine=pl.lit(self.engine))
