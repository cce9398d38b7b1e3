"""Monte Carlo: the kernel against its oracle, then against numpy, its growth, and a whole run.

    python -m benchmarks.monte_carlo [--quick]

No figure of speed is printed before the kernel agrees with the exact expectation (|z| < 4 per cash type, two
seeds) and with numpy path by path. Ratios are medians of interleaved rounds (A B A B). Not here: networks
of a trained recipe; the whole run uses untrained networks of the `base` width, which cost the same.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.rng import stream
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.loans.amortisation import amortisation_schedule
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import Lanes, pack_lanes
from pc_pipeline.simulation.pool import PoolArrays, remaining_schedule, uniform_severity
from pc_pipeline.simulation.reference import (
    counter_numbers,
    expected_cash,
    generator_numbers,
    simulate_reference,
)
from pc_pipeline.simulation.rng import loan_keys, seed_key

ROW = np.array(
    [
        [0.975, 0.016, 0.000, 0.000, 0.000, 0.009, 0.0],
        [0.420, 0.250, 0.310, 0.000, 0.005, 0.015, 0.0],
        [0.200, 0.100, 0.300, 0.390, 0.005, 0.005, 0.0],
        [0.100, 0.030, 0.040, 0.340, 0.485, 0.005, 0.0],
    ]
)
Z_LIMIT, N_ROUNDS = 4.0, 7


def make_pool(n_loans: int, n_months: int, n_cohorts: int, seed: int = 0) -> PoolArrays:
    """Amortising, bullet and balloon loans, a third of them floating, new and seasoned."""
    draw = stream(seed, "benchmark pool")
    state = draw.choice(4, n_loans, p=[0.94, 0.03, 0.02, 0.01])
    remaining = draw.choice([24, 36, 60, 120, 240], n_loans)
    rate = draw.uniform(0.03, 0.12, n_loans)
    kind = draw.choice(["annuity", "bullet", "balloon"], n_loans, p=[0.7, 0.15, 0.15])
    balance = np.round(draw.lognormal(11, 1, n_loans), 2)
    return PoolArrays(
        loan_key_L=loan_keys([f"B{seed}-{i}" for i in range(n_loans)]),
        cohort_L=draw.integers(0, n_cohorts, n_loans),
        state_L=state.astype(np.int64),
        since_miss_L=np.where(state > 0, 0, draw.choice([-1, 1, 4, 20], n_loans, p=[0.7, 0.1, 0.1, 0.1])),
        in_state_L=np.ones(n_loans, np.int64),
        arrears_L=state.astype(np.int64),
        final_L=remaining - 1,
        schedule_LW=remaining_schedule(balance, rate, remaining, state, kind, n_months),
        rate_L=rate,
        is_floating_L=draw.random(n_loans) < 0.33,
        loss_group_L=draw.integers(0, 4, n_loans),
        severity_GQ=uniform_severity(np.array([0.3, 0.6, 0.15, 0.2]), np.array([0.6, 0.9, 0.4, 0.5])),
        recovery_lag_L=draw.integers(6, 18, n_loans),
    )


def make_rows(n_paths: int, n_cohorts: int, n_months: int, seed: int = 0) -> np.ndarray:
    """(P, C, T, 4, 7) float32 rows that differ by path, cohort and month."""
    noise = stream(seed, "benchmark rows").normal(0, 0.3, (n_paths, n_cohorts, n_months, 4, 7))
    rows = ROW * np.exp(noise)
    return (rows / rows.sum(axis=-1, keepdims=True)).astype(np.float32)


def make_residual(n_loans: int, seed: int = 0) -> np.ndarray:
    """(L, 15, 6) float32 multipliers: every loan and history class its own rows."""
    return np.exp(stream(seed, "benchmark residual").normal(0, 0.3, (n_loans, 15, 6))).astype(np.float32)


def make_index(n_paths: int, n_months: int) -> np.ndarray:
    """(P, T) index rates."""
    return 0.03 + 0.01 * stream(0, "benchmark index").random((n_paths, n_months))


def run_both_cores(
    lanes: Lanes, rows: np.ndarray, index: np.ndarray, seed: int, n_threads: int
) -> np.ndarray:
    """Kernel over all paths with a number of threads."""
    out = np.zeros((*index.shape, 5))
    step = max(1, len(rows) // (4 * n_threads))
    with ThreadPoolExecutor(n_threads) as threads:
        spans = [(low, min(low + step, len(rows))) for low in range(0, len(rows), step)]
        list(threads.map(lambda span: run_lanes(lanes, rows, index, seed_key(seed), 0, out, *span), spans))
    return out


def oracle_gate() -> list[str]:
    """|z| per cash type against the exact expectation, two seeds; raises if any is 4 or more."""
    lines, n_paths, n_months = [], 3_000, 36
    for seed in (1, 2):
        pool, residual = make_pool(40, n_months, 3, seed), make_residual(40, seed)
        rows, index = make_rows(1, 3, n_months, seed), make_index(1, n_months)
        many = np.repeat(rows, n_paths, axis=0)
        cash = run_both_cores(pack_lanes(pool, residual), many, np.repeat(index, n_paths, axis=0), seed, 2)
        exact = expected_cash(pool, rows[0], index[0], residual).sum(axis=0)
        total = cash.sum(axis=1)
        z = (total.mean(axis=0) - exact) / (total.std(axis=0) / np.sqrt(n_paths))
        twin = simulate_reference(pool, many[0], index[0], residual, counter_numbers(seed, pool, 0))
        gap = np.abs(cash[0] - twin).max() / pool.total_balance
        if np.abs(z).max() >= Z_LIMIT or gap > 1e-9:
            raise SystemExit(f"the kernel fails its oracle: z {z}, path gap {gap:.3g}")
        lines.append(f"| {seed} | " + " | ".join(f"{value:+.2f}" for value in z) + f" | {gap:.1e} |")
    return lines


def interleaved(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float, float]:
    """Median seconds of both and the median ratio second / first over interleaved rounds."""
    first(), second()
    pairs = []
    for _ in range(N_ROUNDS):
        seconds = []
        for work in (first, second):
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
        pairs.append(seconds)
    times = np.array(pairs)
    return (
        float(np.median(times[:, 0])),
        float(np.median(times[:, 1])),
        float(np.median(times[:, 1] / times[:, 0])),
    )


def against_numpy(n_loans: int, n_threads: int) -> list[str]:
    """Loan-months per second, kernel against vectorised numpy of the same law."""
    lines, n_months, n_cohorts, n_paths = [], 60, 48, 32
    pool, rows = make_pool(n_loans, n_months, n_cohorts), make_rows(n_paths, n_cohorts, n_months)
    index = make_index(n_paths, n_months)
    generator = np.random.default_rng(0)
    for name, residual in (("cohort rows", None), ("every loan its own rows", make_residual(n_loans))):
        lanes = pack_lanes(pool, residual)

        def numpy_path(residual: np.ndarray | None = residual) -> None:
            simulate_reference(pool, rows[0], index[0], residual, generator_numbers(generator, pool))

        def kernel(lanes: Lanes = lanes) -> None:
            run_both_cores(lanes, rows, index, 0, n_threads)

        fast, slow, ratio = interleaved(kernel, numpy_path)
        million = n_loans * n_months / 1e6
        speeds = f"{million * n_paths / fast:.0f} | {million / slow:.1f} | {ratio * n_paths:.0f}x"
        lines.append(f"| {name} | {n_threads} | {speeds} |")
    return lines


def growth() -> list[str]:
    """Exponents of time in loans, paths, months and cohorts: slope of log time, best of three."""
    base = {"loans": 4000, "paths": 16, "months": 48, "cohorts": 24}
    lines = []
    for name in base:
        seconds, sizes = [], [base[name] * factor for factor in (1, 2, 4)]
        for size in sizes:
            at = base | {name: size}
            pool = make_pool(at["loans"], at["months"], at["cohorts"])
            lanes = pack_lanes(pool, make_residual(at["loans"]))
            rows = make_rows(at["paths"], at["cohorts"], at["months"])
            index = make_index(at["paths"], at["months"])
            tries = []
            for _ in range(4):
                begin = time.perf_counter()
                run_both_cores(lanes, rows, index, 0, 1)
                tries.append(time.perf_counter() - begin)
            seconds.append(min(tries))
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        lines.append(f"| {name} | {sizes[0]}..{sizes[-1]} | {slope:.2f} |")
    return lines


def whole_run(n_loans: int, n_paths: int) -> list[str]:
    """`monte_carlo_simulate`: seconds of each part and peak memory above the imports."""
    loans = LoanTapeGenerator(n_loans=n_loans, random_seed=0).generate_static_features()
    torch.manual_seed(0)
    vae = MacroVAE(MacroVAEConfig())
    transition = TransitionTransformer(TransitionConfig(d_model=32, n_heads=2, n_layers=1))
    trajectory = LoanTrajectoryModel(TrajectoryConfig(d_model=32, n_heads=2, n_layers=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    marks: list[float] = []
    begin = time.perf_counter()
    results = PortfolioAggregator().monte_carlo_simulate(
        loans,
        vae,
        transition,
        trajectory,
        n_simulations=n_paths,
        progress=lambda done, total: marks.append(time.perf_counter()),
    )
    seconds = time.perf_counter() - begin
    results.pool_report()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"{n_loans:,} loans x 60 months x {n_paths:,} paths with distillation, macro paths, rows, kernel, "
        f"waterfall and report: **{seconds:.1f} s** (simulation from the second batch on "
        f"{marks[-1] - marks[0]:.1f} s), peak {peak - before:.0f} MB above the imports."
    ]


def main() -> None:
    """Run everything and write the dated note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    amortisation_schedule(np.ones(1), np.zeros(1), np.ones(1, int), np.array(["bullet"]))
    whole = whole_run(1_000 if quick else 10_000, 200 if quick else 2_000)
    text = "\n".join(
        [
            "# Monte Carlo",
            "",
            machine_line(),
            f"`python -m benchmarks.monte_carlo{' --quick' if quick else ''}`",
            "",
            "## Oracle gate",
            "z of pool cash against the exact expectation, 3,000 paths; last column: one path against numpy "
            "with the same numbers, largest difference as a share of the pool.",
            "",
            "| seed | interest | scheduled | prepaid | defaulted | recovery | path gap |",
            "|---|---|---|---|---|---|---|",
            *oracle_gate(),
            "",
            "## Kernel against vectorised numpy, same law, million loan-months a second",
            f"Median of {N_ROUNDS} interleaved rounds; numpy on one core with its own fast generator.",
            "",
            "| rows | threads | kernel | numpy | ratio |",
            "|---|---|---|---|---|",
            *against_numpy(2_000 if quick else 10_000, 1),
            *against_numpy(2_000 if quick else 10_000, 2),
            "",
            "## Growth",
            "",
            "| in | sizes | exponent |",
            "|---|---|---|",
            *growth(),
            "",
            "## A whole run",
            *whole,
            "",
        ]
    )
    write_result(Path(__file__).parent / "results", "monte-carlo" + ("-quick" if quick else ""), text)


if __name__ == "__main__":
    sys.exit(main())
