"""Statuses, borrowers, records and breaks of the payment cascade: worked examples and identities."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index
from pc_pipeline.loans.borrower_features import FEATURE_NAMES, NEUTRAL, borrower_features, raw_features
from pc_pipeline.loans.payment_macro import tilted_matrices
from pc_pipeline.loans.payment_records import (
    RECORD_COLUMNS,
    days_past_due,
    payment_dates,
    payment_records,
    write_records,
)
from pc_pipeline.loans.payment_status import (
    DEFAULT,
    FALLBACK_MATRIX,
    decode_row,
    encode_sequences,
    matrix_array,
    matrix_names,
    possible_moves,
    status_of_state,
)
from pc_pipeline.loans.status_breaks import find_breaks, learnable
from pc_pipeline.loans.status_law import known_histories
from pc_pipeline.schemas.units import MACRO_SERIES
from pc_pipeline.simulation.payment_chain import sample_chain


def records(
    statuses: list[str], principal: float = 1200.0, rate: float = 0.12, term: int = 12
) -> pl.DataFrame:
    codes = encode_sequences([statuses])
    one = np.array([1.0])
    return payment_records(
        codes, one * principal, one * rate, np.array([term]), date(2024, 1, 31), ["L1"], ["B1"]
    )


# ---- statuses --------------------------------------------------------------------------------


def test_fallback_rows_sum_to_one_and_terminal_statuses_absorb() -> None:
    rows = matrix_array(FALLBACK_MATRIX)
    assert np.abs(rows.sum(axis=1) - 1.0).max() < 1e-12
    assert (np.diag(rows)[DEFAULT:] == 1.0).all()
    assert not (rows[~possible_moves()[:8]] > 0).any()
    assert matrix_names(rows)["30_days"] == FALLBACK_MATRIX["30_days"]


def test_sequences_survive_encoding() -> None:
    lists = [["on_time", "grace_period", "30_days"], ["on_time", "prepaid"]]
    codes = encode_sequences(lists)
    assert codes.tolist() == [[0, 1, 2], [0, 7, -1]]
    assert [decode_row(row) for row in codes] == lists


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ([["on_time", "late"]], "not a payment status"),
        ([[]], "empty"),
        ([["default", "on_time"]], "after a terminal status"),
    ],
)
def test_bad_sequences_are_refused(lists: list[list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        encode_sequences(lists)


def test_performing_within_thirty_days_is_the_grace_period() -> None:
    states, days = np.array([0, 0, 1, 4, 5, 6, -1]), np.array([0, 29, 30, 120, 0, 0, 0])
    assert status_of_state(states, days).tolist() == [0, 1, 2, 5, 7, 6, -1]


# ---- borrowers -------------------------------------------------------------------------------


def test_features_are_normalised_as_documented() -> None:
    borrower = {
        "credit_score": 575, "dti": 0.4, "income": np.e**3, "principal": np.e**6, "term_months": 36,
        "interest_rate": 0.07, "risk_grade": "C", "employment_months": 240, "delinquencies_2y": 5,
        "bankruptcies": 3,
    }  # fmt: skip
    expected = [0.5, 0.4, 0.2, 0.4, 0.1, 0.2, 0.5, 1.0, 0.5, 1.0]
    assert borrower_features(borrower)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_missing_features_are_neutral_in_dicts_and_frames() -> None:
    assert raw_features([{}])[0].tolist() == [NEUTRAL[name] for name in FEATURE_NAMES]
    frame = pl.DataFrame({"credit_score": [700, None], "risk_grade": ["a", "E"]})
    assert raw_features(frame)[:, [0, 6]].tolist() == [[700, 0], [680, 4]]
    assert raw_features(frame.to_pandas())[:, [0, 6]].tolist() == [[700, 0], [680, 4]]


@pytest.mark.parametrize(
    "bad",
    [
        {"credit_score": 299}, {"dti": 1.2}, {"income": 0}, {"risk_grade": "F"}, {"risk_grade": 2},
        {"term_months": True}, {"interest_rate": "12%"}, {"principal": float("inf")},
    ],
)  # fmt: skip
def test_values_out_of_range_raise(bad: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(bad))):
        raw_features([{}, bad])


# ---- records ---------------------------------------------------------------------------------


def test_a_missed_month_a_cure_and_a_payoff_by_hand() -> None:
    """1,200 at 12 % over 12 months: level payment 106.62, first interest 12.00."""
    table = records(["on_time", "30_days", "on_time", "prepaid"])
    assert table.columns == list(RECORD_COLUMNS)
    paid, left = table["payment_amount"].to_list(), table["principal_remaining"].to_list()
    assert paid[0] == 106.62
    assert left[0] == 1105.38
    assert (paid[1], left[1]) == (0.0, 1105.38)
    assert paid[2] == pytest.approx(2 * 106.62, abs=0.011)
    assert paid[3] == pytest.approx(left[2] * 1.01, abs=0.011)
    assert left[3] == 0.0
    assert table["days_past_due"].to_list() == [0, 30, 0, 0]
    assert table["payment_date"].to_list() == [
        date(2024, 1, 31), date(2024, 2, 29), date(2024, 3, 31), date(2024, 4, 30),
    ]  # fmt: skip


def test_a_default_pays_nothing_and_leaves_its_balance() -> None:
    table = records(["on_time", "30_days", "60_days", "90_days", "90_days", "default"])
    assert table["payment_amount"].to_list()[1:] == [0.0] * 5
    assert table["principal_remaining"].n_unique() == 1
    assert table["days_past_due"].to_list() == [0, 30, 60, 90, 120, 150]


def test_days_past_due_stay_after_default_and_fall_after_a_cure() -> None:
    codes = np.array([[4, 4, 5, 5], [2, 3, 2, 0]])
    assert days_past_due(codes).tolist() == [[90, 120, 150, 150], [30, 60, 30, 0]]


chains = st.integers(0, 2**31).map(
    lambda seed: sample_chain(matrix_array(FALLBACK_MATRIX), np.zeros(40, int), 30, seed)
)


@settings(max_examples=20, deadline=None)
@given(codes=chains, rate=st.floats(0, 0.35), term=st.integers(6, 40))
def test_records_balance_whatever_happens(codes: np.ndarray, rate: float, term: int) -> None:
    n, months = codes.shape
    table = payment_records(
        codes, np.full(n, 9999.99), np.full(n, rate), np.full(n, term), "2024-01-31", ["L"] * n, ["B"] * n
    )
    paid = np.rint(100 * table["payment_amount"].to_numpy().reshape(n, months))
    left = np.rint(100 * table["principal_remaining"].to_numpy().reshape(n, months))
    before = np.concatenate([np.full((n, 1), 999_999.0), left[:, :-1]], axis=1)
    interest = paid - (before - left)
    assert (left >= 0).all()
    assert (before - left >= 0).all()
    assert (interest >= 0).all()
    assert (interest <= np.ceil(before * rate / 12 * months) + months).all()
    missed = (codes >= 2) & (codes <= 5) & (codes >= np.concatenate([codes[:, :1], codes[:, :-1]], axis=1))
    worse = missed & (codes > np.concatenate([np.zeros((n, 1)), codes[:, :-1]], axis=1))
    assert (paid[worse & (codes != 1)] == 0).all()
    assert (left[(codes == 6) | (codes == 7)] == 0).all()


def test_month_ends_are_kept() -> None:
    assert [d.day for d in payment_dates("2023-10-31", 6)] == [31, 30, 31, 31, 29, 31]
    with pytest.raises(DataError, match="not a date"):
        payment_dates("31.10.2023", 3)


def test_files_are_whole_and_no_spreadsheet_runs_them(tmp_path: Path) -> None:
    codes = encode_sequences([["on_time", "prepaid"]])
    one = np.array([1000.0])
    table = payment_records(codes, one, one * 0, np.array([12]), "2024-01-31", ["=1+1"], ["@x"])
    assert write_records(tmp_path / "r.csv", [table, table]) == 4
    text = (tmp_path / "r.csv").read_text().splitlines()
    assert text[0] == ",".join(RECORD_COLUMNS)
    assert text[1].startswith("'=1+1,'@x,1,on_time,")
    write_records(tmp_path / "r.parquet", [table])
    assert pl.read_parquet(tmp_path / "r.parquet").equals(table)
    with pytest.raises(DataError, match="unknown file type"):
        write_records(tmp_path / "r.xlsx", [table])

    def broken() -> object:
        yield table
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        write_records(tmp_path / "half.csv", broken())  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.parquet"]


# ---- the chain, macro, breaks, the known law -------------------------------------------------


def test_the_chain_draws_the_matrix() -> None:
    codes = sample_chain(matrix_array(FALLBACK_MATRIX), np.zeros(40_000, int), 2, seed=5)
    share = np.bincount(codes[:, 1], minlength=8) / len(codes)
    expected = matrix_array(FALLBACK_MATRIX)[0]
    assert (np.abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / len(codes))).all()


def test_macro_at_its_baseline_leaves_the_matrix_alone_and_a_recession_worsens_it() -> None:
    rows = matrix_array(FALLBACK_MATRIX)
    mean = np.array([series.mean for series in MACRO_SERIES])
    assert np.abs(tilted_matrices(rows, mean[None])[0] - rows).max() < 1e-6
    bad = mean.copy()
    bad[[0, 1, 6]] = -0.05, 0.12, 1200.0
    tilted = tilted_matrices(rows, bad[None])[0]
    assert tilted[0, 2] > 1.5 * rows[0, 2]
    assert tilted[4, 5] > rows[4, 5]
    assert (tilted[rows == 0] == 0).all()


def test_a_status_that_changes_its_meaning_is_found_and_not_learned() -> None:
    codes = sample_chain(matrix_array(FALLBACK_MATRIX), np.zeros(4000, int), 6, seed=1)
    codes[codes == 2] = 0
    months = np.full(4000, month_index(date(2005, 4, 1)))
    assert find_breaks(codes, months) == []
    codes[:500, 5] = np.where(codes[:500, 5] < 5, 2, codes[:500, 5])
    (found,) = find_breaks(codes, months)
    assert "2005-09: 30_days goes from 0" in str(found)
    mask = learnable(codes, months, [found])
    assert mask[:, :5].all()
    assert not mask[:, 5].any()


def test_the_known_law_is_what_it_samples() -> None:
    known = known_histories(20_000, 12, seed=3)
    happened = known.codes[:, 11]
    p = known.truth[:, 11]
    alive = p.sum(axis=1) > 0
    for status in range(8):
        gap = (happened[alive] == status).mean() - p[alive, status].mean()
        assert abs(gap) <= 4.5 * np.sqrt(p[alive, status].mean() / alive.sum()) + 1e-6
