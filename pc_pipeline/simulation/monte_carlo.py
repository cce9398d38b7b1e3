"""A pool's cash on many macro paths: batches of paths stream through the kernel, memory stays bounded.

Here: `simulate_pool`, its configuration and checks, `SimulatedCash`, table `simulations`. Not here: the
kernel (`simulation.kernel`), the networks behind the rows (`simulation.rows`), the waterfall (`engines`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numba import njit

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.schemas.states import N_LIVING, N_STATES
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_NAMES, N_CASH, N_MACRO
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import Lanes, pack_lanes
from pc_pipeline.simulation.pool import PoolArrays, pool_arrays
from pc_pipeline.simulation.rng import seed_key

TransitionRows = Callable[[np.ndarray], np.ndarray]  # macro (P, T, 9) -> rows (P, C, T, 4, 7)
Progress = Callable[[int, int], None]  # paths done, paths in all
POLICY_RATE = MACRO_NAMES.index("policy_rate")
PATHS_PER_TASK = 8
ROW_TOLERANCE = 1e-4
N_DEFAULT_CHANNEL, N_RECOVERY_CHANNEL = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """How a run is cut up; none of it but the seed changes a single bit of the result.

    Attributes:
        seed: of the loans' random numbers.
        batch_paths: paths whose transition rows are held at once, 1 or more.
        n_threads: kernel threads, 1 or more.
        memory_limit_mb: refuse a run whose arrays would pass this, MB.
    """

    seed: int = 0
    batch_paths: int = 64
    n_threads: int = 2
    memory_limit_mb: float = 4000.0

    def __post_init__(self) -> None:
        for name in ("batch_paths", "n_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", expected=">= 1", got=getattr(self, name))
        if not self.memory_limit_mb > 0:
            raise ConfigError("memory_limit_mb must be positive", got=self.memory_limit_mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCash:
    """Pool cash of every path, and what is needed to judge it.

    Attributes:
        cash_PTC: (P, T, 5) currency, channels of `units.CASH_CHANNELS`.
        index_rate_PT: (P, T) index of floating rates, decimal per year.
        weights_P: likelihood weights, mean 1.
        pool_balance: balance at the cut-off, currency.
        seed: of the loans' random numbers.
        n_loans: loans simulated.
    """

    cash_PTC: np.ndarray
    index_rate_PT: np.ndarray
    weights_P: np.ndarray
    pool_balance: float
    seed: int
    n_loans: int

    @property
    def losses_P(self) -> np.ndarray:
        """(P,) charge-offs less recoveries, share of the pool balance at the cut-off."""
        totals = self.cash_PTC.sum(axis=1)
        return (totals[:, N_DEFAULT_CHANNEL] - totals[:, N_RECOVERY_CHANNEL]) / self.pool_balance


def simulate_pool(
    pool: PoolArrays | pl.DataFrame,
    cohorts: pl.DataFrame | int,
    macro_paths_PTM: np.ndarray,
    transition_rows: TransitionRows,
    residual_LHJ: np.ndarray | None = None,
    config: SimulationConfig | None = None,
    *,
    weights_P: np.ndarray | None = None,
    first_path: int = 0,
    progress: Progress | None = None,
) -> SimulatedCash:
    """Simulate every loan of the pool along every macro path.

    Args:
        pool: `PoolArrays`, or the `pool` table with tape columns.
        cohorts: the cohort table whose order the rows follow, or the number of cohorts.
        macro_paths_PTM: (P, T, 9) macro paths; T is the horizon.
        transition_rows: macro (p, T, 9) -> probabilities (p, C, T, 4, 7) from each living state.
        residual_LHJ: exp(residual) (L, 15, 6) of each loan and history class; None for pure cohort moves.
        weights_P: likelihood weights of the paths; None for equal ones.
        first_path: global number of the first path, so that a sub-range can be run alone.
        progress: called after each batch with (paths done, paths in all).

    Raises:
        SimulationError: the pool, paths, rows, weights or memory do not allow the run.
    """
    config = config or SimulationConfig()
    macro = check_macro(macro_paths_PTM)
    n_paths, n_months = macro.shape[:2]
    arrays = _arrays(pool, cohorts, n_months)
    n_cohorts = cohorts if isinstance(cohorts, int) else cohorts.height
    check_run(arrays, n_cohorts, macro, residual_LHJ, config)
    weights = path_weights(weights_P, n_paths)
    lanes = pack_lanes(arrays, residual_LHJ)
    index_PT = np.ascontiguousarray(macro[:, :, POLICY_RATE], dtype=float)
    cash_PTC = np.zeros((n_paths, n_months, N_CASH))
    with ThreadPoolExecutor(config.n_threads) as threads:
        for low in range(0, n_paths, config.batch_paths):
            high = min(low + config.batch_paths, n_paths)
            rows = check_rows(transition_rows(macro[low:high]), high - low, n_cohorts, n_months, low)
            _run_batch(
                threads, lanes, rows, index_PT[low:high], config.seed, first_path + low, cash_PTC[low:high]
            )
            if progress is not None:
                progress(high, n_paths)
    return SimulatedCash(
        cash_PTC=cash_PTC,
        index_rate_PT=index_PT,
        weights_P=weights,
        pool_balance=arrays.total_balance,
        seed=config.seed,
        n_loans=arrays.n_loans,
    )


def _run_batch(
    threads: ThreadPoolExecutor,
    lanes: Lanes,
    rows_PCTKJ: np.ndarray,
    index_PT: np.ndarray,
    seed: int,
    first_path: int,
    out_PTC: np.ndarray,
) -> None:
    """All paths of a batch, a few paths to a task."""
    key = seed_key(seed)
    starts = range(0, out_PTC.shape[0], PATHS_PER_TASK)
    tasks = [
        threads.submit(
            run_lanes,
            lanes,
            rows_PCTKJ,
            index_PT,
            key,
            first_path,
            out_PTC,
            low,
            min(low + PATHS_PER_TASK, out_PTC.shape[0]),
        )
        for low in starts
    ]
    for task in tasks:
        task.result()


def _arrays(pool: PoolArrays | pl.DataFrame, cohorts: pl.DataFrame | int, n_months: int) -> PoolArrays:
    if isinstance(pool, PoolArrays):
        return pool
    if isinstance(cohorts, int):
        raise SimulationError("a pool table needs its cohort table", expected="cohorts frame", got=cohorts)
    return pool_arrays(pool, cohorts, n_months)


def check_macro(macro_PTM: np.ndarray) -> np.ndarray:
    """The macro paths, if they are finite and of nine series."""
    macro = np.asarray(macro_PTM)
    if macro.ndim != 3 or macro.shape[2] != N_MACRO or 0 in macro.shape:
        raise SimulationError(
            "macro paths are misshapen", expected=f"(paths, months, {N_MACRO})", got=macro.shape
        )
    if not np.isfinite(macro).all():
        bad = np.argwhere(~np.isfinite(macro))[0]
        raise SimulationError(
            "macro paths hold a number that is not finite",
            where=f"path {bad[0]}, month {bad[1]}, {MACRO_NAMES[bad[2]]}",
        )
    return macro


def check_run(
    pool: PoolArrays,
    n_cohorts: int,
    macro_PTM: np.ndarray,
    residual_LHJ: np.ndarray | None,
    config: SimulationConfig,
) -> None:
    """Everything that would fail later, refused before work starts."""
    n_paths, n_months = macro_PTM.shape[:2]
    if pool.n_months != n_months:
        raise SimulationError(
            "the macro source and the pool's schedules differ in horizon",
            expected=f"{pool.n_months} months",
            got=f"{n_months} months of macro",
        )
    if pool.cohort_L.min() < 0 or pool.cohort_L.max() >= n_cohorts:
        raise SimulationError(
            "a loan belongs to no cohort", expected=f"0..{n_cohorts - 1}", got=int(pool.cohort_L.max())
        )
    if residual_LHJ is not None:
        if residual_LHJ.shape[0] != pool.n_loans or residual_LHJ.ndim != 3:
            raise SimulationError(
                "residuals do not cover the pool", expected=f"({pool.n_loans}, 15, 6)", got=residual_LHJ.shape
            )
        if not (np.isfinite(residual_LHJ).all() and residual_LHJ.min() >= 0):
            raise SimulationError("residual weights must be finite and not negative")
    needed = run_megabytes(pool, n_cohorts, n_paths, n_months, config)
    if needed > config.memory_limit_mb:
        raise SimulationError(
            "the run would not fit the memory allowed",
            expected=f"at most {config.memory_limit_mb:.0f} MB",
            got=f"{needed:.0f} MB",
            where="fewer paths, a smaller batch_paths, or a higher memory_limit_mb",
        )


def run_megabytes(
    pool: PoolArrays, n_cohorts: int, n_paths: int, n_months: int, config: SimulationConfig
) -> float:
    """Bytes of a run's largest arrays, MB: lanes, one batch of rows, cash of every path."""
    lanes = pool.n_loans * (8 * (n_months + 4) + 4 * 90 + 80)
    rows = min(config.batch_paths, n_paths) * n_cohorts * n_months * N_LIVING * N_STATES * 4
    cash = n_paths * n_months * (N_CASH + 1 + N_MACRO) * 8
    return (lanes + rows + cash) / 1e6


