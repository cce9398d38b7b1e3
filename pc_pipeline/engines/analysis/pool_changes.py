"""What a loan or a block adds to the losses of pool and classes: by reuse of a run, in a second.

Here: the cash of a block alone, added to or taken from a run's cash, and the measures before and after. Not
here: the kernel. docs/methods/analytics.md, section 4.

Given the macro path loans are independent and each has random numbers of its own, so the cash of a block
drawn alone is what it contributed to the pool. Cohorts keep the features they had: a loan's going moves its
cohort's mean a little, which only a full run sees (`full_run` measures it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.core.periods import month_index
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.analysis.study import BATCH_PATHS, Study
from pc_pipeline.engines.results import SimulationResults
from pc_pipeline.simulation.monte_carlo import SimulatedCash, SimulationConfig, simulate_pool

CHANGE_MEASURES = ("expected_loss", "var_99", "cvar_99")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChange:
    """A block added to or taken from the pool.

    Attributes:
        n_loans, balance: of the block. before, after: reports of the pool without and with the change.
        table: of, measure, before, after, change. Losses are shares of the pool and of each class, which is
            sized by the deal's shares of the pool as it then is.
    """

    n_loans: int
    balance: float
    before: SimulationResults
    after: SimulationResults
    table: pl.DataFrame


class PoolChanges:
    """Marginal contributions of blocks to one run.

    Args:
        study: pool and models. macro_PTM: (P, T, 9) the run's macro paths. run: its cash; drawn when None.

    A block reads the transition network for its own cohorts alone.
    """

    def __init__(self, study: Study, macro_PTM: np.ndarray, run: SimulatedCash | None = None) -> None:
        self.study, self.macro_PTM = study, macro_PTM
        # Own luck was followed for the whole pool: it says nothing of a pool without some loans.
        self.run = replace(run if run is not None else self._draw_all(), control=None)
        if self.run.cash_PTC.shape[:2] != macro_PTM.shape[:2]:
            raise SimulationError(
                "the run is not of these macro paths",
                expected=macro_PTM.shape[:2],
                got=self.run.cash_PTC.shape,
            )
        self.aggregator = PortfolioAggregator(study.deal)
        self.before = self.aggregator.report(self.run, scenario="before")

    def _draw_all(self) -> SimulatedCash:
        return self.study.simulate(self.macro_PTM)

    def remove(self, loans: Sequence[str] | np.ndarray) -> PoolChange:
        """Take loans out, by loan_id or by row."""
        rows = self._find(loans)
        if rows.size >= self.study.arrays.n_loans:
            raise SimulationError("nothing would be left of the pool", got=rows.size)
        return self._change(self.block_cash(rows), rows, -1.0)

    def add(self, loans: Sequence[str] | np.ndarray) -> PoolChange:
        """Hold loans twice: a block bought at the same terms, with the same fate."""
        rows = self._find(loans)
        return self._change(self.block_cash(rows), rows, 1.0)

    def block_cash(self, rows: np.ndarray) -> np.ndarray:
        """(P, T, 5) cash of some loans along every path of the run."""
        arrays = self.study.arrays.take(rows)
        used, local = np.unique(arrays.cohort_L, return_inverse=True)
        residual = None if self.study.residual_LHJ is None else self.study.residual_LHJ[rows]
        provider = replace(self.study.rows, cohorts=self.study.cohorts[used])
        block = replace(arrays, cohort_L=local.astype(np.int64))
        config = SimulationConfig(seed=self.run.seed, batch_paths=BATCH_PATHS)
        return simulate_pool(block, used.size, self.macro_PTM, provider, residual, config).cash_PTC

    def full_run(self, loans: Sequence[str] | np.ndarray) -> SimulationResults:
        """The whole simulation again without the loans, cohorts' means recalculated."""
        keep = np.setdiff1d(np.arange(self.study.arrays.n_loans), self._find(loans))
        first = self.study.reference_month
        if first is None:
            first = month_index(self.study.pool["vintage_month"].min())  # type: ignore[arg-type]
        smaller = replace(self.study, pool=self.study.pool[keep], reference_month=first)
        run = smaller.simulate(self.macro_PTM, weights_P=self.run.weights_P)
        return self.aggregator.report(run, scenario="full run")

    def _find(self, loans: Sequence[str] | np.ndarray) -> np.ndarray:
        if len(loans) and not isinstance(loans[0], str):
            return np.asarray(loans, dtype=np.int64)
        place = {name: row for row, name in enumerate(self.study.pool["loan_id"].to_list())}
        unknown = [name for name in loans if name not in place]
        if unknown or not len(loans):
            raise SimulationError(
                "no such loans in the pool", expected="loan_id of the pool", got=unknown[:5]
            )
        return np.array([place[name] for name in loans])

    def _change(self, cash_PTC: np.ndarray, rows: np.ndarray, sign: float) -> PoolChange:
        block = float(self.study.arrays.balance_L[rows].sum())
        whole = np.maximum(self.run.cash_PTC + sign * cash_PTC, 0.0)
        changed = replace(self.run, cash_PTC=whole, pool_balance=self.run.pool_balance + sign * block)
        after = self.aggregator.report(changed, scenario="after")
        return PoolChange(
            n_loans=rows.size,
            balance=block,
            before=self.before,
            after=after,
            table=compare(self.before, after),
        )


def compare(before: SimulationResults, after: SimulationResults) -> pl.DataFrame:
    """of, measure, before, after, change."""
    rows = []
    for name in CHANGE_MEASURES:
        rows.append(("pool", name, before.interval(name).value, after.interval(name).value))
    for old, new in zip(before.tranche_results, after.tranche_results, strict=True):
        rows.append((old.name, "expected_loss", old.expected_loss, new.expected_loss))
        rows.append((old.name, "loss_probability", old.loss_probability, new.loss_probability))
        if old.mean_irr is not None and new.mean_irr is not None:
            rows.append((old.name, "irr", old.mean_irr, new.mean_irr))
    frame = pl.DataFrame(rows, schema=["of", "measure", "before", "after"], orient="row")
    return frame.with_columns(change=pl.col("after") - pl.col("before"))


def marginal_losses(changes: PoolChanges, blocks: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Change of the pool's measures when each named block leaves: block, measure, change."""
    frames = [
        changes.remove(rows)
        .table.filter(pl.col("of") == "pool")
        .select(pl.lit(name).alias("block"), "measure", "change")
        for name, rows in blocks.items()
    ]
    return pl.concat(frames)
