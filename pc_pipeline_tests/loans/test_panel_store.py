"""The packed panel: bit for bit through every reader, smaller, whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_pipeline.core.compact import CompactFormat, scan_any, select_sql, write_compact
from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.store import Store
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.panel_store import PANEL_FORMAT
from pc_pipeline.loans.tape_generator import LoanTapeGenerator


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_read_is_what_was_written(book: LoanBook, store: Store):
    for scenario in ("baseline", "adverse"):
        part = book.panel.filter(pl.col("scenario") == scenario)
        store.write_table("loan_panel", part, scenario, form=PANEL_FORMAT)
        assert store.read_table("loan_panel", scenario).equals(part)
    panel = book.panel.sort("scenario", "loan_id", "reporting_month")
    order = ["scenario", "loan_id", "reporting_month"]
    assert store.read_table("loan_panel").sort(order).equals(panel)
    queried = store.query("SELECT * FROM loan_panel ORDER BY scenario, loan_id, reporting_month")
    assert queried.equals(panel)
    assert queried.schema == panel.schema
    with duckdb.connect(str(store.build_warehouse()), read_only=True) as warehouse:
        assert warehouse.sql("SELECT * FROM loan_panel").pl().sort(order).equals(panel)


def test_half_the_bytes_of_plain_zstd(book: LoanBook, store: Store, tmp_path: Path):
    baseline = book.panel.filter(pl.col("scenario") == "baseline")
    baseline.write_parquet(tmp_path / "plain.parquet", compression="zstd")
    packed = store.write_table("loan_panel", baseline, "baseline", form=PANEL_FORMAT)
    assert packed.stat().st_size < 0.5 * (tmp_path / "plain.parquet").stat().st_size


def test_a_file_opened_alone_shows_the_right_amounts(book: LoanBook, store: Store):
    path = store.write_table("loan_panel", book.panel, form=PANEL_FORMAT)
    found = duckdb.sql(
        f"SELECT sum(interest_paid) AS paid, typeof(any_value(interest_paid)) AS kind FROM '{path}'"
    ).fetchall()[0]
    assert float(found[0]) == round(book.panel["interest_paid"].sum(), 2)
    assert found[1] == "DECIMAL(18,2)"
    assert set(book.panel.columns) - set(pl.read_parquet(path).columns) == {"principal_paid"}


def test_streamed_chunks_are_the_whole(
    generator: LoanTapeGenerator, book: LoanBook, macro: pl.DataFrame, store: Store
):
    chunks = (chunk.panel for chunk in generator.stream_scenario(macro, chunk_loans=400))
    store.write_table("loan_panel", chunks, form=PANEL_FORMAT)
    order = ["scenario", "loan_id", "reporting_month"]
    assert store.read_table("loan_panel").sort(order).equals(book.panel.sort(order))


def test_what_would_be_lost_stays_as_it_was(book: LoanBook, tmp_path: Path):
    panel = book.panel.head(50)
    bent = panel.with_columns(
        outstanding_balance=pl.col("outstanding_balance") + 0.003,
        principal_paid=(pl.col("principal_paid") + 0.01).round(2),
        interest_paid=pl.when(pl.int_range(pl.len()) == 7).then(float("inf")).otherwise("interest_paid"),
        loss_amount=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("loss_amount"),
    )
    path = tmp_path / "bent.parquet"
    write_compact(path, [bent], PANEL_FORMAT)
    assert scan_any(path).collect().equals(bent)
    assert duckdb.sql(select_sql([path])).pl().equals(bent)
    stored = pl.read_parquet_schema(path)
    assert stored["outstanding_balance"] == stored["interest_paid"] == pl.Float64
    assert stored["principal_paid"] == stored["loss_amount"] == pl.Decimal(18, 2)


def test_packed_and_plain_partitions_read_together(book: LoanBook, store: Store):
    one, two = book.panel.head(40), book.panel.tail(40)
    store.write_table("loan_panel", one, "baseline", form=PANEL_FORMAT)
    store.write_table("loan_panel", two, "observed")
    assert store.read_table("loan_panel").equals(pl.concat([one, two]))
    assert store.query("SELECT count(*) AS n, sum(principal_paid) AS p FROM loan_panel").row(0) == (
        80,
        pytest.approx(one["principal_paid"].sum() + two["principal_paid"].sum()),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-(10**14), 10**14)), min_size=1, max_size=30),
    st.integers(0, 6),
)
def test_every_whole_multiple_survives(numbers: list[int | None], places: int):
    values = [None if number is None else number / 10.0**places for number in numbers]
    frame = pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64)})
    with tempfile.TemporaryDirectory() as folder:
        _check_numbers(Path(folder) / "numbers.parquet", frame, places)


def _check_numbers(path: Path, frame: pl.DataFrame, places: int):
    values = frame["x"].to_list()
    write_compact(path, [frame], CompactFormat(digits={"x": places}, split=frozenset({"x"})))
    assert pl.read_parquet_schema(path)["x"] == pl.Decimal(18, places)
    back, sql = scan_any(path).collect(), duckdb.sql(select_sql([path])).pl()
    assert back["x"].to_list() == values
    assert sql["x"].to_list() == values


def test_a_failed_write_leaves_the_old_file(book: LoanBook, store: Store):
    good = book.panel.head(100)
    path = store.write_table("loan_panel", good, form=PANEL_FORMAT)
    bent = good.with_columns(outstanding_balance=pl.col("outstanding_balance") + 0.003)
    with pytest.raises(DataError, match="later chunk"):
        store.write_table("loan_panel", [good, bent], form=PANEL_FORMAT)
    with pytest.raises(DataError, match="nothing to write"):
        store.write_table("loan_panel", [], form=PANEL_FORMAT)
    assert store.read_table("loan_panel").equals(good)
    assert [file.name for file in path.parent.iterdir()] == ["part.parquet"]


def test_an_empty_panel_keeps_its_columns(book: LoanBook, store: Store):
    store.write_table("loan_panel", book.panel.clear(), "baseline", form=PANEL_FORMAT)
    assert store.read_table("loan_panel").equals(book.panel.clear())
    assert store.query("SELECT * FROM loan_panel").schema == book.panel.schema


def test_a_format_says_what_it_can():
    with pytest.raises(ConfigError, match="digits"):
        CompactFormat(digits={"a": 2, "b": 4}, differences={"a": ("b", "a")})
    with pytest.raises(ConfigError, match="packing"):
        CompactFormat(digits={"a": 12})


def test_a_chunk_holds_loans(generator: LoanTapeGenerator, macro: pl.DataFrame):
    with pytest.raises(ConfigError, match="chunk"):
        next(generator.stream_scenario(macro, chunk_loans=0))