def check_rows(rows: np.ndarray, n_paths: int, n_cohorts: int, n_months: int, first: int) -> np.ndarray:
    """Rows as contiguous float32, if they are probabilities of the right shape."""
    expected = (n_paths, n_cohorts, n_months, N_LIVING, N_STATES)
    if rows.shape != expected:
        raise SimulationError(
            "transition rows are misshapen", expected=expected, got=rows.shape, where=f"batch at path {first}"
        )
    plain = np.ascontiguousarray(rows, dtype=np.float32)
    gap, lowest = _worst_row(plain.reshape(-1, N_STATES))
    if not (gap <= ROW_TOLERANCE and lowest >= 0):
        raise SimulationError(
            "transition rows are no probabilities",
            expected="rows >= 0 that sum to 1",
            got=f"a sum off by {gap:.3g}, minimum {lowest:.3g}",
            where=f"batch at path {first}",
        )
    return plain


@njit(nogil=True, cache=True)
def _worst_row(rows_NK: Any) -> Any:
    """Largest |sum - 1| and smallest entry in one pass; infinite where an entry is not a number."""
    gap, lowest = 0.0, 0.0
    for n in range(rows_NK.shape[0]):
        total = 0.0
        for k in range(rows_NK.shape[1]):
            total += rows_NK[n, k]
            lowest = min(lowest, rows_NK[n, k])
        if not abs(total - 1.0) <= gap:
            gap = abs(total - 1.0) if total == total else np.inf
    return gap, lowest


