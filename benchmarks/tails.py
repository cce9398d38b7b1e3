"""Tails: time times squared standard error of paths drawn along the loss, against plain numpy.

    python -m benchmarks.tails --data DATA [--scenario severe] [--paths 400] [--replications 12]

DATA is the store of a finished run (`make run`). Standard errors of the stratified paths are measured by
replication, with new macro paths and new loans' numbers each time; those of plain paths from the influence
function of one larger run. Bias is checked first: the mean of the replications against the plain run.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.store import Store
from pc_pipeline.engines.analysis.study import BATCH_PATHS, Study
from pc_pipeline.engines.analysis.tail_source import TailSource
from pc_pipeline.simulation.estimators import pool_measures, weighted_quantile
from pc_pipeline.simulation.monte_carlo import POLICY_RATE, SimulationConfig, simulate_pool
from pc_pipeline.simulation.reference import generator_numbers, simulate_reference

SHOWN = ("expected_loss", "var_99", "cvar_99", "cvar_999")
Z_LIMIT = 4.0


def losses_of(study: Study, macro: np.ndarray, seed: int) -> np.ndarray:
    """Pool losses along macro paths, loans drawn under `seed`."""
    config = SimulationConfig(seed=seed, batch_paths=BATCH_PATHS)
    return simulate_pool(
        study.arrays, study.cohorts.height, macro, study.rows, study.residual_LHJ, config
    ).losses_P


def plain_variance(losses: np.ndarray) -> dict[str, float]:
    """Variance of one plain path's contribution to each measure: n SE^2, from influence functions."""
    found = {"expected_loss": float(losses.var(ddof=1))}
    for name, level in (("cvar_99", 0.99), ("cvar_999", 0.999)):
        v = weighted_quantile(losses, level)
        found[name] = float((np.maximum(losses - v, 0.0) / (1 - level)).var(ddof=1))
    v = weighted_quantile(losses, 0.99)
    width = 0.02 * (losses.max() - losses.min())
    density = ((losses > v - width) & (losses <= v + width)).mean() / (2 * width)
    found["var_99"] = 0.99 * 0.01 / density**2
    return found


def seconds(work: Any, rounds: int = 3) -> float:
    """Best of a few."""
    tries = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        tries.append(time.perf_counter() - begin)
    return min(tries)


def main() -> None:
    """Measure and write the dated note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scenario", default="severe")
    parser.add_argument("--paths", type=int, default=400)
    parser.add_argument("--replications", type=int, default=12)
    parser.add_argument("--plain", type=int, default=3000)
    asked = parser.parse_args()
    study = Study.from_store(Store(asked.data))
    source, n = TailSource(study), asked.paths
    begin = time.perf_counter()
    surface = source.direction(asked.scenario, study.n_months).surface
    setup = time.perf_counter() - begin
    plain = losses_of(study, study.macro(asked.scenario, asked.plain), 1)
    runs, effective = [], []
    for seed in range(asked.replications):
        drawn = source.draw(asked.scenario, n, study.n_months, 1000 + seed)
        losses = losses_of(study, drawn.values_PTM, 2000 + seed)
        found = pool_measures(losses, drawn.weights_P, drawn.strata_P)
        runs.append([found[name].value for name in SHOWN])
        effective.append(drawn.weights_P.sum() ** 2 / (drawn.weights_P**2).sum())
    table = np.array(runs)
    reference = pool_measures(plain)
    plain_n = plain_variance(plain)
    gap = table[:, 0].mean() - reference["expected_loss"].value
    z = gap / np.sqrt(table[:, 0].var(ddof=1) / len(table) + plain_n["expected_loss"] / plain.size)
    if abs(z) > Z_LIMIT:
        raise SystemExit(f"the stratified mean differs from the plain one: z {z:.2f}")
    macro = study.macro(asked.scenario, BATCH_PATHS)
    rows = study.rows(macro)
    t_rows = seconds(lambda: study.rows(macro)) / BATCH_PATHS
    t_ours = seconds(lambda: losses_of(study, macro, 1)) / BATCH_PATHS
    t_macro = seconds(lambda: source.draw(asked.scenario, 2000, study.n_months, 1)) / 2000
    numbers = generator_numbers(np.random.default_rng(0), study.arrays)
    t_numpy = seconds(
        lambda: simulate_reference(
            study.arrays, rows[0], macro[0, :, POLICY_RATE], study.residual_LHJ, numbers
        )
    )
    lines = []
    fast, slow = t_ours + t_macro, t_numpy + t_rows
    for k, name in enumerate(SHOWN):
        se2 = float(table[:, k].var(ddof=1))
        gain = plain_n[name] / n / se2
        lines.append(
            f"| {name} | {table[:, k].mean():.4%} | {np.sqrt(plain_n[name] / n):.2e} | {np.sqrt(se2):.2e} "
            f"| {gain:.1f} | {gain * slow / fast:,.0f} | {gain * t_numpy / (fast - t_rows):,.0f} |"
        )
    text = "\n".join(
        [
            "# Tails: time times squared standard error",
            "",
            machine_line(),
            f"`python -m benchmarks.tails --data DATA --scenario {asked.scenario} --paths {n} --replications "
            f"{asked.replications} --plain {asked.plain}`",
            "",
            f"{study.arrays.n_loans:,} loans, {study.n_months} months, {asked.scenario}; surface R2 "
            f"{surface.share:.3f} on the pilot, spread {surface.spread:.3f}; effective paths "
            f"{np.mean(effective):.0f} of {n}; mean against plain: z {z:+.2f}.",
            f"Seconds a path: rows {t_rows:.5f}, ours with rows {t_ours:.5f}, macro path {t_macro:.5f}, "
            f"numpy without rows {t_numpy:.4f}. Once per scenario: direction and pilot {setup:.1f} s.",
            "",
            "SE at equal paths; gain = SE^2 plain / SE^2 ours; last two columns: gain in time x SE^2 with "
            "the network's rows in both times, and with rows in neither.",
            "",
            "| measure | value | SE plain | SE ours | gain | time x SE^2 | without rows |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    write_result(Path(__file__).parent / "results", f"tails-{asked.scenario}", text)


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
