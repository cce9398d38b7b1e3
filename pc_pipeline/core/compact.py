"""Parquet files in which numbers with few digits are decimals: half the bytes, the same values.

Here: `CompactFormat`, which says what to pack; `write_compact`; and `scan_any` and `select_sql`, which give
any Parquet file back in the types that were written, through polars and through DuckDB. Not here: where files
lie (`store`), which table is packed how (whoever writes it).

A packed column is a standard Parquet DECIMAL, which every reader knows: a file opened without this module
shows the right amounts under the right names. A column that is the difference of two others is left out. Both
are done only where they lose nothing: a value with further digits, an infinity or a gap in the identity
leaves its column as it was. What was done is written into the file's own metadata.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pc_pipeline.core.errors import ConfigError, DataError

KEY: Final = "pc_pipeline.compact"
NOTES: Final = "pc_pipeline.notes"
_WIDE, _NARROW = 18, 9  # digits that fit 64 and 32 bits
_EXACT: Final = float(2**53)  # whole numbers up to here are exact as floats


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactFormat:
    """How one table is packed.

    Attributes:
        digits: column -> decimal places that it holds.
        differences: column -> (a, b), both in `digits` with the same places: it is a - b and left out.
        split: packed columns whose values rarely repeat: their bytes are stored plane by plane.
        plain: other columns that compress better without a dictionary (identifiers in order).
        level: of zstd.
        row_group: rows a group holds at most.
    """

    digits: Mapping[str, int] = field(default_factory=dict)
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    split: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    level: int = 3
    row_group: int = 500_000

    def __post_init__(self) -> None:
        if any(not 0 <= places <= 9 for places in self.digits.values()) or self.row_group < 1:
            raise ConfigError("no such packing", expected="0..9 decimal places, row_group >= 1", got=self)
        for name, pair in self.differences.items():
            places = {self.digits.get(column) for column in (name, *pair)}
            if None in places or len(places) > 1:
                raise ConfigError("a difference needs the same digits on both sides", got=(name, *pair))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done with the columns of one file: places kept, differences left out, all in order."""

    columns: tuple[str, ...]
    digits: dict[str, int]
    differences: dict[str, tuple[str, str]]

    @property
    def stored(self) -> list[str]:
        return [name for name in self.columns if name not in self.differences]


def _scaled(column: pl.Series, places: int) -> np.ndarray | None:
    """A column as whole multiples of 10**-places, or None where that would lose something. Null gives 0."""
    if column.dtype != pl.Float64:
        return None
    values = column.fill_null(0.0).to_numpy()
    factor = 10.0**places
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.rint(values * factor)
        exact = bool((np.abs(whole) < _EXACT).all()) and bool((whole / factor == values).all())
    return whole.astype(np.int64) if exact else None


def _packable(frame: pl.DataFrame, form: CompactFormat) -> tuple[_Plan, dict[str, np.ndarray]]:
    """What can be packed of a frame without loss, and the packed columns as whole numbers."""
    whole: dict[str, np.ndarray] = {}
    for name, places in form.digits.items():
        packed = _scaled(frame[name], places) if name in frame.columns else None
        if packed is not None:
            whole[name] = packed
    left_out = {
        name: pair
        for name, pair in form.differences.items()
        if {name, *pair} <= whole.keys()
        and not sum(frame[column].null_count() for column in (name, *pair))
        and bool((whole[name] == whole[pair[0]] - whole[pair[1]]).all())
    }
    digits = {name: form.digits[name] for name in whole}
    return _Plan(tuple(frame.columns), digits, left_out), whole


def _decimal(whole: np.ndarray, missing: pl.Series, places: int) -> pa.Array:
    """Arrow decimals of whole multiples; the width is always that of 64 bits, whatever the values."""
    signs = np.empty((whole.size, 2), dtype=np.int64)  # 128 bits, little end first
    signs[:, 0], signs[:, 1] = whole, whole >> 63
    mask = None
    if missing.any():
        mask = pa.array(~missing.to_numpy()).buffers()[1]
    return pa.Array.from_buffers(
        pa.decimal128(_WIDE, places), whole.size, [mask, pa.py_buffer(signs.reshape(-1))]
    )


def _arrow(frame: pl.DataFrame, plan: _Plan, whole: Mapping[str, np.ndarray]) -> pa.Table:
    """The table as stored: decimals, and text with the 32-bit offsets that every reader knows."""
    others = [name for name in plan.stored if name not in plan.digits]
    table = frame.select(others).to_arrow(compat_level=pl.CompatLevel.oldest())
    arrays: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in plan.stored:
        if name in plan.digits:
            arrays[name] = _decimal(whole[name], frame[name].is_null(), plan.digits[name])
        else:
            kind = table.schema.field(name).type
            column = table.column(name)
            arrays[name] = column.cast(pa.string()) if pa.types.is_large_string(kind) else column
    return pa.table(arrays)


