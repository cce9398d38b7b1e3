"""What tells generated loan histories from real ones: the test's own floor, and the share of each fact.

    python -m benchmarks.causes_histories [--data ../shared/data] [--recipe base] [--write]

(1) Floor: the loans held out by id against as many learning loans, both real, twelve times: what the test
says of two samples of one law, and how much these held-out loans differ by luck. (2) Against drawn
histories, the same test given one payment fact at a time. (3) Learning loans, real against drawn, in subsets
of the held-out size: no luck of the held-out draw. (4) Misses of performing months expected one month ahead,
given real payments, beside those drawn month after month: what is lost is lost by the drawn payments.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.rng import stream
from pc_pipeline.engines.fidelity.auto_record import observed_macro, real_networks
from pc_pipeline.engines.fidelity.histories import (
    DATA,
    GOAL_AUC,
    SAMPLES,
    Histories,
    payment_facts,
    real_and_drawn,
)
from pc_pipeline.engines.stages.learning import Models
from pc_pipeline.engines.stages.scoring import is_held_out, learning_rows
from pc_pipeline.evaluation.sequence_tests import two_sample_auc
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.recipes import get_recipe
from pc_pipeline.training.trajectories import move_probabilities

FACTS = ("mean", "sd", "unpaid months", "exact months", "doubled months")
REPEATS = 12


def subset(histories: Histories, rows: np.ndarray) -> Histories:
    """Some histories."""
    return Histories(**{field.name: getattr(histories, field.name)[rows] for field in fields(Histories)})


def auc(first: Histories, second: Histories, seed: int, facts: list[int] | None = None) -> float:
    """Two-sample AUC on states, and on some payment facts."""
    a, b = (None if facts is None else payment_facts(h)[:, facts] for h in (first, second))
    return float(two_sample_auc(first.states, second.states, a, b, GOAL_AUC, seed)[1])


def told(name: str, values: list[list[float]]) -> str:
    """A line of the table: mean and spread of repeats."""
    mean, sd = np.mean(values, axis=0), np.std(values, axis=0)
    return f"| {name} | " + " | ".join(f"{m:.3f} ({s:.3f})" for m, s in zip(mean, sd, strict=True)) + " |"


def test_lines(
    held: tuple[Histories, Histories], learned: tuple[Histories, Histories], seed: int
) -> list[str]:
    """Floor, held-out loans and learning loans under the same test."""
    count, every = len(held[0].states), list(range(len(FACTS)))
    random = stream(seed, "causes", "histories")
    chosen = [np.sort(random.permutation(len(learned[0].states))[:count]) for _ in range(REPEATS)]
    drawn = [subset(held[1], np.arange(k * count, (k + 1) * count)) for k in range(SAMPLES)]

    def pair(first: Histories, second: Histories) -> list[float]:
        return [auc(first, second, seed), auc(first, second, seed, every)]

    lines = [
        f"Mean (sd of repeats) of the AUC, {count} histories a side.",
        "",
        "| histories | states | states and payments |",
        "|---|---|---|",
        told("real held out, real learning", [pair(held[0], subset(learned[0], rows)) for rows in chosen]),
        told("real held out, drawn of them", [pair(held[0], one) for one in drawn]),
        told(
            "real learning, drawn of them",
            [pair(subset(learned[0], rows), subset(learned[1], rows)) for rows in chosen],
        ),
        "",
        "| held out, states and one fact | AUC |",
        "|---|---|",
    ]
    for place, name in enumerate(FACTS):
        lines.append(told(name, [[auc(held[0], one, seed, [place])] for one in drawn]))
    return lines


def miss_lines(judged: Trajectories, drawn: Histories, models: Models, name: str) -> list[str]:
    """Misses of performing months: happened, expected one month ahead, drawn."""
    chances = move_probabilities(models["loan_trajectory"][0], judged, models["transition_transformer"][0])
    before = np.column_stack([judged.initial_state, judged.states[:, :-1]])
    from_zero = before[judged.mask] == 0
    missed = (judged.states[judged.mask] == 1)[from_zero].mean()
    start = np.column_stack([drawn.before, drawn.states[:, :-1]])
    ours = (drawn.states == 1)[(start == 0) & (drawn.states >= 0)].mean()
    return [f"| {name} | {missed:.4f} | {chances[from_zero, 1].mean():.4f} | {ours:.4f} |"]


def main() -> None:
    """Train, draw, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--write", action="store_true", help="keep the page under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    recipe, machine = get_recipe(options.recipe), machine_line()
    tape = read_tape(options.data / DATA[0])
    macro = observed_macro(options.data / DATA[1], tape.panel)
    models = real_networks(recipe, tape.panel, tape.loans, macro, "cpu")
    learned = prepare_trajectories(learning_rows(tape.panel), tape.loans, macro)
    held = tape.panel.filter(pl.col("loan_id").map_elements(is_held_out, return_dtype=pl.Boolean))
    judged = prepare_trajectories(held, tape.loans, macro, scaler=learned.scaler)
    pairs = [real_and_drawn(some, models, recipe.seed) for some in (judged, learned)]
    lines = test_lines(pairs[0], pairs[1], recipe.seed)
    lines += ["", "| misses of performing months | happened | one month ahead | drawn |", "|---|---|---|---|"]
    for some, (_, drawn), name in zip((judged, learned), pairs, ("held out", "learning"), strict=True):
        lines += miss_lines(some, drawn, models, name)
    page = "\n".join(
        [f"# Generated histories: what tells them apart ({options.recipe})", "", machine, "", *lines]
    )
    print(page)
    if options.write:
        write_result(Path(__file__).parent / "results", "causes-histories", page + "\n")


if __name__ == "__main__":
    main()
