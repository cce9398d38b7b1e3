"""Why the loan network loses to boosted trees in later months of the real auto pool: validation rows only.

    python -m benchmarks.causes_drift [--data ../shared/data] [--recipe base] [--write]

Boosted trees with the loan network's own prior: the same trees grown on the class x maturity table, on the
cohort network, and on the cohort's additive form refitted to every learning month, with and without its
stated macro term. What trees lose by the change of prior, the loan network loses for the same reason; what
is left is the network's own. Judged on the half-year after the learning months (two origins), and on a sixth
of the learning loans. Neither the second half of 2019 nor the loans held out by id are read.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.periods import add_months
from pc_pipeline.engines.fidelity.auto_record import DATA, observed_macro
from pc_pipeline.engines.stages.learning import (
    train_loan_trajectory,
    train_transition_transformer,
)
from pc_pipeline.engines.stages.scoring import learning_rows
from pc_pipeline.evaluation.boosted import BoostedConfig, BoostedTrees
from pc_pipeline.evaluation.metrics import clustered_mean, log_losses
from pc_pipeline.evaluation.rows import ScoringRows, scoring_rows
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.recipes import Recipe, get_recipe
from pc_pipeline.training.trajectories import move_probabilities
from pc_pipeline.training.transitions import TransitionTrainer, fit_additive, transition_data

ORIGINS: Final = (date(2018, 6, 1), date(2018, 12, 1))
HALF_YEAR: Final = 6
N_FOLDS: Final = 6
FLOOR: Final = 1e-6


class TreesOn(BoostedTrees):
    """Boosted trees on any prior, given as (H,T,7) probabilities of the histories at hand."""

    prior_HTK: np.ndarray

    def _log_prior(self, rows: ScoringRows) -> np.ndarray:
        return np.log(np.maximum(self.prior_HTK[rows.history, rows.month], FLOOR))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    recipe = get_recipe(options.recipe)
    tape = read_tape(options.data / DATA[0])
    macro = observed_macro(options.data / DATA[1], tape.panel)
    known = learning_rows(tape.panel)
    lines = ["| judged on | model | log-loss | gain on the challenger (se) |", "|---|---|---|---|"]
    for origin in ORIGINS:
        learn = known.filter(pl.col("reporting_month") <= origin)
        shown = known.filter(pl.col("reporting_month") <= add_months(origin, HALF_YEAR))
        lines += compare(recipe, learn, shown, tape.loans, macro, f"half-year after {origin:%Y-%m}")
        print("\n".join(lines[-6:]), flush=True)
    apart = [name for name in known["loan_id"].unique().to_list() if fold_of(name) == 0]
    learn = known.filter(~pl.col("loan_id").is_in(apart))
    lines += compare(recipe, learn, known, tape.loans, macro, "a sixth of the learning loans")
    text = (
        "\n".join(["# Auto pool in later months: whose prior drifts", "", machine_line(), "", *lines]) + "\n"
    )
    print(text)
    if options.write:
        write_result(Path(__file__).parent / "results", f"causes-drift-{recipe.name}", text)


def fold_of(loan_id: str) -> int:
    """0..5, by the loan's id alone."""
    return int.from_bytes(hashlib.sha256(f"drift{loan_id}".encode()).digest()[:4], "big") % N_FOLDS


def compare(
    recipe: Recipe,
    learn: pl.DataFrame,
    shown: pl.DataFrame,
    loans: pl.DataFrame,
    macro: pl.DataFrame,
    name: str,
) -> list[str]:
    """Lines of one split: everything in `shown` that is not in `learn` is judged."""
    lived = macro.filter(pl.col("month") <= learn["reporting_month"].max())
    table = transition_table(learn, loans)
    models = train_transition_transformer(recipe.transition_transformer, table, loans, lived, "cpu").models
    loan_model = train_loan_trajectory(recipe.loan_trajectory, learn, loans, lived, models, "cpu").models
    learned = prepare_trajectories(learn, loans, lived)
    judged = prepare_trajectories(shown, loans, macro, scaler=learned.scaler)
    training, rows = scoring_rows(learned, with_payments=True), scoring_rows(judged, with_payments=True)
    chosen = is_new(rows, judged, training, learned)
    cohort = models["transition_transformer"][0]
    additive = refitted(recipe, learn, loans, lived)
    still = refitted(recipe, learn, loans, lived, with_macro=False)
    challenger = BoostedTrees(BoostedConfig())
    challenger.fit(training)
    at = rows.take(chosen)
    answers = {
        "boosted trees on the class x maturity table (challenger)": challenger.probabilities(at),
        "boosted trees on the cohort network": on_prior(cohort, learned, judged, training, rows, chosen),
        "boosted trees on its additive form, all months": on_prior(
            additive, learned, judged, training, rows, chosen
        ),
        "the same without macro": on_prior(still, learned, judged, training, rows, chosen),
        "loan network": move_probabilities(loan_model["loan_trajectory"][0], judged, cohort)[chosen],
    }
    losses = {label: log_losses(p, at.happened) for label, p in answers.items()}
    first = next(iter(losses.values()))
    found = []
    for label, loss in losses.items():
        gain = clustered_mean(first - loss, at.cluster)
        found.append(f"| {name} | {label} | {loss.mean():.4f} | {gain.value:+.4f} ({gain.se:.4f}) |")
    return found


def is_new(
    rows: ScoringRows, judged: Trajectories, training: ScoringRows, learned: Trajectories
) -> np.ndarray:
    """(N,) rows of a loan and month that were not learned from."""
    seen = {*zip(training.cluster, learned.start_month[training.history] + training.month, strict=True)}
    mine = zip(rows.cluster, judged.start_month[rows.history] + rows.month, strict=True)
    return np.array([key not in seen for key in mine])


def on_prior(
    cohort: TransitionTransformer,
    learned: Trajectories,
    judged: Trajectories,
    training: ScoringRows,
    rows: ScoringRows,
    chosen: np.ndarray,
) -> np.ndarray:
    """(N,7) of the judged rows by trees grown on a cohort's rows."""
    trees = TreesOn(BoostedConfig())
    trees.prior_HTK = dense(cohort, learned)
    trees.fit(training)
    trees.prior_HTK = dense(cohort, judged)
    return trees.probabilities(rows.take(chosen))


def dense(cohort: TransitionTransformer, trajectories: Trajectories) -> np.ndarray:
    """(H,T,7) the cohort's probabilities where something was observed."""
    found = np.zeros((*trajectories.mask.shape, 7))
    found[trajectories.mask] = move_probabilities(None, trajectories, cohort)
    return found


def refitted(
    recipe: Recipe, learn: pl.DataFrame, loans: pl.DataFrame, lived: pl.DataFrame, with_macro: bool = True
) -> TransitionTransformer:
    """The cohort's additive form, fitted to every learning month."""
    network = dataclasses.replace(recipe.transition_transformer.network, moves="observable")
    model = TransitionTransformer(network)
    data = transition_data(cohort_table(loans), transition_table(learn, loans), lived)
    TransitionTrainer(model)._prepare(data, anchored=True)
    if not with_macro:
        torch.nn.init.zeros_(model.macro_effect)
    fit_additive(model, data)
    return model.eval()


if __name__ == "__main__":
    main()
