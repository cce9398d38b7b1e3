"""The store: whole files or none, names that cannot leave it, a warehouse that opens any time."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.core.errors import StoreError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.core.store import Store, check_name, replace_file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_partitions_read_together_and_alone(store: Store) -> None:
    store.write_table("t", pl.DataFrame({"scenario": ["a"], "x": [1]}), "a")
    store.write_table("t", pl.DataFrame({"scenario": ["b"], "x": [2]}), "b")
    assert store.scenarios("t") == ["a", "b"]
    assert store.read_table("t")["x"].to_list() == [1, 2]
    assert store.read_table("t", "b")["x"].to_list() == [2]


def test_a_missing_table_says_what_there_is(store: Store) -> None:
    store.write_table("here", pl.DataFrame({"x": [1]}))
    with pytest.raises(StoreError, match="here"):
        store.read_table("not_here")


def test_a_torn_file_is_an_error_not_data(store: Store) -> None:
    path = store.write_table("t", pl.DataFrame({"x": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StoreError, match="cannot be read"):
        store.read_table("t")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")

    def fail() -> None:
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_sweep_removes_what_a_killed_process_left(store: Store) -> None:
    path = store.write_table("t", pl.DataFrame({"x": [1]}))
    (path.parent / ".tmp-dead.parquet").write_text("half")
    assert store.sweep() == 1
    assert store.read_table("t").height == 1


@given(st.text(max_size=30))
def test_a_name_never_leaves_the_store(name: str) -> None:
    try:
        check_name(name)
    except StoreError:
        return
    path = Store(Path("/base")).table_path(name).resolve()
    assert path.is_relative_to("/base/tables")
    assert len(path.parts) == 5


def test_readers_never_see_half_a_table_while_it_is_replaced(store: Store) -> None:
    store.write_table("t", pl.DataFrame({"x": [0] * 1000}))
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            values = store.read_table("t")["x"]
            assert values.n_unique() == 1
            assert values.len() == 1000
            seen.append(values[0])

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(1, 30):
        store.write_table("t", pl.DataFrame({"x": [version] * 1000}))
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert seen


def test_the_warehouse_is_rebuilt_while_someone_holds_it_open(store: Store) -> None:
    store.write_table("t", pl.DataFrame({"x": [1]}), "a")
    store.write_table("t", pl.DataFrame({"x": [2]}), "b")
    with duckdb.connect(str(store.build_warehouse()), read_only=True) as analyst:
        store.write_table("t", pl.DataFrame({"x": [5]}), "a")
        store.build_warehouse()
        assert analyst.sql("select sum(x) from t").fetchall() == [(3,)]
    with duckdb.connect(str(store.warehouse_path), read_only=True) as fresh:
        assert fresh.sql("select sum(x) from t").fetchall() == [(7,)]
        assert fresh.sql("select table_type from information_schema.tables").fetchall() == [("BASE TABLE",)]


def test_query_reads_all_partitions_and_names_the_statement_that_fails(store: Store) -> None:
    store.write_table("t", pl.DataFrame({"x": [1, 2]}), "a")
    assert store.query("select count(*) as n from t")["n"].to_list() == [2]
    with pytest.raises(StoreError, match="nonsense"):
        store.query("nonsense")


def test_streams_are_named_repeatable_and_apart() -> None:
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert len({derive_seed(s, n) for s in range(50) for n in ("a", "b", ("a", "b"))}) == 150
    first, again = stream(1, "x").standard_normal(4), stream(1, "x").standard_normal(4)
    assert (first == again).all()
    assert not (first == stream(2, "x").standard_normal(4)).any()
