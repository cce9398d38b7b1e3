"""The baseline chain against counts a person can check."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest
from scipy.stats import beta

from pc_pipeline.core.errors import ConfigError, DataError, ModelError
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.models.markov import MarkovTransitionModel, consecutive_moves


def panel(histories: dict[str, list[int | None]]) -> pl.DataFrame:
    """One loan per key, months from January 2024; None leaves the month out."""
    rows = [
        {"loan_id": loan, "reporting_month": date(2024, 1 + month, 1), "loan_state": state}
        for loan, states in histories.items()
        for month, state in enumerate(states)
        if state is not None
    ]
    frame = pl.DataFrame(rows)
    cls = (
        pl.when(pl.col("loan_id").str.starts_with("A"))
        .then(pl.lit("corporate"))
        .otherwise(pl.lit("consumer"))
    )
    return frame.with_columns(asset_class=cls, vintage_month=pl.lit(date(2023, 12, 1)))


HISTORIES = {"A1": [0, 0, 1, 0], "A2": [0, None, 0, 5], "B1": [0, 1, 2, 3], "B2": [3, 4]}


def test_counts_by_hand_and_gaps_make_no_move() -> None:
    model = MarkovTransitionModel(n_states=7)
    model.fit(panel(HISTORIES).to_pandas())
    expected = np.zeros((7, 7))
    for origin, target in [(0, 0), (0, 1), (1, 0), (0, 5), (0, 1), (1, 2), (2, 3), (3, 4)]:
        expected[origin, target] += 1
    assert np.array_equal(model.counts, expected)
    assert model.transition_matrix[0].tolist() == [0.25, 0.5, 0, 0, 0, 0.25, 0]
    assert model.transition_matrix[6].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_rows_by_class_shrink_towards_the_pool() -> None:
    model = MarkovTransitionModel(7, by=("asset_class",), shrinkage=1.0)
    model.fit(panel(HISTORIES))
    # consumer, performing: one move, to 30dpd; pooled row gives it 1/2.
    assert model.matrices[1, 0, 1] == pytest.approx((1 + 0.5) / 2)
    assert np.allclose(model.matrices.sum(-1), 1)


def test_recency_counts_months_from_the_last_miss_to_the_month_moved_from() -> None:
    moves = consecutive_moves(panel({"A1": [0, 1, 0, 0, 0]}))
    assert moves["since_miss"].to_list() == [-1, 0, 1, 2]


def test_jeffreys_intervals() -> None:
    model = MarkovTransitionModel(7)
    model.fit(panel(HISTORIES))
    lower, upper = model.confidence_intervals(0.9)
    assert lower[0, 1] == pytest.approx(beta.ppf(0.05, 2.5, 2.5))
    assert upper[0, 1] == pytest.approx(beta.ppf(0.95, 2.5, 2.5))
    assert lower[0, 6] == 0.0
    assert upper[3, 4] == 1.0
    assert (lower[6, 6], upper[6, 0]) == (0.0, 1.0)


def test_simulated_shares_follow_the_powers_of_the_matrix() -> None:
    model = MarkovTransitionModel(7)
    model.fit(panel(HISTORIES))
    n, steps = 20_000, 3
    drawn = model.simulate(np.zeros(n, dtype=int), steps, seed=4)
    assert drawn.shape == (n, steps)
    expected = np.linalg.matrix_power(model.transition_matrix, steps)[0]
    share = np.bincount(drawn[:, -1], minlength=7) / n
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)).all()
    assert np.array_equal(drawn, model.simulate(np.zeros(n, dtype=int), steps, seed=4))


def test_a_chain_by_class_needs_the_class() -> None:
    model = MarkovTransitionModel(7, by=("asset_class", "since_miss"))
    model.fit(panel(HISTORIES))
    with pytest.raises(ModelError, match="asset_class"):
        model.simulate(np.zeros(3, dtype=int), 2)
    assert model.simulate(np.zeros(3, dtype=int), 2, asset_class=["consumer"] * 3).shape == (3, 2)


def test_saved_and_loaded_it_says_the_same(tmp_path) -> None:
    model = MarkovTransitionModel(7, by=("asset_class",))
    model.fit(panel(HISTORIES))
    save_model(tmp_path, model)
    again, card = load_model(tmp_path)
    assert np.array_equal(again.matrices, model.matrices)
    assert card["config"]["by"] == ["asset_class"]


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(DataError, match="consecutive"):
        MarkovTransitionModel().fit(panel({"A1": [0]}))
    with pytest.raises(DataError, match="loan_state"):
        MarkovTransitionModel().fit(panel(HISTORIES).drop("loan_state"))
    with pytest.raises(DataError, match="range"):
        MarkovTransitionModel().fit(panel({"A1": [0, 9]}))
    with pytest.raises(ConfigError, match="grouping"):
        MarkovTransitionModel(by=("colour",))
