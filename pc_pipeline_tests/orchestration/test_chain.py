"""The whole chain at its smallest, through a real instance: what is made, checked, recorded."""

from __future__ import annotations

import dagster as dg
import duckdb
import openpyxl
import polars as pl
import pytest

from pc_pipeline.core.config import Settings
from pc_pipeline.core.store import Store
from pc_pipeline.models.checkpoint import read_card
from pc_pipeline.orchestration.build import build_definitions
from pc_pipeline.orchestration.launch import RunRequest, run_chain
from pc_pipeline.schemas.tables import failures
from pc_pipeline_tests.orchestration.conftest import SCENARIOS, settings_for

PARTITIONED = ("macro_scenarios", "loan_panel", "recoveries", "simulations", "tranche_report", "pool_report")
MODELS = (
    "macro_vae",
    "transition_transformer",
    "loan_trajectory",
    "markov_baseline",
    "payment_cascade",
    "joint_model",
)


def test_every_table_is_there_and_keeps_its_contract(chain: Store) -> None:
    for table in PARTITIONED:
        assert set(chain.scenarios(table)) == set(SCENARIOS)
    for table in (*PARTITIONED, "loan_tape", "transitions", "pool"):
        assert failures(table, chain.read_table(table)).is_empty(), table


def test_every_asset_is_recorded_with_rows_and_schema(chain: Store, instance: dg.DagsterInstance) -> None:
    event = instance.get_latest_materialization_event(dg.AssetKey("loan_panel"))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    rows = metadata["dagster/row_count"].value
    assert rows == chain.read_table("loan_panel", SCENARIOS[-1]).height
    schema = metadata["dagster/column_schema"].value
    assert schema.columns[0].name == "loan_id"
    assert schema.columns[0].description
    for model in MODELS:
        assert instance.get_latest_materialization_event(dg.AssetKey(model)) is not None


def test_all_blocking_checks_ran_and_passed(
    chain: Store, instance: dg.DagsterInstance, settings: Settings
) -> None:
    keys = list(build_definitions(settings).resolve_asset_graph().asset_check_keys)
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert len(keys) > 12
    missing = [str(key) for key in keys if key not in records]
    assert missing == []
    failed = []
    for key, record in records.items():
        evaluation = record.evaluation
        if evaluation is None or (
            not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
        ):
            failed.append(str(key))
    assert failed == []


def test_the_models_are_weights_with_a_card(chain: Store) -> None:
    folder = chain.model_folder("joint_model")
    for name in ("macro_vae", "transition_transformer", "loan_trajectory", "loan_residual"):
        card = read_card(folder / name)
        assert (folder / name / f"{card['weights']}.safetensors").exists()
    assert not list(chain.root.rglob("*.pt")) + list(chain.root.rglob("*.pkl"))


def test_the_payment_cascade_is_validated_and_scored_beside_the_loan_models(chain: Store) -> None:
    card = read_card(chain.model_folder("payment_cascade") / "payment_cascade")
    assert card["engine"] == "fallback matrix"  # fewer than 1,000 histories, and the card says so
    assert "1,000" in card["reason"]
    figures = {row["figure"] for row in card["validation"]}
    assert {"transition_error", "default_rate_match", "avg_length_error", "two-sample AUC"} <= figures
    assert sum(card["transition_matrix"]["30_days"].values()) == pytest.approx(1.0)
    assert "<svg" in chain.report_path("payment_cascade.html").read_text()
    scores = read_card(chain.model_folder("joint_model") / "loan_trajectory")["scores"]
    assert "payment_cascade" in [row["model"] for row in scores]


def test_reports_hold_what_the_tables_hold(chain: Store) -> None:
    page = chain.report_path("report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    book = openpyxl.load_workbook(chain.report_path("report.xlsx"), read_only=True)
    assert {"tranche_report", "pool_report"} <= set(book.sheetnames)
    report = chain.read_table("tranche_report")
    assert report["tranche"].n_unique() == 4
    assert (report["expected_loss_lower"] <= report["expected_loss"]).all()


def test_analysts_can_open_the_warehouse(chain: Store) -> None:
    with duckdb.connect(str(chain.warehouse_path), read_only=True) as connection:
        rows = connection.sql("select scenario, count(*) from loan_panel group by 1 order by 1").fetchall()
    counted = chain.read_table("loan_panel").group_by("scenario").len().sort("scenario").rows()
    assert rows == counted


def test_severe_is_worse_than_baseline(chain: Store) -> None:
    losses = chain.read_table("pool_report").filter(pl.col("measure") == "expected_loss")
    by_name = dict(zip(losses["scenario"], losses["value"], strict=True))
    assert by_name["severely_adverse"] > by_name["adverse"] > by_name["baseline"] > 0


@pytest.mark.slow
def test_same_seed_same_bytes(
    chain: Store, instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = settings_for(tmp_path_factory.mktemp("again"))
    run_chain(again, RunRequest(scenarios=SCENARIOS), instance)
    other = Store(again.data_dir)
    for table in ("simulations", "tranche_report", "pool_report", "cash_flow_report"):
        for scenario in SCENARIOS:
            first, second = chain.table_path(table, scenario), other.table_path(table, scenario)
            assert first.read_bytes() == second.read_bytes(), (table, scenario)
    assert chain.report_path("report.html").read_bytes() == other.report_path("report.html").read_bytes()
