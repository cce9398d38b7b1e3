"""Exact mode: the autoregressive loan model itself draws every loan; for small pools and for judging.

Here: `simulate_exact`, the same pool cash as `simulate_pool` without the compiled form in between. Not
here: the compiled form and its distance per step (`simulation.distil`).

Each macro path is one batch of all loans with its own seed, so paths can be run in any order or alone. Its
random numbers are the network's, not the kernel's: the two modes agree in law, not path by path.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.schemas.units import N_CASH
from pc_pipeline.simulation.monte_carlo import (
    POLICY_RATE,
    Progress,
    SimulatedCash,
    SimulationConfig,
    check_run,
)
from pc_pipeline.simulation.paths import check_macro, path_weights
from pc_pipeline.simulation.pool import mean_severity, pool_arrays
from pc_pipeline.simulation.reference import cash_of_states
from pc_pipeline.simulation.rows import NetworkRows, calendar_tensor, loan_inputs


def simulate_exact(
    teacher: Any,
    transition_model: Any,
    pool: pl.DataFrame,
    macro_paths_PTM: np.ndarray,
    config: SimulationConfig | None = None,
    *,
    start: date | None = None,
    reference_month: int | None = None,
    weights_P: np.ndarray | None = None,
    first_path: int = 0,
    progress: Progress | None = None,
) -> SimulatedCash:
    """Pool cash with every loan drawn by the network along every macro path.

    Args:
        teacher: `LoanTrajectoryModel`; its value head draws each default's severity.
        transition_model: `TransitionTransformer`. pool: `pool` table with tape columns.
        macro_paths_PTM: (P, T, 9). start, reference_month: as in `simulation.rows`.
    """
    config = config or SimulationConfig()
    macro = check_macro(macro_paths_PTM)
    n_paths, n_months = macro.shape[:2]
    cohorts = cohort_table(pool)
    arrays = pool_arrays(pool, cohorts, n_months)
    check_run(arrays, cohorts.height, macro, None, config)
    weights = path_weights(weights_P, n_paths)
    rows = NetworkRows(model=transition_model, cohorts=cohorts, start=start)
    features = torch.from_numpy(loan_inputs(pool, reference_month))
    days = calendar_tensor(start, n_months)
    options = {
        "initial_state": torch.from_numpy(arrays.state_L),
        "months_since_miss": torch.from_numpy(arrays.since_miss_L),
        "calendar": None if days is None else days[None].expand(len(features), -1, -1),
    }
    usual = mean_severity(arrays)[arrays.loss_group_L]
    index_PT = macro[:, :, POLICY_RATE].astype(float)
    cash_PTC = np.zeros((n_paths, n_months, N_CASH))
    for p in range(n_paths):
        own = torch.from_numpy(rows(macro[p : p + 1])[0, arrays.cohort_L])
        square = torch.cat([own, torch.eye(7)[4:].expand(*own.shape[:2], 3, 7)], dim=2)
        path = torch.from_numpy(np.array(macro[p], dtype=np.float32))
        seed = derive_seed(config.seed, "exact", first_path + p)
        with torch.inference_mode():
            drawn = teacher.generate(features, square, path, 1, seed=seed, **options)
        charged = drawn["charge_offs"][0].double().numpy().sum(axis=1)
        lost = drawn["losses"][0].double().numpy().sum(axis=1)
        severity = np.where(charged > 0, lost / np.maximum(charged, 1e-9), usual)
        cash_PTC[p] = cash_of_states(arrays, drawn["states"][0].numpy(), index_PT[p], severity)
        if progress is not None:
            progress(p + 1, n_paths)
    return SimulatedCash(
        cash_PTC=cash_PTC,
        index_rate_PT=index_PT,
        weights_P=weights,
        pool_balance=arrays.total_balance,
        seed=config.seed,
        n_loans=arrays.n_loans,
    )
