"""Run the chain in this process and say how it goes: the commands `pc run`, `backfill`, `ui`, `scenario`.

Every run goes through Dagster's instance, so that what a command made is what the UI shows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.utils import make_new_run_id  # public only as a return value; stable since 0.11
from rich.console import Console

from pc_pipeline.core.config import Settings
from pc_pipeline.core.errors import ConfigError, PcError
from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages
from pc_pipeline.orchestration import checks
from pc_pipeline.orchestration.automation import prepare_instance
from pc_pipeline.orchestration.build import build_definitions
from pc_pipeline.orchestration.partitions import add_scenarios
from pc_pipeline.recipes import get_recipe
from pc_pipeline.schemas.units import OBSERVED, STANDARD_SCENARIOS

CHECK_ENDINGS = ("_schema", *(f"_{name}" for name in checks.NAMES))
LONG_STEPS = (
    "landing",
    "macro_vae",
    "transition_transformer",
    "loan_trajectory",
    "payment_cascade",
    "joint_model",
    "simulations",
    "committee_report",
)
TRAINING_STAGES = 8
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Launcher:
    """Executes jobs of one project in process and prints a line per finished stage.

    Args:
        settings: the project's settings.
        instance: Dagster's instance.
        console: where progress goes.
        n_stages: how many stages the plan has, for 'how far'.
    """

    settings: Settings
    instance: dg.DagsterInstance
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    n_stages: int = 0
    _done: int = 0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._definitions = build_definitions(self.settings)

    def execute(
        self, job: str, scenario: str | None = None, run_config: dict[str, Any] | None = None
    ) -> None:
        """Run one job, for one scenario if it is partitioned.

        Raises:
            PcError: what a stage raised, unwrapped.
            ConfigError: a blocking check failed.
        """
        run_id = make_new_run_id()
        with self._narrate(run_id, scenario):
            result = self._definitions.resolve_job_def(job).execute_in_process(
                instance=self.instance,
                partition_key=scenario,
                run_id=run_id,
                run_config={**QUIET, **(run_config or {})},
                tags={"pc/pid": str(os.getpid())},
                raise_on_error=True,
            )
        failed = [
            f"{check.asset_key.to_user_string()}.{check.check_name}"
            for check in result.get_asset_check_evaluations()
            if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
        ]
        if failed:
            raise ConfigError("a blocking check failed", expected="all checks passed", got=", ".join(failed))

    @contextlib.contextmanager
    def _narrate(self, run_id: str, scenario: str | None) -> Iterator[None]:
        """Print a line when a step starts and ends; Dagster's own console log is silenced."""
        begun: dict[str, float] = {}

        def listen(entry: dg.EventLogEntry) -> None:
            event = entry.dagster_event
            if event is None or event.step_key is None or event.step_key.endswith(CHECK_ENDINGS):
                return
            if event.event_type == dg.DagsterEventType.STEP_START:
                begun[event.step_key] = time.monotonic()
                if event.step_key.startswith(LONG_STEPS):
                    self._say(event.step_key, scenario, "[cyan]▸[/cyan]")
            elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
                self._done += 1
                seconds = time.monotonic() - begun.get(event.step_key, time.monotonic())
                self._say(event.step_key, scenario, "[green]✓[/green]", f"{seconds:5.1f} s")

        self.instance.add_event_listener(run_id, listen)
        yield

    def _say(self, step: str, scenario: str | None, mark: str, tail: str = "") -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        done = f"{self._done:>2}/{self.n_stages}" if self.n_stages else ""
        name = f"{step.replace('_and_', ' + ')}{f' · {scenario}' if scenario else ''}"
        self.console.print(
            f"[dim]{minutes}:{seconds:02d} {done}[/dim] {mark} {name:<52} {tail}", soft_wrap=True
        )


