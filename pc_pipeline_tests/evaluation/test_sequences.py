"""Validation of generated histories: equal laws pass, broken ones fail where they are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.sequence_models import HistoryRows, log_loss_table, markov_rows
from pc_pipeline.evaluation.sequence_tests import copy_rates, neighbour_distance, survival_curve
from pc_pipeline.evaluation.sequences import SequenceConfig, SequenceValidation, validate_sequences
from pc_pipeline.loans.payment_status import FALLBACK_MATRIX, matrix_array, trim_after_end
from pc_pipeline.loans.status_law import known_histories
from pc_pipeline.reports.cascade_page import write_cascade_page
from pc_pipeline.simulation.payment_chain import sample_chain

CONFIG = SequenceConfig(most_classified=800)


@pytest.fixture(scope="module")
def histories() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    known = [known_histories(4000, 18, seed=seed) for seed in (1, 2)]
    return known[0].codes, known[1].codes, known[0].features, known[1].features


@pytest.fixture(scope="module")
def same_law(histories: tuple[np.ndarray, ...]) -> SequenceValidation:
    a, b, fa, fb = histories
    return validate_sequences(a, b, real_features=fa, synthetic_features=fb, config=CONFIG)


def test_two_samples_of_one_law_pass_every_mark(same_law: SequenceValidation) -> None:
    assert same_law.passed, same_law.table.filter(~same_law.table["passed"])
    assert same_law["transition_error"] < 0.01
    assert same_law["default_rate_match"] > 0.7
    assert (same_law.table["low"] <= same_law.table["high"]).all()


def test_a_first_order_copy_loses_the_memory(histories: tuple[np.ndarray, ...]) -> None:
    real = histories[0]
    rows = HistoryRows(trim_after_end(real), histories[2])
    matrix = np.eye(8)
    for status in range(5):
        of = rows.lags[:, 0] == status
        matrix[status] = np.bincount(rows.happened[of], minlength=8) / of.sum()
    chain = sample_chain(matrix, real[:, 0], real.shape[1], seed=4)
    result = validate_sequences(real, chain, config=CONFIG)
    failed = result.table.filter(~result.table["passed"])["figure"].to_list()
    assert "memory: worst difference" in failed


def test_another_matrix_fails_on_transitions(histories: tuple[np.ndarray, ...]) -> None:
    rows = matrix_array(FALLBACK_MATRIX)
    rows[0, 2] += 0.1
    rows[0, 0] -= 0.1
    result = validate_sequences(histories[0], sample_chain(rows, np.zeros(4000, int), 18, 3), config=CONFIG)
    assert result["transition_error"] > 0.01
    assert not result.passed


def test_the_seed_figures_by_hand() -> None:
    real = [
        ["on_time", "default"],
        ["on_time", "on_time"],
        ["on_time", "on_time"],
        ["on_time", "on_time"],
    ] * 5
    made = [
        ["on_time", "default"],
        ["on_time", "default"],
        ["on_time", "on_time"],
        ["on_time", "on_time"],
    ] * 5
    result = validate_sequences(real, made)
    assert result["default_rate_match"] == pytest.approx(1 - 0.25 / 0.25)
    assert result["transition_error"] == pytest.approx(2 * 0.25 / 8)
    assert result["avg_length_error"] == 0.0


def test_survival_by_hand() -> None:
    codes = np.array([[0, 5, -1], [0, 0, 0], [0, 7, -1], [0, 0, 5]])
    assert survival_curve(codes).tolist() == pytest.approx([1.0, 0.75, 0.375])


def test_learning_by_heart_is_found(histories: tuple[np.ndarray, ...]) -> None:
    real = np.where((histories[0] == 1) | (histories[0] == 2), histories[0], histories[0])[:2000]
    late = real[(real > 0).sum(axis=1) > 3]
    stolen = np.concatenate([late[: len(late) // 2]] * 2)
    assert not copy_rates(late, stolen)[5]
    assert not neighbour_distance(late, stolen)[5]


def test_empty_samples_are_refused() -> None:
    with pytest.raises(DataError):
        validate_sequences([["on_time"]], [["on_time"], ["on_time"]])


def test_higher_order_chains_use_what_first_order_ones_miss(histories: tuple[np.ndarray, ...]) -> None:
    rows = [
        HistoryRows(trim_after_end(codes), f) for codes, f in zip(histories[:2], histories[2:], strict=True)
    ]
    answers = {f"Markov {order}": markov_rows(order, rows[0], rows[1]) for order in (1, 3)}
    table = log_loss_table(answers, rows[1], "Markov 1")
    assert table["log_loss"][1] < table["log_loss"][0]


def test_the_page_says_what_failed(same_law: SequenceValidation, tmp_path: Path) -> None:
    write_cascade_page(
        tmp_path / "page.html", same_law.table, same_law.cells, same_law.survival, ["LSTM: <test>"]
    )
    page = (tmp_path / "page.html").read_text()
    assert "two-sample AUC" in page
    assert "&lt;test&gt;" in page
    assert page.count("<svg") == 1 + same_law.cells.filter(same_law.cells["judged"])["family"].n_unique()
