"""Jobs, the monthly retraining schedule, and the sensors on new tapes and new scenarios."""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from pc_pipeline.core.store import file_sha256
from pc_pipeline.engines import stages
from pc_pipeline.orchestration.partitions import SCENARIOS, add_scenarios
from pc_pipeline.orchestration.resources import StoreResource
from pc_pipeline.schemas.units import OBSERVED, STANDARD_SCENARIOS

SCENARIO_INPUTS = ["macro_scenarios", "loan_panel", "recoveries"]
TRAINING = [
    "transitions",
    "pool",
    "macro_vae",
    "transition_transformer",
    "loan_trajectory",
    "markov_baseline",
    "payment_cascade",
    "joint_model",
]
SCENARIO_RESULTS = [
    "simulations",
    "macro_fan_report",
    "tranche_report",
    "pool_report",
    "cash_flow_report",
    "tranche_balance_report",
]
CLOSING = ["committee_report", "warehouse"]


def _assets(*names: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*names)


land_tape = dg.define_asset_job("land_tape", _assets("landing"), description="Take in a delivered tape.")
tape_job = dg.define_asset_job("tape", _assets("loan_tape"), description="The loan tape.")
scenario_inputs = dg.define_asset_job(
    "scenario_inputs",
    _assets(*SCENARIO_INPUTS),
    description="Macro paths and loan panel of one scenario.",
)
training_job = dg.define_asset_job(
    "training", _assets(*TRAINING), description="All models, over all scenarios."
)
scenario_results = dg.define_asset_job(
    "scenario_results",
    _assets("macro_scenarios", *SCENARIO_RESULTS),
    description="Simulate one scenario with the trained models and report its tranches. Backfill me.",
)
scenario_macro = dg.define_asset_job(
    "scenario_macro", _assets("macro_scenarios"), description="Macro paths only."
)
scenario_simulation = dg.define_asset_job(
    "scenario_simulation",
    _assets(*SCENARIO_RESULTS),
    description="Simulation and report of one scenario whose macro paths are there.",
)
closing_job = dg.define_asset_job("closing", _assets(*CLOSING), description="Committee report and warehouse.")
ingest_and_retrain = dg.define_asset_job(
    "ingest_and_retrain",
    _assets("landing", "loan_tape", *SCENARIO_INPUTS, *TRAINING),
    description="A new tape: land it, rebuild the observed panel, retrain everything.",
)
JOBS = [
    land_tape,
    tape_job,
    scenario_inputs,
    scenario_macro,
    training_job,
    scenario_results,
    scenario_simulation,
    closing_job,
    ingest_and_retrain,
]

monthly_retraining = dg.ScheduleDefinition(
    name="monthly_retraining",
    job=training_job,
    cron_schedule="0 6 2 * *",
    execution_timezone="UTC",
    description="Retrain on the second of each month, once the month-end tape is in.",
)
SCHEDULES = [monthly_retraining]


@dg.sensor(
    name="new_tape",
    job=ingest_and_retrain,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new or changed file in data/landing is ingested and all models are retrained.",
)
def new_tape(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult | dg.SkipReason:
    landing = store.store.root / "landing"
    tapes = stages.landed_files(landing)
    if not tapes:
        return dg.SkipReason(f"no tape in {landing}")
    requests = [
        dg.RunRequest(
            run_key=f"{tape.name}:{digest}",
            partition_key=OBSERVED,
            run_config={"ops": {"landing": {"config": {"path": str(tape)}}}},
            tags={"pc/tape": tape.name, "pc/sha256": digest},
        )
        for tape, digest in ((tape, _digest(tape)) for tape in tapes)
    ]
    return dg.SensorResult(
        run_requests=requests, dynamic_partitions_requests=_missing(context.instance, [OBSERVED])
    )


def _digest(tape: Path) -> str:
    files = [tape] if tape.is_file() else sorted(path for path in tape.rglob("*") if path.is_file())
    return "-".join(file_sha256(path)[:16] for path in files)


def _missing(instance: dg.DagsterInstance, names: list[str]) -> list[Any]:
    known = set(instance.get_dynamic_partitions("scenario"))
    new = [name for name in names if name not in known]
    return [SCENARIOS.build_add_request(new)] if new else []


@dg.sensor(
    name="scenario_files",
    job=scenario_results,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the standard scenarios as partitions; a new YAML in data/scenarios becomes one and "
    "is simulated.",
)
def scenario_files(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    custom = stages.custom_scenarios(store.store)
    known = set(context.instance.get_dynamic_partitions("scenario"))
    new = [name for name in custom if name not in known]
    ready = stages.has_trained_models(store.store)
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"scenario:{name}", partition_key=name) for name in new if ready],
        dynamic_partitions_requests=_missing(context.instance, [*STANDARD_SCENARIOS, *custom]),
    )


SENSORS = [new_tape, scenario_files]


def prepare_instance(instance: dg.DagsterInstance) -> None:
    """Seed the standard partitions and free pool slots that a killed run of this machine still holds."""
    add_scenarios(instance)
    free_dead_slots(instance)


def free_dead_slots(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process is gone as failed and free their pool slots; returns their ids."""
    dead = []
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(running):
        pid = run.tags.get("pc/pid")
        if pid and not _alive(int(pid)):
            instance.report_run_failed(run, "the process that ran it is gone")
            dead.append(run.run_id)
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=50):
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return dead


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
