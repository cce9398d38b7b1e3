"""Panels larger than memory: one compact Parquet file, written chunk by chunk, read lazily.

Here: `write_panel` and `scan_panel`. On disk money is whole cents, ratios are scaled integers, both
byte-stream-split under zstd; two columns that follow from others are left out (actual_payment =
interest_paid + principal_paid, loss_amount = charge_off_amount - recovery_amount) and scheduled_payment is
kept as its difference from actual_payment. `scan_panel` gives back table `loan_panel` bit for bit. Not here:
the ordinary store (`core.store`), which keeps plain Parquet.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.store import replace_file
from pc_pipeline.schemas.tables import columns

_CENTS: Final = (
    "original_balance",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "outstanding_balance",
    "recovery_amount",
)
_SCALED: Final = {"ltv_current": 10_000, "rate_incentive": 1_000_000}
_DIGITS: Final = {"ltv_current": 4, "rate_incentive": 6}  # polars divides by multiplying: round after
_SMALL: Final = {
    "loan_state": pl.Int8,
    "days_past_due": pl.Int32,
    "months_in_state": pl.Int32,
    "month_end_weekday": pl.Int8,
    "macro_path_id": pl.Int32,
}
_SHORTFALL: Final = "payment_shortfall"  # scheduled less actual payment
_PLAIN: Final = ("reporting_month", "scenario", "asset_class", "vintage_month")
_SPLIT: Final = (*_CENTS[1:], _SHORTFALL, *_SCALED)  # the rest compresses better in a dictionary
_TOLERANCE: Final = 1e-4  # of a cent, or of the last digit kept


def _scaled(frame: pl.DataFrame, name: str, factor: int, dtype: Any) -> pl.Series:
    """A column as whole multiples of 1 / factor.

    Raises:
        DataError: it has further digits, which this file would lose.
    """
    exact = frame[name] * factor
    whole = exact.round(0)
    widest = (exact - whole).abs().max()
    if widest is not None and float(widest) > _TOLERANCE:  # type: ignore[arg-type]
        raise DataError(
            "the compact panel keeps a fixed number of digits",
            expected=f"whole multiples of 1/{factor}",
            got=frame[name].gather([int((exact - whole).abs().arg_max() or 0)]).item(),
            where=name,
        )
    return whole.cast(dtype)


def _packed(frame: pl.DataFrame) -> pl.DataFrame:
    """A panel chunk as it is written."""
    missing = [name for name in columns("loan_panel") if name not in frame.columns]
    if missing:
        raise DataError("columns are missing", expected=missing, got=frame.columns, where="panel")
    due = frame["scheduled_payment"] - frame["interest_paid"] - frame["principal_paid"]
    actual = frame["interest_paid"] + frame["principal_paid"] - frame["actual_payment"]
    loss = frame["charge_off_amount"] - frame["recovery_amount"] - frame["loss_amount"]
    for gap, identity in ((actual, "actual = interest + principal"), (loss, "loss = charge-off - recovery")):
        if frame.height and float(gap.abs().max()) >= 0.005:  # type: ignore[arg-type]
            raise DataError("the panel breaks an identity this file relies on", expected=identity)
    shortfall = frame.select(due.round(2).alias(_SHORTFALL))
    return pl.DataFrame(
        [
            frame["loan_id"],
            *(frame[name] for name in _PLAIN),
            *(frame[name].cast(dtype) for name, dtype in _SMALL.items()),
            *(_scaled(frame, name, 100, pl.Int64) for name in _CENTS),
            _scaled(shortfall, _SHORTFALL, 100, pl.Int64),
            *(_scaled(frame, name, factor, pl.Int32) for name, factor in _SCALED.items()),
        ]
    )


def _arrow(frame: pl.DataFrame) -> pa.Table:
    """Arrow table with 32-bit string offsets, which every Parquet reader knows."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [
        pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema
    ]
    return table.cast(pa.schema(fields))


def write_panel(path: Path, chunks: Iterable[pl.DataFrame]) -> int:
    """Write a panel chunk by chunk and swap it in whole; returns the number of rows.

    Args:
        path: the file; a reader sees the old one until the last chunk is on disk.
        chunks: frames of table `loan_panel`; each becomes a row group and may be forgotten after.

    Raises:
        DataError: no chunk at all, a column missing, or digits that would be lost.
    """
    rows = 0
    writer: pq.ParquetWriter | None = None
    with replace_file(path) as temporary:
        try:
            for chunk in chunks:
                table = _arrow(_packed(chunk))
                if writer is None:
                    writer = _open(temporary, table.schema)
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
                rows += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise DataError("nothing to write", expected="at least one chunk", where=path)
    return rows


def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    encoding = dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT")
    encoding["loan_id"] = "DELTA_BYTE_ARRAY"
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in schema.names if name not in encoding],
        column_encoding=encoding,
    )


def scan_panel(path: Path) -> pl.LazyFrame:
    """Lazy table `loan_panel` of a file of `write_panel`, every value as it was written."""
    money = [(pl.col(name).cast(pl.Float64) / 100.0).round(2).alias(name) for name in _CENTS]
    actual = pl.col("interest_paid") + pl.col("principal_paid")
    derived = [
        (actual.cast(pl.Float64) / 100.0).round(2).alias("actual_payment"),
        ((actual + pl.col(_SHORTFALL)).cast(pl.Float64) / 100.0).round(2).alias("scheduled_payment"),
        ((pl.col("charge_off_amount") - pl.col("recovery_amount")).cast(pl.Float64) / 100.0)
        .round(2)
        .alias("loss_amount"),
    ]
    scaled = [
        (pl.col(name).cast(pl.Float64) / float(factor)).round(_DIGITS[name]).alias(name)
        for name, factor in _SCALED.items()
    ]
    small = [pl.col(name).cast(pl.Int64) for name in _SMALL]
    scan = pl.scan_parquet(path, hive_partitioning=False)
    return scan.select("loan_id", *_PLAIN, *small, *money, *derived, *scaled).select(columns("loan_panel"))
