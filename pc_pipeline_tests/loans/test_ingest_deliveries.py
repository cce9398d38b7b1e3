"""Deliveries: the same bytes twice, restated months, seams, drift, and a process killed at any moment."""

from __future__ import annotations

import datetime as dt
import fcntl
import math
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import IngestError, StoreError
from pc_pipeline.core.rng import stream
from pc_pipeline.core.store import Store
from pc_pipeline.loans.identities import balance_breaches, cash_breaches, loss_breaches, terminal_breaches
from pc_pipeline.loans.ingest import deliver, deliveries, history, read_tape, verify
from pc_pipeline.loans.ingest.drift import population_stability
from pc_pipeline.schemas.tables import failures
from pc_pipeline_tests.shared_data import shared_path

LOANS = pl.DataFrame(
    {
        "loan_id": ["a", "b"],
        "origination_date": [dt.date(2023, 1, 1)] * 2,
        "term_months": [12, 12],
        "original_balance": [1200.0, 2400.0],
        "interest_rate": [0.0, 0.0],
        "amortization_type": ["annuity"] * 2,
        "asset_class": ["consumer"] * 2,
    }
)


def month(number: int) -> dt.date:
    return dt.date(2023, number, 1)


def pool(place: Path, rows: list[tuple[str, int, int, float]]) -> Path:
    """A folder with the tape and a panel of (loan, month, state, balance)."""
    place.mkdir()
    LOANS.write_csv(place / "loans.csv")
    pl.DataFrame(
        {
            "loan_id": [row[0] for row in rows],
            "reporting_month": [month(row[1]) for row in rows],
            "loan_state": [row[2] for row in rows],
            "outstanding_balance": [row[3] for row in rows],
        }
    ).write_csv(place / "panel.csv")
    return place


FIRST = [("a", 2, 0, 1100.0), ("a", 3, 0, 1000.0), ("b", 2, 0, 2200.0), ("b", 3, 1, 2200.0)]
SECOND = [("a", 3, 1, 1100.0), ("a", 4, 0, 900.0), ("b", 3, 0, 2000.0), ("b", 4, 5, 0.0)]  # restates March


def assert_whole(panel: pl.DataFrame) -> None:
    assert failures("loan_panel", panel).is_empty()
    for identity in (balance_breaches, cash_breaches, loss_breaches, terminal_breaches):
        assert identity(panel).is_empty(), identity(panel)


def test_the_same_bytes_change_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tape = pool(tmp_path / "d1", FIRST)
    one = deliver(store, tape)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")}
    again = deliver(store, tape)
    assert one.is_new
    assert not again.is_new
    assert again.id == one.id
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")} == before
    copy = pool(tmp_path / "copy", FIRST)  # the content counts, not the place
    assert not deliver(store, [copy / "loans.csv", copy / "panel.csv"]).is_new
    assert len(deliveries(store)) == 1
    verify(one)


