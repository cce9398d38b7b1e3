"""The store's pool from its deliveries: idempotent, restated, told from another pool, swapped in whole."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import DataError, IngestError
from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages
from pc_pipeline.engines.stages.delivery import is_same_pool, pool_name
from pc_pipeline.engines.stages.landing import claim_store, read_landing
from pc_pipeline.loans.ingest import deliveries, pools
from pc_pipeline.loans.panel_store import PANEL_FORMAT
from pc_pipeline.models.checkpoint import save_model
from pc_pipeline.models.markov import MarkovTransitionModel
from pc_pipeline.schemas.tables import failures
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline_tests.shared_data import shared_path

LANDED = ("landing_loans", "landing_panel", "landing_recoveries", "quarantine", "data_quality")


def month(number: int) -> dt.date:
    return dt.date(2023, number, 1)


def tape(place: Path, rows: list[tuple[str, int, int, float]], balance: float = 1200.0) -> Path:
    """A folder of two consumer loans without interest and a panel of (loan, month, state, balance)."""
    place.mkdir(parents=True)
    pl.DataFrame(
        {
            "loan_id": ["a", "b"],
            "origination_date": [month(1)] * 2,
            "term_months": [12, 12],
            "original_balance": [balance, 2 * balance],
            "interest_rate": [0.0, 0.0],
            "amortization_type": ["annuity"] * 2,
            "asset_class": ["realestate"] * 2,
            "collateral_value_origination": [2400.0, 4800.0],
        }
    ).write_csv(place / "loans.csv")
    columns = ["loan_id", "reporting_month", "loan_state", "outstanding_balance"]
    pl.DataFrame([(a, month(m), s, b) for a, m, s, b in rows], schema=columns, orient="row").write_csv(
        place / "panel.csv"
    )
    return place


MARCH = [("a", 2, 0, 1100.0), ("a", 3, 0, 1000.0), ("b", 2, 0, 2200.0), ("b", 3, 1, 2200.0)]
APRIL = [("a", 3, 1, 1100.0), ("a", 4, 0, 900.0), ("b", 3, 0, 2000.0), ("b", 4, 0, 1800.0)]  # restates March


def derived(store: Store) -> None:
    """A table as if the chain had run."""
    store.write_table("pool", pl.DataFrame({"loan_id": ["a"]}))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("book_2024-01.csv", "book"),
        ("book-202402.parquet", "book"),
        ("2024-03-31 book.csv", "book"),
        ("book_2024Q1.csv", "book"),
        ("deal9/2024-01.csv", "deal9"),
        ("sec_auto_aart2017.csv", "sec_auto_aart2017"),
        ("my book (new).csv", "my_book_new"),
    ],
)
def test_a_pool_is_named_by_its_file_without_dates(path: str, name: str) -> None:
    assert pool_name([path]) == name


def test_the_same_tape_again_changes_nothing(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tape(tmp_path / "book_2023-03", MARCH)
    first = stages.land(store, str(source))
    before = {name: store.table_path(name).read_bytes() for name in LANDED}
    derived(store)
    again = stages.land(store, str(source))
    assert len(deliveries(store, "book")) == 1
    assert again.panel.equals(first.panel)
    assert again.source_sha256 == first.source_sha256
    assert {name: store.table_path(name).read_bytes() for name in LANDED} == before
    assert store.has_table("pool")


def test_a_restated_month_replaces_and_is_the_same_pool(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = stages.land(store, str(tape(tmp_path / "book_2023-03", MARCH)))
    derived(store)
    second = stages.land(store, str(tape(tmp_path / "book_2023-04", APRIL)))
    note = read_landing(store)
    assert note is not None
    assert (note.pool, note.as_of) == ("book", "2023-04-01")
    assert note.sha256 == second.source_sha256 != first.source_sha256
    assert store.has_table("pool"), "the same pool: recomputed, not dropped"
    march = store.read_table("landing_panel").filter(pl.col("reporting_month") == month(3))
    assert march.sort("loan_id")["loan_state"].to_list() == [1, 0]
    assert second.panel["reporting_month"].n_unique() == 3
    drift = store.read_table("data_quality").filter(pl.col("drift_psi").is_not_null())
    assert drift.filter(pl.col("column") == "original_balance")["drift_psi"].to_list() == [0.0]
    then = stages.land(store, str(tmp_path / "book_2023-03"), as_of="2023-03")
    assert then.panel.equals(first.panel)
    assert stages.as_known(store, "book").panel.equals(second.panel)


def test_what_was_delivered_since_can_be_landed_without_its_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert stages.land_known(store) is None
    source = tape(tmp_path / "book_2023-03", MARCH)
    first = stages.land(store, str(source))
    assert stages.land_known(store) is None
    stages.take_in(store, [tape(tmp_path / "book_2023-04", APRIL)])
    came = stages.land_known(store)
    assert came is not None
    assert came.panel.equals(stages.as_known(store, "book").panel)
    assert store.read_table("landing_panel").equals(came.panel)
    note = read_landing(store)
    assert note is not None
    assert (note.sha256, note.as_of) == (came.source_sha256, "2023-04-01")
    stages.land(store, str(source), as_of="2023-03")
    assert stages.land_known(store) is None, "a look back stays one"
    assert store.read_table("landing_panel").equals(first.panel)


def test_another_pool_of_the_same_name_drops_what_was_derived(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(tape(tmp_path / "x" / "book", MARCH)))
    derived(store)
    other = [(loan, m, s, 2 * balance) for loan, m, s, balance in MARCH]
    landed = stages.land(store, str(tape(tmp_path / "y" / "book", other, balance=2400.0)))
    name = f"book-{landed.source_sha256[:8]}"
    assert pools(store) == sorted(["book", name])
    assert not store.has_table("pool")
    assert landed.panel["outstanding_balance"].max() == 4400.0
    later = [(loan, m, s, 2 * balance) for loan, m, s, balance in APRIL]
    stages.land(store, str(tape(tmp_path / "z" / "book", later, balance=2400.0)))
    assert len(deliveries(store, name)) == 2, "its next delivery is found by its loans"
    stages.land(store, str(tmp_path / "x" / "book"), pool="mine")
    assert read_landing(store).pool == "mine"  # type: ignore[union-attr]


def test_loans_in_common_must_agree() -> None:
    one = pl.DataFrame(
        {"loan_id": ["1", "2"], "vintage_month": [month(1)] * 2, "original_balance": [1.0, 2.0]}
    )
    assert is_same_pool(one, one.head(1))
    assert not is_same_pool(one, one.with_columns(pl.col("original_balance") + 1))
    assert not is_same_pool(one, one.with_columns(pl.col("loan_id") + "x"))


def test_covariates_follow_from_the_macro_history_beside_the_tape(tmp_path: Path) -> None:
    source = tape(tmp_path / "data" / "book", MARCH)
    stages.land(Store(tmp_path / "bare"), str(source))
    assert Store(tmp_path / "bare").read_table("landing_panel")["rate_incentive"].null_count() == 4
    months = [dt.date(2022, m, 1) for m in range(1, 13)] + [month(m) for m in range(1, 5)]
    series = {s.name: [s.mean] * len(months) for s in MACRO_SERIES}
    series |= {"yield_10y": [0.04] * len(months), "property_price_index": [100.0] * 14 + [125.0, 125.0]}
    pl.DataFrame({"month": months, **series}).write_csv(tmp_path / "data" / "macro_history.csv")
    store = Store(tmp_path / "store")
    landed = stages.land(store, str(source))
    assert landed.panel["rate_incentive"].to_list() == pytest.approx([-0.04] * 4)
    a = landed.panel.filter(pl.col("loan_id") == "a").sort("reporting_month")
    assert a["ltv_current"].to_list() == [0.4583, 0.3333]


def test_positions_of_one_month_make_a_pool_and_teach_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    march = [row for row in MARCH if row[1] == 3]
    stages.land(store, str(tape(tmp_path / "book_2023-03", march)))
    assert not stages.has_real_history(store)
    pool = stages.pool(store, pl.DataFrame()).sort("loan_id")
    assert pool["current_balance"].to_list() == [1000.0, 2200.0]
    assert pool["loan_state"].to_list() == [0, 1]
    stages.land(store, str(tape(tmp_path / "book_2023-04", APRIL)))
    assert stages.has_real_history(store)


def test_a_file_of_settled_loans_is_no_pool(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(shared_path("data/sba_california")))
    assert not stages.has_real_history(store)
    with pytest.raises(DataError, match="no loan is alive"):
        stages.pool(store, pl.DataFrame())


def test_a_bad_delivery_leaves_the_landed_pool(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(tape(tmp_path / "book", MARCH)))
    before = {path: path.read_bytes() for path in store.root.rglob("*.parquet")}
    (tmp_path / "bad.csv").write_text("loan_id,colour\n1,red\n")
    with pytest.raises(IngestError):
        stages.land(store, str(tmp_path / "bad.csv"))
    assert {path: path.read_bytes() for path in store.root.rglob("*.parquet")} == before


def test_landed_tables_are_swapped_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stages.land(store, str(tape(tmp_path / "book", MARCH)))
    note = read_landing(store)
    before = {name: store.table_path(name).read_bytes() for name in LANDED}
    torn = {"landing_loans": pl.DataFrame({"loan_id": ["z"]}), "landing_panel": "not a frame"}
    with pytest.raises(AttributeError):
        claim_store(store, "delivered other", landing=note, tables=torn)  # type: ignore[arg-type]
    assert {name: store.table_path(name).read_bytes() for name in LANDED} == before
    assert read_landing(store) == note
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_a_forgotten_landing_keeps_its_deliveries(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(tape(tmp_path / "book", MARCH)))
    stages.forget_landing(store)
    assert read_landing(store) is None
    assert not store.has_table("landing_loans")
    assert len(deliveries(store, "book")) == 1


def macro_history(place: Path, n_months: int, index: float) -> Path:
    """Flat macro from January 2022, with another property index from March 2023 on."""
    months = [dt.date(2022 + k // 12, k % 12 + 1, 1) for k in range(n_months)]
    series = {s.name: [s.mean] * n_months for s in MACRO_SERIES}
    series |= {"property_price_index": [100.0 if m < month(3) else index for m in months]}
    pl.DataFrame({"month": months, **series}).write_csv(place)
    return place


def test_a_restated_macro_history_delivers_anew_and_a_longer_one_does_not(tmp_path: Path) -> None:
    source, store = tape(tmp_path / "book", MARCH), Store(tmp_path / "store")
    plain = stages.land(store, str(source))
    first = stages.land(store, str(source), history=str(macro_history(tmp_path / "m1.csv", 15, 125.0)))
    longer = stages.land(store, str(source), history=str(macro_history(tmp_path / "m2.csv", 20, 125.0)))
    assert len(deliveries(store, "book")) == 2
    assert longer.source_sha256 == first.source_sha256 != plain.source_sha256
    restated = stages.land(store, str(source), history=str(macro_history(tmp_path / "m3.csv", 15, 80.0)))
    assert len(deliveries(store, "book")) == 3
    march = restated.panel.filter((pl.col("loan_id") == "a") & (pl.col("reporting_month") == month(3)))
    assert march["ltv_current"].to_list() == [round(1000 / (2400 * 0.8), 4)]
    assert restated.source_sha256 != first.source_sha256
    stages.land(store, str(source))
    assert len(deliveries(store, "book")) == 3, "without a history there is nothing to deliver anew"


def test_what_is_landed_keeps_its_tables_contract(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(tape(tmp_path / "book_2023-03", [*MARCH, ("b", 4, 9, 1.0)])))
    stages.land(store, str(tape(tmp_path / "book_2023-04", APRIL)))
    for name in ("quarantine", "data_quality"):
        assert failures(name, store.read_table(name)).is_empty()
    assert store.read_table("data_quality")["quarantined"].sum() > 0


def test_models_of_an_older_history_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages.land(store, str(tape(tmp_path / "book_2023-03", MARCH)))
    landed = store.read_table("landing_panel")
    store.write_table("loan_panel", landed, "observed", form=PANEL_FORMAT, notes=stages.panel_notes(store))
    folder = store.model_folder("joint_model") / "transition_transformer"
    card = {stages.LEARNED_FROM: stages.learned_from(store)}
    save_model(folder, MarkovTransitionModel(n_states=7), card)
    assert stages.stale_models(store) == ""
    stages.land(store, str(tape(tmp_path / "book_2023-04", APRIL)))
    assert "not in the models" in stages.stale_models(store)
    stages.forget_landing(store)
    assert stages.stale_models(store) == ""
