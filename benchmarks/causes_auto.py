"""Why figures of the real auto pool miss: rivals at the same origins, folds of loans, defaults by age.

    python -m benchmarks.causes_auto [--data ../shared/data] [--recipe base] [--folds-only] [--write]

Three tables. (1) At each origin of the half-yearly record, what happened and what every model learnt to
that origin expected of the same rows: the loan network, its cohort, tables, logistic, boosted trees. A miss
that all share is the pool's; one of models with memory alone is their memory's. (2) Six folds of loans, the
last one the loans that `make fidelity` holds out: happened over expected of models fitted to the others. A
fold that all models misjudge alike is the fold's luck. (3) Defaults out of 90dpd by age and half-year.
"""

from __future__ import annotations

import argparse
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import stats

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.periods import month_index
from pc_pipeline.engines.fidelity.auto_record import (
    COHORT,
    DATA,
    HALF_YEAR,
    NETWORK,
    ORIGINS,
    WARM_UP,
    half_year,
    observed_macro,
)
from pc_pipeline.engines.fidelity.table import Request
from pc_pipeline.engines.stages.scoring import is_held_out, learning_rows
from pc_pipeline.evaluation.challengers import Challenger, standard_challengers
from pc_pipeline.evaluation.metrics import happened_over_expected
from pc_pipeline.evaluation.rows import ScoringRows, scoring_rows
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.recipes import get_recipe
from pc_pipeline.schemas.states import LOAN_STATE_NAMES, LoanState

N_FOLDS = 5
EVENTS = (LoanState.dpd30, LoanState.dpd60, LoanState.dpd90, LoanState.default, LoanState.prepaid)
AGES = (0, 12, 18, 24, 30, 36, 600)


def rivals() -> list[Challenger]:
    """Class x maturity table, the same with recency, logistic, boosted trees."""
    return standard_challengers(200_000)[2:]


def origin_lines(request: Request, tape: Any, macro: pl.DataFrame) -> list[str]:
    """Expected by every model beside what happened, origin by origin."""
    names = [NETWORK, COHORT, *(rival.name for rival in rivals())]
    lines = [f"| origin | event | happened | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    total = {event: np.zeros(len(names) + 1) for event in EVENTS}
    for origin in (WARM_UP, *ORIGINS):
        part = half_year(request, tape.loans, tape.panel, macro, origin)
        known = learning_rows(tape.panel.filter(pl.col("reporting_month") <= origin))
        learned = prepare_trajectories(known, tape.loans, macro.filter(pl.col("month") <= origin))
        training = scoring_rows(learned, with_payments=True)
        rows = scoring_rows(part.judged, with_payments=True).take(part.ahead)
        answers = [part.chances[name][part.ahead] for name in (NETWORK, COHORT)]
        for rival in rivals():
            rival.fit(training)
            answers.append(rival.probabilities(rows))
        for event in EVENTS:
            counts = np.array([(rows.happened == event).sum(), *(p[:, event].sum() for p in answers)])
            if origin != WARM_UP:
                total[event] += counts
            told = " | ".join(f"{count:,.0f}" for count in counts[1:])
            lines.append(f"| {origin:%Y-%m} | {LOAN_STATE_NAMES[event]} | {counts[0]:,.0f} | {told} |")
        print("\n".join(lines[-len(EVENTS) :]), flush=True)
    for event, counts in total.items():
        told = " | ".join(f"{count:,.0f} ({count / counts[0]:.2f})" for count in counts[1:])
        lines.append(f"| three origins | {LOAN_STATE_NAMES[event]} | {counts[0]:,.0f} | {told} |")
    return lines


def fold_lines(rows: ScoringRows, loan_ids: list[str]) -> list[str]:
    """Happened over expected by fold; half a 95 % interval clustered by loan, and Poisson's."""

    def draw(loan_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"fold{loan_id}".encode()).digest()[:4], "big") % N_FOLDS

    fold = np.array([N_FOLDS if is_held_out(name) else draw(name) for name in loan_ids])[rows.cluster]
    wanted = [rival for rival in rivals() if rival.name != "multinomial logistic"]
    lines = [f"| event | fold | happened | {' | '.join(rival.name for rival in wanted)} | Poisson |"]
    lines.append("|---" * (len(wanted) + 4) + "|")
    answers = []
    for rival in wanted:
        p = np.zeros((len(rows), 7))
        for number in range(N_FOLDS + 1):
            rival.fit(rows.take(fold != number))
            p[fold == number] = rival.probabilities(rows.take(fold == number))
        answers.append(p)
    for event in EVENTS:
        for number in range(N_FOLDS + 1):
            at = fold == number
            event_at = rows.happened[at] == event
            found = [happened_over_expected(p[at, event], event_at, rows.cluster[at]) for p in answers]
            told = " | ".join(f"{one.value:.3f} +- {1.96 * one.se:.3f}" for one in found)
            name = "held out" if number == N_FOLDS else str(number)
            poisson = 1.96 / np.sqrt(answers[-1][at, event].sum())
            lines.append(
                f"| {LOAN_STATE_NAMES[event]} | {name} | {event_at.sum()} | {told} | {poisson:.3f} |"
            )
        whole = [(rows.happened == event).sum() / p[:, event].sum() for p in answers]
        lines.append(
            f"| {LOAN_STATE_NAMES[event]} | all | {(rows.happened == event).sum()} | "
            + " | ".join(f"{ratio:.3f}" for ratio in whole)
            + " | |"
        )
    return lines


