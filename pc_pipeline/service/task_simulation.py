"""Job 'simulation': a pool through a scenario and a deal; measures, files. Not here: any of the figures."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pc_pipeline.core.periods import parse_month
from pc_pipeline.core.store import Store, replace_file
from pc_pipeline.engines import stages
from pc_pipeline.loans.pool import pool_snapshot, scheduled_pool
from pc_pipeline.models.checkpoint import load_model
from pc_pipeline.models.device import resolve_device
from pc_pipeline.reports.html import write_html
from pc_pipeline.reports.workbook import write_workbook
from pc_pipeline.schemas.units import canonical_scenario
from pc_pipeline.service.catalogue import JOINT_FOLDER, NEEDED
from pc_pipeline.service.settings import ServiceSettings
from pc_pipeline.service.shelf import csv_text
from pc_pipeline.service.worker import Work

_NO_DRAW = 64  # macro paths drawn for a scenario that the store has none of


def run(work: Work) -> dict[str, Any]:
    """Simulate, report, write; what is returned is the job's result.

    Raises:
        PcError: the pool, models, scenario or deal do not go together.
    """
    asked, settings = work.job.request, work.settings
    store = Store(settings.data_dir)
    scenario = canonical_scenario(asked["scenario"])
    work.advance(0.02, "reading pool and models")
    pool, notes = _pool(work, store)
    models = {name: load_model(store.model_folder(JOINT_FOLDER) / name) for name in NEEDED}
    deal = stages.find_deal(_deal_path(settings, asked["deal"]), str(settings.deals_dir), pool)
    stage = stages.SimulationStage(
        n_paths=asked["n_paths"], n_months=asked["n_months"], seed=asked["seed"] % 2**31
    )
    done = stages.simulate(
        stage,
        scenario,
        models,
        pool,
        _macro(store, scenario, stage.n_months),
        resolve_device(settings.device),
        progress=lambda paths, of: work.advance(0.1 + 0.7 * paths / of, "simulating"),
    )
    work.advance(0.85, "running the deal")
    results = stages.report(scenario, done.table, pool, deal)
    frames = stages.report_frames(results) | {"macro_fan_report": done.macro_fan}
    notes += [
        ("run: deal", f"{deal.name}, {len(deal.tranches)} classes"),
        ("run: paths and months", f"{done.metadata['paths']:,} paths, {done.metadata['months']} months"),
        ("run: seed", str(asked["seed"])),
        ("run: macro paths", str(done.metadata["macro source"])),
    ]
    files = _write(work, frames, done.table, stages.loss_frame(done.table, results.pool_balance), notes)
    return {
        "scenario": scenario,
        "deal": deal.name,
        "loans": pool.height,
        "pool_balance": results.pool_balance,
        "n_paths": done.metadata["paths"],
        "n_months": done.metadata["months"],
        "pool_measures": _by_name(frames["pool_report"], "measure"),
        "tranches": _by_name(frames["tranche_report"], "tranche"),
        "notes": dict(notes),
        "files": files,
    }


def _pool(work: Work, store: Store) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
    """Table pool: the store's, or an uploaded tape's at its last month; and what to say about it."""
    portfolio_id = work.job.request["portfolio_id"]
    if portfolio_id is None:
        return store.read_table("pool"), [("run: pool", "the store's")]
    loans = pl.read_parquet(work.shelf.table_path(portfolio_id, "loans"))
    panel = pl.read_parquet(work.shelf.table_path(portfolio_id, "panel"))
    note = work.shelf.portfolio(portfolio_id) or {}
    as_of: date = parse_month(str(note.get("as_of"))[:7])
    said = [
        ("run: pool", f"portfolio {portfolio_id}, as of {as_of:%Y-%m}"),
        ("convention: models", "learned from and compiled for the store's own pool"),
    ]
    if panel.is_empty():
        said.append(("convention: no history", "every loan is taken as performing and on schedule"))
        return scheduled_pool(loans, as_of), said
    return pool_snapshot(loans, panel, as_of=as_of), said


def _deal_path(settings: ServiceSettings, name: str) -> str:
    return str(settings.deals_dir / f"{name}.yaml") if name else ""


def _macro(store: Store, scenario: str, n_months: int) -> pl.DataFrame:
    if store.has_table("macro_scenarios", scenario):
        return store.read_table("macro_scenarios", scenario)
    config = stages.MacroPathsConfig(n_paths=_NO_DRAW, n_months=n_months)
    return stages.macro_paths(store, config, scenario).frame


def _write(
    work: Work,
    frames: dict[str, pl.DataFrame],
    simulations: pl.DataFrame,
    losses: pl.DataFrame,
    notes: list[tuple[str, str]],
) -> list[str]:
    """Write the result files, each whole or not at all; returns their names."""
    names = []

    def place(name: str) -> Path:
        names.append(name)
        return work.shelf.simulation_file(work.job.id, name)

    for table in ("pool_report", "tranche_report", "cash_flow_report", "tranche_balance_report"):
        with replace_file(place(f"{table}.csv")) as temporary:
            temporary.write_text(csv_text(frames[table]), encoding="utf-8")
    with replace_file(place("simulations.parquet")) as temporary:
        simulations.write_parquet(temporary, compression="zstd")
    title = "Credit portfolio report"
    with replace_file(place("report.html")) as temporary:
        write_html(temporary, frames | {"loss_distribution": losses}, notes, title=title)
    with replace_file(place("report.xlsx")) as temporary:
        write_workbook(temporary, frames, notes, title=title)
    return names


def _by_name(frame: pl.DataFrame, key: str) -> dict[str, dict[str, Any]]:
    """Rows of a report by the name in `key`; what is not a number is null."""
    rows = frame.drop("scenario").with_columns(
        pl.when(pl.col(pl.Float64).is_finite()).then(pl.col(pl.Float64))
    )
    return {str(row.pop(key)): row for row in rows.to_dicts()}
