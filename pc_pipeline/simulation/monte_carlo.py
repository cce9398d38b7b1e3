"""A pool's cash on many macro paths: batches of paths stream through the kernel, memory stays bounded.

Here: `simulate_pool`, its configuration and checks, `SimulatedCash`, table `simulations`. Not here: the
kernel (`simulation.kernel`), the networks behind the rows (`simulation.rows`), the waterfall (`engines`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.schemas.states import N_LIVING, N_STATES
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_NAMES, N_CASH, N_MACRO
from pc_pipeline.simulation.batches import BatchStore, fingerprint, gaps
from pc_pipeline.simulation.control import Control
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import ROW, Lanes, pack_lanes
from pc_pipeline.simulation.martingale import Luck
from pc_pipeline.simulation.own_luck import OwnLuck
from pc_pipeline.simulation.paths import MacroPaths, check_macro, path_weights
from pc_pipeline.simulation.pool import PoolArrays, pool_arrays
from pc_pipeline.simulation.rng import seed_key

TransitionRows = Callable[[np.ndarray], np.ndarray]  # macro (P, T, 9) -> rows (P, C, T, 4, 7)
Progress = Callable[[int, int], None]  # paths done, paths in all
POLICY_RATE = MACRO_NAMES.index("policy_rate")
MOST_ROWS_MB = 48.0  # rows of a batch; more paths at a time gain nothing
ROW_TOLERANCE = 1e-4
CONTROL_COLUMNS = ("luck", "square", "predicted", "offset")  # of `Control`, in table `simulations`
N_DEFAULT_CHANNEL, N_RECOVERY_CHANNEL = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """How a run is cut up; none of it but the seed changes a single bit of the result.

    Attributes:
        seed: of the loans' random numbers.
        batch_paths: paths whose transition rows are held at once, 1 or more; fewer where rows are large.
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
        strata_P, scenario_P: as in `MacroPaths`. source: of the macro paths, in words.
        control: own luck of the loans along each path, share of the pool; None where not asked for.
    """

    cash_PTC: np.ndarray
    index_rate_PT: np.ndarray
    weights_P: np.ndarray
    pool_balance: float
    seed: int
    n_loans: int
    strata_P: np.ndarray | None = None
    scenario_P: np.ndarray | None = None
    control: Control | None = None
    source: str = ""

    @property
    def losses_P(self) -> np.ndarray:
        """(P,) charge-offs less recoveries, share of the pool balance at the cut-off."""
        totals = self.cash_PTC.sum(axis=1)
        return (totals[:, N_DEFAULT_CHANNEL] - totals[:, N_RECOVERY_CHANNEL]) / self.pool_balance


def simulate_pool(
    pool: PoolArrays | pl.DataFrame,
    cohorts: pl.DataFrame | int,
    macro: np.ndarray | MacroPaths,
    transition_rows: TransitionRows,
    residual_LHJ: np.ndarray | None = None,
    config: SimulationConfig | None = None,
    *,
    weights_P: np.ndarray | None = None,
    first_path: int = 0,
    luck: OwnLuck | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> SimulatedCash:
    """Simulate every loan of the pool along every macro path.

    Args:
        pool: `PoolArrays`, or the `pool` table with tape columns.
        cohorts: the cohort table whose order the rows follow, or the number of cohorts.
        macro: paths (P, T, 9), bare or as a source gives them; T is the horizon.
        transition_rows: macro (p, T, 9) -> probabilities (p, C, T, 4, 7) from each living state.
        residual_LHJ: exp(residual) (L, 15, 6) of each loan and history class; None for pure cohort moves.
        weights_P: likelihood weights of the paths; those of `macro` without it.
        first_path: global number of the first path, so that a sub-range can be run alone.
        luck: add up the loans' own luck along each path too, a control variate; changes no cash beyond
            rounding.
        folder: keep finished batches there; the same run started again goes on from them.
        progress: called after each batch with (paths done, paths in all).

    Raises:
        SimulationError: the pool, paths, rows, weights, memory or disk do not allow the run.
    """
    config = config or SimulationConfig()
    paths = macro if isinstance(macro, MacroPaths) else MacroPaths(values_PTM=macro)
    values = check_macro(paths.values_PTM)
    n_paths, n_months = values.shape[:2]
    arrays = _arrays(pool, cohorts, n_months)
    n_cohorts = cohorts if isinstance(cohorts, int) else cohorts.height
    check_run(arrays, n_cohorts, values, residual_LHJ, config, luck)
    weights = path_weights(paths.weights_P if weights_P is None else weights_P, n_paths)
    store = None
    if folder is not None:
        probe = np.asarray(transition_rows(values[:1]))
        numbers = (config.seed, first_path, n_cohorts)
        known = None if luck is None else luck.start_CK
        name = fingerprint(arrays, values, residual_LHJ, probe, known, numbers=numbers)
        store = BatchStore.open(folder, name, n_paths, n_months)
    index_PT = np.ascontiguousarray(values[:, :, POLICY_RATE], dtype=float)
    cash_PTC = np.zeros((n_paths, n_months, N_CASH))
    control_PX = np.zeros((n_paths, 0 if luck is None else 3))
    finished = []
    if store is not None:
        finished = store.finished(n_paths)
        for low, high, place in finished:
            store.read(place, cash_PTC[low:high], control_PX[low:high])
    done = sum(high - low for low, high, _ in finished)
    lanes = pack_lanes(arrays, residual_LHJ, is_sampled_only=True) if luck is None else luck.lanes
    step = batch_size(config, n_cohorts, n_months)
    with ThreadPoolExecutor(config.n_threads) as threads:
        for low, high in gaps(finished, n_paths, step):
            rows = check_shape(transition_rows(values[low:high]), high - low, n_cohorts, n_months, low)
            part = cash_PTC[low:high]
            begun, predicted = (None, None) if luck is None else luck.begin(rows)
            _run_batch(threads, lanes, rows, index_PT[low:high], config, first_path + low, part, begun)
            if begun is not None and predicted is not None:
                control_PX[low:high] = np.column_stack([begun.out_PX, predicted])
            if store is not None:
                store.write(low, high, part, control_PX[low:high])
            done += high - low
            if progress is not None:
                progress(done, n_paths)
    return SimulatedCash(
        cash_PTC=cash_PTC,
        index_rate_PT=index_PT,
        weights_P=weights,
        pool_balance=arrays.total_balance,
        seed=config.seed,
        n_loans=arrays.n_loans,
        strata_P=paths.strata_P,
        scenario_P=paths.scenario_P,
        control=None if luck is None else _control(control_PX, arrays.total_balance, paths.offset_P),
        source=paths.source,
    )


def _control(control_PX: np.ndarray, pool_balance: float, offset_P: np.ndarray | None) -> Control:
    luck, square, predicted = control_PX.T
    return Control(
        luck_P=luck / pool_balance,
        square_P=square / pool_balance**2,
        predicted_P=predicted / pool_balance,
        offset_P=np.zeros(len(luck)) if offset_P is None else offset_P,
    )


def batch_size(config: SimulationConfig, n_cohorts: int, n_months: int) -> int:
    """Paths of a batch: as many as configured, unless their rows would be too large."""
    per_path = n_cohorts * n_months * N_LIVING * N_STATES * 4 / 1e6
    return max(1, min(config.batch_paths, int(MOST_ROWS_MB / per_path)))


def _run_batch(
    threads: ThreadPoolExecutor,
    lanes: Lanes,
    rows_PCTKJ: np.ndarray,
    index_PT: np.ndarray,
    config: SimulationConfig,
    first_path: int,
    out_PTC: np.ndarray,
    luck: Luck | None = None,
) -> None:
    """All paths of a batch, an equal share to each thread: a thread reads the pool's loans once."""
    key, n_paths = seed_key(config.seed), out_PTC.shape[0]
    cuts = np.linspace(0, n_paths, min(config.n_threads, n_paths) + 1).astype(int)
    tasks = [
        threads.submit(
            run_lanes, lanes, rows_PCTKJ, index_PT, key, first_path, out_PTC, int(low), int(high), luck
        )
        for low, high in itertools.pairwise(cuts)
    ]
    for task in tasks:
        refuse_rows(*task.result(), first_path)


