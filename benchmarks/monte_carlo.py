"""Monte Carlo: the kernel against its oracle, then against numpy, its growth, and a whole run.

    python -m benchmarks.monte_carlo [--quick] [--data STORE ...] [--million] [--paths 10000]

No figure of speed is printed before the kernel agrees with the exact expectation (|z| < 4 per cash type, two
seeds) and with numpy path by path; with `--data`, also on a sample of each store's own pool with its trained
models. The first store's models also make the whole run; without one, untrained networks of the `base` width,
which cost the same. Ratios are medians of interleaved rounds (A B A B). `--million` adds 1,000,000 loans x
1,000 paths. Tails (time x SE^2) are in `benchmarks.tails`.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

from benchmarks.machine import machine_line, write_result
from pc_pipeline import recipes
from pc_pipeline.core.rng import stream
from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.analysis.study import Study
from pc_pipeline.engines.macro_sources import draw_macro
from pc_pipeline.loans.amortisation import amortisation_schedule
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.simulation.distil import CompiledLoans, distil_loans
from pc_pipeline.simulation.kernel import run_lanes
from pc_pipeline.simulation.lanes import Lanes, pack_lanes
from pc_pipeline.simulation.monte_carlo import POLICY_RATE, SimulationConfig, simulate_pool
from pc_pipeline.simulation.pool import PoolArrays, remaining_schedule, uniform_severity
from pc_pipeline.simulation.reference import (
    counter_numbers,
    expected_cash,
    generator_numbers,
    simulate_reference,
)
from pc_pipeline.simulation.rng import loan_keys, seed_key
from pc_pipeline.simulation.vectors import philox_lanes

ROW = np.array(
    [
        [0.975, 0.016, 0.000, 0.000, 0.000, 0.009, 0.0],
        [0.420, 0.250, 0.310, 0.000, 0.005, 0.015, 0.0],
        [0.200, 0.100, 0.300, 0.390, 0.005, 0.005, 0.0],
        [0.100, 0.030, 0.040, 0.340, 0.485, 0.005, 0.0],
    ]
)
Z_LIMIT, N_ROUNDS = 4.0, 7
MIX = {"baseline": 0.6, "severe": 0.4}


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
    step = max(1, len(rows) // n_threads)
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
    lines, n_months, n_cohorts, n_paths = [], 60, 48, 64
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


def trained_gate(folder: Path) -> list[str]:
    """|z| per cash type on a store's own pool and trained models, two seeds; raises if any is 4 or more."""
    study, lines, n_paths = Study.from_store(Store(folder)), [], 1_600
    for seed in (1, 2):
        loans = np.sort(stream(seed, "gate").permutation(study.arrays.n_loans)[:60])
        pool = study.arrays.take(loans)
        residual = None if study.residual_LHJ is None else study.residual_LHJ[loans]
        macro = study.macro("severely_adverse" if _knows(study, "severely_adverse") else "baseline", seed)[
            -1:
        ]
        rows = np.ascontiguousarray(study.rows(macro))
        index = macro[:, :, POLICY_RATE]
        many, many_index = np.repeat(rows, n_paths, axis=0), np.repeat(index, n_paths, axis=0)
        total = run_both_cores(pack_lanes(pool, residual), many, many_index, seed, 2).sum(axis=1)
        exact = expected_cash(pool, rows[0], index[0], residual).sum(axis=0)
        error = np.maximum(total.std(axis=0) / np.sqrt(n_paths), 1e-12 * pool.total_balance)
        z = (total.mean(axis=0) - exact) / error
        if np.abs(z).max() >= Z_LIMIT:
            raise SystemExit(f"the kernel fails its oracle on {folder}: z {z}")
        lines.append(f"| {folder.name}, seed {seed} | " + " | ".join(f"{v:+.2f}" for v in z) + " | |")
    return lines


def _knows(study: Study, scenario: str) -> bool:
    return bool(study.macro_vae.is_trained_S[study.macro_vae.scenario_code(scenario)])


