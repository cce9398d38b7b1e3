"""Tails: time times squared standard error of paths drawn along the loss, against plain numpy.

    python -m benchmarks.tails --data DATA [--scenario severe] [--paths 400] [--replications 16]

DATA is the store of a finished run (`make run`). Standard errors of the stratified, controlled paths are
measured by replication, with new macro paths and new loans' numbers each time; those of plain paths from the
influence function of one larger plain run, uncontrolled. Bias is checked first: the mean of the replications
against the plain run. Seconds are medians of interleaved rounds (A B A B) of the same pool and paths.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.store import Store
from pc_pipeline.engines.analysis.study import BATCH_PATHS, Study
from pc_pipeline.engines.tail_source import TailSource
from pc_pipeline.simulation.estimators import pool_measures, weighted_quantile
from pc_pipeline.simulation.monte_carlo import POLICY_RATE, SimulatedCash, SimulationConfig, simulate_pool
from pc_pipeline.simulation.own_luck import OwnLuck
from pc_pipeline.simulation.reference import generator_numbers, simulate_reference

SHOWN = ("expected_loss", "var_99", "cvar_99", "cvar_999")
Z_LIMIT = 4.0
N_ROUNDS = 7
WHOLE_RUN = 10_000  # paths over which the work done once is spread in the last column


def cash_of(study: Study, macro: np.ndarray, seed: int, luck: OwnLuck | None = None) -> SimulatedCash:
    """Pool cash along macro paths, loans drawn under `seed`."""
    config = SimulationConfig(seed=seed, batch_paths=BATCH_PATHS)
    return simulate_pool(
        study.arrays, study.cohorts.height, macro, study.rows, study.residual_LHJ, config, luck=luck
    )


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


def interleaved(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    tries: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(N_ROUNDS):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            tries[name].append(time.perf_counter() - begin)
    return {name: float(np.median(times)) for name, times in tries.items()}


def main() -> None:
    """Measure and write the dated note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scenario", default="severe")
    parser.add_argument("--paths", type=int, default=400)
    parser.add_argument("--replications", type=int, default=16)
    parser.add_argument("--plain", type=int, default=4000)
    asked = parser.parse_args()
    study = Study.from_store(Store(asked.data))
    study.rows(study.macro(asked.scenario, 2))  # compiled and read once before anything is timed
    source, n = TailSource(study), asked.paths
    begin = time.perf_counter()
    surface = source.direction(asked.scenario, study.n_months).surface
    setup = time.perf_counter() - begin
    plain = cash_of(study, study.macro(asked.scenario, asked.plain), 1).losses_P
    runs, widths, effective = [], [], []
    for seed in range(asked.replications):
        drawn = source.draw(asked.scenario, n, study.n_months, 1000 + seed)
        luck = source.own_luck(drawn.values_PTM)
        simulated = cash_of(study, drawn.values_PTM, 2000 + seed, luck)
        found = pool_measures(simulated.losses_P, drawn.weights_P, drawn.strata_P, simulated.control)
        runs.append([found[name].value for name in SHOWN])
        widths.append([(found[name].upper - found[name].lower) / 3.92 for name in SHOWN])
        effective.append(drawn.weights_P.sum() ** 2 / (drawn.weights_P**2).sum())
    table = np.array(runs)
    reference = pool_measures(plain)
    plain_n = plain_variance(plain)
    gap = table[:, 0].mean() - reference["expected_loss"].value
    z = gap / np.sqrt(table[:, 0].var(ddof=1) / len(table) + plain_n["expected_loss"] / plain.size)
    z_tail = (table[:, 2].mean() - reference["cvar_99"].value) / np.sqrt(
        table[:, 2].var(ddof=1) / len(table) + plain_n["cvar_99"] / plain.size
    )
    if max(abs(z), abs(z_tail)) > Z_LIMIT:
        raise SystemExit(f"stratified paths differ from plain ones: z {z:.2f} of EL, {z_tail:.2f} of CVaR 99")
    macro = study.macro(asked.scenario, BATCH_PATHS)
    rows, known = study.rows(macro), source.own_luck(macro)
    numbers = generator_numbers(np.random.default_rng(0), study.arrays)
    seconds = interleaved(
        {
            "ours": lambda: cash_of(study, macro, 1, known),
            "numpy": lambda: simulate_reference(
                study.arrays, rows[0], macro[0, :, POLICY_RATE], study.residual_LHJ, numbers
            ),
            "rows": lambda: study.rows(macro),
            "few": lambda: source.draw(asked.scenario, 512, study.n_months, 1),
            "many": lambda: source.draw(asked.scenario, 2560, study.n_months, 1),
        }
    )
    t_rows, t_ours = seconds["rows"] / BATCH_PATHS, seconds["ours"] / BATCH_PATHS
    t_macro, t_numpy = (seconds["many"] - seconds["few"]) / 2048, seconds["numpy"]
    once = setup + max(seconds["few"] - 512 * t_macro, 0.0)  # directions, pilot, and the candidates of a run
    lines = []
    fast, slow = t_ours + t_macro, t_numpy + t_rows
    for k, name in enumerate(SHOWN):
        se2 = float(table[:, k].var(ddof=1))
        gain = plain_n[name] / n / se2
        lines.append(
            f"| {name} | {table[:, k].mean():.4%} | {np.sqrt(plain_n[name] / n):.2e} | {np.sqrt(se2):.2e} "
            f"| {np.mean([width[k] for width in widths]):.2e} | {gain:,.0f} | {gain * slow / fast:,.0f} "
            f"| {gain * t_numpy / (fast - t_rows):,.0f} | {gain * slow / (fast + once / WHOLE_RUN):,.0f} |"
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
            f"{surface.share:.4f} on the pilot, left of expected loss {surface.spread:.2%}, own luck "
            f"{np.sqrt(surface.luck / table[:, 0].mean()):.1%}; effective paths "
            f"{np.mean(effective):.0f} of {n}; against plain: z {z:+.2f} of EL, {z_tail:+.2f} of CVaR 99.",
            f"Seconds a path: rows {t_rows:.5f}, ours with rows and own luck {t_ours:.5f}, macro path "
            f"{t_macro:.5f}, numpy without rows {t_numpy:.4f}. Once per scenario: directions and pilot "
            f"{setup:.1f} s; once per run, candidates and strata {once - setup:.1f} s.",
            "",
            "SE at equal paths; gain = SE^2 plain / SE^2 ours; then gain in time x SE^2: with the network's "
            "rows in both times, with rows in neither, and with rows and the work done once, spread over "
            f"{WHOLE_RUN:,} paths. SE of plain from {asked.plain:,} paths, of ours from {asked.replications} "
            f"replications (SE^2 within {np.sqrt(2 / (asked.replications - 1)):.0%} either way); claimed: "
            "what its own interval says.",
            "",
            "| measure | value | SE plain | SE ours | claimed | gain | time x SE^2 | no rows | with setup |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    write_result(Path(__file__).parent / "results", f"tails-{asked.scenario}", text)


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
