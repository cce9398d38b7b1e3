"""How fast the waterfall is: arrays, machine code and the plain-Python oracle, interleaved.

    python benchmarks/waterfall.py [--paths 10000] [--rounds 7] [--write]

Correctness comes first: the three must agree on the paths that the oracle runs, or nothing is timed. The
oracle runs few paths and is scaled; ratios are medians over interleaved rounds (A B A B).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numba
import numpy as np

from pc_pipeline.core.rng import stream
from pc_pipeline.waterfall import load_deal, run_waterfall, tranche_metrics
from pc_pipeline.waterfall.reference import run_reference

ROOT = Path(__file__).resolve().parents[1]
POOL = 1_000_000.0
ORACLE_PATHS = 20


def collections(n_paths: int, n_months: int) -> np.ndarray:
    """(P, T, 5) collections of a pool with random speeds."""
    draw = stream(0, "benchmark", "waterfall")
    balance, cash = np.full(n_paths, POOL), np.zeros((n_paths, n_months, 5))
    for t in range(n_months):
        cash[:, t, 0] = balance * 0.08 / 12
        cash[:, t, 1] = balance / (n_months - t) * draw.uniform(0.5, 1.0, n_paths)
        cash[:, t, 2] = (balance - cash[:, t, 1]) * draw.uniform(0, 0.02, n_paths)
        cash[:, t, 3] = (balance - cash[:, t, 1:3].sum(axis=1)) * draw.uniform(0, 0.005, n_paths)
        if t >= 6:
            cash[:, t, 4] = 0.4 * cash[:, t - 6, 3]
        balance -= cash[:, t, 1:4].sum(axis=1)
    return cash


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, n_paths: int, n_months: int, rounds: int) -> dict[str, float]:
    """Median seconds of each way for one deal, after checking that they agree."""
    deal, cash = load_deal(ROOT / "data" / "deals" / f"{name}.yaml"), collections(n_paths, n_months)
    arrays = run_waterfall(cash, deal, pool_balance=POOL)
    machine = run_waterfall(cash, deal, pool_balance=POOL, method="compiled")
    np.testing.assert_allclose(machine.cash, arrays.cash, rtol=1e-13, atol=1e-9)
    for path in range(ORACLE_PATHS):
        rows = run_reference(cash[path], deal, pool_balance=POOL)
        for place, tranche in enumerate(arrays.tranche_names):
            paid = [
                row.get(f"interest_paid.{tranche}", 0) + row.get(f"principal_paid.{tranche}", 0)
                for row in rows
            ]
            np.testing.assert_allclose(arrays.cash[path, :, place], paid, atol=1e-6)
    times: dict[str, list[float]] = {"arrays": [], "machine": [], "oracle": [], "metrics": []}
    for _ in range(rounds):
        times["arrays"].append(seconds(lambda: run_waterfall(cash, deal, pool_balance=POOL)))
        times["machine"].append(
            seconds(lambda: run_waterfall(cash, deal, pool_balance=POOL, method="compiled", keep="classes"))
        )
        oracle = seconds(
            lambda: [run_reference(cash[p], deal, pool_balance=POOL) for p in range(ORACLE_PATHS)]
        )
        times["oracle"].append(oracle * n_paths / ORACLE_PATHS)
        times["metrics"].append(seconds(lambda: tranche_metrics(arrays)))
    medians = {key: statistics.median(values) for key, values in times.items()}
    for way in ("arrays", "machine"):
        ratios = [slow / fast for slow, fast in zip(times["oracle"], times[way], strict=True)]
        medians[f"oracle / {way}"] = statistics.median(ratios)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/waterfall-<date>.md")
    given = parser.parse_args()
    cases = [("clo_four_tranche", given.paths, 60), ("auto_four_tranche", given.paths, 60)]
    cases += [("clo_four_tranche", given.paths // 2, 60), ("clo_four_tranche", given.paths, 30)]
    lines = [
        f"# Waterfall, {date.today().isoformat()}",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores ({platform.system()}); "
        f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}; "
        "machine code on all cores, the others on one. "
        "Shared machine: read the ratios. `python benchmarks/waterfall.py --write`.",
        "The three ways agree before they are timed; the oracle runs 20 paths and is scaled.",
        "",
        "| deal | paths x dates | arrays s | machine s | metrics s | oracle s | oracle/arrays | oracle/machine |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, n_paths, n_months in cases:
        got = measure(name, n_paths, n_months, given.rounds)
        lines.append(
            f"| {name} | {n_paths:,} x {n_months} | {got['arrays']:.3f} | {got['machine']:.3f} | "
            f"{got['metrics']:.3f} | {got['oracle']:.1f} | "
            f"{got['oracle / arrays']:,.0f} | {got['oracle / machine']:,.0f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        (ROOT / "benchmarks" / "results" / f"waterfall-{date.today().isoformat()}.md").write_text(text)


if __name__ == "__main__":
    main()
