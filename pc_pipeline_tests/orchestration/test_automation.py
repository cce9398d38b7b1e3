"""Sensors, schedule, partitions and the launcher's answers to failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from pc_pipeline.core.config import Settings
from pc_pipeline.core.errors import PcError
from pc_pipeline.core.store import Store
from pc_pipeline.orchestration import launch
from pc_pipeline.orchestration.automation import free_dead_slots, new_tape, scenario_files
from pc_pipeline.orchestration.build import build_definitions, build_resources
from pc_pipeline.orchestration.launch import Launcher, RunRequest, run_chain
from pc_pipeline.orchestration.partitions import add_scenarios
from pc_pipeline.schemas.units import STANDARD_SCENARIOS
from pc_pipeline_tests.orchestration.conftest import SCENARIOS, settings_for

CUSTOM = """
name: rate_shock
shifts:
  policy_rate: {add: 0.03}
"""


def sensor_context(settings: Settings, instance: dg.DagsterInstance) -> dg.SensorEvaluationContext:
    resources = build_resources(settings)
    return dg.build_sensor_context(
        instance=instance, resources={"store": resources["store"]}, definitions=build_definitions(settings)
    )


def home(folder: Path) -> Path:
    """A folder for an instance beside a project."""
    made = folder / "home"
    made.mkdir()
    return made


def age(path: Path) -> Path:
    """Make a file look as if it had been at rest for a while."""
    os.utime(path, (path.stat().st_atime - 60, path.stat().st_mtime - 60))
    return path


def test_definitions_load_with_every_named_part(settings: Settings) -> None:
    definitions = build_definitions(settings)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert {
        "landing", "macro_scenarios", "loan_tape", "loan_panel", "transitions", "macro_vae",
        "transition_transformer", "loan_trajectory", "markov_baseline", "payment_cascade", "joint_model",
        "simulations",
        "tranche_report",
    } <= keys  # fmt: skip
    for key in definitions.resolve_asset_graph().get_all_asset_keys():
        node = definitions.resolve_asset_graph().get(key)
        assert node.description, key
        assert node.group_name != "default"
        assert node.owners
        assert node.kinds


def test_training_runs_monthly(settings: Settings) -> None:
    schedule = build_definitions(settings).resolve_schedule_def("monthly_retraining")
    assert schedule.cron_schedule == "0 6 2 * *"
    assert schedule.job_name == "training"


def test_a_new_tape_asks_once_for_ingest_and_retraining(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with dg.DagsterInstance.local_temp(str(home(tmp_path))) as instance:
        context = sensor_context(settings, instance)
        assert isinstance(new_tape(context), dg.SkipReason)
        landing = tmp_path / "landing"
        landing.mkdir()
        (landing / "README.md").write_text("put tapes here")
        age(landing / "README.md")
        tape = landing / "tape.csv"
        tape.write_text("loan_id\n1\n")
        assert isinstance(new_tape(context), dg.SkipReason), "a file still being written is left alone"
        age(tape)
        first, again = new_tape(context), new_tape(context)
        tape.write_text("loan_id\n2\n")
        age(tape)
        changed = new_tape(context)
    assert isinstance(first, dg.SensorResult)
    assert isinstance(again, dg.SensorResult)
    assert isinstance(changed, dg.SensorResult)
    request = first.run_requests[0]
    assert request.partition_key == "observed"
    assert request.run_config["ops"]["landing"]["config"]["path"] == str(tape)
    assert again.run_requests[0].run_key == request.run_key
    assert changed.run_requests[0].run_key != request.run_key


def test_a_scenario_file_becomes_a_partition(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "rate_shock.yaml").write_text(CUSTOM)
    with dg.DagsterInstance.local_temp(str(home(tmp_path))) as instance:
        result = scenario_files(sensor_context(settings, instance))
    added = [key for request in result.dynamic_partitions_requests for key in request.partition_keys]
    assert set(added) == {*STANDARD_SCENARIOS, "rate_shock"}
    assert result.run_requests == [], "nothing is simulated before models are trained"


def test_a_custom_scenario_runs_through_the_same_assets(
    chain: Store, settings: Settings, instance: dg.DagsterInstance
) -> None:
    folder = chain.root / "scenarios"
    folder.mkdir(exist_ok=True)
    (folder / "rate_shock.yaml").write_text(CUSTOM)
    add_scenarios(instance, ["rate_shock"])
    Launcher(settings, instance).execute("scenario_results", "rate_shock")
    report = chain.read_table("pool_report", "rate_shock")
    assert report["scenario"].unique().to_list() == ["rate_shock"]
    rates = chain.read_table("macro_fan_report", "rate_shock").filter(pl.col("series") == "policy_rate")
    baseline = chain.read_table("macro_fan_report", "baseline").filter(pl.col("series") == "policy_rate")
    assert rates["p50"].max() > baseline["p50"].max() + 0.01
    for table in ("macro_scenarios", "simulations", "macro_fan_report", *chain_reports()):
        chain.table_path(table, "rate_shock").unlink()


def chain_reports() -> list[str]:
    return ["tranche_report", "pool_report", "cash_flow_report", "tranche_balance_report"]


def test_a_failed_scenario_is_rerun_alone(
    chain: Store, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    execute = Launcher.execute

    def sometimes(self: Launcher, job: str, scenario: str | None = None, **options: object) -> None:
        ran.append(str(scenario))
        if scenario == "adverse" and ran.count("adverse") == 1:
            raise PcError("lost its disk")
        execute(self, job, scenario)

    monkeypatch.setattr(Launcher, "execute", sometimes)
    launch.simulate_all(Launcher(settings, instance), SCENARIOS, first_macro=False)
    assert ran == [*SCENARIOS, "adverse"]
    assert chain.has_table("tranche_report", "adverse")


def test_slots_of_a_killed_run_are_freed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "data")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        gone = subprocess.Popen([sys.executable, "-c", "pass"])
        gone.wait()
        job = build_definitions(settings).resolve_job_def("tape")
        run = instance.create_run_for_job(
            job, tags={"pc/pid": str(gone.pid)}, status=dg.DagsterRunStatus.STARTED
        )
        assert free_dead_slots(instance) == [run.run_id]
        after = instance.get_run_by_id(run.run_id)
        assert after is not None
        assert after.status == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("change", "request_", "message"),
    [
        ({"recipe": "huge"}, RunRequest(), "unknown recipe"),
        ({"deal": "/nowhere/deal.yaml"}, RunRequest(), "deal"),
        ({}, RunRequest(tape="/nowhere/tape.csv"), "nowhere"),
        ({}, RunRequest(scenarios=("bassline",)), "unknown scenario"),
    ],
)
def test_a_wrong_request_is_one_readable_error_and_writes_no_table(
    tmp_path: Path, change: dict[str, str], request_: RunRequest, message: str
) -> None:
    base = settings_for(tmp_path / "data")
    values = {name: getattr(base, name) for name in base.__dataclass_fields__} | change
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, pytest.raises(PcError, match=message):
        run_chain(Settings(**values), request_, instance)
    assert not list((tmp_path / "data").glob("tables/*/*.parquet"))