def against_python(n_loans: int = 200) -> str:
    """Loan-months per second of a plain loop over loans and months: one draw, one instalment, no ledger."""
    draw, row, n_months = random.Random(0), [list(np.cumsum(ROW[k, :6])) for k in range(4)], 60
    begin = time.perf_counter()
    total = 0.0
    for _ in range(n_loans):
        state, balance = 0, 100_000.0
        for _month in range(n_months):
            u = draw.random()
            state = next((j for j, level in enumerate(row[state]) if u < level), 5)
            if state == 0:
                total += 1_900.0
                balance -= 1_400.0
            elif state >= 4:
                total += balance if state == 5 else 0.4 * balance
                break
    speed = n_loans * n_months / (time.perf_counter() - begin) / 1e6
    return f"Plain Python, loan by loan, without arrears, schedules or classes: {speed:.2f} million a second."


def _models(folder: Path | None) -> tuple[Any, Any, CompiledLoans | None, Any]:
    """VAE, transition model, compiled loans and loan model: trained, or untrained of the base width."""
    if folder is not None:
        study = Study.from_store(Store(folder))
        return study.macro_vae, study.transition_model, study.compiled, None
    torch.manual_seed(0)
    base = recipes.base()
    return (
        MacroVAE(base.macro_vae.network),
        TransitionTransformer(base.transition_transformer.network),
        None,
        LoanTrajectoryModel(base.loan_trajectory.network),
    )


