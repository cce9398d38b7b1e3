"""The store: Parquet partitions swapped in whole, a DuckDB warehouse built beside and swapped in.

Here: where a table, a model or a report lies and how it becomes visible. Not here: what is in it
(`schemas`), how weights are encoded (`models.checkpoint`), how a file is packed (`compact`).

    <root>/tables/<table>/part.parquet                 unpartitioned
    <root>/tables/<table>/scenario=<name>/part.parquet partitioned by scenario
    <root>/models/<model>/card.json + <sha>.safetensors
    <root>/reports/...
    <root>/warehouse.duckdb

Every file is written to a temporary name beside its place, flushed to disk, then renamed: a reader
sees the old file or the new one, never half of one. Files that belong together go through `write_together`
(`swap`): all of them or none, also when the process is killed between two.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from pc_pipeline.core.compact import CompactFormat, file_notes, scan_any, select_sql, write_compact
from pc_pipeline.core.errors import StoreError
from pc_pipeline.core.swap import flush, settle, swap_in

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")
_TEMPORARY = ".tmp-"


def check_name(name: str, what: str = "name") -> str:
    """The name, if it can be a file or partition name that never leaves its folder.

    Raises:
        StoreError: otherwise.
    """
    if not _NAME.match(name) or ".." in name:
        raise StoreError(
            f"not a usable {what}", expected="letters, digits, '_', '-', '.'; at most 100", got=repr(name)
        )
    return name


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it to `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_frame(
    path: Path,
    frame: pl.DataFrame | Iterable[pl.DataFrame],
    form: CompactFormat | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write Parquet in place, packed and with notes where `form` says how."""
    if form is not None:
        write_compact(path, [frame] if isinstance(frame, pl.DataFrame) else frame, form, notes or {})
        return
    whole = frame if isinstance(frame, pl.DataFrame) else pl.concat(frame)
    whole.write_parquet(path, compression="zstd", statistics=True)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """All state of a project under one folder.

    Args:
        root: the folder; made on first write.
    """

    root: Path

    # ---- tables -----------------------------------------------------------------------------

    def table_path(self, table: str, scenario: str | None = None) -> Path:
        """Where a table, or one scenario's partition of it, lies."""
        folder = self.root / "tables" / check_name(table, "table name")
        if scenario is not None:
            folder = folder / f"scenario={check_name(scenario, 'scenario name')}"
        return folder / "part.parquet"

    def write_table(
        self,
        table: str,
        frame: pl.DataFrame | Iterable[pl.DataFrame],
        scenario: str | None = None,
        form: CompactFormat | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> Path:
        """Swap in one table or partition; returns its path.

        Args:
            frame: the rows, or with `form` chunks of them, each forgotten once written.
            form: how to pack them; None writes plain Parquet. Readers need not know which.
            notes: with `form`, kept in the file: `table_notes`.
        """
        path = self.table_path(table, scenario)
        with replace_file(path) as temporary:
            write_frame(temporary, frame, form, notes)
        return path

    def table_notes(self, table: str, scenario: str | None = None) -> dict[str, str]:
        """What was noted with a table or partition; empty where there is neither."""
        self.settle()
        path = self.table_path(table, scenario)
        return file_notes(path) if path.exists() else {}

    def write_together(
        self, files: Mapping[Path, Callable[[Path], object]], drop_tables: Sequence[str] = ()
    ) -> None:
        """Swap in several files of the store, and drop tables, in one moment.

        Args:
            files: path in the store -> function that writes the new file at the path it is given.
        """
        gone = [self.root / "tables" / check_name(table, "table name") for table in drop_tables]
        swap_in(self.root, files, gone)

    def settle(self) -> None:
        """Finish what a killed process had begun to swap in; every reading method does so first."""
        settle(self.root)

    def has_table(self, table: str, scenario: str | None = None) -> bool:
        """Whether there is anything to read."""
        self.settle()
        if scenario is None:
            return self.table_path(table).exists() or bool(self.scenarios(table))
        return self.table_path(table, scenario).exists()

    def scenarios(self, table: str) -> list[str]:
        """Names of the stored scenario partitions, sorted."""
        folder = self.root / "tables" / check_name(table, "table name")
        found = folder.glob("scenario=*/part.parquet")
        return sorted(path.parent.name.removeprefix("scenario=") for path in found)

    def scan_table(self, table: str, scenario: str | None = None) -> pl.LazyFrame:
        """Lazy frame of a table: one partition, the only file, or all partitions together.

        Raises:
            StoreError: there is nothing to read, or a file is torn.
        """
        self.settle()
        single = self.table_path(table, scenario)
        if single.exists():
            return scan_any(single)
        parts = [self.table_path(table, name) for name in self.scenarios(table)] if scenario is None else []
        if not parts:
            known = sorted(path.name for path in (self.root / "tables").glob("*")) or "no tables at all"
            raise StoreError(
                f"table {table!r} is not in the store"
                + (f" for scenario {scenario!r}" if scenario is not None else ""),
                expected=single,
                got=known,
                where=self.root,
            )
        return pl.concat([scan_any(part) for part in parts])

    def read_table(self, table: str, scenario: str | None = None) -> pl.DataFrame:
        """Eager `scan_table`.

        Raises:
            StoreError: there is nothing to read, or a file is torn.
        """
        try:
            return self.scan_table(table, scenario).collect()
        except pl.exceptions.PolarsError as error:
            raise StoreError(f"table {table!r} cannot be read", got=error, where=self.root) from error

    def drop_table(self, table: str) -> None:
        """Remove a table and all its partitions; nothing happens where there is none."""
        shutil.rmtree(self.root / "tables" / check_name(table, "table name"), ignore_errors=True)

    # ---- warehouse --------------------------------------------------------------------------

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file with every table in it as a real table."""
        return self.root / "warehouse.duckdb"

    def build_warehouse(self) -> Path:
        """Build the DuckDB file from all stored tables beside the old one, then swap it in.

        Anyone may hold the old file open meanwhile; they keep reading the old state.
        """
        self.settle()
        names = sorted(path.name for path in (self.root / "tables").glob("*") if path.is_dir())
        with replace_file(self.warehouse_path) as temporary:
            with duckdb.connect(str(temporary)) as connection:
                for name in names:
                    if self.has_table(name):
                        connection.sql(f'CREATE TABLE "{name}" AS {self._select(name)}')
                connection.sql("CHECKPOINT")
            temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
        return self.warehouse_path

    def query(self, sql: str) -> pl.DataFrame:
        """Run SQL over all stored tables (views on their Parquet files) in a private DuckDB.

        Raises:
            StoreError: the statement fails.
        """
        self.settle()
        with duckdb.connect(":memory:") as connection:
            for folder in sorted((self.root / "tables").glob("*")):
                if self.has_table(folder.name):
                    connection.sql(f'CREATE VIEW "{folder.name}" AS {self._select(folder.name)}')
            try:
                return connection.sql(sql).pl()
            except duckdb.Error as error:
                raise StoreError("query failed", got=error, where=sql) from error

    def _select(self, table: str) -> str:
        single = self.table_path(table)
        return select_sql(
            [single] if single.exists() else [self.table_path(table, s) for s in self.scenarios(table)]
        )

    # ---- models, reports, other files -------------------------------------------------------

    def model_folder(self, model: str) -> Path:
        """Folder of one model's card and weights (`models.checkpoint` reads and writes it)."""
        return self.root / "models" / check_name(model, "model name")

    def report_path(self, name: str) -> Path:
        """Path of a report file."""
        return self.root / "reports" / check_name(name, "report name")

    def write_report(self, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a temporary file, then swap it in under `name`."""
        path = self.report_path(name)
        with replace_file(path) as temporary:
            write(temporary)
        return path

    def sweep(self) -> int:
        """Remove temporary files that a killed process left behind; returns how many."""
        leftovers = [path for path in self.root.rglob(f"{_TEMPORARY}*") if path.is_file()]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)