def path_weights(weights_P: np.ndarray | None, n_paths: int) -> np.ndarray:
    """Weights of mean 1."""
    if weights_P is None:
        return np.ones(n_paths)
    weights = np.asarray(weights_P, dtype=float)
    if (
        weights.shape != (n_paths,)
        or not np.isfinite(weights).all()
        or weights.min() < 0
        or weights.sum() <= 0
    ):
        raise SimulationError("path weights make no sense", expected=f"{n_paths} numbers >= 0, not all 0")
    return weights * (n_paths / weights.sum())


def simulation_table(simulated: SimulatedCash, scenario: str, first_path: int = 0) -> pl.DataFrame:
    """Table `simulations`: one row per path and month."""
    n_paths, n_months = simulated.cash_PTC.shape[:2]
    flat = simulated.cash_PTC.reshape(-1, N_CASH)
    columns: dict[str, np.ndarray] = {
        "path_id": np.repeat(np.arange(first_path, first_path + n_paths, dtype=np.int64), n_months),
        "month_index": np.tile(np.arange(n_months, dtype=np.int64), n_paths),
        "weight": np.repeat(simulated.weights_P, n_months),
    }
    columns |= {name: np.maximum(flat[:, c], 0.0) for c, name in enumerate(CASH_CHANNELS)}
    columns["index_rate"] = simulated.index_rate_PT.reshape(-1)
    return pl.DataFrame(columns).select(pl.lit(scenario).alias("scenario"), pl.all())


def cash_from_table(simulations: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of `simulation_table` for one scenario: cash (P, T, 5), index (P, T), weights (P,).

    Raises:
        SimulationError: paths of different length, or months missing.
    """
    ordered = simulations.sort("path_id", "month_index")
    n_paths = ordered["path_id"].n_unique()
    n_months = ordered["month_index"].n_unique()
    if ordered.height == 0 or ordered.height != n_paths * n_months:
        raise SimulationError(
            "the simulations table is no full grid of paths and months",
            expected=f"{n_paths} x {n_months} rows",
            got=ordered.height,
        )
    cash = ordered.select(CASH_CHANNELS).to_numpy().reshape(n_paths, n_months, N_CASH)
    index = ordered["index_rate"].to_numpy().reshape(n_paths, n_months)
    weights = ordered["weight"].to_numpy().reshape(n_paths, n_months)[:, 0]
    return np.ascontiguousarray(cash), index.copy(), weights.copy()