def memory_mb(name: str) -> float:
    """Memory of this process in MB: 'VmRSS' now, 'VmHWM' at most so far.

    Where the system has no such file, the greatest so far, which may be a parent's before the start.
    """
    place = Path("/proc/self/status")
    if not place.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    (line,) = (line for line in place.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def whole_run(n_loans: int, n_paths: int, folder: Path | None) -> list[str]:
    """`monte_carlo_simulate`: seconds of each stage, peak memory above the imports; alone in its process."""
    before = memory_mb("VmRSS")
    loans = LoanTapeGenerator(n_loans=n_loans, random_seed=0).generate_static_features()
    vae, transition, compiled, trajectory = _models(folder)
    distilled = 0.0
    if compiled is None:
        begin = time.perf_counter()
        macro = draw_macro(vae, {"baseline": 1.0}, 8, 60, 0).values_PTM
        compiled = distil_loans(trajectory, transition, pool_snapshot(loans), macro)
        distilled = time.perf_counter() - begin
    run = partial(PortfolioAggregator().monte_carlo_simulate, compiled=compiled, scenario_mix=MIX)
    run(loans.head(50), vae, transition, n_simulations=2)  # machine code is loaded
    clock = _Clock(transition, vae)
    begin = time.perf_counter()
    results = run(loans, clock, clock, n_simulations=n_paths, progress=clock.mark)
    end = time.perf_counter()
    results.summary(), results.cash_flow_report(), results.tranche_report(), results.tranche_balance_report()
    seconds, reported = time.perf_counter() - begin, time.perf_counter() - end
    kernel, peak = clock.last - clock.first - clock.rows, memory_mb("VmHWM")
    parts = {
        "macro paths": clock.macro,
        "pool, schedules, lanes": clock.first - begin - clock.macro,
        "transition rows": clock.rows,
        "kernel, rows packed and checked": kernel,
        "waterfall, macro fan": end - clock.last,
        "measures, intervals, report frames": reported,
    }
    lines = [
        f"{n_loans:,} loans x 60 months x {n_paths:,} paths, {'trained' if folder else 'untrained'} models: "
        f"**{seconds:.1f} s**, {seconds / kernel:.2f} times the kernel's own; "
        f"peak {peak - before:.0f} MB above the imports (of {before:.0f} MB).",
    ]
    if distilled:
        lines.append(f"Distillation before it, once per model and pool: {distilled:.1f} s.")
    lines += ["", "| stage | seconds | share |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {value / seconds:.0%} |" for name, value in parts.items()]
    return lines


class _Clock(torch.nn.Module):
    """A transition model and a VAE that note when they are asked and how long they take."""

    def __init__(self, model: Any, vae: Any) -> None:
        super().__init__()
        self.model, self.vae = model, vae
        self.rows, self.macro, self.first, self.last = 0.0, 0.0, 0.0, 0.0

    def generate(self, *given: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        paths = self.vae.generate(*given, **options)
        self.macro += time.perf_counter() - begin
        return paths

    def read_cohorts(self, *given: Any, **options: Any) -> Any:
        self.first = self.first or time.perf_counter()
        return self.model.read_cohorts(*given, **options)

    def rows_given(self, *given: Any) -> Any:
        begin = time.perf_counter()
        self.first = self.first or begin
        rows = self.model.rows_given(*given)
        self.rows += time.perf_counter() - begin
        return rows

    def mark(self, done: int, total: int) -> None:
        self.last = time.perf_counter()


def alone(*arguments: str) -> list[str]:
    """Lines of this benchmark run in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.monte_carlo", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr or f"{command} ended with {found.returncode}")
    return found.stdout.splitlines()


def floors() -> list[str]:
    """What a loan-month cannot cost less than: its random number, and the reading of its schedule."""
    out, lanes = np.zeros((8, 4, 64), np.float32), pack_lanes(make_pool(10_000, 60, 48))
    draw_many(lanes.key_BL, out, 2)
    begin = time.perf_counter()
    draw_many(lanes.key_BL, out, 60)
    drawn = (time.perf_counter() - begin) / (60 * lanes.key_BL.size * 4) * 1e9
    table = np.ones(8_000_000)
    speed = 16 * table.size / min(_seconds(lambda: table.copy()) for _ in range(5)) / 1e9
    return [
        f"Random numbers alone {drawn:.2f} ns a loan-month on one core; copying {speed:.1f} GB/s, "
        f"so the 128 bytes of a path, cohort and month's rows cost {128 / speed:.0f} ns."
    ]


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@njit(nogil=True)
def draw_many(key_BL: Any, out: Any, n_times: Any) -> None:
    """All lanes' numbers of four months, n_times over."""
    for word in range(n_times):
        for lane in range(0, key_BL.size, 8):
            philox_lanes(
                key_BL, lane, np.uint64(1), np.uint64(word), np.uint64(3), np.uint64(4), out, lane & 56
            )


def million(n_paths: int = 1_000) -> str:
    """1,000,000 loans in one pass."""
    pool, n_cohorts = make_pool(1_000_000, 60, 240), 240
    begin = time.perf_counter()
    simulated = simulate_pool(
        pool,
        n_cohorts,
        np.full((n_paths, 60, 9), 0.03),
        lambda macro: make_rows(len(macro), n_cohorts, 60),
        None,
        SimulationConfig(memory_limit_mb=4000.0),
    )
    return (
        f"1,000,000 loans x 60 months x {n_paths:,} paths: {time.perf_counter() - begin:.0f} s with made-up "
        f"rows, peak {memory_mb('VmHWM'):.0f} MB in all; expected loss {simulated.losses_P.mean():.3%}."
    )


def main() -> None:
    """Run everything and write the dated note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--data", type=Path, action="append", default=[], help="store with trained models")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 loans")
    parser.add_argument("--paths", type=int, default=10_000, help="paths of the whole run")
    parser.add_argument("--only", choices=("whole", "million"), help="that part alone, printed")
    given = parser.parse_args()
    torch.set_num_threads(2)
    quick, folder = given.quick, given.data[0] if given.data else None
    n_loans, n_paths = (1_000, 200) if quick else (10_000, given.paths)
    if given.only:
        print(million() if given.only == "million" else "\n".join(whole_run(n_loans, n_paths, folder)))
        return
    amortisation_schedule(np.ones(1), np.zeros(1), np.ones(1, int), np.array(["bullet"]))
    gate = oracle_gate() + [line for store in given.data for line in trained_gate(store)]
    options = [*(["--quick"] if quick else []), *(["--data", str(folder)] if folder else [])]
    whole = alone("--only", "whole", "--paths", str(n_paths), *options)
    if given.million:
        whole += ["", *alone("--only", "million")]
    text = "\n".join(
        [
            "# Monte Carlo",
            "",
            machine_line(),
            f"`python -m benchmarks.monte_carlo{' --quick' if quick else ''}`",
            "",
            "## Oracle gate",
            "z of pool cash against the exact expectation, 3,000 paths (trained models: 1,600); last column: "
            "one path against numpy with the same numbers, largest difference as a share of the pool.",
            "",
            "| seed | interest | scheduled | prepaid | defaulted | recovery | path gap |",
            "|---|---|---|---|---|---|---|",
            *gate,
            "",
            "## Kernel against vectorised numpy, same law, million loan-months a second",
            f"Median of {N_ROUNDS} interleaved rounds; numpy on one core with its own fast generator.",
            "",
            "| rows | threads | kernel | numpy | ratio |",
            "|---|---|---|---|---|",
            *against_numpy(2_000 if quick else 10_000, 1),
            *against_numpy(2_000 if quick else 10_000, 2),
            "",
            against_python(),
            "",
            *floors(),
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
