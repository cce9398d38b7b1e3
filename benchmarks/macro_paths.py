"""Macro paths: 10,000 x 60 months x 9 series against a loop over paths in Python.

    python benchmarks/macro_paths.py [--paths 10000] [--rounds 9] [--write]

Gate: the loop, fed the same random numbers, gives the same values. Rounds interleave (A B A B ...); the
figure is the median over rounds of the ratio of times per path. The loop runs on fewer paths, or nobody would
wait for it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pc_pipeline.core.rng import stream
from pc_pipeline.scenarios.generator import BLOCK, MacroScenarioGenerator
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, fit_curve
from pc_pipeline.schemas.units import N_MACRO

SCENARIO = "severely_adverse"
MONTHS = 60


def loop(generator: MacroScenarioGenerator, starts: np.ndarray, shocks: np.ndarray) -> np.ndarray:
    """The same law, one path and one month at a time, as one would first write it.

    Args:
        starts: (P, 9) standard normals of the start; shocks: (T, P, 9) of the months.
    """
    law = generator.assumptions.dynamics()
    curve = fit_curve(generator.mean_path(SCENARIO), generator.sd_path(SCENARIO))
    root, start_root = np.linalg.cholesky(law.shock_covariance), np.linalg.cholesky(law.stationary)
    paths = np.empty((len(starts), generator.n_months, N_MACRO))
    for path in range(len(starts)):
        z = start_root @ starts[path]
        for month in range(generator.n_months):
            z = law.transition @ z + root @ shocks[month, path]
            for series in range(N_MACRO):
                latent = curve.a[month, series] + curve.b[month, series] * z[series]
                share = 1.0 / (1.0 + math.exp(-latent))
                paths[path, month, series] = LOWER_M[series] + RANGE_M[series] * share
    return paths


def numbers(generator: MacroScenarioGenerator, n_paths: int) -> tuple[np.ndarray, np.ndarray]:
    """The random numbers that the generator itself uses for the first paths."""
    source = stream(generator.random_seed, "macro", 0)
    starts = source.standard_normal((BLOCK, N_MACRO))
    return starts[:n_paths], source.standard_normal((MONTHS, BLOCK, N_MACRO))[:, :n_paths]


def measure(n_paths: int, n_loop: int, rounds: int) -> dict[str, float]:
    """Gate, then interleaved times and peak memory."""
    generator = MacroScenarioGenerator(n_months=MONTHS)
    starts, shocks = numbers(generator, n_loop)
    gap = np.abs(loop(generator, starts, shocks) - generator.generate_paths(SCENARIO, n_loop)) / RANGE_M
    if gap.max() > 1e-9:
        raise SystemExit(f"loop and generator disagree by {gap.max():.2e} of a range: no speed figure")
    ours, theirs = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        generator.generate_paths(SCENARIO, n_paths)
        ours.append((time.perf_counter() - begin) / n_paths)
        begin = time.perf_counter()
        loop(generator, starts, shocks)
        theirs.append((time.perf_counter() - begin) / n_loop)
    tracemalloc.start()
    result = generator.generate_paths(SCENARIO, n_paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    return {
        "gap": float(gap.max()),
        "seconds": statistics.median(ours) * n_paths,
        "loop_seconds": statistics.median(theirs) * n_paths,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "peak_mb": peak / 1e6,
        "result_mb": result.nbytes / 1e6,
    }


def floor_seconds(n_paths: int) -> float:
    """What drawing the normals alone costs, the floor of any exact method."""
    source = stream(0, "floor")
    begin = time.perf_counter()
    source.standard_normal((n_paths, MONTHS + 1, N_MACRO))
    return time.perf_counter() - begin


def note(figures: dict[str, float], n_paths: int, rounds: int, floor: float) -> str:
    """The dated result as markdown."""
    return f"""# Macro paths, {datetime.now(UTC):%Y-%m-%d}

`python benchmarks/macro_paths.py --paths {n_paths} --rounds {rounds} --write`; {platform.machine()},
{os.cpu_count()} cores (shared with other work), Python {platform.python_version()}, numpy {np.__version__}.

Gate: generator and loop agree within {figures["gap"]:.1e} of each series' range on the same random numbers.

| {n_paths:,} paths x {MONTHS} months x {N_MACRO} series, {SCENARIO} | |
|---|---|
| generator, median of {rounds} rounds | {figures["seconds"]:.2f} s |
| loop over paths, scaled from {BLOCK} paths | {figures["loop_seconds"]:.1f} s |
| ratio, interleaved, median (lowest - highest) | {figures["ratio"]:.0f} ({figures["ratio_low"]:.0f} - \
{figures["ratio_high"]:.0f}) |
| peak memory of the generator | {figures["peak_mb"]:.0f} MB, of which result {figures["result_mb"]:.0f} MB |
| floor: drawing the normals alone | {floor:.2f} s |

Above the floor: the recursion over months, one logistic function per value, the copy into path order.
"""


def main() -> None:
    """Measure and print; with --write, also put the note beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.paths, BLOCK, arguments.rounds)
    text = note(figures, arguments.paths, arguments.rounds, floor_seconds(arguments.paths))
    print(text)
    if arguments.write:
        folder = Path(__file__).parent / "results"
        (folder / f"macro_paths_{datetime.now(UTC):%Y-%m-%d}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