def _arrays(pool: PoolArrays | pl.DataFrame, cohorts: pl.DataFrame | int, n_months: int) -> PoolArrays:
    if isinstance(pool, PoolArrays):
        return pool
    if isinstance(cohorts, int):
        raise SimulationError("a pool table needs its cohort table", expected="cohorts frame", got=cohorts)
    return pool_arrays(pool, cohorts, n_months)


def check_run(
    pool: PoolArrays,
    n_cohorts: int,
    macro_PTM: np.ndarray,
    residual_LHJ: np.ndarray | None,
    config: SimulationConfig,
    luck: OwnLuck | None = None,
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
    if luck is not None and not np.array_equal(luck.pool.loan_key_L, pool.loan_key_L):
        raise SimulationError("own luck was worked out for another pool", got=luck.pool.n_loans)
    check_memory(
        pool, n_cohorts, n_paths, n_months, config, 0.0 if luck is None else luck.worth_BTJL.nbytes / 1e6
    )


def check_memory(
    pool: PoolArrays,
    n_cohorts: int,
    n_paths: int,
    n_months: int,
    config: SimulationConfig,
    more_mb: float = 0.0,
) -> None:
    """Refuse a run whose arrays, and `more_mb`, pass `memory_limit_mb`.

    Raises:
        SimulationError: they do.
    """
    needed = run_megabytes(pool, n_cohorts, n_paths, n_months, config) + more_mb
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
    """A run's largest arrays, MB: loans and lanes, one batch of rows, cash of every path."""
    lanes = pool.n_loans * (2 * 8 * (n_months + 4) + 2 * 4 * 120 + 160)
    batch = min(batch_size(config, n_cohorts, n_months), n_paths)
    rows = batch * n_cohorts * n_months * N_LIVING * (2 * N_STATES + ROW) * 4
    cash = n_paths * n_months * (N_CASH + 1 + N_MACRO) * 8
    return (lanes + rows + cash) / 1e6


def check_shape(rows: np.ndarray, n_paths: int, n_cohorts: int, n_months: int, first: int) -> np.ndarray:
    """Rows, if they are of the right shape."""
    expected = (n_paths, n_cohorts, n_months, N_LIVING, N_STATES)
    if rows.shape != expected:
        raise SimulationError(
            "transition rows are misshapen", expected=expected, got=rows.shape, where=f"batch at path {first}"
        )
    return rows


def refuse_rows(gap: float, lowest: float, first: int) -> None:
    """Raise where rows were no probabilities: `gap` |sum - 1| at most, `lowest` entry."""
    if not (gap <= ROW_TOLERANCE and lowest >= 0):
        raise SimulationError(
            "transition rows are no probabilities",
            expected="rows >= 0 that sum to 1",
            got=f"a sum off by {gap:.3g}, minimum {lowest:.3g}",
            where=f"batch at path {first}",
        )


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
    if simulated.strata_P is not None:
        columns["stratum"] = np.repeat(simulated.strata_P.astype(np.int64), n_months)
    if simulated.control is not None:
        for name in CONTROL_COLUMNS:
            columns[name] = np.repeat(getattr(simulated.control, f"{name}_P"), n_months)
    return pl.DataFrame(columns).select(pl.lit(scenario).alias("scenario"), pl.all())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCash:
    """What table `simulations` holds of a scenario; fields as of `SimulatedCash`."""

    cash_PTC: np.ndarray
    index_rate_PT: np.ndarray
    weights_P: np.ndarray
    strata_P: np.ndarray | None
    control: Control | None


def cash_from_table(simulations: pl.DataFrame) -> StoredCash:
    """Inverse of `simulation_table` for one scenario.

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
    first = ordered[::n_months]
    cash = ordered.select(CASH_CHANNELS).to_numpy().reshape(n_paths, n_months, N_CASH)
    control = None
    if set(CONTROL_COLUMNS) <= set(first.columns):
        control = Control(**{f"{name}_P": first[name].to_numpy() for name in CONTROL_COLUMNS})
    return StoredCash(
        cash_PTC=np.ascontiguousarray(cash),
        index_rate_PT=ordered["index_rate"].to_numpy().reshape(n_paths, n_months).copy(),
        weights_P=first["weight"].to_numpy(),
        strata_P=first["stratum"].to_numpy() if "stratum" in first.columns else None,
        control=control,
    )
