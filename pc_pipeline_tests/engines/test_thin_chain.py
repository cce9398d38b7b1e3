"""The learning stages from end to end on pools with next to nothing to learn from."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.stages.learning import (
    LearningTables,
    Trained,
    fine_tune,
    train_loan_trajectory,
    train_macro_vae,
    train_transition_transformer,
)
from pc_pipeline.engines.stages.scoring import fresh_test_set
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.recipes import tiny
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.states import LoanState

MONTHS = 24
ONE_COHORT = (pl.col("asset_class") == "consumer") & (
    pl.col("vintage_month") == pl.col("vintage_month").min()
)


def learn(n_loans: int, kept: pl.Expr | None = None) -> Trained:
    """All stages of recipe `tiny` on one macro path and the loans of a small pool that are kept."""
    recipe = tiny()
    macro = macro_table(MacroScenarioGenerator(n_months=MONTHS, random_seed=1), "adverse", 1)
    tape = LoanTapeGenerator(n_loans=n_loans, n_months=MONTHS, n_vintages=6, random_seed=1)
    book = tape.generate_scenario(macro)
    was_late = (
        book.panel.group_by("loan_id")
        .agg(was_late=pl.col("loan_state").is_between(LoanState.dpd30, LoanState.default).any())
        .sort("loan_id")
    )
    loans = book.loans.join(was_late, on="loan_id", how="left").filter(True if kept is None else kept)
    loans = loans.drop("was_late")
    panel = book.panel.filter(pl.col("loan_id").is_in(loans["loan_id"].to_list()))
    models = dict(train_macro_vae(recipe.macro_vae, macro, "cpu").models)
    counts = transition_table(panel, loans)
    models |= train_transition_transformer(recipe.transition_transformer, counts, loans, macro, "cpu").models
    models |= train_loan_trajectory(recipe.loan_trajectory, panel, loans, macro, models, "cpu").models
    tables = LearningTables(panel=panel, loans=loans, macro=macro, pool=pool_snapshot(loans))
    test = fresh_test_set(tape, macro, 50)
    return fine_tune(recipe.joint, models, tables, PortfolioAggregator().deal, test, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_loans", "kept", "fallback"),
    [
        (50, None, None),
        (80, ~pl.col("was_late"), "components"),
        (300, ONE_COHORT, None),
    ],
    ids=["fifty loans", "all loans performing", "one cohort"],
)
def test_thin_pools_go_through_and_the_card_says_what_was_not_done(
    n_loans: int, kept: pl.Expr | None, fallback: str | None
) -> None:
    learned = learn(n_loans, kept)
    metrics = learned.models["transition_transformer"][1]["joint"]["metrics"]
    assert metrics.get("fallback") == fallback
    losses = {row["model"]: row["log_loss"] for row in learned.scores}
    assert np.isfinite(losses["joint_model"])
    assert losses["joint_model"] < losses["persistence"] + 1.0
