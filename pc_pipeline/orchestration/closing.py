"""What a run says when it is done: the tables, where the files lie, and the next two things to try."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pc_pipeline.core.config import Settings
from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages
from pc_pipeline.reports.tables import print_report

PRINTED = ("pool_report", "tranche_report")


def print_report_and_next_steps(settings: Settings, console: Console | None = None) -> None:
    """Print the stored report's tables and what to do next."""
    console = console or Console(highlight=False)
    store = Store(settings.data_dir)
    frames = {name: store.read_table(name) for name in PRINTED}
    print_report(console, {**frames, "data_quality": stages.quality_summary(store)})
    console.print()
    for label, path in (
        ("report", store.report_path(stages.HTML_REPORT)),
        ("workbook", store.report_path(stages.WORKBOOK)),
        ("warehouse", store.warehouse_path),
    ):
        console.print(f"{label:<10} {_relative(path)}", soft_wrap=True, markup=False)
    console.print("\nNext:")
    for command, purpose in _next_steps(store):
        console.print(f"  {command:<52} {purpose}", soft_wrap=True, markup=False)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _next_steps(store: Store) -> list[tuple[str, str]]:
    look = ("make ui", "lineage, checks and plots on http://127.0.0.1:3000")
    if stages.read_landing(store) is None:
        return [("make run TAPE=your_tape.csv", "the same for your own pool (DEAL=your_deal.yaml)"), look]
    return [("make run TAPE=... DEAL=your_deal.yaml", "the same pool under your own deal"), look]
