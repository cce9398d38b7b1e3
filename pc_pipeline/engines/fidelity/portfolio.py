"""Expected loss against what fresh loans lost, the order of scenarios, and what joint fine-tuning did.

Here: `measure`. Not here: the trained chain (`chain`), VaR backtests (`backtests`).

Fresh loans of the generated world, on macro paths that no training has seen, are taken as they stand when
all have come in; the compiled models simulate them along the path they then lived through. So the figure is
of the loan models and the ledger, free of luck in the macro path; loans' own luck stays, and makes the
interval.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.core.periods import month_from_index, month_index_expr
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.fidelity.chain import Chain, trained_chain
from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.engines.stages.results import SimulationStage, simulate
from pc_pipeline.engines.stages.scoring import ScoringSet, fresh_test_set
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import CASH_CHANNELS, STANDARD_SCENARIOS
from pc_pipeline.simulation.distil import CompiledLoans
from pc_pipeline.simulation.estimators import Estimate, expected_loss
from pc_pipeline.simulation.monte_carlo import SimulationConfig
from pc_pipeline.training.joint import GUARD

SECTION: Final = "portfolio"
CUT_OFF: Final = 12  # months after the first vintage; later where vintages go on coming in
REPEATS: Final = 32  # simulations along each lived path
LARGEST_STAGE: Final = 1000  # paths per scenario of the order of scenarios
WITHIN: Final = 0.10
TEST_LOANS: Final = 8000
TEST_PATHS: Final = 16
_BOOTSTRAP: Final = 999


@dataclass(frozen=True, kw_only=True, slots=True)
class LivedPool:
    """Loans of one macro path at a cut-off, and what they lost after it.

    Attributes:
        scenario, path: which. pool: at the cut-off. macro_TM: (T, 9) from the cut-off on.
        start: first of those months.
        realised: loss over the T months, currency; 90dpd at the end charged off at the class's mean severity.
    """

    scenario: str
    path: int
    pool: pl.DataFrame
    macro_TM: np.ndarray
    start: date
    realised: float


def measure(request: Request) -> pl.DataFrame:
    """All figures of the section."""
    chain = trained_chain(request)
    cut_off = max(CUT_OFF, chain.recipe.tape.n_vintages)
    lived = lived_pools(dataclasses.replace(chain, test=_large_test(chain)), cut_off)
    rows = [*_loss_rows(chain, lived), *_order_rows(chain), *_joint_rows(chain)]
    return figures(rows)


# ---- expected loss ------------------------------------------------------------------------------


def _large_test(chain: Chain) -> ScoringSet:
    """Fresh loans on fresh paths, so many that their own luck does not decide."""
    config, tape = chain.recipe.macro_paths, chain.recipe.tape
    fresh = MacroScenarioGenerator(
        n_months=config.n_months,
        start_date=f"{config.start_month}-01",
        random_seed=derive_seed(config.seed, "fidelity", "test") % 2**31,
    )
    paths = pl.concat([macro_table(fresh, name, TEST_PATHS) for name in STANDARD_SCENARIOS])
    return fresh_test_set(tape.generator(), paths, n_loans=min(TEST_LOANS, 4 * tape.n_loans))


def lived_pools(chain: Chain, cut_off: int, n_months: int | None = None) -> list[LivedPool]:
    """The fresh loans of every (scenario, macro path), as they stand `cut_off` months in.

    Loans of later vintages are in neither the pool nor its losses.
    """
    test, paths = chain.test, macro_paths(chain.test.macro)
    as_of = month_from_index(paths.start_month + cut_off - 1)
    last = paths.n_months if n_months is None else cut_off + n_months
    severity = class_severity(chain.panel)
    place = month_index_expr("reporting_month") - paths.start_month
    found = []
    for row, (scenario, path) in enumerate(paths.keys):
        panel = test.panel.filter((pl.col("scenario") == scenario) & (pl.col("macro_path_id") == path))
        if panel.filter(place < cut_off).is_empty():
            continue
        loans = test.loans.filter(pl.col("loan_id").is_in(panel["loan_id"].unique().to_list()))
        pool = pool_snapshot(loans, panel, as_of=as_of)
        if pool.is_empty():
            continue
        ours = pl.col("loan_id").is_in(pool["loan_id"].to_list())
        after = panel.filter(ours & (place >= cut_off) & (place < last))
        unpaid = after.filter((place == last - 1) & (pl.col("loan_state") == LoanState.dpd90))
        share = pl.col("asset_class").replace_strict(severity, return_dtype=pl.Float64)
        lost = float(after["loss_amount"].sum())
        lost += float(unpaid.select((pl.col("outstanding_balance") * share).sum()).item())
        found.append(
            LivedPool(
                scenario=scenario,
                path=path,
                pool=pool,
                macro_TM=paths.values[row, cut_off:last],
                start=month_from_index(paths.start_month + cut_off),
                realised=lost,
            )
        )
    return found


def class_severity(panel: pl.DataFrame) -> dict[str, float]:
    """Loss over charge-off by class in the training panel; one half where nothing defaulted."""
    sums = panel.group_by("asset_class").agg(pl.col("loss_amount").sum(), pl.col("charge_off_amount").sum())
    return {name: (lost / charged if charged > 0 else 0.5) for name, lost, charged in sums.rows()}


def simulated_losses(chain: Chain, lived: LivedPool, macro_PTM: np.ndarray, seed: int) -> np.ndarray:
    """(P,) losses in currency of a pool along macro paths, by the compiled models."""
    models = chain.models
    compiled = CompiledLoans(model=models["loan_residual"][0])
    simulated = PortfolioAggregator().simulate(
        lived.pool,
        macro_PTM,
        models["transition_transformer"][0],
        compiled,
        SimulationConfig(seed=seed),
        start=lived.start,
        reference_month=int(models["loan_trajectory"][0].reference_month),
        severity_GQ=compiled.severity_GQ,
    )
    return simulated.losses_P * simulated.pool_balance


def _loss_rows(chain: Chain, lived: list[LivedPool]) -> list[dict[str, object]]:
    """Expected over realised loss, all and by scenario; intervals by resampling macro paths."""
    expected = np.array(
        [
            simulated_losses(
                chain,
                one,
                np.repeat(one.macro_TM[None], REPEATS, axis=0),
                derive_seed(chain.recipe.seed, "fidelity", one.scenario, one.path),
            ).mean()
            for one in lived
        ]
    )
    realised = np.array([one.realised for one in lived])
    of = np.array([one.scenario for one in lived])
    rows = []
    for name in ("all scenarios", *STANDARD_SCENARIOS):
        chosen = np.ones(len(of), bool) if name == "all scenarios" else of == name
        if not chosen.any() or realised[chosen].sum() <= 0:
            continue
        path = np.array([one.path for one in lived])[chosen]
        ratio, low, high = _ratio(expected[chosen], realised[chosen], path, chain.recipe.seed)
        rows.append(
            figure(
                SECTION,
                f"expected / realised loss, fresh loans, {name}",
                ratio,
                low=low,
                high=high,
                goal="0.9..1.1",
                passed=abs(ratio - 1) <= WITHIN,
                note=f"given {int(chosen.sum())} macro paths; {sum(one.pool.height for one in lived)} loans "
                f"in all; 1 lies {'within' if low <= 1 <= high else 'outside'} chance",
            )
        )
    return rows


def _ratio(
    expected: np.ndarray, realised: np.ndarray, path: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """Ratio of sums, with a 95 % bootstrap over path numbers: a path's scenarios share their shocks."""
    _, place = np.unique(path, return_inverse=True)
    totals = [np.bincount(place, weights=values) for values in (expected, realised)]
    count = len(totals[0])
    draw = stream(seed, "fidelity", "ratio").integers(0, count, (_BOOTSTRAP, count))
    sums = totals[1][draw].sum(1)
    ratios = totals[0][draw].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(expected.sum() / realised.sum()), float(low), float(high)


