"""Data too thin to learn from: a clear error, or the simpler form by name; never silent nonsense."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.trajectories import TrajectoryTrainer, move_probabilities
from pc_pipeline.training.transitions import TransitionTrainer

MONTHS = 24
QUICK = TrainConfig(n_threads=1, patience=9)
Book = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


def book(n_loans: int = 300, n_paths: int = 1, classes: dict[str, float] | None = None) -> Book:
    """(loans, panel, macro) of a small world."""
    macro = macro_table(MacroScenarioGenerator(n_months=MONTHS, random_seed=1), "adverse", n_paths)
    tape = LoanTapeGenerator(n_loans=n_loans, n_months=MONTHS, random_seed=1, asset_class_weights=classes)
    made = tape.generate_scenario(macro)
    return made.loans, made.panel, macro


def learn(
    loans: pl.DataFrame, panel: pl.DataFrame, macro: pl.DataFrame, epochs: int = 2, lr: float = 2e-3
) -> Any:
    """Both networks, their histories and the trajectories."""
    torch.manual_seed(0)
    cohort = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1))
    of_cohort = TransitionTrainer(cohort, lr=lr, config=QUICK).fit(
        cohort_table(loans), transition_table(panel, loans), macro, epochs=epochs, batch_size=64
    )
    histories = prepare_trajectories(panel, loans, macro)
    loan = LoanTrajectoryModel(TrajectoryConfig(d_model=8, n_heads=2, n_layers=1, diffusion_steps=10))
    of_loan = TrajectoryTrainer(loan, lr=lr, config=QUICK).fit(
        loans, histories, epochs=epochs, batch_size=64, transition_model=cohort
    )
    return cohort, of_cohort, loan, of_loan, histories


def sound(p: np.ndarray) -> bool:
    return bool(np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(axis=1), 1.0, atol=1e-5))


def test_a_class_absent_from_the_data_takes_the_pooled_rows() -> None:
    loans, panel, macro = book(classes={"consumer": 1.0})
    cohort, of_cohort, loan, _, _ = learn(loans, panel, macro)
    assert of_cohort["absent_classes"] == "corporate, realestate, receivables"
    other = cohort_table(loans)[:1].with_columns(class_consumer=pl.lit(0.0), class_corporate=pl.lit(1.0))
    seen = cohort.predict(cohort_table(loans)[:1], macro)[0, 0, :, 0, 0]
    unseen = cohort.predict(other, macro)[0, 0, :, 0, 0]
    assert float((seen - unseen).abs().max()) < 0.05
    fresh, fresh_panel, _ = book(n_loans=60)
    judged = prepare_trajectories(fresh_panel, fresh, macro)
    assert sound(move_probabilities(loan, judged, cohort))


def test_one_path_anchors_the_macro_effect_and_says_so() -> None:
    loans, panel, macro = book()
    cohort, of_cohort, _, _, _ = learn(loans, panel, macro)
    assert of_cohort["is_macro_anchored"]
    assert bool(cohort.macro_anchored)
    assert not cohort.macro_effect.requires_grad


def test_fifty_loans_and_one_cohort_give_sound_probabilities() -> None:
    loans, panel, macro = book(n_loans=50)
    first = loans.filter(pl.col("vintage_month") == loans["vintage_month"].min())
    for some in (loans, first):
        mine = panel.filter(pl.col("loan_id").is_in(some["loan_id"].to_list()))
        cohort, of_cohort, loan, of_loan, histories = learn(some, mine, macro)
        assert of_cohort["val_log_loss"] <= min(of_cohort["level_log_loss"], of_cohort["additive_log_loss"])
        assert of_loan["val_state_loss"] <= of_loan["cohort_state_loss"]
        assert sound(move_probabilities(loan, histories, cohort))


def test_a_network_worse_than_the_table_gives_way_to_it() -> None:
    """A reckless learning rate: held-out moves decide, and the record says what was kept."""
    loans, panel, macro = book(n_loans=80)
    cohort, of_cohort, loan, of_loan, histories = learn(loans, panel, macro, lr=0.5)
    assert of_cohort["fallback"] in ("level", "additive")
    assert of_loan["fallback"] == "cohort"
    assert np.allclose(
        move_probabilities(loan, histories, cohort), move_probabilities(None, histories, cohort), atol=1e-6
    )


def test_loans_that_all_perform_teach_that_and_no_more() -> None:
    loans, panel, macro = book(n_loans=60)
    calm = panel.with_columns(loan_state=pl.lit(0, pl.Int64))
    cohort, _, loan, _, histories = learn(loans, calm, macro)
    p = move_probabilities(loan, histories, cohort)
    assert sound(p)
    assert 0.97 < float(p[:, [0, 6]].sum(axis=1).mean()) < 1.0


def test_longer_than_trained_is_sound_and_longer_than_possible_is_refused() -> None:
    loans, panel, macro = book(n_loans=80)
    cohort, _, loan, _, _ = learn(loans, panel, macro)
    long = macro_table(MacroScenarioGenerator(n_months=120, random_seed=2), "adverse", 1)
    rows = cohort.predict(cohort_table(loans)[:2], long)[0]
    assert sound(rows.flatten(0, 2).numpy())
    features = torch.zeros(2, 24)
    features[:, 16] = 360.0
    drawn = loan.generate(features, rows, seed=1)
    assert bool(torch.isfinite(drawn["balances"]).all())
    short = LoanTrajectoryModel(dataclasses.replace(loan.config, max_months=60))
    with pytest.raises(Exception, match="sequence length"):
        short.generate(features, rows)


def test_no_move_at_all_is_an_error() -> None:
    loans, panel, macro = book(n_loans=50)
    once = panel.group_by("loan_id", maintain_order=True).first()
    with pytest.raises(DataError):
        prepare_trajectories(once.filter(pl.col("reporting_month") < pl.col("reporting_month")), loans, macro)