def log_training_to(console: Console) -> None:
    """Where there is no terminal for progress bars, training says how far it is in lines."""
    logger = logging.getLogger("pc_pipeline")
    if console.is_terminal or logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("            %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        tape: file or folder of a real tape; '' generates one.
        adapter, mapping, as_of: how to read it.
        scenarios: names to simulate.
        pool: name of the pool the tape is of; '' finds it.
    """

    tape: str = ""
    adapter: str = ""
    mapping: str = ""
    as_of: str = ""
    scenarios: tuple[str, ...] = STANDARD_SCENARIOS
    pool: str = ""


def run_chain(settings: Settings, request: RunRequest, instance: dg.DagsterInstance) -> Path:
    """The whole chain: from tape to committee report. Returns the HTML report's path.

    Raises:
        PcError: anything a user can mend; nothing of the failed stage is written.
    """
    store = Store(settings.data_dir)
    log_training_to(Console(stderr=True))
    get_recipe(settings.recipe, seed=settings.seed)  # refuse an unknown recipe before any work
    stages.check_deal(settings.deal)
    for scenario in request.scenarios:
        stages.find_scenario(store, scenario)
    prepare_instance(instance)
    add_scenarios(instance, request.scenarios)
    store.sweep()
    launcher = Launcher(settings, instance)
    if request.tape:
        launcher.execute("land_tape", run_config=landing_config(request))
    else:
        stages.forget_landing(store)
    is_real, n_scenarios = stages.has_real_history(store), len(request.scenarios)
    before_training = 1 + (2 + n_scenarios if is_real else 2 * n_scenarios)
    launcher.n_stages = bool(request.tape) + before_training + TRAINING_STAGES + 2 * n_scenarios + 2
    launcher.execute("tape")
    if is_real:
        add_scenarios(instance, [OBSERVED])
        launcher.execute("scenario_inputs", OBSERVED)
    for scenario in request.scenarios:
        launcher.execute("scenario_macro" if is_real else "scenario_inputs", scenario)
    launcher.execute("training")
    simulate_all(launcher, request.scenarios, first_macro=False)
    launcher.execute("closing")
    return store.report_path(stages.HTML_REPORT)


def landing_config(request: RunRequest) -> dict[str, Any]:
    """Run config of the landing asset."""
    config = {
        "path": str(Path(request.tape).expanduser().resolve()),
        "adapter": request.adapter,
        "mapping": request.mapping,
        "as_of": request.as_of,
        "pool": request.pool,
    }
    return {"ops": {"landing": {"config": config}}}


def simulate_all(launcher: Launcher, scenarios: tuple[str, ...], first_macro: bool = True) -> None:
    """Every scenario; one that fails is rerun alone after the others.

    Raises:
        PcError: of the first scenario that failed twice.
    """
    job = "scenario_results" if first_macro else "scenario_simulation"
    failed: list[str] = []
    for scenario in scenarios:
        try:
            launcher.execute(job, scenario)
        except PcError as error:
            failed.append(scenario)
            launcher.console.print(f"[red]✗ {scenario}[/red]\n{error}\n[dim]going on with the others[/dim]")
    for scenario in failed:
        launcher.console.print(f"rerunning {scenario} alone")
        launcher.execute(job, scenario)


def backfill(
    settings: Settings, scenarios: tuple[str, ...], instance: dg.DagsterInstance, retrain: bool = False
) -> Path:
    """Simulate and report all scenarios with the models that are there; a failed one is rerun alone.

    Models that learned from another state of the landed history are named; with `retrain` deliveries that
    came since are landed, and the models learn anew first.
    """
    prepare_instance(instance)
    store = Store(settings.data_dir)
    chosen = scenarios or tuple(
        name for name in instance.get_dynamic_partitions("scenario") if name != OBSERVED
    )
    add_scenarios(instance, chosen)
    came = stages.land_known(store) if retrain else None
    inputs = 3 if stages.has_real_history(store) else 1
    relearned = (inputs + TRAINING_STAGES) if retrain else 0
    launcher = Launcher(settings, instance, n_stages=relearned + 3 * len(chosen) + 2)
    if came is not None:
        launcher.console.print(f"landed anew, as of {came.as_of:%Y-%m}: {came.panel.height:,} loan-months")
    if retrain:
        launcher.execute("tape")
        if stages.has_real_history(store):
            add_scenarios(instance, [OBSERVED])
            launcher.execute("scenario_inputs", OBSERVED)
        launcher.execute("training")
    warning = stages.stale_models(store)
    if warning:
        launcher.console.print(f"[yellow]![/yellow] {warning}", soft_wrap=True)
    simulate_all(launcher, chosen)
    launcher.execute("closing")
    return store.report_path(stages.HTML_REPORT)


def open_ui(root: Path, port: int) -> int:
    """`dg dev` on loopback with this project's instance; returns its exit code."""
    with dg.DagsterInstance.get() as instance:
        prepare_instance(instance)
    command = [str(Path(sys.executable).with_name("dg")), "dev", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.call(command, cwd=root)
