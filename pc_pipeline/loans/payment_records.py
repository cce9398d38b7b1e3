"""Payment records: statuses turned into money that balances, month by month.

Here: the eight record columns for one sequence or many, CSV and Parquet files written piece by piece. Amounts
follow the paid-through ledger (`ledger`, docs/methods/loans.md section 3): an instalment when on time or in
grace, arrears on a cure, nothing when missed, balance and accrued interest on a payoff; a default pays
nothing and leaves its balance standing. Hence on every row

    payment_amount = interest + principal_remaining(month - 1) - principal_remaining(month)

Not here: which statuses occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.store import replace_file
from pc_pipeline.loans.amortisation import ANNUITY, payment_cents
from pc_pipeline.loans.ledger import Contracts, walk_ledger
from pc_pipeline.loans.payment_status import (
    DAYS_30,
    DAYS_60,
    DAYS_90,
    DEFAULT,
    GRACE,
    PAID_OFF,
    TERMINAL_CODES,
    state_of_status,
)
from pc_pipeline.schemas.states import PAYMENT_STATUSES, LoanState

RECORD_COLUMNS: Final = {
    "loan_id": pl.String,
    "borrower_id": pl.String,
    "month": pl.Int64,
    "payment_status": pl.String,
    "payment_amount": pl.Float64,
    "principal_remaining": pl.Float64,
    "days_past_due": pl.Int64,
    "payment_date": pl.Date,
}
GRACE_DAYS: Final = 15  # convention: the middle of 1 to 29
_FORMULA_STARTS: Final = "=+-@\t\r"


def payment_dates(start: str | date, n_months: int) -> list[date]:
    """Due dates: `start`, then the same day of each later month, or its last day where it is shorter.

    Raises:
        DataError: the text is no ISO date.
    """
    if isinstance(start, str):
        try:
            first = date.fromisoformat(start)
        except ValueError:
            raise DataError("not a date", expected="YYYY-MM-DD", got=start, where="start_date") from None
    else:
        first = date(start.year, start.month, start.day)
    if not 1900 <= first.year <= 2200:
        raise DataError("date outside the calendar", expected="1900..2200", got=first, where="start_date")
    return (
        pl.select(pl.lit(first).dt.offset_by(pl.int_range(n_months).cast(pl.String) + "mo"))
        .to_series()
        .to_list()
    )


def days_past_due(codes_NT: np.ndarray) -> np.ndarray:
    """(N, T) days past due at month end: 30 a month in arrears, rising from 90 on."""
    floor = np.zeros(len(PAYMENT_STATUSES), dtype=np.int64)
    floor[[DAYS_30, DAYS_60, DAYS_90, DEFAULT]] = [1, 2, 3, 4]
    out = np.zeros(codes_NT.shape, dtype=np.int64)
    late = np.zeros(len(codes_NT), dtype=np.int64)
    for month in range(codes_NT.shape[1]):
        code = codes_NT[:, month]
        running = np.where(code >= DAYS_90, np.maximum(floor[code], late + 1), floor[code])
        if month:
            running = np.where(codes_NT[:, month - 1] == DEFAULT, late, running)
        late = np.where(floor[code] > 0, running, 0)
        out[:, month] = np.where(code == GRACE, GRACE_DAYS, 30 * late)
    return out


def payment_records(
    codes_NT: np.ndarray,
    principal: np.ndarray,
    interest_rate: np.ndarray,
    term_months: np.ndarray,
    start_date: str | date,
    loan_ids: Sequence[str],
    borrower_ids: Sequence[str],
) -> pl.DataFrame:
    """The rectangular table of N borrowers x T months; a terminal status is repeated with zero payments.

    Args:
        codes_NT: statuses; month 1 is the first instalment. principal, interest_rate, term_months: (N,).
        start_date: due date of month 1.

    Returns:
        N * T rows of RECORD_COLUMNS, borrower by borrower.
    """
    n, months = codes_NT.shape
    codes = _carried_forward(codes_NT)
    money, balance = _money(codes, principal, interest_rate, term_months)
    names = pl.Series(PAYMENT_STATUSES, dtype=pl.Enum(PAYMENT_STATUSES))
    dates = pl.Series(payment_dates(start_date, months), dtype=pl.Date)
    repeat = np.repeat(np.arange(n, dtype=np.int32), months)
    tile = np.tile(np.arange(months, dtype=np.int32), n)
    return pl.DataFrame(
        {
            "loan_id": pl.Series(loan_ids, dtype=pl.String).gather(repeat),
            "borrower_id": pl.Series(borrower_ids, dtype=pl.String).gather(repeat),
            "month": tile.astype(np.int64) + 1,
            "payment_status": names.gather(codes.ravel()).cast(pl.String),
            "payment_amount": money.ravel(),
            "principal_remaining": balance.ravel(),
            "days_past_due": days_past_due(codes).ravel(),
            "payment_date": dates.gather(tile),
        },
        schema=RECORD_COLUMNS,
    )


def _carried_forward(codes_NT: np.ndarray) -> np.ndarray:
    """Terminal statuses repeated to the end.

    Raises:
        DataError: a living history is shorter than the table.
    """
    codes = np.array(codes_NT, dtype=np.int8)
    for month in range(1, codes.shape[1]):
        before = codes[:, month - 1]
        codes[:, month] = np.where(np.isin(before, TERMINAL_CODES), before, codes[:, month])
    if (codes < 0).any():
        raise DataError("a living history ends early", expected="statuses for every month", got=-1)
    return codes


def _money(
    codes: np.ndarray, principal: np.ndarray, interest_rate: np.ndarray, term_months: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N, T) amounts paid and balances after, currency."""
    n, months = codes.shape
    term = np.ascontiguousarray(term_months, dtype=np.int64)
    rate = np.ascontiguousarray(interest_rate, dtype=float)
    cents = np.rint(100.0 * np.asarray(principal, dtype=float))
    code = np.full(n, ANNUITY, dtype=np.int64)
    contracts = Contracts(
        balance_cents=cents,
        payment_cents=payment_cents(cents / 100.0, rate, term, code),
        coupon=rate,
        spread=np.full(n, np.nan),
        term=term,
        code=code,
    )
    states = state_of_status(codes)
    early = (codes == PAID_OFF) & (np.arange(1, months + 1) < term[:, None])
    states[early] = LoanState.prepaid  # paid in full before the last instalment: balance and accrued interest
    ended = np.isin(codes, TERMINAL_CODES)
    n_rows = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, months).astype(np.int64)
    zeros = np.zeros(n, dtype=np.int64)
    ledger, _ = walk_ledger(states, n_rows, contracts, np.zeros((1, months + 2)), zeros, zeros + 1)
    live = np.arange(months) < n_rows[:, None]
    paid, balance = np.zeros((n, months)), np.zeros((n, months))
    paid[live] = ledger[1]
    balance[live] = ledger[6] + ledger[5]  # what a default charges off is still owed
    defaulted = codes[:, -1] == DEFAULT
    last = balance[np.arange(n), n_rows - 1]
    balance[~live & defaulted[:, None]] = np.repeat(last, (~live & defaulted[:, None]).sum(axis=1))
    return paid, balance


