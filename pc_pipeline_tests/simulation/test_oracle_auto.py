"""The kernel against the exact expectation on a sample of a real auto pool, with a network's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.ingest import read_tape
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import pack_lanes
from pc_pipeline.simulation.pool import pool_arrays
from pc_pipeline.simulation.reference import expected_cash
from pc_pipeline.simulation.rng import seed_key
from pc_pipeline.simulation.rows import NetworkRows
from pc_pipeline_tests.shared_data import shared_path
from pc_pipeline_tests.simulation.hand import residual_by_hand

N_MONTHS, N_PATHS, Z_LIMIT = 24, 1_500, 4.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kernel_agrees_with_the_expectation_on_real_loans(seed):
    tape = read_tape(shared_path("data/sec_auto_aart2017"))
    pool = pool_snapshot(tape.loans, tape.panel)
    late_first = pool.sort("loan_state", descending=True)
    sample = late_first.head(20).vstack(late_first.tail(20 * seed).head(20))
    cohorts = cohort_table(sample)
    torch.manual_seed(seed)
    model = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1, moves="observable"))
    macro = np.tile([series.mean for series in MACRO_SERIES], (1, N_MONTHS, 1))
    rows = np.ascontiguousarray(NetworkRows(model=model, cohorts=cohorts)(macro))
    arrays, residual = pool_arrays(sample, cohorts, N_MONTHS), residual_by_hand(sample.height, seed)
    index = macro[:, :, 3]
    out = np.zeros((N_PATHS, N_MONTHS, 5))
    many = np.repeat(rows, N_PATHS, axis=0)
    run_lanes(pack_lanes(arrays, residual), many, np.repeat(index, N_PATHS, axis=0), seed_key(seed), 0, out)
    cash, exact = out.sum(axis=1), expected_cash(arrays, rows[0], index[0], residual).sum(axis=0)
    z = (cash.mean(axis=0) - exact) / (cash.std(axis=0) / np.sqrt(N_PATHS))
    assert np.abs(z).max() < Z_LIMIT, z