def test_a_restated_month_replaces_and_both_stay_addressable(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = deliver(store, pool(tmp_path / "d1", FIRST))
    second = deliver(store, pool(tmp_path / "d2", SECOND))
    now, then = history(store), history(store, as_of="2023-03")
    assert then.panel.equals(first.table("panel"))
    assert history(store, delivery=second.id).panel.equals(second.table("panel"))
    assert now.owners["delivery"].to_list() == [first.id, second.id, second.id]
    a = now.panel.filter(pl.col("loan_id") == "a")
    assert a["loan_state"].to_list() == [0, 1, 0]
    assert a["outstanding_balance"].to_list() == [1100.0, 1100.0, 900.0]
    assert a["principal_paid"].to_list() == [100.0, 0.0, 200.0]
    b = now.panel.filter(pl.col("loan_id") == "b")
    assert b["loan_state"].to_list() == [0, 0, 5]
    assert b["principal_paid"].to_list() == [200.0, 200.0, 2000.0]
    assert b["months_in_state"].to_list() == [1, 2, 1]
    assert b["scheduled_payment"].to_list() == [200.0, 200.0, 200.0]
    assert_whole(now.panel)
    with pytest.raises(StoreError, match="nothing was delivered"):
        history(store, as_of="2023-01")


def test_months_delivered_one_by_one_are_the_whole(tmp_path: Path) -> None:
    rows = [
        ("a", 2, 0, 1100.0),
        ("a", 3, 1, 1100.0),
        ("a", 4, 2, 1100.0),
        ("a", 5, 3, 1100.0),
        ("a", 6, 4, 0.0),
    ]
    rows += [("b", m, 0, 2400.0 - 200.0 * (m - 1)) for m in range(2, 8)]
    store = Store(tmp_path / "store")
    for m in range(2, 8):
        deliver(store, pool(tmp_path / f"d{m}", [row for row in rows if row[1] == m]))
    whole = read_tape(pool(tmp_path / "all", rows)).panel
    joined = history(store).panel
    assert_whole(joined)
    same = [
        "loan_id",
        "reporting_month",
        "loan_state",
        "outstanding_balance",
        "principal_paid",
        "charge_off_amount",
    ]
    same += ["months_in_state", "scheduled_payment", "actual_payment", "loss_amount"]
    assert joined.select(same).equals(whole.select(same))


def test_a_real_pool_in_two_deliveries_is_the_pool(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = shared_path("data/sec_auto_aart2017")
    early = deliver(store, source, as_of="2018-06")
    deliver(store, source)
    full = read_tape(source)
    assert history(store).panel.equals(full.panel)
    assert history(store).recoveries.equals(full.recoveries)
    assert history(store, as_of="2018-06").panel.equals(early.table("panel"))


def test_drift_is_in_the_quality_table(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = deliver(store, pool(tmp_path / "d1", FIRST))
    second = deliver(store, pool(tmp_path / "d2", SECOND))
    assert first.table("quality")["drift_psi"].null_count() == first.table("quality").height
    drift = second.table("quality").filter(pl.col("drift_psi").is_not_null())
    tape = drift.filter(pl.col("column") == "original_balance")
    assert tape["drift_psi"].to_list() == [0.0]
    states = drift.filter((pl.col("column") == "loan_state") & (pl.col("month") == month(3)))
    assert states["drift_psi"].to_list() == [0.0]  # one loan late of two, before and after the restatement


def test_psi_by_hand() -> None:
    old, new = pl.Series(["x"] * 50 + ["y"] * 50), pl.Series(["x"] * 80 + ["y"] * 20)
    expected = 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5)
    assert population_stability(new, old) == pytest.approx(expected)
    draws = pl.Series(stream(1, "psi").normal(size=5_000))
    other = pl.Series(stream(2, "psi").normal(size=5_000))
    # under the null (n/2) PSI is about chi-square with 10 - 1 degrees: mean 9, sd sqrt(18)
    assert population_stability(draws, other) < (9 + 5 * math.sqrt(18)) / 2_500
    assert population_stability(draws + 1, other) > 0.5


def test_a_delivery_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    deliver(store, pool(tmp_path / "d1", FIRST))
    (tmp_path / "bad.csv").write_text("loan_id,colour\n1,red\n")
    with pytest.raises(IngestError):
        deliver(store, tmp_path / "bad.csv", adapter="canonical")
    assert [path.name for path in (store.root / "deliveries" / "pool").glob(".tmp-*")] == []
    assert len(deliveries(store)) == 1


def test_a_torn_file_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one = deliver(store, pool(tmp_path / "d1", FIRST))
    path = one.folder / "panel.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="torn"):
        verify(one)
    with pytest.raises(StoreError, match="cannot be read"):
        one.table("panel")


def test_two_processes_do_not_deliver_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tape = pool(tmp_path / "d1", FIRST)
    deliver(store, tape)
    with (store.root / "deliveries" / "pool" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process is delivering"):
            deliver(store, pool(tmp_path / "d2", SECOND))
    assert deliver(store, tmp_path / "d2").is_new
