"""Where losses come from: expected loss and CVaR of pool and classes, split so that parts add up exactly.

Here: the split over loans (hence cohorts and asset classes), over scenarios, over macro series, and over the
four sources of correlation. Not here: the figures that are split (`engines.results`), exact expected losses
by loan (`simulation.conditional`). docs/methods/analytics.md, section 3.

A measure is a weighted sum over paths, M = sum_p u_p X_p: u_p the path's weight for an expected loss, its
weight within the tail for a CVaR. X_p is shared in proportion to what makes up the pool's loss on that path:

    M_l = sum_p u_p X_p m_pl / m_p,      M_j = sum_p u_p X_p g_pj / L_p                       (1)

m_pl what loan l is expected to lose on it, g_pj what series j adds (eq. 2), L_p the loss drawn. Parts sum to
M whatever X is: the loss of the pool or of a class. Paths are sorted by pool loss into bins; one path of
each is worked out and stands for its bin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.analysis.study import Lines, Study
from pc_pipeline.engines.results import SimulationResults
from pc_pipeline.reports import formats
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
_NODES = 4  # Gauss-Legendre points of the line from the centre to a path
_TAIL = 0.95  # half of the bins lie beyond this quantile of the pool's loss
Progress = Callable[[int, int], None]


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

    KEYS: ClassVar[tuple[str, ...]] = ("asset_class", "scenario", "series", "source")

    def table(self, key: str) -> pl.DataFrame:
        """The split over one of KEYS: of, measure, key, part.

        Raises:
            SimulationError: it was left out.
        """
        found = {
            "asset_class": self.by("asset_class"),
            "scenario": self.scenarios,
            "series": self.series,
            "source": self.sources,
        }[key]
        if found is None:
            raise SimulationError("that split was left out", got=key)
        return found

    def has(self, key: str) -> bool:
        """Whether that split was made."""
        return (
            key not in ("series", "source") or getattr(self, {"source": "sources"}.get(key, key)) is not None
        )

    def losers(self) -> list[str]:
        """The pool and every class that loses anything in the tail."""
        found = self.values.filter(pl.col("value") > 0)["of"].unique(maintain_order=True)
        return [str(name) for name in found]

    def wide(self, key: str, of: str) -> pl.DataFrame:
        """One split of the pool or a class: a column per measure, percent; the last row is the measure."""
        parts = self.table(key).filter(pl.col("of") == of).select("measure", pl.col(key), "part")
        whole = self.values.filter(pl.col("of") == of).select(
            "measure", pl.lit("all").alias(key), pl.col("value").alias("part")
        )
        both = pl.concat([parts.with_columns(pl.col(key).cast(pl.String)), whole])
        return both.with_columns(pl.col("part") * 100).pivot(on="measure", index=key, values="part")

    def findings(self) -> list[tuple[str, str]]:
        """Sentences: each measure of pool and classes, and the largest part of every split."""
        told = []
        for of in self.losers():
            texts = []
            for measure, value in self.values.filter(pl.col("of") == of).select("measure", "value").rows():
                largest = []
                for key in (key for key in self.KEYS if self.has(key)):
                    rows = self.table(key).filter((pl.col("of") == of) & (pl.col("measure") == measure))
                    first = rows.sort(pl.col("part").abs(), descending=True).row(0, named=True)
                    name = formats.series_title(first[key]) if key == "series" else str(first[key])
                    share = first["part"] / value if value else 0.0
                    largest.append(f"{key.replace('_', ' ')} {name.replace('_', ' ')} {share:.0%}")
                texts.append(f"{formats.measure_title(measure)} {value:.2%}, of it {', '.join(largest)}.")
            told.append((of, " ".join(texts)))
        return told

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
    max_paths: int = 96,
    n_series_paths: int = 24,
    n_lines: int = 48,
    progress: Progress | None = None,
) -> Attribution:
    """All splits.

    Args:
        results: of a simulation along `macro_PTM`. macro_PTM: (P, T, 9) its macro paths.
        max_paths: bins of the splits over loans and sources. n_series_paths: of the split over macro
            series; 0 leaves it out. n_lines: representative loans of its gradients.
        progress: called with steps done, steps in all.

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
    bins, few = make_bins(results, max_paths), make_bins(results, max(n_series_paths, 1))
    done, steps = 0, 3 * -(-bins.paths.size // _AT_ONCE) + (_NODES if n_series_paths > 0 else 0)

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    shares, cash = _loan_shares(study, macro_PTM[bins.paths], bins.masses(all_measures), step)
    return Attribution(
        values=values,
        loans=_loan_parts(study, all_measures, shares),
        scenarios=_scenario_parts(results, all_measures),
        series=None
        if n_series_paths < 1
        else series_parts(study, results, macro_PTM, all_measures, few, n_lines, step),
        sources=_source_parts(study, all_measures, macro_PTM[bins.paths], bins, cash, level, step),
    )


# ---- bins of paths -----------------------------------------------------------------------------------

_AT_ONCE = 16  # paths of a call of the exact expected losses by loan


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Paths in bins of like pool loss.

    Attributes:
        paths: (Q,) path that stands for each. bin_P: bin of every path. weights: (Q,) of the paths in it.
    """

    paths: np.ndarray
    bin_P: np.ndarray
    weights: np.ndarray

    def masses(self, all_measures: list[Measure]) -> np.ndarray:
        """(Q, K) sum of u_p X_p over the bin, by measure: sums to the measures."""
        n = self.paths.size
        return np.stack(
            [np.bincount(self.bin_P, m.tilt_P * m.outcome_P, minlength=n) for m in all_measures], axis=1
        )


def make_bins(results: SimulationResults, n_bins: int) -> Bins:
    """Bins of equal weight up to the 95 % quantile and, as many, beyond it."""
    losses, weights = results.portfolio_losses, check_weights(results.portfolio_losses, results.weights)
    order = np.argsort(losses, kind="stable")
    if losses.size <= n_bins:
        return Bins(paths=order, bin_P=np.argsort(order), weights=weights[order])
    half = n_bins // 2
    marks = np.concatenate(
        [np.linspace(0, _TAIL, n_bins - half + 1)[1:], np.linspace(_TAIL, 1.0, half + 1)[1:]]
    )
    middle = np.cumsum(weights[order]) - 0.5 * weights[order]
    found = np.minimum(np.searchsorted(marks, middle, side="right"), n_bins - 1)
    used, of_sorted = np.unique(found, return_inverse=True)
    bin_P = np.empty(losses.size, dtype=np.int64)
    bin_P[order] = of_sorted
    held = np.bincount(bin_P, weights)
    mean = np.bincount(bin_P, weights * losses) / np.maximum(held, 1e-300)
    gap = np.abs(losses - mean[bin_P])
    paths = np.array([(here := np.flatnonzero(bin_P == k))[gap[here].argmin()] for k in range(used.size)])
    return Bins(paths=paths, bin_P=bin_P, weights=held)


# ---- loans and scenarios -----------------------------------------------------------------------------


def _loan_shares(
    study: Study, macro_QTM: np.ndarray, masses_QK: np.ndarray, step: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """((L, K) eq. (1) by loan in the order of the pool, (Q, T, 5) expected cash along the bins' paths)."""
    given, shares, cash = study.conditional(), np.zeros((study.arrays.n_loans, masses_QK.shape[1])), []
    for low in range(0, len(macro_QTM), _AT_ONCE):
        batch = macro_QTM[low : low + _AT_ONCE]
        expected, by_loan = given.split(study.rows(batch), batch[:, :, POLICY_RATE], np.eye(len(batch)))
        shares += (by_loan / by_loan.sum(axis=0)) @ masses_QK[low : low + _AT_ONCE]
        cash.append(expected)
        step()
    return shares, np.concatenate(cash)


def _loan_parts(study: Study, all_measures: list[Measure], shares_LK: np.ndarray) -> pl.DataFrame:
    loans = study.pool.select("loan_id", "asset_class", "vintage_month")
    frames = [
        loans.with_columns(of=pl.lit(m.of), measure=pl.lit(m.name), part=pl.Series(shares_LK[:, k]))
        for k, m in enumerate(all_measures)
    ]
    return pl.concat(frames).select("of", "measure", "loan_id", "asset_class", "vintage_month", "part")


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
    all_measures: list[Measure],
    bins: Bins,
    n_lines: int = 48,
    step: Callable[[], None] = lambda: None,
) -> pl.DataFrame:
    """Measures of pool and classes split into the mean baseline path, each series, and loans' own luck.

    g_pj of eq. (1) are integrated gradients (Sundararajan, Taly and Yan 2017; Aumann and Shapley 1974) of the
    expected loss m along the straight line from the mean baseline path c to the path x,

        g_pj = int_0^1 sum_t (x_ptj - c_tj) dm/dx_tj (c + a (x_p - c)) da                          (2)

    from representative loans, their sum set to m(x) - m(c) of all loans. 'baseline' is m(c), 'own luck' what
    the draw adds to m(x).
    """
    lines, macro = study.lines(n_lines), macro_PTM[bins.paths]
    centre = study.macro("baseline", 64).mean(axis=0)
    exact = study.expected_losses(np.concatenate([centre[None], macro]))
    base, reached = float(exact[0]), exact[1:]
    found = _integrated(lines, macro, centre, step)
    size = np.maximum(np.abs(found).sum(axis=1), 1e-300)
    left = reached - base - found.sum(axis=1)  # of lines and nodes: spread in proportion
    found = found + np.abs(found) * (left / size)[:, None]
    drawn = results.portfolio_losses[bins.paths]
    whole = np.column_stack([np.full(len(macro), base), found, drawn - base - found.sum(axis=1)])
    shares = np.where(drawn[:, None] > 0, whole / np.where(drawn > 0, drawn, 1.0)[:, None], 0.0)
    shares[drawn <= 0, -1] = 1.0
    parts = shares.T @ bins.masses(all_measures)
    names = ("baseline", *MACRO_NAMES, "own luck")
    rows = [
        (m.of, m.name, name, float(parts[k, place]))
        for place, m in enumerate(all_measures)
        for k, name in enumerate(names)
    ]
    return pl.DataFrame(rows, schema=["of", "measure", "series", "part"], orient="row")


def _integrated(
    lines: Lines, macro_PTM: np.ndarray, centre_TM: np.ndarray, step: Callable[[], None]
) -> np.ndarray:
    """(P, 9) eq. (2)."""
    nodes, masses = np.polynomial.legendre.leggauss(_NODES)
    gap = macro_PTM - centre_TM
    parts = np.zeros((len(macro_PTM), N_MACRO))
    for node, mass in zip((nodes + 1) / 2, masses / 2, strict=True):
        x = torch.from_numpy(centre_TM + node * gap).requires_grad_(True)
        losses = pool_losses(lines.cash(x), lines.pool.balance)
        (slope,) = torch.autograd.grad(losses.sum(), x)
        parts += mass * (slope.numpy() * gap).sum(axis=1)
        step()
    return parts


# ---- four sources --------------------------------------------------------------------------------------


def _source_parts(
    study: Study,
    all_measures: list[Measure],
    macro_QTM: np.ndarray,
    bins: Bins,
    own_cash_QTC: np.ndarray,
    level: str,
    step: Callable[[], None],
) -> pl.DataFrame:
    """Pool and class measures built up source by source; parts are the steps and sum to the measure.

    1 macro: all loans of an asset class move as its mean cohort. 2 cohort: each as its own cohort. 3 factor:
    each by its own attributes and history. 4 idiosyncratic: drawn, as simulated. Steps 1-3 are exact expected
    cash given each bin's path, paid through the deal. The order is part of the definition.
    """
    bare = ConditionalPool(study.arrays, None)
    built: list[list[np.ndarray]] = [[], []]
    for low in range(0, len(macro_QTM), _AT_ONCE):
        batch = macro_QTM[low : low + _AT_ONCE]
        rows = study.rows(batch)
        for parts, own in zip(built, (_class_rows(study, rows), rows), strict=True):
            parts.append(bare.cash(own, batch[:, :, POLICY_RATE]))
            step()
    steps = [np.concatenate(parts) for parts in built] + [own_cash_QTC]
    losses = [_losses_of(study, cash, macro_QTM) for cash in steps]
    found: list[tuple[str, str, str, float]] = []
    for m in all_measures:
        before = 0.0
        reached = [_measure_of(one[m.of], bins.weights, m.name, level) for one in losses] + [m.value]
        for source, value in zip(SOURCES, reached, strict=True):
            found.append((m.of, m.name, source, value - before))
            before = value
    return pl.DataFrame(found, schema=["of", "measure", "source", "part"], orient="row")


def _measure_of(losses_P: np.ndarray, weights_P: np.ndarray, name: str, level: str) -> float:
    if name == "expected_loss":
        return float(weights_P @ losses_P)
    return conditional_value_at_risk(losses_P, VAR_LEVELS[level], weights_P).value


def _losses_of(study: Study, cash_PTC: np.ndarray, macro_PTM: np.ndarray) -> Mapping[str, np.ndarray]:
    """Losses of pool and classes from pool cash."""
    paid = PortfolioAggregator(study.deal).run(cash_PTC, study.balance, macro_PTM[:, :, POLICY_RATE])
    losses = (cash_PTC[:, :, 3] - cash_PTC[:, :, 4]).sum(axis=1) / study.balance
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