# ---- order of scenarios -------------------------------------------------------------------------


def _order_rows(chain: Chain) -> list[dict[str, object]]:
    stage = SimulationStage(
        n_paths=min(chain.recipe.simulation.n_paths, LARGEST_STAGE),
        n_months=chain.recipe.simulation.n_months,
        seed=chain.recipe.simulation.seed,
    )
    found: dict[str, Estimate] = {}
    for name in ("baseline", "adverse", "severely_adverse"):
        table = simulate(stage, name, chain.models, chain.pool, chain.macro, "cpu").table
        paths = table.group_by("path_id", maintain_order=True).agg(
            loss=(pl.col(CASH_CHANNELS[3]).sum() - pl.col(CASH_CHANNELS[4]).sum())
        )
        found[name] = expected_loss(paths["loss"].to_numpy() / float(chain.pool["current_balance"].sum()))
    rows = [
        figure(SECTION, f"expected loss, {name}", value.value, low=value.lower, high=value.upper)
        for name, value in found.items()
    ]
    for worse, better in (("adverse", "baseline"), ("severely_adverse", "adverse")):
        gap = found[worse].lower - found[better].upper
        rows.append(
            figure(
                SECTION,
                f"{worse} above {better}: gap between their intervals",
                gap,
                goal="> 0",
                passed=gap > 0,
                note=f"{stage.n_paths} macro paths of the VAE each, common random numbers",
            )
        )
    return rows


