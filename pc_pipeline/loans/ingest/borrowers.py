"""A portfolio of borrowers as delivered: a borrower file in our columns, or any loan tape.

Here: `read_borrowers`, which tells one from the other by their columns. Rows are held to the contract of
table `borrowers` like those of any other table. Not here: tapes (`read`), what the ten features mean
(`loans.borrower_features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.borrower_features import borrowers_of_tape
from pc_pipeline.loans.ingest.adapter import check_ids, read_typed, table_types
from pc_pipeline.loans.ingest.files import MAX_CELL_BYTES, Part, survey, where
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.ingest.result import IngestResult, QualityLog
from pc_pipeline.loans.ingest.screen import Rule, contract_rules, screen

TABLE: Final = "borrowers"
_OWN: Final = (  # features that no tape has
    "credit_score",
    "dti",
    "income",
    "principal",
    "risk_grade",
    "employment_months",
    "delinquencies_2y",
    "bankruptcies",
)
_BATCH_ROWS: Final = 1 << 17
_IDS: Final = ("loan_id", "borrower_id")
EXPECTS: Final = f"borrowers: loan_id or borrower_id, and some of {', '.join(_OWN)}; or a loan tape"


@dataclass(frozen=True, slots=True, kw_only=True)
class BorrowerDelivery:
    """A portfolio, read.

    Attributes:
        borrowers: table borrowers. quarantine: refused rows with their reason. rows_in: data rows delivered.
        adapter: how it was read. tape: the loan tape it came from, None for a borrower file.
    """

    borrowers: pl.DataFrame
    quarantine: pl.DataFrame
    rows_in: int
    adapter: str
    tape: IngestResult | None = None


def read_borrowers(
    paths: Sequence[str | Path],
    *,
    mapping: str | Path | None = None,
    as_of: str | None = None,
    max_rows: int | None = None,
) -> BorrowerDelivery:
    """Read one portfolio.

    Args:
        paths: files that together are one delivery.
        mapping, as_of: as for `read_tape`; a mapping makes it a tape.
        max_rows: most rows in a table; more are refused, where the file says so before they are read.

    Raises:
        IngestError: it is neither, it is too long, or no row of it is good.
    """
    parts = survey(list(paths))
    for part in parts:
        _check_length(part, max_rows)
    own = [part for part in parts if _is_borrowers(part)]
    if mapping is None and own:
        if len(parts) > 1:
            raise IngestError(
                "more than one table of borrowers", expected="one", got=", ".join(where(p) for p in parts)
            )
        return _read_part(own[0], max_rows)
    tape = read_tape(list(paths), mapping=mapping, as_of=as_of)
    _check_rows(tape.loans.height, max_rows, "loans")
    loans = tape.loans.height
    refused = int((tape.quarantine["table"] == "loan_tape").sum())
    return BorrowerDelivery(
        borrowers=_complete(borrowers_of_tape(tape.loans)),
        quarantine=tape.quarantine,
        rows_in=loans + refused,
        adapter=tape.adapter,
        tape=tape,
    )


def _is_borrowers(part: Part) -> bool:
    has_own = any(name in part.columns for name in _OWN)
    return has_own and any(name in part.columns for name in _IDS) and "original_balance" not in part.columns


def _check_length(part: Part, max_rows: int | None) -> None:
    """Refuse a Parquet file of too many rows or too long texts: a few kilobytes can hold billions."""
    if part.kind != "parquet" or max_rows is None:
        return
    try:
        rows = int(pl.scan_parquet(part.path, hive_partitioning=False).select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as error:
        raise IngestError("the file is damaged", got=str(error)[:200], where=part.path) from error
    _check_rows(rows, 100 * max_rows if "reporting_month" in part.columns else max_rows, where(part))
    try:
        longest = _longest_text(part.path)
    except (pa.ArrowException, OSError) as error:
        raise IngestError("the file is damaged", got=str(error)[:200], where=part.path) from error
    if longest > MAX_CELL_BYTES:
        raise IngestError(
            "a cell is too long", expected=f"at most {MAX_CELL_BYTES} bytes", got=longest, where=where(part)
        )


def _longest_text(path: Path) -> int:
    """Bytes of the longest text of a Parquet file, from its dictionaries: a text stored once and named a
    million times is not unfolded."""
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_dictionary)
    with pq.ParquetFile(path) as file:
        text = [field.name for field in file.schema_arrow if any(kind(field.type) for kind in kinds)]
    longest = 0
    with pq.ParquetFile(path, read_dictionary=text) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=text, use_threads=False):
            for column in batch.columns:
                values = column.dictionary if isinstance(column, pa.DictionaryArray) else column
                if len(values) and values.null_count < len(values) and not pa.types.is_integer(values.type):
                    longest = max(longest, pc.max(pc.binary_length(values)).as_py() or 0)
    return longest


def _check_rows(rows: int, max_rows: int | None, place: str) -> None:
    if max_rows is not None and rows > max_rows:
        raise IngestError("too many rows", expected=f"at most {max_rows:,}", got=f"{rows:,}", where=place)


def _read_part(part: Part, max_rows: int | None) -> BorrowerDelivery:
    log, file = QualityLog(), where(part)
    frame = read_typed(part, table_types(TABLE), log, TABLE)
    for name in _IDS:
        if name in frame.columns:
            check_ids(frame, name, file)
    refused_by_type = log.quarantined().height
    rows_in = frame.height + refused_by_type
    _check_rows(rows_in, max_rows, file)
    ids = pl.coalesce(name for name in _IDS if name in frame.columns)
    frame = _complete(frame.with_columns(ids.alias(name) for name in _IDS if name not in frame.columns))
    rules = [
        *contract_rules(TABLE, frame.columns),
        Rule(column="loan_id", reason="duplicate loan", good=pl.col("loan_id").is_first_distinct()),
    ]
    good = screen(frame, rules, log, file=file, table=TABLE, keep=list(table_types(TABLE)))
    if good.is_empty():
        reasons = log.quarantined()["reason"].unique().sort().head(5).to_list()
        raise IngestError("no row is good", expected="at least one", got="; ".join(reasons) or "no rows")
    return BorrowerDelivery(
        borrowers=good, quarantine=log.quarantined(), rows_in=rows_in, adapter="borrowers"
    )


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    """Missing features as null columns, in the table's order, with its types; grades in capitals."""
    types = table_types(TABLE)
    missing = [pl.lit(None, kind).alias(name) for name, kind in types.items() if name not in frame.columns]
    filled = frame.with_columns(missing).with_columns(
        pl.col("risk_grade").str.strip_chars().str.to_uppercase()
    )
    kept = ["_row"] if "_row" in filled.columns else []
    return filled.select(*kept, *(pl.col(name).cast(kind) for name, kind in types.items()))
