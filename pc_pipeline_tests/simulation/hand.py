"""Small pools and transition rows made by hand for the simulation tests."""

from __future__ import annotations

import numpy as np

from pc_pipeline.core.rng import stream
from pc_pipeline.simulation.pool import PoolArrays, remaining_schedule, uniform_severity
from pc_pipeline.simulation.rng import loan_keys

ROW = np.array(
    [
        [0.960, 0.025, 0.000, 0.000, 0.000, 0.015, 0.0],
        [0.400, 0.200, 0.380, 0.000, 0.010, 0.010, 0.0],
        [0.200, 0.100, 0.250, 0.430, 0.010, 0.010, 0.0],
        [0.080, 0.040, 0.040, 0.340, 0.490, 0.010, 0.0],
    ]
)


def rows_by_hand(n_paths: int, n_cohorts: int, n_months: int, seed: int = 0) -> np.ndarray:
    """(P, C, T, 4, 7) float32 rows that differ by path, cohort and month."""
    noise = stream(seed, "rows").normal(0.0, 0.3, (n_paths, n_cohorts, n_months, 4, 7))
    rows = ROW * np.exp(noise)
    rows[..., 6] = 0.002
    return (rows / rows.sum(axis=-1, keepdims=True)).astype(np.float32)


def pool_by_hand(n_loans: int, n_months: int, n_cohorts: int = 3, seed: int = 0) -> PoolArrays:
    """A pool with every kind of loan: amortising, bullet, balloon, floating, seasoned, in arrears."""
    draw = stream(seed, "pool")
    state = draw.choice(4, n_loans, p=[0.85, 0.07, 0.05, 0.03])
    remaining = draw.integers(1, 2 * n_months, n_loans)
    rate = draw.uniform(0.02, 0.15, n_loans)
    floating = draw.random(n_loans) < 0.3
    kind = draw.choice(["annuity", "bullet", "balloon"], n_loans)
    balance = np.round(draw.lognormal(10, 1, n_loans), 2)
    since = np.where(state > 0, 0, draw.choice([-1, 1, 2, 4, 7, 20], n_loans))
    return PoolArrays(
        loan_key_L=loan_keys([f"L{seed}-{i}" for i in range(n_loans)]),
        cohort_L=draw.integers(0, n_cohorts, n_loans),
        state_L=state.astype(np.int64),
        since_miss_L=since.astype(np.int64),
        in_state_L=draw.integers(1, 5, n_loans),
        arrears_L=state.astype(np.int64),
        final_L=remaining - 1,
        schedule_LW=remaining_schedule(balance, rate, remaining, state, kind, n_months),
        rate_L=np.where(floating, rate / 2, rate),
        is_floating_L=floating,
        loss_group_L=draw.integers(0, 2, n_loans),
        severity_GQ=uniform_severity(np.array([0.2, 0.5]), np.array([0.6, 0.9]), 5),
        recovery_lag_L=draw.integers(0, 9, n_loans),
    )


def residual_by_hand(n_loans: int, seed: int = 0) -> np.ndarray:
    """(L, 15, 6) float32 multipliers."""
    return np.exp(stream(seed, "residual").normal(0, 0.5, (n_loans, 15, 6))).astype(np.float32)


def index_by_hand(n_paths: int, n_months: int, seed: int = 0) -> np.ndarray:
    """(P, T) index rates."""
    return 0.03 + 0.01 * stream(seed, "index").random((n_paths, n_months))