# ---- joint fine-tuning --------------------------------------------------------------------------


def _joint_rows(chain: Chain) -> list[dict[str, object]]:
    """Before and after: components on held-out rows, portfolio, calibration."""
    joint = chain.models["transition_transformer"][1]["joint"]
    before, after = joint["before"], joint["after"]
    rows = []
    for name in ("macro_loss", "transition_loss", "trajectory_loss"):
        worse = (after[name] - before[name]) / abs(before[name])
        rows.append(
            figure(
                SECTION,
                f"joint fine-tuning: {name}, relative change",
                worse,
                goal=f"<= {GUARD:g}",
                passed=worse <= GUARD,
                note=f"{before[name]:.5f} -> {after[name]:.5f}, held-out rows",
            )
        )
    ratio = after["portfolio_loss"] / before["portfolio_loss"]
    rows.append(
        figure(
            SECTION,
            "joint fine-tuning: portfolio loss, after / before",
            ratio,
            goal="< 1",
            passed=ratio < 1,
            note=f"{before['portfolio_loss']:.5f} -> {after['portfolio_loss']:.5f}",
        )
    )
    rows += [
        figure(
            SECTION,
            f"gap closed (B), {row['model'].replace('_', ' ')}",
            row["gap_closed"],
            low=row["gap_closed"] - 1.96 * row["gap_closed_se"],
            high=row["gap_closed"] + 1.96 * row["gap_closed_se"],
            note="fresh loans and paths, before ('components') and after joint fine-tuning and calibration",
        )
        for row in chain.models["loan_trajectory"][1].get("scores", [])
        if row["model"] in ("components", "joint_model") and row["gap_closed"] is not None
    ]
    kept = joint["calibration"]["is_kept"]
    for row in joint["calibration"]["table"]:
        if row["observed"] is not None and np.isfinite(row["observed"]):
            rows.append(
                figure(
                    SECTION,
                    f"calibration: {row['measure'].replace('_', ' ')}, {row['group']}",
                    row["after"],
                    note=f"observed {row['observed']:.4g}, before {row['before']:.4g}",
                )
            )
    rows.append(
        figure(
            SECTION,
            "calibration: corrections kept",
            sum(kept.values()),
            note=", ".join(name.replace("_", " ") for name, is_kept in kept.items() if is_kept) or "none",
        )
    )
    return rows
