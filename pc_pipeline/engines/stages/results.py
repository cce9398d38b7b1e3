"""Stages that answer: simulation, tranche report, committee report. Tables and models in, tables and files
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DealError
from pc_pipeline.core.periods import add_months
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import CONVENTIONS, PortfolioAggregator
from pc_pipeline.engines.results import SimulationResults, macro_fan
from pc_pipeline.engines.stages.freshness import stale_models
from pc_pipeline.engines.stages.landing import read_landing
from pc_pipeline.engines.stages.learning import JOINT_FOLDER, Models, model_scores, trained_scenarios
from pc_pipeline.models.checkpoint import read_card
from pc_pipeline.reports.html import write_html
from pc_pipeline.reports.workbook import write_workbook
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import MACRO_NAMES, canonical_scenario
from pc_pipeline.simulation.distil import CompiledLoans
from pc_pipeline.simulation.monte_carlo import Progress, SimulationConfig, simulation_table
from pc_pipeline.waterfall.deal import Deal, load_deal

HTML_REPORT = "report.html"
WORKBOOK = "report.xlsx"
REPORT_TABLES = (
    "pool_report",
    "tranche_report",
    "cash_flow_report",
    "tranche_balance_report",
    "macro_fan_report",
)
LEARNED = {
    True: "models learned from the tape's own history; 15 % of its loans are held out and scored on. One "
    "macro path cannot identify macro effects: those are the stated sensitivities",
    False: "the tape has no history: every loan is taken as performing and on schedule, and models learned "
    "from generated loans of the stated law",
}
NETWORKS = ("macro_vae", "transition_transformer", "loan_trajectory", "loan_residual")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationStage:
    """The Monte Carlo of one scenario.

    Attributes:
        n_paths: macro paths, each carrying the whole pool.
        n_months: longest horizon; the pool's last contractual month ends it earlier.
        seed: of macro paths and loans, shared by all scenarios.
    """

    n_paths: int = 2000
    n_months: int = 60
    seed: int = 42


@dataclass(frozen=True, slots=True)
class SimulatedScenario:
    """Tables `simulations` and `macro_fan_report` of one scenario, and what to say about them."""

    table: pl.DataFrame
    macro_fan: pl.DataFrame
    metadata: dict[str, Any]


def horizon(stage: SimulationStage, pool: pl.DataFrame) -> int:
    """Months simulated: to the pool's last contractual month, at most the stage's.

    A delinquent loan may run on after its last month; what is then unpaid is settled at the horizon.
    """
    longest = int(str(pool["remaining_term_months"].max()))
    return min(stage.n_months, longest)


def simulate(
    stage: SimulationStage,
    scenario: str,
    models: Models,
    pool: pl.DataFrame,
    macro: pl.DataFrame,
    device: str,
    *,
    progress: Progress | None = None,
) -> SimulatedScenario:
    """Simulate the pool under one scenario.

    Macro paths come from the VAE. A scenario that it was not trained on takes the stored paths of
    `macro_scenarios`, repeated as often as needed, and says so.
    """
    n_months = horizon(stage, pool)
    start = _first_month(macro)
    vae = models["macro_vae"][0].to(device)
    name = canonical_scenario(scenario)
    if name in trained_scenarios(vae):
        paths = (
            vae.generate(name, n_months, stage.n_paths, seed=derive_seed(stage.seed, "macro"))
            .cpu()
            .numpy()
            .astype(np.float64)
        )
        source = "macro VAE"
    else:
        paths = _stored_paths(macro, stage.n_paths, n_months)
        source = f"stored paths of {scenario} (the VAE has not been trained on it)"
    compiled = CompiledLoans(model=models["loan_residual"][0])
    simulated = PortfolioAggregator().simulate(
        pool,
        paths,
        models["transition_transformer"][0].to(device),
        compiled,
        SimulationConfig(seed=derive_seed(stage.seed, "loans")),
        start=start,
        reference_month=int(models["loan_trajectory"][0].reference_month),
        severity_GQ=compiled.severity_GQ,
        progress=progress,
    )
    losses = simulated.losses_P
    return SimulatedScenario(
        table=simulation_table(simulated, scenario),
        macro_fan=macro_fan(paths, scenario),
        metadata={
            "paths": stage.n_paths,
            "months": n_months,
            "loans": simulated.n_loans,
            "macro source": source,
            "expected loss": float(losses.mean()),
            "loss 99 %": float(np.quantile(losses, 0.99)),
        },
    )


def _first_month(macro: pl.DataFrame) -> date:
    first = macro["month"].min()
    if not isinstance(first, date):
        raise DealError("macro paths have no months", expected="dates", got=first)
    return first


def _stored_paths(macro: pl.DataFrame, n_paths: int, n_months: int) -> np.ndarray:
    ordered = macro.sort("macro_path_id", "month")
    count = ordered["macro_path_id"].n_unique()
    values = ordered.select(MACRO_NAMES).to_numpy().reshape(count, -1, len(MACRO_NAMES))
    return values[np.arange(n_paths) % count, :n_months]


# ---- deals -----------------------------------------------------------------------------------


def find_deal(deal: str, deals_dir: str, pool: pl.DataFrame) -> Deal:
    """The named deal, else the shipped one that fits: auto loans for a consumer pool, the CLO otherwise."""
    if deal:
        return load_deal(deal)
    consumer = pool["asset_class"].unique().to_list() == ["consumer"]
    return load_deal(Path(deals_dir) / ("auto_four_tranche.yaml" if consumer else "clo_four_tranche.yaml"))


def check_deal(deal: str) -> None:
    """Read a named deal, so that its errors come before any work.

    Raises:
        DealError: it cannot be read or contradicts itself.
    """
    if deal:
        load_deal(deal)


# ---- reports ---------------------------------------------------------------------------------


def report(scenario: str, simulations: pl.DataFrame, pool: pl.DataFrame, deal: Deal) -> SimulationResults:
    """Run the deal over one scenario's simulated cash."""
    balance = float(pool["current_balance"].sum())
    return PortfolioAggregator(deal).report(simulations, balance, scenario=scenario)


