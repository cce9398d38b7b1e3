"""The scoring table on generated loans, whose truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError, ModelError
from pc_pipeline.evaluation.challengers import (
    REFERENCE,
    LogisticConfig,
    MultinomialLogistic,
    standard_challengers,
)
from pc_pipeline.evaluation.rows import ScoringRows, scoring_rows
from pc_pipeline.evaluation.scoring import score, scoring_table
from pc_pipeline.loans.oracle import OracleRows, oracle_rows
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.markov import MarkovTransitionModel
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.training.trajectories import held_out, move_probabilities


@pytest.fixture(scope="module")
def world() -> tuple[Trajectories, OracleRows, pl.DataFrame, pl.DataFrame]:
    generator = MacroScenarioGenerator(n_months=36, random_seed=1)
    macro = pl.concat([macro_table(generator, name, 6) for name in ("baseline", "severely_adverse")])
    tape = LoanTapeGenerator(n_loans=3000, n_months=36, random_seed=1, world_seed=3)
    book = tape.generate_scenario(macro)
    trajectories = prepare_trajectories(book.panel, book.loans, macro)
    return trajectories, oracle_rows(book.panel, book.loans, macro, world_seed=3), book.panel, book.loans


def split(trajectories: Trajectories) -> tuple[ScoringRows, ScoringRows, np.ndarray]:
    test = held_out(trajectories, seed=0)
    return scoring_rows(trajectories, ~test), scoring_rows(trajectories, test), test


def test_rows_line_up_with_the_truth_and_with_networks(world) -> None:
    trajectories, oracle, _, _ = world
    rows = scoring_rows(trajectories)
    assert np.array_equal(rows.happened, oracle.to_state)
    assert np.array_equal(rows.from_state, oracle.from_state)
    assert np.array_equal(rows.moves["since_miss"].to_numpy(), oracle.months_since_miss)
    assert np.array_equal(rows.moves["is_final"].to_numpy(), oracle.is_final)
    cohort = move_probabilities(None, trajectories)
    assert cohort.shape == (len(rows), 7)
    assert np.allclose(cohort.sum(axis=1), 1, atol=1e-5)
    assert (cohort[np.arange(len(rows)), rows.happened] > 0).all()


def test_the_table_orders_what_must_be_ordered(world) -> None:
    trajectories, oracle, _, _ = world
    training, test, only = split(trajectories)
    truth = oracle.probabilities[np.isin(np.nonzero(trajectories.mask)[0], np.flatnonzero(only))]
    table = scoring_table(
        test, training=training, oracle=truth, challengers=standard_challengers(max_rows=15_000)
    )
    loss = dict(table.select("model", "log_loss").iter_rows())
    closed = dict(table.select("model", "gap_closed").iter_rows())
    assert loss["oracle"] < loss["multinomial logistic"] < loss[REFERENCE] < loss["global Markov"]
    assert loss["global Markov"] < loss["persistence"]
    assert closed[REFERENCE] == 0.0
    assert closed["oracle"] == pytest.approx(1.0)
    assert 0.2 < closed["multinomial logistic"] < 1.0
    slope = dict(table.select("model", "miss_slope").iter_rows())["oracle"]
    assert 0.8 < slope < 1.2


def test_without_a_truth_no_gap_is_claimed(world) -> None:
    training, test, _ = split(world[0])
    table = scoring_table(test, training=training, models={"uniform": np.full((len(test), 7), 1 / 7)})
    assert table["gap_closed"].null_count() == table.height
    assert table["model"][0] == "uniform"
    assert dict(table.select("model", "log_loss").iter_rows())["uniform"] == pytest.approx(np.log(7))


def test_the_markov_baseline_of_the_chain_is_the_reference_table(world) -> None:
    """The panel route and the row route count the same moves, but for first months after origination."""
    trajectories, _, panel, loans = world
    model = MarkovTransitionModel(7, by=("asset_class", "is_final"))
    model.fit(panel, loans)
    rows = scoring_rows(trajectories)
    by_rows = MarkovTransitionModel(7, by=("asset_class", "is_final"))
    by_rows.fit_moves(rows.moves)
    first = rows.take(rows.moves["age_months"].to_numpy() == 1)
    assert model.counts.sum() == by_rows.counts.sum() - len(first)


def test_one_model_scores_alone(world) -> None:
    training, test, _ = split(world[0])
    model = standard_challengers()[1]
    model.fit(training)
    found = score(model, test)
    assert found.n == len(test)
    assert found.value > 0
    assert found.se < 0.05


def test_what_does_not_fit_is_refused(world) -> None:
    training, test, _ = split(world[0])
    with pytest.raises(DataError, match="do not fit the rows"):
        scoring_table(test, training=training, models={"short": np.full((3, 7), 1 / 7)})
    with pytest.raises(ModelError, match="fit comes first"):
        MultinomialLogistic().probabilities(test)


def test_a_state_that_training_never_left_is_answered_evenly(world) -> None:
    """A young pool has no 90dpd months to learn from; the rivals still answer."""
    rows, _, _ = split(world[0])
    early = rows.take(rows.from_state < LoanState.dpd90)
    model = MultinomialLogistic(LogisticConfig(ridges=(100.0,), steps=2))
    model.fit(early)
    p = model.probabilities(rows)
    unseen = rows.from_state == LoanState.dpd90
    assert unseen.any()
    assert np.allclose(p[unseen], 1 / 7)
    assert np.allclose(p.sum(axis=1), 1.0)
