"""Where losses come from: expected loss and CVaR of pool and classes, split so that parts add up exactly.

Here: the split over loans (hence cohorts and asset classes), over scenarios, over macro series, and over the
four sources of correlation. Not here: the figures that are split (`engines.results`), exact expected losses
by loan (`simulation.conditional`). docs/methods/analytics.md, section 3.

A measure is a weighted sum over paths, M = sum_p u_p X_p: u_p the path's weight for an expected loss, its
weight within the tail for a CVaR. X_p is shared among loans in proportion to what each is expected to lose on
that path,

    M_l = sum_p u_p X_p m_pl / m_p                                                            (1)

so parts sum to M whatever X is: the pool's loss or a class's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.engines.analysis.study import BATCH_PATHS, Lines, Study
from pc_pipeline.engines.results import SimulationResults
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO
from pc_pipeline.simulation.conditional import ConditionalPool
from pc_pipeline.simulation.estimators import (
    VAR_LEVELS,
    check_weights,
    conditional_value_at_risk,
    weighted_quantile,
)
from pc_pipeline.simulation.gradient_cash import pool_losses
from pc_pipeline.simulation.monte_carlo import POLICY_RATE

SOURCES = ("macro", "cohort", "factor", "idiosyncratic")
_NODES = 5  # Gauss-Legendre points of the line from the centre to a path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A weighted sum over paths.

    Attributes:
        of: 'pool' or a class. name: 'expected_loss' or 'cvar_99'. tilt_P: u_p. outcome_P: X_p, share of `of`.
    """

    of: str
    name: str
    tilt_P: np.ndarray
    outcome_P: np.ndarray

    @property
    def value(self) -> float:
        """The measure itself."""
        return float(self.tilt_P @ self.outcome_P)


