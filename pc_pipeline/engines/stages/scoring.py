"""What models are judged on: loans they have not seen.

A generated pool is judged on fresh loans of the same world along fresh macro paths, where the exact law
is known. A real pool is judged on loans held out of all training by the hash of their id, so that the choice
never depends on order, seed or how many loans there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.periods import month_from_index
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.evaluation.challengers import standard_challengers
from pc_pipeline.evaluation.rows import scoring_rows
from pc_pipeline.evaluation.scoring import scoring_table
from pc_pipeline.loans.oracle import oracle_rows
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.schemas.units import OBSERVED
from pc_pipeline.training.trajectories import move_probabilities

HELD_OUT_SHARE = 0.15
Rival = Callable[[Trajectories, np.ndarray], np.ndarray]
LARGEST_TEST = 60_000  # loan-months scored: enough for a standard error near 0.002 nats


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSet:
    """Histories to score on, and their exact law where it is known.

    Attributes:
        panel, loans, macro: tables.
        world_seed: of the generated world; None where the law is unknown.
    """

    panel: pl.DataFrame
    loans: pl.DataFrame
    macro: pl.DataFrame
    world_seed: int | None = None


def is_held_out(loan_id: str) -> bool:
    """Whether a real loan is kept out of training (SHA-256 of its id, the share `HELD_OUT_SHARE`)."""
    digest = hashlib.sha256(loan_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def learning_rows(panel: pl.DataFrame) -> pl.DataFrame:
    """The rows that may be learned from: all generated ones, and real loans that are not held out."""
    return panel.filter(~_held_out_mask(panel))


def held_out_rows(panel: pl.DataFrame) -> pl.DataFrame:
    """The rows of real loans that are kept for scoring."""
    return panel.filter(_held_out_mask(panel))


def _held_out_mask(panel: pl.DataFrame) -> pl.Series:
    observed = panel.filter(pl.col("scenario") == OBSERVED)["loan_id"].unique().to_list()
    held = [loan_id for loan_id in observed if is_held_out(loan_id)]
    return panel.select((pl.col("scenario") == OBSERVED) & pl.col("loan_id").is_in(held)).to_series()


def fresh_test_set(generator: LoanTapeGenerator, macro: pl.DataFrame, n_loans: int) -> ScoringSet:
    """New loans of the generator's world, along macro paths that no training has seen."""
    fresh = LoanTapeGenerator(
        n_loans=n_loans,
        n_months=generator.n_months,
        n_vintages=generator.n_vintages,
        start_date=month_from_index(generator.start_month),
        random_seed=derive_seed(generator.world_seed, "test"),
        world_seed=generator.world_seed,
    )
    book = fresh.generate_scenario(macro)
    return ScoringSet(panel=book.panel, loans=book.loans, macro=macro, world_seed=generator.world_seed)


def model_scores_on(
    test: ScoringSet,
    learned_from: Trajectories,
    models: dict[str, Any],
    largest_training: int = 60_000,
    rivals: Mapping[str, Rival] | None = None,
) -> list[dict[str, Any]]:
    """The scoring table: challengers, the transition and loan models before and after joint fine-tuning.

    Args:
        test: what to score on.
        learned_from: histories that the challengers are fitted to.
        models: name -> (transition model, loan model or None).
        rivals: name -> a model of its own kind: (judged, histories wanted) -> (N, 7) probabilities.
        largest_training: loan-months that the logistic and the trees are fitted to; tables take all.
    """
    judged = prepare_trajectories(test.panel, test.loans, test.macro, scaler=learned_from.scaler)
    only = _first_histories(judged)
    reads = any(loan is not None and loan.config.reads_payments for _, loan in models.values())
    rows = scoring_rows(judged, only=only, with_payments=reads)
    answers = {
        name: move_probabilities(loan_model, judged, cohort_model, only=only)
        for name, (cohort_model, loan_model) in models.items()
    }
    answers |= {name: rival(judged, only) for name, rival in (rivals or {}).items()}
    oracle = None if test.world_seed is None else _oracle(test, judged, only)
    table = scoring_table(
        rows,
        training=scoring_rows(learned_from, with_payments=reads),
        models=answers,
        oracle=oracle,
        challengers=standard_challengers(largest_training),
    )
    return table.to_dicts()


def _first_histories(judged: Trajectories) -> np.ndarray:
    """(H,) bool: whole histories, evenly spread, up to `LARGEST_TEST` loan-months."""
    lengths = judged.lengths
    keep = max(1, round(len(lengths) * min(1.0, LARGEST_TEST / max(int(lengths.sum()), 1))))
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[np.unique(np.linspace(0, len(lengths) - 1, keep).astype(int))] = True
    return chosen


def _oracle(test: ScoringSet, judged: Trajectories, only: np.ndarray) -> np.ndarray:
    """(N, 7) exact probabilities in the order of the scoring rows."""
    found = oracle_rows(test.panel, test.loans, test.macro, world_seed=test.world_seed or 0)
    keys = ["scenario", "macro_path_id", "loan_id"]
    wanted = judged.keys.select(keys).with_row_index("history").filter(pl.Series(only))
    placed = found.keys.with_row_index("row").join(wanted, on=keys, how="inner")
    return found.probabilities[placed.sort("history", "reporting_month")["row"].to_numpy()]


def before_and_after(models: dict[str, Any], joint: dict[str, Any]) -> dict[str, Any]:
    """Models to score, by the name shown in the table."""
    return {
        "transition_transformer": (joint["transition_transformer"], None),
        "components": (models["transition_transformer"], models["loan_trajectory"]),
        "joint_model": (joint["transition_transformer"], joint["loan_trajectory"]),
    }
