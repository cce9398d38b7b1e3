"""The compact panel file: bit for bit, smaller, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.panel_store import scan_panel, write_panel
from pc_pipeline.loans.tape_generator import LoanTapeGenerator


def test_what_is_read_is_what_was_written(book: LoanBook, tmp_path: Path):
    path = tmp_path / "panel.parquet"
    chunks = [book.panel.slice(start, 7000) for start in range(0, book.panel.height, 7000)]
    assert write_panel(path, chunks) == book.panel.height
    assert scan_panel(path).collect().equals(book.panel)
    assert scan_panel(path).select("loan_state").filter(pl.col("loan_state") == 4).collect().height > 0


def test_half_the_bytes_of_plain_zstd(book: LoanBook, tmp_path: Path):
    baseline = book.panel.filter(pl.col("scenario") == "baseline")
    baseline.write_parquet(tmp_path / "plain.parquet", compression="zstd")
    write_panel(tmp_path / "compact.parquet", [baseline])
    sizes = [(tmp_path / f"{name}.parquet").stat().st_size for name in ("compact", "plain")]
    assert sizes[0] < 0.5 * sizes[1]


def test_duckdb_reads_the_file(book: LoanBook, tmp_path: Path):
    path = tmp_path / "panel.parquet"
    write_panel(path, [book.panel])
    with duckdb.connect(":memory:") as connection:
        found = connection.sql(f"SELECT sum(principal_paid) AS cents FROM read_parquet('{path}')").pl()
    assert int(found["cents"][0]) == round(100 * book.panel["principal_paid"].sum())


def test_streamed_chunks_are_the_whole(
    generator: LoanTapeGenerator, book: LoanBook, macro: pl.DataFrame, tmp_path: Path
):
    stream = generator.stream_scenario(macro, chunk_loans=400)
    write_panel(tmp_path / "panel.parquet", (chunk.panel for chunk in stream))
    order = ["scenario", "loan_id", "reporting_month"]
    assert scan_panel(tmp_path / "panel.parquet").collect().sort(order).equals(book.panel.sort(order))


def test_a_failed_write_leaves_the_old_file(book: LoanBook, tmp_path: Path):
    path = tmp_path / "panel.parquet"
    write_panel(path, [book.panel.head(100)])
    bent = book.panel.head(100).with_columns(outstanding_balance=pl.col("outstanding_balance") + 0.003)
    with pytest.raises(DataError, match="fixed number of digits"):
        write_panel(path, [book.panel.head(100), bent])
    with pytest.raises(DataError, match="nothing to write"):
        write_panel(path, [])
    with pytest.raises(DataError, match="identity"):
        write_panel(path, [book.panel.head(9).with_columns(loss_amount=pl.lit(1.0))])
    assert scan_panel(path).collect().equals(book.panel.head(100))
    assert [file.name for file in tmp_path.iterdir()] == ["panel.parquet"]


def test_a_chunk_holds_loans(generator: LoanTapeGenerator, macro: pl.DataFrame):
    with pytest.raises(ConfigError, match="chunk"):
        next(generator.stream_scenario(macro, chunk_loans=0))
