"""`PoolModels`: one pool and the models that move it, ready to be simulated.

Here: the pieces a simulation is made of, held together, and the two ways to run them: drawn (the kernel)
and expected (with gradients, on representative loans). Not here: the deal and the store
(`engines.analysis.study`), paths along the loss (`engines.tail_source`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.models.expectation import representative_lines
from pc_pipeline.schemas.units import COHORT_FEATURES
from pc_pipeline.simulation.conditional import ConditionalPool
from pc_pipeline.simulation.distil import CompiledLoans
from pc_pipeline.simulation.gradient_cash import GradientPool, gradient_cash, gradient_pool
from pc_pipeline.simulation.monte_carlo import POLICY_RATE, SimulatedCash, SimulationConfig, simulate_pool
from pc_pipeline.simulation.own_luck import OwnLuck, luck_along
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline.simulation.pool import DEFAULT_SEVERITY, PoolArrays, pool_arrays
from pc_pipeline.simulation.rows import NetworkRows, calendar_tensor, loan_inputs

BATCH_PATHS = 64


@dataclass(frozen=True, kw_only=True)
class PoolModels:
    """A pool with its models.

    Attributes:
        pool: `pool` table with tape columns. macro_vae, transition_model: trained networks.
        compiled: loan model in compiled form; None: loans move as their cohort.
        n_months: horizon. seed: of macro paths and loans.
        start: first simulated month; None leaves the calendar neutral.
        reference_month: where vintage_index is 0, as in training.
    """

    pool: pl.DataFrame
    macro_vae: Any
    transition_model: Any
    compiled: CompiledLoans | None
    n_months: int = 60
    seed: int = 42
    start: date | None = None
    reference_month: int | None = None

    # ---- pieces -----------------------------------------------------------------------------

    @cached_property
    def cohorts(self) -> pl.DataFrame:
        """Cohort table whose order the rows follow."""
        return cohort_table(self.pool)

    @cached_property
    def arrays(self) -> PoolArrays:
        """The loans as the kernel reads them."""
        severity = DEFAULT_SEVERITY if self.compiled is None else self.compiled.severity_GQ
        return pool_arrays(self.pool, self.cohorts, self.n_months, severity_GQ=severity)

    @cached_property
    def features_LF(self) -> np.ndarray:
        """(L, 24) raw loan features, NaN where missing."""
        return loan_inputs(self.pool, self.reference_month)

    @cached_property
    def residual_LHJ(self) -> np.ndarray | None:
        """(L, 15, 6) exp(residual), or None."""
        return None if self.compiled is None else self.compiled.weights(self.features_LF)

    @cached_property
    def rows(self) -> NetworkRows:
        """Macro paths -> cohort rows, with the intercept of the compiled form."""
        intercept = None if self.compiled is None else self.compiled.intercept(self.n_months)
        return NetworkRows(
            model=self.transition_model, cohorts=self.cohorts, start=self.start, intercept_TKJ=intercept
        )

    @property
    def balance(self) -> float:
        """Pool balance at the cut-off, currency."""
        return self.arrays.total_balance

    @property
    def loan_seed(self) -> int:
        """Seed of the loans' random numbers."""
        return derive_seed(self.seed, "loans")

    # ---- drawn ------------------------------------------------------------------------------

    def macro(self, scenario: str, n_paths: int) -> np.ndarray:
        """(P, T, 9) plain paths of the VAE: those of the stored simulation."""
        with torch.inference_mode():
            drawn = self.macro_vae.generate(
                scenario, self.n_months, n_paths, seed=derive_seed(self.seed, "macro")
            )
        return drawn.cpu().numpy().astype(np.float64)

    def simulate(self, macro_PTM: np.ndarray | MacroPaths, **options: Any) -> SimulatedCash:
        """Pool cash along given macro paths; options as of `simulation.monte_carlo.simulate_pool`."""
        config = SimulationConfig(seed=self.loan_seed, batch_paths=BATCH_PATHS)
        return simulate_pool(
            self.arrays, self.cohorts.height, macro_PTM, self.rows, self.residual_LHJ, config, **options
        )

    def conditional(self, loans: np.ndarray | None = None) -> ConditionalPool:
        """Exact expected cash and losses, of all loans or of some rows of the pool."""
        if loans is None:
            return ConditionalPool(self.arrays, self.residual_LHJ)
        residual = None if self.residual_LHJ is None else self.residual_LHJ[loans]
        return ConditionalPool(self.arrays.take(loans), residual)

    def expected_losses(
        self, macro_PTM: np.ndarray, conditional: ConditionalPool | None = None
    ) -> np.ndarray:
        """(P,) expected loss given each path, share of the balance."""
        given = conditional or self.conditional()
        parts = [
            given.losses(self.rows(batch), batch[:, :, POLICY_RATE])
            for batch in (macro_PTM[low : low + BATCH_PATHS] for low in range(0, len(macro_PTM), BATCH_PATHS))
        ]
        return np.concatenate(parts)

    def own_luck(self, macro_PTM: np.ndarray) -> OwnLuck:
        """What tells the loans' own luck from the macro path, worked out around some paths."""
        return luck_along(self.arrays, self.residual_LHJ, self.rows, macro_PTM)

    # ---- expected, with gradients -----------------------------------------------------------

    def lines(self, n_lines: int) -> Lines:
        """Representative loans: sorted by class, state, risk and schedule, weighted to the pool's balance."""
        arrays = self.arrays
        if n_lines >= arrays.n_loans:
            picked, weights = np.arange(arrays.n_loans), np.ones(arrays.n_loans)
        else:
            clean = np.zeros(arrays.n_loans)
            if self.residual_LHJ is not None:
                with np.errstate(divide="ignore"):
                    clean = np.log(self.residual_LHJ[:, 0, 1] / self.residual_LHJ[:, 0, 0])
            keys = np.stack([arrays.loss_group_L, arrays.state_L, np.round(clean, 2), arrays.final_L], 1)
            picked, weights = representative_lines(arrays.balance_L, keys, n_lines)
        return Lines(models=self, picked=picked, pool=gradient_pool(arrays.take(picked), weights))

    def tensor_rows(self, macro_PTM: Tensor, cohort_features: Tensor | None = None) -> Tensor:
        """(P, C, T, 4, 7) rows with gradients to the macro paths and the cohort features."""
        features = self.cohort_tensor() if cohort_features is None else cohort_features
        self.transition_model.eval()
        rows = self.transition_model.rows(
            features, macro_PTM.float(), calendar_tensor(self.start, macro_PTM.shape[1])
        )
        if self.compiled is not None:
            rows = rows * torch.from_numpy(np.exp(self.compiled.intercept(macro_PTM.shape[1])))
            rows = rows / rows.sum(-1, keepdim=True)
        return rows

    def cohort_tensor(self) -> Tensor:
        """(C, 12) raw cohort features."""
        table = self.cohorts.select(COHORT_FEATURES).cast(pl.Float32).fill_null(np.nan)
        return torch.from_numpy(np.array(table.to_numpy(), dtype=np.float32))


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Representative loans of a pool, as tensors.

    Attributes:
        picked: (R,) rows of the pool. pool: their tensors and weights.
    """

    models: PoolModels
    picked: np.ndarray
    pool: GradientPool

    def residual(self, features: Tensor | None = None) -> Tensor | None:
        """(R, 15, 6) exp(residual), with gradients to the loan features (R, 24)."""
        if self.models.compiled is None:
            return None
        values = torch.from_numpy(self.models.features_LF[self.picked]) if features is None else features
        return torch.exp(self.models.compiled.model(values.float()))

    def cash(
        self,
        macro_PTM: Tensor,
        *,
        rows: Tensor | None = None,
        residual: Tensor | None = None,
        pool: GradientPool | None = None,
    ) -> Tensor:
        """(P, T, 5) expected cash of the pool given each path, currency, with gradients."""
        given = self.models.tensor_rows(macro_PTM) if rows is None else rows
        own = self.residual() if residual is None else residual
        return gradient_cash(pool or self.pool, given, macro_PTM[..., POLICY_RATE], own)