def report_frames(results: SimulationResults) -> dict[str, pl.DataFrame]:
    """The report tables of one scenario, each within its contract."""
    frames = {
        "pool_report": results.pool_report(),
        "tranche_report": results.tranche_report(),
        "cash_flow_report": results.cash_flow_report(),
        "tranche_balance_report": results.tranche_balance_report(),
    }
    return {name: validate(name, frame, where=results.scenario) for name, frame in frames.items()}


def loss_frame(simulations: pl.DataFrame, pool_balance: float) -> pl.DataFrame:
    """Frame `loss_distribution`: loss share and weight of every path, by scenario."""
    loss = (pl.col("defaulted_balance") - pl.col("recovery")).sum() / pool_balance
    return (
        simulations.group_by("scenario", "path_id", maintain_order=True)
        .agg(loss.alias("loss"), pl.col("weight").first())
        .sort("scenario", "path_id")
    )


def committee_report(store: Store, recipe: str, seed: int, deal: str, deals_dir: str) -> dict[str, Path]:
    """Write the workbook and the HTML page over all scenarios; returns their paths."""
    pool = store.read_table("pool")
    frames = {name: store.read_table(name) for name in REPORT_TABLES}
    balance = float(pool["current_balance"].sum())
    frames["loss_distribution"] = loss_frame(store.read_table("simulations"), balance)
    frames["data_quality"] = quality_summary(store)
    if store.has_table("quarantine"):
        frames["quarantine"] = store.read_table("quarantine")
    frames["model_scores"] = pl.DataFrame(model_scores(store))
    terms = find_deal(deal, deals_dir, pool)
    notes = report_notes(store, recipe, seed, terms, pool)
    title = "Credit portfolio report"
    sheets = {name: frame for name, frame in frames.items() if name != "loss_distribution"}
    return {
        "html": store.write_report(
            HTML_REPORT, lambda path: _ignore(write_html(path, frames, notes, title=title))
        ),
        "workbook": store.write_report(
            WORKBOOK, lambda path: _ignore(write_workbook(path, sheets, notes, title=title))
        ),
    }


def _ignore(_: object) -> None:
    """`write_report` wants a writer without a result."""


def quality_summary(store: Store) -> pl.DataFrame:
    """Rows accepted and quarantined by table: of the delivery, or of the generated pool."""
    is_landed = read_landing(store) is not None
    quarantine = store.read_table("quarantine") if store.has_table("quarantine") else None
    rows = []
    for table, landed in (("loan_tape", "landing_loans"), ("loan_panel", "landing_panel")):
        stored = landed if is_landed else table
        refused = 0 if quarantine is None else quarantine.filter(pl.col("table") == table).height
        accepted = store.scan_table(stored).select(pl.len()).collect().item()
        rows.append({"table": table, "rows_accepted": int(accepted), "rows_quarantined": refused})
    return pl.DataFrame(rows)


def report_notes(
    store: Store, recipe: str, seed: int, deal: Deal, pool: pl.DataFrame
) -> list[tuple[str, str]]:
    """What was run, under which conventions, with which models."""
    landing = read_landing(store)
    simulated = store.read_table("simulations")
    n_paths = simulated["path_id"].n_unique()
    notes = [
        ("run: deal", f"{deal.name}, {len(deal.tranches)} classes"),
        ("run: pool", f"{pool.height:,} loans, {float(pool['current_balance'].sum()):,.2f} {deal.currency}"),
        ("run: recipe and seed", f"{recipe}, {seed}"),
        (
            "run: paths and months",
            f"{n_paths:,} paths, {int(str(simulated['month_index'].max())) + 1} months",
        ),
    ]
    if landing is None:
        notes.append(("run: tape", "generated; its law is known, so models are scored against the truth"))
    else:
        notes += [
            ("run: tape", f"{Path(landing.source).name}, read as {landing.adapter}, as of {landing.as_of}"),
            ("run: first simulated month", add_months(landing.as_of_month, 1).isoformat()),
            ("convention: delinquency", landing.rule),
            ("convention: learning", stale_models(store) or LEARNED[landing.has_history]),
            ("convention: macro history", Path(landing.history).name if landing.history else "none"),
        ]
    notes += [(f"convention: {name}", text) for name, text in CONVENTIONS.items()]
    for name in NETWORKS:
        card = read_card(store.model_folder(JOINT_FOLDER) / name)
        notes.append(
            (
                f"model: {name}",
                f"{card['class']}, {card['n_parameters']:,} numbers, weights {card['weights'][:12]}",
            )
        )
        notes += [(f"model: {name}", str(line)) for line in card.get("notes", [])]
    return notes
