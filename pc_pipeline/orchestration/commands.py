"""The doors to Dagster from a terminal: `pc run`, `pc backfill`, `pc ui`, `pc scenario add`.

Dagster is imported when a command runs, so that `pc --help` stays quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pc_pipeline.core.config import Settings
from pc_pipeline.core.errors import ConfigError

Data = Annotated[str, typer.Option("--data", help="Folder of the store.", envvar="PC_DATA")]
RecipeName = Annotated[str, typer.Option(help="tiny, base, full or paper.", envvar="PC_RECIPE")]
Seed = Annotated[int, typer.Option(help="Master seed; same seed, same report.", envvar="PC_SEED")]
Deal = Annotated[str, typer.Option(help="Deal YAML; default: one that fits the pool.", envvar="PC_DEAL")]
Macro = Annotated[str, typer.Option(help="Folder or file of real macro history.", envvar="PC_MACRO")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", envvar="PC_DEVICE")]
Scenario = Annotated[list[str] | None, typer.Option("--scenario", help="Only these; may be repeated.")]


def project_root() -> Path:
    """The folder with workspace.yaml: DAGSTER_HOME, the working folder, or a parent of it.

    Raises:
        ConfigError: none has one.
    """
    home = os.environ.get("DAGSTER_HOME")
    candidates = [Path(home)] if home else [Path.cwd(), *Path.cwd().parents]
    for folder in candidates:
        if (folder / "workspace.yaml").exists():
            os.environ["DAGSTER_HOME"] = str(folder.resolve())
            return folder.resolve()
    raise ConfigError("not inside a project", expected="a folder with workspace.yaml", got=str(Path.cwd()))


def _settings(root: Path, data: str, recipe: str, seed: int, deal: str, macro: str, device: str) -> Settings:
    return Settings(
        data_dir=(root / (data or "data")).resolve(),
        recipe=recipe,
        seed=seed,
        deal=deal and str(Path(deal).resolve()),
        macro=macro and str(Path(macro).resolve()),
        device=device,
        deals_dir=root / "data" / "deals",
    )


def run(
    tape: Annotated[str, typer.Option(help="Tape file or folder; default: a generated pool.")] = "",
    adapter: Annotated[str, typer.Option(help="Tape format; default: recognised.")] = "",
    mapping: Annotated[str, typer.Option(help="YAML mapping of your columns to ours.")] = "",
    as_of: Annotated[str, typer.Option(help="Cut-off month YYYY-MM; default: the last reported.")] = "",
    pool: Annotated[str, typer.Option(help="Name of the tape's pool; default: by name and loans.")] = "",
    deal: Deal = "",
    recipe: RecipeName = "base",
    macro: Macro = "",
    scenario: Scenario = None,
    seed: Seed = 42,
    device: Device = "auto",
    data: Data = "data",
) -> None:
    """Run the whole chain, from tape to tranche report."""
    root = project_root()
    import dagster as dg

    from pc_pipeline.orchestration import closing, launch
    from pc_pipeline.schemas.units import STANDARD_SCENARIOS

    settings = _settings(root, data, recipe, seed, deal, macro, device)
    request = launch.RunRequest(
        tape=tape,
        adapter=adapter,
        mapping=mapping,
        as_of=as_of,
        pool=pool,
        scenarios=tuple(scenario or STANDARD_SCENARIOS),
    )
    with dg.DagsterInstance.get() as instance:
        launch.run_chain(settings, request, instance)
    closing.print_report_and_next_steps(settings)


def backfill(
    scenario: Scenario = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Learn anew from what is landed first.")] = False,
    deal: Deal = "",
    recipe: RecipeName = "base",
    macro: Macro = "",
    seed: Seed = 42,
    device: Device = "auto",
    data: Data = "data",
) -> None:
    """Simulate and report all scenarios again with the models that are there; rerun failed ones alone."""
    root = project_root()
    import dagster as dg

    from pc_pipeline.orchestration import closing, launch

    settings = _settings(root, data, recipe, seed, deal, macro, device)
    with dg.DagsterInstance.get() as instance:
        launch.backfill(settings, tuple(scenario or ()), instance, retrain)
    closing.print_report_and_next_steps(settings)


def ui(port: Annotated[int, typer.Option(help="Port on loopback.")] = 3000) -> None:
    """Open Dagster on 127.0.0.1 with the same assets."""
    root = project_root()
    from pc_pipeline.orchestration import launch

    raise typer.Exit(launch.open_ui(root, port))


def add_scenario(
    file: Annotated[Path, typer.Argument(help="YAML with a scenario's name and shifts, pins or path.")],
    data: Data = "data",
) -> None:
    """Check a custom scenario, keep it, and make it a partition."""
    root = project_root()
    import dagster as dg

    from pc_pipeline.core.store import Store
    from pc_pipeline.engines import stages
    from pc_pipeline.orchestration.partitions import add_scenarios

    names = stages.keep_scenarios(Store((root / data).resolve()), file)
    with dg.DagsterInstance.get() as instance:
        add_scenarios(instance, names)
    typer.echo(f"added {', '.join(names)}; next: pc backfill " + " ".join(f"--scenario {n}" for n in names))


def free_slots() -> None:
    """Free pool slots that a killed run still holds."""
    project_root()
    import dagster as dg

    from pc_pipeline.orchestration.automation import free_dead_slots

    with dg.DagsterInstance.get() as instance:
        dead = free_dead_slots(instance)
    typer.echo(f"freed; runs found dead: {', '.join(dead) or 'none'}")


def add_commands(app: typer.Typer) -> None:
    """Hang these commands onto the console application."""
    panel = "Pipeline (Dagster)"
    app.command(rich_help_panel=panel)(run)
    app.command(rich_help_panel=panel)(backfill)
    app.command(rich_help_panel=panel)(ui)
    app.command("add-scenario", rich_help_panel=panel)(add_scenario)
    app.command("free-slots", rich_help_panel=panel)(free_slots)