def _writer(
    path: Path, schema: pa.Schema, plan: _Plan, form: CompactFormat, notes: Mapping[str, str]
) -> pq.ParquetWriter:
    encoding = {}
    for name in plan.stored:
        if name in plan.digits:
            encoding[name] = "BYTE_STREAM_SPLIT" if name in form.split else "PLAIN"
        elif name in form.plain:
            encoding[name] = "PLAIN"
    note = {"columns": plan.columns, "digits": plan.digits, "differences": plan.differences}
    return pq.ParquetWriter(
        path,
        schema.with_metadata({KEY: json.dumps(note), NOTES: json.dumps(dict(notes))}),
        compression="zstd",
        compression_level=form.level,
        use_dictionary=[name for name in schema.names if name not in encoding],
        column_encoding=encoding,
        store_decimal_as_integer=True,
    )


def write_compact(
    path: Path,
    chunks: Iterable[pl.DataFrame],
    form: CompactFormat,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write frames of one schema into one file, chunk by chunk; returns the number of rows.

    Args:
        path: of the file, written in place (see `store.replace_file`).
        chunks: each may be forgotten once written; the first decides what can be packed.
        notes: kept in the file, for `file_notes`.

    Raises:
        DataError: no chunk at all, or a later chunk holds digits or gaps that the first did not.
    """
    rows = 0
    incoming = iter(chunks)
    first = next(incoming, None)
    if first is None:
        raise DataError("nothing to write", expected="at least one chunk", where=path)
    plan, whole = _packable(first, form)
    head = _arrow(first.head(0), plan, {name: values[:0] for name, values in whole.items()})
    with _writer(path, head.schema, plan, form, notes) as writer:
        for chunk in itertools.chain([first], incoming):
            if chunk is not first:
                found, whole = _packable(chunk, form)
                if found.columns != plan.columns or not _covers(found, plan):
                    raise DataError(
                        "a later chunk does not fit the first",
                        expected=f"columns {', '.join(plan.columns)}, packed {plan.digits}",
                        got=f"columns {', '.join(found.columns)}, packed {found.digits}",
                        where=path,
                    )
            writer.write_table(_arrow(chunk, plan, whole), row_group_size=form.row_group)
            rows += chunk.height
    return rows


def _covers(found: _Plan, plan: _Plan) -> bool:
    return plan.digits.keys() <= found.digits.keys() and plan.differences.keys() <= found.differences.keys()


def _plan_of(path: Path) -> _Plan | None:
    """What was done to a file; None for one that was not packed."""
    note = pl.read_parquet_metadata(path).get(KEY)
    if note is None:
        return None
    said: dict[str, Any] = json.loads(note)
    pairs = {name: (pair[0], pair[1]) for name, pair in said["differences"].items()}
    return _Plan(tuple(said["columns"]), said["digits"], pairs)


def file_notes(path: Path) -> dict[str, str]:
    """What was noted when a file was written; empty for a file without notes."""
    said: dict[str, str] = json.loads(pl.read_parquet_metadata(path).get(NOTES, "{}"))
    return said


def _unpacked(name: str, plan: _Plan) -> pl.Expr:
    if name in plan.differences:
        minuend, subtrahend = plan.differences[name]
        return (pl.col(minuend) - pl.col(subtrahend)).cast(pl.Float64).alias(name)
    return pl.col(name).cast(pl.Float64) if name in plan.digits else pl.col(name)


def scan_any(path: Path) -> pl.LazyFrame:
    """Lazy frame of a Parquet file, packed or not, every value as it was written."""
    scan = pl.scan_parquet(path, hive_partitioning=False)
    plan = _plan_of(path)
    return scan if plan is None else scan.select(_unpacked(name, plan) for name in plan.columns)


def _sql_column(name: str, plan: _Plan) -> str:
    if name in plan.differences:
        minuend, subtrahend = plan.differences[name]
        return f'CAST("{minuend}" - "{subtrahend}" AS DOUBLE) AS "{name}"'
    return f'CAST("{name}" AS DOUBLE) AS "{name}"' if name in plan.digits else f'"{name}"'


def select_sql(paths: Sequence[Path]) -> str:
    """One DuckDB query that reads files, packed or not, as `scan_any` does; united by column name."""
    by_list: dict[str, list[Path]] = {}
    for path in paths:
        plan = _plan_of(path)
        names = "*" if plan is None else ", ".join(_sql_column(name, plan) for name in plan.columns)
        by_list.setdefault(names, []).append(path)
    parts = []
    for names, files in by_list.items():
        quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
        parts.append(
            f"SELECT {names} FROM read_parquet([{quoted}], union_by_name=true, hive_partitioning=false)"
        )
    return " UNION ALL BY NAME ".join(parts)
