"""What an ingest hands back, and the log in which it says what it did to every column.

Here: `IngestResult`, the quality log. Not here: reading (`files`, adapters), storing (`deliveries`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import polars as pl

QUALITY_SCHEMA: Final[dict[str, Any]] = {
    "file": pl.String,
    "column": pl.String,
    "month": pl.Date,
    "rows_in": pl.Int64,
    "accepted": pl.Int64,
    "repaired": pl.Int64,
    "how": pl.String,
    "quarantined": pl.Int64,
    "why": pl.String,
}
QUARANTINE_SCHEMA: Final[dict[str, Any]] = {
    "source_file": pl.String,
    "row_number": pl.Int64,
    "table": pl.String,
    "column": pl.String,
    "reason": pl.String,
    "row_json": pl.String,
}
WHOLE_FILE: Final = "*"
LEAVES: Final = "balance missing and never written to zero: the loan leaves observation"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """One delivery, read.

    Attributes:
        loans: table loan_tape.
        panel: table loan_panel, scenario 'observed', macro_path_id 0; empty for a tape without history.
        recoveries: table recoveries.
        quarantine: table quarantine: every refused row, as text, with its reason.
        quality: per file, column ('*' for whole rows) and month (null for all): rows in, accepted, repaired
            and how, quarantined and why.
        adapter: name of the adapter that read it.
        rule: the adapter's rule of delinquency, in words.
        as_of: last month the delivery knows of.
        source_sha256: content hash of the delivered files.
        counts: named totals of everything that was odd.
        filed: the months as filed, where they are needed to join deliveries (`rejoin`).
    """

    loans: pl.DataFrame
    panel: pl.DataFrame
    recoveries: pl.DataFrame
    quarantine: pl.DataFrame
    quality: pl.DataFrame
    adapter: str
    rule: str
    as_of: date
    source_sha256: str
    counts: dict[str, int]
    filed: pl.DataFrame | None = None


@dataclass(slots=True)
class QualityLog:
    """Collects what happened while a delivery is read; `frame` and `quarantined` at the end."""

    counts: dict[str, int] = field(default_factory=dict)
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _refused: list[pl.DataFrame] = field(default_factory=list)

    def rows_in(self, file: str, frame: pl.DataFrame, month: pl.Expr | None = None) -> None:
        """Count the rows of a file, and by month where `month` says which.

        Rows of the file that were refused before (a value that does not fit its type) are counted in.
        """
        gone = sum(int((part["source_file"] == file).sum()) for part in self._refused)
        self._add(file, WHOLE_FILE, None, rows_in=frame.height + gone)
        if month is None:
            return
        by_month = (
            frame.select(month.alias("month"))
            .group_by("month")
            .len("rows_in")
            .drop_nulls("month")
            .sort("month")
        )
        self._frames.append(
            by_month.select(
                pl.lit(file).alias("file"),
                pl.lit(WHOLE_FILE).alias("column"),
                "month",
                pl.col("rows_in").cast(pl.Int64),
            )
        )

    def repair(self, file: str, column: str, n: int, how: str, month: pl.Series | None = None) -> None:
        """Note that `n` values of a column were mended, and how; by month where the months are given."""
        if n == 0:
            return
        self._add(file, column, None, repaired=n, how=how)
        if month is not None:
            for value, count in month.value_counts().sort(month.name).iter_rows():
                self._add(file, column, value, repaired=int(count), how=how)

    def note(self, file: str, column: str, how: str) -> None:
        """Say something of a column that is not a count: derived, assumed, ignored."""
        self._add(file, column, None, how=how)

    def count(self, name: str, n: int) -> None:
        """Add to a named total; totals of zero are kept too: the oddity was looked for."""
        self.counts[name] = self.counts.get(name, 0) + int(n)

    def refuse(
        self,
        rows: pl.DataFrame,
        *,
        file: str,
        table: str,
        column: pl.Expr | str,
        reason: pl.Expr | str,
        month: pl.Expr | None = None,
    ) -> None:
        """Quarantine rows (with `_row`, their place in the file); `column` and `reason` may differ by row."""
        if rows.is_empty():
            return
        shown = [name for name in rows.columns if not name.startswith("_")]
        self._refused.append(
            rows.select(
                pl.lit(file).alias("source_file"),
                (pl.col("_row") if "_row" in rows.columns else pl.lit(0)).cast(pl.Int64).alias("row_number"),
                pl.lit(table).alias("table"),
                (pl.lit(column) if isinstance(column, str) else column).alias("column"),
                (pl.lit(reason) if isinstance(reason, str) else reason).alias("reason"),
                pl.struct(pl.col(shown).cast(pl.String)).struct.json_encode().alias("row_json"),
                (pl.lit(None) if month is None else month).cast(pl.Date).alias("_month"),
            )
        )

    def quarantined(self) -> pl.DataFrame:
        """Table quarantine, in file and row order."""
        if not self._refused:
            return pl.DataFrame(schema=QUARANTINE_SCHEMA)
        return (
            pl.concat(self._refused)
            .drop("_month")
            .sort("source_file", "row_number", "table", maintain_order=True)
        )

    def frame(self) -> pl.DataFrame:
        """Table of quality: what was noted, with the quarantine counted in and `accepted` worked out."""
        parts = [pl.DataFrame(self._entries, schema=QUALITY_SCHEMA), *self._frames]
        noted = pl.concat(parts, how="diagonal").with_columns(
            pl.col("rows_in", "repaired", "quarantined", "accepted").fill_null(0),
            pl.col("how", "why").fill_null(""),
        )
        if not self._refused:
            return _with_accepted(noted)
        refused = pl.concat(self._refused).select(
            pl.col("source_file").alias("file"),
            "row_number",
            "column",
            pl.col("reason").alias("why"),
            pl.col("_month").alias("month"),
        )
        keys = ["file", "column", "why"]
        per_column = pl.concat(
            [
                refused.group_by(keys).len("quarantined").with_columns(pl.lit(None, pl.Date).alias("month")),
                refused.drop_nulls("month").group_by([*keys, "month"]).len("quarantined"),
            ],
            how="diagonal",
        ).with_columns(pl.col("quarantined").cast(pl.Int64))
        rows = refused.group_by("file").len("n").with_columns(pl.lit(None, pl.Date).alias("month"))
        months = refused.drop_nulls("month").group_by("file", "month").len("n")
        whole = pl.concat([rows, months], how="diagonal").with_columns(pl.lit(WHOLE_FILE).alias("column"))
        counted = noted.join(
            whole, on=["file", "column", "month"], how="left", nulls_equal=True
        ).with_columns(
            pl.when(pl.col("rows_in") > 0)
            .then(pl.col("n").fill_null(0))
            .otherwise(0)
            .cast(pl.Int64)
            .alias("quarantined")
        )
        everything = pl.concat([counted.drop("n"), per_column], how="diagonal").with_columns(
            pl.col("rows_in", "repaired", "quarantined").fill_null(0), pl.col("how", "why").fill_null("")
        )
        return _with_accepted(everything)

    def _add(self, file: str, column: str, month: date | None, **values: Any) -> None:
        self._entries.append({"file": file, "column": column, "month": month, **values})


def _with_accepted(noted: pl.DataFrame) -> pl.DataFrame:
    """accepted = rows in less quarantined, on the rows that count whole rows; 0 on column entries."""
    accepted = (pl.col("rows_in") - pl.col("quarantined")).clip(lower_bound=0)
    return (
        noted.with_columns(pl.when(pl.col("rows_in") > 0).then(accepted).otherwise(0).alias("accepted"))
        .select(QUALITY_SCHEMA.keys())
        .sort("file", "column", "month", "why", "how", nulls_last=False, maintain_order=True)
    )