def default_lines(rows: ScoringRows, month: np.ndarray) -> list[str]:
    """Defaults from 90dpd by age band and by half-year: rate with its exact Poisson interval."""
    at = rows.from_state == LoanState.dpd90
    age, hit = rows.moves["age_months"].to_numpy()[at], rows.happened[at] == LoanState.default
    lines = ["| months at 90dpd | number | defaults | rate (95 %) |", "|---|---|---|---|"]
    bands = [(f"age {a}-{b - 1}", (age >= a) & (age < b)) for a, b in pairwise(AGES)]
    for origin in (WARM_UP, *ORIGINS):
        ahead = month[at] - month_index(origin)
        bands.append((f"half-year after {origin:%Y-%m}", (ahead > 0) & (ahead <= HALF_YEAR)))
    for name, chosen in bands:
        count, events = int(chosen.sum()), int(hit[chosen].sum())
        if not count:
            continue
        low = stats.chi2.ppf(0.025, 2 * events) / 2 / count if events else 0.0
        high = stats.chi2.ppf(0.975, 2 * (events + 1)) / 2 / count
        lines.append(f"| {name} | {count} | {events} | {events / count:.3f} ({low:.3f} to {high:.3f}) |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--folds-only", action="store_true", help="no network is trained")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = machine_line()
    tape = read_tape(options.data / DATA[0])
    macro = observed_macro(options.data / DATA[1], tape.panel)
    whole = prepare_trajectories(tape.panel, tape.loans, macro)
    rows = scoring_rows(whole, with_payments=True)
    lines = ["# Real auto pool: where the misses come from", "", machine, ""]
    lines += [
        "Happened over expected by fold of loans, 95 % by loan; models fitted to the other folds:",
        "",
        *fold_lines(rows, tape.loans["loan_id"].to_list()),
        "",
        "Defaults out of 90dpd:",
        "",
        *default_lines(rows, whole.start_month[rows.history] + rows.month),
    ]
    print("\n".join(lines), flush=True)
    if not options.folds_only:
        request = Request(recipes=(get_recipe(options.recipe),), data=options.data, scratch=Path("."))
        lines += [
            "",
            f"Months after each origin, models learnt to it (networks: recipe `{options.recipe}`):",
            "",
        ]
        lines += origin_lines(request, tape, macro)
    if options.write:
        write_result(Path(__file__).parent / "results", "causes-auto", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