def measures(results: SimulationResults, level: str = "99") -> list[Measure]:
    """Expected loss and CVaR of the pool and of each class (tails by each one's own losses)."""
    found = []
    outcomes = {"pool": results.portfolio_losses}
    outcomes |= {tranche.name: tranche.losses for tranche in results.tranche_results}
    for name, losses in outcomes.items():
        weights = check_weights(losses, results.weights)
        found.append(Measure(of=name, name="expected_loss", tilt_P=weights, outcome_P=losses))
        floor = weighted_quantile(losses, VAR_LEVELS[level], results.weights)
        tail = np.where(losses >= floor, weights, 0.0)
        found.append(Measure(of=name, name=f"cvar_{level}", tilt_P=tail / tail.sum(), outcome_P=losses))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Splits of every measure; `part` sums to `value` within each (of, measure).

    Attributes:
        values: of, measure, value. loans: of, measure, loan_id, asset_class, vintage_month, part.
        scenarios: of, measure, scenario, part. series, sources: the same with a series or source; or None.
    """

    values: pl.DataFrame
    loans: pl.DataFrame
    scenarios: pl.DataFrame
    series: pl.DataFrame | None = None
    sources: pl.DataFrame | None = None

    def by(self, *keys: str) -> pl.DataFrame:
        """The loan split summed over 'asset_class', 'vintage_month' or both."""
        return self.loans.group_by("of", "measure", *keys, maintain_order=True).agg(pl.col("part").sum())

    def frames(self) -> dict[str, pl.DataFrame]:
        """Every table, by name."""
        found = {
            "attribution": self.values,
            "attribution_asset_class": self.by("asset_class"),
            "attribution_cohort": self.by("asset_class", "vintage_month"),
            "attribution_scenario": self.scenarios,
            "attribution_loan": self.loans,
        }
        if self.series is not None:
            found["attribution_series"] = self.series
        if self.sources is not None:
            found["attribution_source"] = self.sources
        return found


def attribute(
    study: Study,
    results: SimulationResults,
    macro_PTM: np.ndarray,
    *,
    level: str = "99",
    max_paths: int = 200,
    n_series_paths: int = 24,
    n_lines: int = 48,
) -> Attribution:
    """All splits.

    Args:
        results: of a simulation along `macro_PTM`. macro_PTM: (P, T, 9) its macro paths.
        max_paths: paths on which loans' expected losses are worked out; beyond, those that count most stand
            for the rest (loans' shares hardly move between paths; the sum stays exact).
        n_series_paths: paths of the split over macro series; 0 leaves it out.

    Raises:
        SimulationError: paths and results differ in number.
    """
    if len(macro_PTM) != results.portfolio_losses.size:
        raise SimulationError(
            "macro paths and results differ", expected=results.portfolio_losses.size, got=len(macro_PTM)
        )
    all_measures = measures(results, level)
    values = pl.DataFrame(
        [(m.of, m.name, m.value) for m in all_measures], schema=["of", "measure", "value"], orient="row"
    )
    return Attribution(
        values=values,
        loans=_loan_parts(study, all_measures, macro_PTM, max_paths),
        scenarios=_scenario_parts(results, all_measures),
        series=None
        if n_series_paths < 1
        else series_parts(study, results, macro_PTM, level, n_series_paths, n_lines),
        sources=source_parts(study, results, macro_PTM, level, max_paths),
    )


# ---- loans and scenarios -----------------------------------------------------------------------------


def _loan_parts(
    study: Study, all_measures: list[Measure], macro_PTM: np.ndarray, max_paths: int
) -> pl.DataFrame:
    """Eq. (1), loans in the order of the pool."""
    kept, tilt_PK = _spread_tilts(all_measures, max_paths)
    given, shares = study.conditional(), np.zeros((study.arrays.n_loans, len(all_measures)))
    for low in range(0, kept.size, BATCH_PATHS):
        batch = kept[low : low + BATCH_PATHS]
        rows, index = study.rows(macro_PTM[batch]), macro_PTM[batch][:, :, POLICY_RATE]
        for k in range(batch.size):  # a path's shares need its own total first
            one = slice(k, k + 1)
            _, by_loan = given.split(rows[one], index[one], np.ones((1, 1)))
            shares += (by_loan / by_loan.sum()) @ tilt_PK[low + k : low + k + 1]
    loans = study.pool.select("loan_id", "asset_class", "vintage_month")
    frames = [
        loans.with_columns(of=pl.lit(m.of), measure=pl.lit(m.name), part=pl.Series(shares[:, k]))
        for k, m in enumerate(all_measures)
    ]
    return pl.concat(frames).select("of", "measure", "loan_id", "asset_class", "vintage_month", "part")


def _spread_tilts(all_measures: list[Measure], max_paths: int) -> tuple[np.ndarray, np.ndarray]:
    """(paths kept (Q,), u_p X_p of each measure on them (Q, K)), scaled up for the paths left out."""
    whole = np.stack([m.tilt_P * m.outcome_P for m in all_measures], axis=1)
    weight = (whole / np.maximum(whole.sum(axis=0), 1e-300)).max(axis=1)
    used = np.flatnonzero(weight > 0)
    if used.size > max_paths:
        order = used[np.argsort(-weight[used], kind="stable")]
        heavy = order[: max_paths // 2]
        rest = np.sort(order[max_paths // 2 :])
        even = rest[np.linspace(0, rest.size - 1, max_paths - heavy.size).astype(int)]
        used = np.sort(np.concatenate([heavy, even]))
    kept = whole[used]
    total, held = whole.sum(axis=0), kept.sum(axis=0)
    none = (held == 0) & (total != 0)
    kept = np.where(none, 1.0 / max(used.size, 1), kept)
    held = np.where(none, 1.0, np.where(held == 0, 1.0, held))
    return used, kept * (total / held)


def _scenario_parts(results: SimulationResults, all_measures: list[Measure]) -> pl.DataFrame:
    names = results.scenario_P
    if names is None:
        names = np.full(results.portfolio_losses.size, results.scenario)
    rows = [
        (m.of, m.name, str(name), float((m.tilt_P * m.outcome_P)[names == name].sum()))
        for m in all_measures
        for name in np.unique(names)
    ]
    return pl.DataFrame(rows, schema=["of", "measure", "scenario", "part"], orient="row")


# ---- macro series ------------------------------------------------------------------------------------


def series_parts(
    study: Study,
    results: SimulationResults,
    macro_PTM: np.ndarray,
    level: str = "99",
    n_paths: int = 24,
    n_lines: int = 48,
) -> pl.DataFrame:
    """Pool measures split into the neutral macro, each series, and loans' own luck.

    Integrated gradients (Sundararajan, Taly and Yan 2017; Aumann and Shapley 1974) of the expected loss along
    the straight line from the mean baseline path c to each path,

        part_j = sum_p u_p int_0^1 sum_t (x_ptj - c_tj) dm/dx_tj (c + a (x_p - c)) da               (2)

    scaled to m(x_p) - m(c). 'level' is m(c); 'own luck' is L - m in the tail, and what lines and a sample of
    paths leave.
    """
    lines = study.lines(n_lines)
    centre = study.macro("baseline", 64).mean(axis=0)
    rows: list[tuple[str, str, str, float]] = []
    for m in measures(results, level)[:2]:
        used = np.flatnonzero(m.tilt_P > 0)
        if used.size > n_paths:
            order = used[np.argsort(m.outcome_P[used], kind="stable")]
            mass = np.cumsum(m.tilt_P[order])
            used = order[np.searchsorted(mass, (np.arange(n_paths) + 0.5) / n_paths * mass[-1])]
            tilt = np.full(n_paths, 1.0 / n_paths)
        else:
            tilt = m.tilt_P[used]
        parts, base, reached = _integrated(lines, macro_PTM[used], centre)
        total = tilt @ parts
        wanted = float(tilt @ reached) - base
        total *= wanted / total.sum() if total.sum() != 0 else 1.0
        rows.append((m.of, m.name, "level", base))
        rows += [(m.of, m.name, name, float(value)) for name, value in zip(MACRO_NAMES, total, strict=True)]
        rows.append((m.of, m.name, "own luck", m.value - base - wanted))
    return pl.DataFrame(rows, schema=["of", "measure", "series", "part"], orient="row")


def _integrated(
    lines: Lines, macro_PTM: np.ndarray, centre_TM: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """((P, 9) integrated gradients, m at the centre, m on each path)."""
    nodes, masses = np.polynomial.legendre.leggauss(_NODES)
    gap = macro_PTM - centre_TM
    parts = np.zeros((len(macro_PTM), N_MACRO))
    for node, mass in zip((nodes + 1) / 2, masses / 2, strict=True):
        x = torch.from_numpy(centre_TM + node * gap).requires_grad_(True)
        losses = pool_losses(lines.cash(x), lines.pool.balance)
        (slope,) = torch.autograd.grad(losses.sum(), x)
        parts += mass * (slope.numpy() * gap).sum(axis=1)
    with torch.no_grad():
        ends = pool_losses(
            lines.cash(torch.from_numpy(np.concatenate([centre_TM[None], macro_PTM]))), lines.pool.balance
        ).numpy()
    return parts, float(ends[0]), ends[1:]


# ---- four sources --------------------------------------------------------------------------------------


def source_parts(
    study: Study, results: SimulationResults, macro_PTM: np.ndarray, level: str = "99", max_paths: int = 200
) -> pl.DataFrame:
    """Pool and class measures built up source by source; parts are the steps and sum to the measure.

    1 macro: all loans of an asset class move as its mean cohort. 2 cohort: each as its own cohort. 3 factor:
    each by its own attributes and history. 4 idiosyncratic: drawn, as simulated. Steps 1-3 are exact expected
    cash given each path, paid through the deal. The order is part of the definition.
    """
    all_measures = measures(results, level)
    kept, weights = thinned(results, max_paths)
    losses = [_losses_of(study, macro_PTM[kept], step) for step in range(3)]
    rows: list[tuple[str, str, str, float]] = []
    for m in all_measures:
        before = 0.0
        steps = [_measure_of(found[m.of], weights, m.name, level) for found in losses] + [m.value]
        for source, reached in zip(SOURCES, steps, strict=True):
            rows.append((m.of, m.name, source, reached - before))
            before = reached
    return pl.DataFrame(rows, schema=["of", "measure", "source", "part"], orient="row")


def thinned(results: SimulationResults, max_paths: int) -> tuple[np.ndarray, np.ndarray]:
    """(paths, weights) that stand for all: even steps through the sorted losses, finer in the worst 5 %."""
    losses, weights = results.portfolio_losses, check_weights(results.portfolio_losses, results.weights)
    if losses.size <= max_paths:
        return np.arange(losses.size), weights
    order = np.argsort(losses, kind="stable")
    mass = np.cumsum(weights[order])
    half = max_paths // 2
    marks = np.concatenate([np.linspace(0, 0.95, half + 1), np.linspace(0.95, 1.0, max_paths - half + 1)[1:]])
    middle = (marks[1:] + marks[:-1]) / 2
    picked = order[np.minimum(np.searchsorted(mass, middle), losses.size - 1)]
    return picked, np.diff(marks)


def _measure_of(losses_P: np.ndarray, weights_P: np.ndarray, name: str, level: str) -> float:
    if name == "expected_loss":
        return float(weights_P @ losses_P)
    return conditional_value_at_risk(losses_P, VAR_LEVELS[level], weights_P).value


def _losses_of(study: Study, macro_PTM: np.ndarray, step: int) -> Mapping[str, np.ndarray]:
    """Losses of pool and classes from expected cash with the first `step` + 1 sources at work."""
    from pc_pipeline.engines.aggregator import PortfolioAggregator

    residual = study.residual_LHJ if step == 2 else None
    given = ConditionalPool(study.arrays, residual)
    parts = []
    for low in range(0, len(macro_PTM), BATCH_PATHS):
        batch = macro_PTM[low : low + BATCH_PATHS]
        rows = study.rows(batch)
        if step == 0:
            rows = _class_rows(study, rows)
        parts.append(given.cash(rows, batch[:, :, POLICY_RATE]))
    cash = np.concatenate(parts)
    paid = PortfolioAggregator(study.deal).run(cash, study.balance, macro_PTM[:, :, POLICY_RATE])
    losses = (cash[:, :, 3] - cash[:, :, 4]).sum(axis=1) / study.balance
    original = np.where(paid.original_balance > 0, paid.original_balance, 1.0)
    by_class = np.clip((paid.balance[:, -1] + paid.written_down[:, -1]) / original, 0.0, 1.0)
    return {"pool": losses} | {name: by_class[:, k] for k, name in enumerate(paid.tranche_names)}


def _class_rows(study: Study, rows_PCTKJ: np.ndarray) -> np.ndarray:
    """Rows of every cohort replaced by the mean of its asset class, weighted by balance."""
    balance = np.bincount(study.arrays.cohort_L, study.arrays.balance_L, minlength=study.cohorts.height)
    names, out = study.cohorts["asset_class"].to_numpy(), rows_PCTKJ.copy()
    for name in np.unique(names):
        here = np.flatnonzero(names == name)
        share = balance[here] / balance[here].sum()
        out[:, here] = np.einsum("pctkj,c->ptkj", rows_PCTKJ[:, here], share)[:, None]
    return out