def neutralise(values: pl.Expr) -> pl.Expr:
    """Text that a spreadsheet would run as a formula (= + - @, tab, return in front) gets a leading quote."""
    starts = values.str.slice(0, 1).is_in(list(_FORMULA_STARTS))
    return pl.when(~starts).then(values).otherwise(pl.lit("'") + values)


def csv_ready(records: pl.DataFrame) -> pl.DataFrame:
    """The records with ids that no spreadsheet runs as a formula."""
    return records.with_columns(neutralise(pl.col("loan_id")), neutralise(pl.col("borrower_id")))


def write_records(path: Path | str, pieces: Iterable[pl.DataFrame]) -> int:
    """Write record frames piece by piece to a .csv or .parquet file, whole or not at all; returns the rows.

    Raises:
        DataError: another suffix, or no rows.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".parquet"):
        raise DataError(
            "unknown file type", expected=".csv or .parquet", got=target.suffix or "none", where=path
        )
    rows = 0
    with replace_file(target) as temporary:
        rows = _write_csv(temporary, pieces) if target.suffix == ".csv" else _write_parquet(temporary, pieces)
    return rows


def _write_csv(path: Path, pieces: Iterable[pl.DataFrame]) -> int:
    rows = 0
    with path.open("wb") as handle:
        handle.write((",".join(RECORD_COLUMNS) + "\n").encode())
        for piece in pieces:
            csv_ready(piece).write_csv(handle, include_header=False)
            rows += piece.height
    return rows


def _write_parquet(path: Path, pieces: Iterable[pl.DataFrame]) -> int:
    rows = 0
    schema = pl.DataFrame(schema=RECORD_COLUMNS).to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(piece.to_arrow().cast(schema))
            rows += piece.height
    return rows
