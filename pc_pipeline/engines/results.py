"""What a Monte Carlo run found: losses, tranches, cash, and the frames that reports are made of.

Here: `SimulationResults`, `TrancheResult`, their measures and frames. Not here: how they came about
(`engines.aggregator`), how they are laid out (`reports`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports.workbook import write_workbook
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import MACRO_NAMES
from pc_pipeline.simulation.control import Control
from pc_pipeline.simulation.estimators import (
    MEASURES,
    Estimate,
    effective_sample_size,
    expected_loss,
    loss_probability,
    pool_measures,
    weighted_quantile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrancheResult:
    """One class of the deal over all paths.

    Attributes:
        name, original_balance, share, coupon: terms at closing; coupon None for a residual.
        losses: (P,) principal unpaid or written down at the end, share of the class.
        irr: (P,) per year by path, NaN without a root; mean_irr: of the mean cash flows, or None.
        wal_years: (P,) weighted average life of principal, NaN where none was paid.
        oc_failed, ic_failed: (P,) bool, the test failed at least once; None without such a test.
        balance: (P, T) after each payment, currency. cash: (P, T) received, currency.
    """

    name: str
    original_balance: float
    share: float
    coupon: float | None
    losses: np.ndarray
    irr: np.ndarray
    mean_irr: float | None
    wal_years: np.ndarray
    oc_failed: np.ndarray | None
    ic_failed: np.ndarray | None
    balance: np.ndarray
    cash: np.ndarray
    weights: np.ndarray

    @property
    def expected_loss(self) -> float:
        """Mean loss, share of the class."""
        return expected_loss(self.losses, self.weights).value

    @property
    def loss_probability(self) -> float:
        """Share of paths that lose any principal."""
        return loss_probability(self.losses, LOSS_FLOOR, self.weights).value


LOSS_FLOOR = 1e-9  # a smaller share of a class is rounding, not a loss


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResults:
    """Outcome of a run over P paths and T months.

    Attributes:
        portfolio_losses: (P,) share of the pool balance at the cut-off (the original balance of a new pool).
        tranche_results: senior first.
        cashflows: channel -> (P, T) currency.
        weights: (P,) likelihood weights, mean 1.
        scenario: name, or the mix in words.
        pool_balance: at the cut-off, currency.
        macro_fan: quantiles of the macro series (table macro_fan_report), or None.
        conventions: what was assumed, by name. seeds: by use. model_versions: by model.
        diagnostics: e.g. the distance between network and compiled form.
        strata_P: (P,) stratum each path was drawn in (`simulation.tails`), or None. scenario_P: its scenario.
        control: own luck of the loans along each path (`simulation.control`), or None.
    """

    portfolio_losses: np.ndarray
    tranche_results: list[TrancheResult]
    cashflows: dict[str, np.ndarray]
    weights: np.ndarray
    scenario: str
    pool_balance: float
    macro_fan: pl.DataFrame | None = None
    conventions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    model_versions: Mapping[str, str] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    strata_P: np.ndarray | None = None
    scenario_P: np.ndarray | None = None
    control: Control | None = None

    # ---- measures ---------------------------------------------------------------------------

    @property
    def _weights(self) -> np.ndarray | None:
        """None where all paths count alike, so that exact order statistics apply."""
        return None if np.ptp(self.weights) == 0 else self.weights

    def intervals(self) -> dict[str, Estimate]:
        """All measures with their 95 % intervals, by name of table `pool_report`."""
        return pool_measures(self.portfolio_losses, self._weights, self.strata_P, self.control)

    def interval(self, measure: str) -> Estimate:
        """One measure with its 95 % interval; `measure` is one of MEASURES."""
        return self.intervals()[measure]

    @property
    def expected_loss(self) -> float:
        """Mean loss, share of the pool."""
        return self.interval("expected_loss").value

    @property
    def var_95(self) -> float:
        """95 % quantile of the loss."""
        return self.interval("var_95").value

    @property
    def var_99(self) -> float:
        """99 % quantile of the loss."""
        return self.interval("var_99").value

    @property
    def var_999(self) -> float:
        """99.9 % quantile of the loss."""
        return self.interval("var_999").value

    @property
    def cvar_95(self) -> float:
        """Mean of the losses at or above the 95 % quantile."""
        return self.interval("cvar_95").value

    @property
    def cvar_99(self) -> float:
        """Mean of the losses at or above the 99 % quantile."""
        return self.interval("cvar_99").value

    @property
    def cvar_999(self) -> float:
        """Mean of the losses at or above the 99.9 % quantile."""
        return self.interval("cvar_999").value

    @property
    def effective_paths(self) -> float:
        """Equally weighted paths that would carry the same information."""
        return effective_sample_size(self.weights)

    # ---- frames -----------------------------------------------------------------------------

    def summary(self) -> pl.DataFrame:
        """Pool measures with intervals, then each class's expected loss and loss probability."""
        pool = self.pool_report().select(pl.lit("pool").alias("of"), "measure", "value", "lower", "upper")
        rows = []
        for tranche in self.tranche_results:
            for measure, found in (
                ("expected_loss", self._class_loss(tranche)),
                (
                    "loss_probability",
                    loss_probability(tranche.losses, LOSS_FLOOR, self._weights, self.strata_P),
                ),
            ):
                rows.append((tranche.name, measure, found.value, found.lower, found.upper))
        return pl.concat([pool, pl.DataFrame(rows, schema=pool.schema, orient="row")])

    def _class_loss(self, tranche: TrancheResult) -> Estimate:
        """Expected loss of a class, less own luck by regression among paths of like predicted loss."""
        if self.control is None:
            return expected_loss(tranche.losses, self._weights, self.strata_P)
        luck = self.control.of_any(tranche.losses, self.weights)
        return expected_loss(tranche.losses - luck, self._weights, self.strata_P)

    def pool_report(self) -> pl.DataFrame:
        """Table `pool_report`."""
        found = self.intervals()
        return pl.DataFrame(
            {
                "scenario": [self.scenario] * len(MEASURES),
                "measure": list(MEASURES),
                "value": [found[name].value for name in MEASURES],
                "lower": [found[name].lower for name in MEASURES],
                "upper": [found[name].upper for name in MEASURES],
            }
        )

    def tranche_report(self) -> pl.DataFrame:
        """Table `tranche_report`."""
        rows = [
            _tranche_row(tranche, self.scenario, self._weights, self.strata_P, self._class_loss(tranche))
            for tranche in self.tranche_results
        ]
        names = columns("tranche_report")
        schema = {name: pl.String if name in ("scenario", "tranche") else pl.Float64 for name in names}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def cash_flow_report(self) -> pl.DataFrame:
        """Table `cash_flow_report`."""
        parts = [
            _by_month(values, self._weights, (0.05, 0.5, 0.95)).with_columns(pl.lit(name).alias("channel"))
            for name, values in self.cashflows.items()
        ]
        table = pl.concat(parts).with_columns(pl.lit(self.scenario).alias("scenario"))
        return table.select(columns("cash_flow_report"))

    def tranche_balance_report(self) -> pl.DataFrame:
        """Table `tranche_balance_report`."""
        parts = [
            _by_month(tranche.balance, self._weights, (0.05, 0.95)).with_columns(
                pl.lit(tranche.name).alias("tranche")
            )
            for tranche in self.tranche_results
        ]
        names = columns("tranche_balance_report")
        if not parts:
            return pl.DataFrame(schema=dict.fromkeys(names, pl.Float64))
        return pl.concat(parts).with_columns(pl.lit(self.scenario).alias("scenario")).select(names)

    def loss_distribution(self) -> pl.DataFrame:
        """One row per path: scenario, path_id, loss, weight."""
        n = self.portfolio_losses.size
        return pl.DataFrame(
            {
                "scenario": [self.scenario] * n,
                "path_id": np.arange(n, dtype=np.int64),
                "loss": self.portfolio_losses,
                "weight": self.weights,
            }
        )

    def frames(self) -> dict[str, pl.DataFrame]:
        """Every report table, by name."""
        found = {
            "pool_report": self.pool_report(),
            "tranche_report": self.tranche_report(),
            "cash_flow_report": self.cash_flow_report(),
            "tranche_balance_report": self.tranche_balance_report(),
            "loss_distribution": self.loss_distribution(),
        }
        if self.macro_fan is not None:
            found["macro_fan_report"] = self.macro_fan
        return found

    def notes(self) -> list[tuple[str, str]]:
        """(label, text) pairs: run, conventions, models."""
        pairs = [
            ("run: scenario", self.scenario),
            ("run: paths", f"{self.portfolio_losses.size:,}, effective {self.effective_paths:,.0f}"),
            ("run: pool balance at the cut-off", f"{self.pool_balance:,.2f}"),
        ]
        pairs += [(f"run: seed, {name}", str(seed)) for name, seed in self.seeds.items()]
        pairs += [(f"convention: {name}", text) for name, text in self.conventions.items()]
        pairs += [(f"model: {name}", version) for name, version in self.model_versions.items()]
        pairs += [(f"model: {name}", f"{value:.6g}") for name, value in self.diagnostics.items()]
        return pairs

    # ---- files ------------------------------------------------------------------------------

    def to_excel(self, path: str | Path) -> Path:
        """Write the workbook; returns its path."""
        return write_workbook(path, self.frames(), self.notes(), title=f"Simulation: {self.scenario}")

    def to_parquet(self, path: str | Path) -> Path:
        """Write every frame as `<path>/<table>.parquet`, and all paths; returns the folder."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in self.frames().items():
            frame.write_parquet(folder / f"{name}.parquet", compression="zstd")
        write_paths(folder, self)
        return folder

    @classmethod
    def from_parquet(cls, path: str | Path) -> SimulationResults:
        """What `to_parquet` wrote, number for number.

        Raises:
            DataError: the folder holds no simulation, or a part of it is missing.
        """
        return read_paths(Path(path))


def _tranche_row(
    tranche: TrancheResult,
    scenario: str,
    weights: np.ndarray | None,
    strata: np.ndarray | None,
    loss: Estimate,
) -> tuple[object, ...]:
    probability = loss_probability(tranche.losses, LOSS_FLOOR, weights, strata)
    return (
        scenario,
        tranche.name,
        tranche.original_balance,
        tranche.share,
        tranche.coupon,
        loss.value,
        max(loss.lower, 0.0),
        min(loss.upper, 1.0),
        probability.value,
        probability.lower,
        probability.upper,
        tranche.mean_irr,
        _known_quantile(tranche.irr, 0.05, weights),
        _known_quantile(tranche.irr, 0.95, weights),
        _known_mean(tranche.wal_years, weights),
        _share(tranche.oc_failed, weights),
        _share(tranche.ic_failed, weights),
    )


def _known_quantile(values: np.ndarray, level: float, weights: np.ndarray | None) -> float | None:
    known = np.isfinite(values)
    if not known.any():
        return None
    return weighted_quantile(values[known], level, None if weights is None else weights[known])


def _known_mean(values: np.ndarray, weights: np.ndarray | None) -> float | None:
    known = np.isfinite(values)
    if not known.any():
        return None
    return float(np.average(values[known], weights=None if weights is None else weights[known]))


def _share(hits: np.ndarray | None, weights: np.ndarray | None) -> float | None:
    return None if hits is None else float(np.average(hits, weights=weights))


def _by_month(values_PT: np.ndarray, weights: np.ndarray | None, levels: tuple[float, ...]) -> pl.DataFrame:
    """Mean and quantiles over paths, one row per month."""
    quantiles = np.quantile(values_PT, levels, axis=0, method="inverted_cdf", weights=weights)
    frame: dict[str, np.ndarray] = {
        "month_index": np.arange(values_PT.shape[1], dtype=np.int64),
        "mean": np.average(values_PT, axis=0, weights=weights),
    }
    frame |= {f"p{round(100 * level):02d}": row for level, row in zip(levels, quantiles, strict=True)}
    return pl.DataFrame(frame)


# ---- all paths on disk ------------------------------------------------------------------------------

_PATH_FIELDS = ("strata_P", "scenario_P")
_CONTROL_FIELDS = ("luck_P", "square_P", "predicted_P", "offset_P")
_TRANCHE_FIELDS = ("losses", "irr", "wal_years", "oc_failed", "ic_failed")
_TERMS = ("name", "original_balance", "share", "coupon", "mean_irr")


def write_paths(folder: Path, results: SimulationResults) -> None:
    """`paths.parquet` (one row a path), `path_months.parquet` (one a path and month), `run.json`."""
    paths: dict[str, np.ndarray] = {"loss": results.portfolio_losses, "weight": results.weights}
    paths |= {name: getattr(results, name) for name in _PATH_FIELDS if getattr(results, name) is not None}
    if results.control is not None:
        paths |= {f"control.{name}": getattr(results.control, name) for name in _CONTROL_FIELDS}
    months = {f"pool.{name}": values.ravel() for name, values in results.cashflows.items()}
    for k, tranche in enumerate(results.tranche_results):
        for name in _TRANCHE_FIELDS:
            if getattr(tranche, name) is not None:
                paths[f"{k}.{name}"] = getattr(tranche, name)
        months |= {f"{k}.balance": tranche.balance.ravel(), f"{k}.cash": tranche.cash.ravel()}
    pl.DataFrame(paths).write_parquet(folder / "paths.parquet", compression="zstd")
    pl.DataFrame(months).write_parquet(folder / "path_months.parquet", compression="zstd")
    run = {
        "scenario": results.scenario,
        "pool_balance": results.pool_balance,
        "conventions": dict(results.conventions),
        "seeds": dict(results.seeds),
        "model_versions": dict(results.model_versions),
        "diagnostics": dict(results.diagnostics),
        "tranches": [
            {name: getattr(tranche, name) for name in _TERMS} for tranche in results.tranche_results
        ],
    }
    (folder / "run.json").write_text(json.dumps(run, indent=2), encoding="utf-8")


def read_paths(folder: Path) -> SimulationResults:
    """Inverse of `write_paths`."""
    parts = [folder / name for name in ("paths.parquet", "path_months.parquet", "run.json")]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise DataError("no simulation to read", expected="a folder of to_parquet", got=missing, where=folder)
    paths, months = (pl.read_parquet(part) for part in parts[:2])
    run = json.loads(parts[2].read_text(encoding="utf-8"))
    grid = {name: months[name].to_numpy().reshape(paths.height, -1) for name in months.columns}
    weights = paths["weight"].to_numpy()

    def column(name: str) -> np.ndarray | None:
        if name not in paths.columns:
            return None
        return np.array(paths[name].to_list()) if paths[name].dtype == pl.String else paths[name].to_numpy()

    tranches = [
        TrancheResult(
            **(terms | {name: column(f"{k}.{name}") for name in _TRANCHE_FIELDS}),
            balance=grid[f"{k}.balance"],
            cash=grid[f"{k}.cash"],
            weights=weights,
        )
        for k, terms in enumerate(run.pop("tranches"))
    ]
    fan = folder / "macro_fan_report.parquet"
    kept: dict[str, Any] = {name: column(name) for name in _PATH_FIELDS} | run
    if f"control.{_CONTROL_FIELDS[0]}" in paths.columns:
        kept["control"] = Control(**{name: paths[f"control.{name}"].to_numpy() for name in _CONTROL_FIELDS})
    return SimulationResults(
        portfolio_losses=paths["loss"].to_numpy(),
        tranche_results=tranches,
        cashflows={name.removeprefix("pool."): grid[name] for name in grid if name.startswith("pool.")},
        weights=weights,
        macro_fan=pl.read_parquet(fan) if fan.is_file() else None,
        **kept,
    )


FAN_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def macro_fan(macro_PTM: np.ndarray, scenario: str, weights: np.ndarray | None = None) -> pl.DataFrame:
    """Table `macro_fan_report` of macro paths (P, T, 9)."""
    parts = [
        _by_month(macro_PTM[:, :, m].astype(float), weights, FAN_LEVELS).with_columns(
            pl.lit(name).alias("series")
        )
        for m, name in enumerate(MACRO_NAMES)
    ]
    table = pl.concat(parts).with_columns(pl.lit(scenario).alias("scenario"))
    return table.select(columns("macro_fan_report"))
