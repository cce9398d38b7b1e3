"""Trajectories, features and the pool."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index
from pc_pipeline.loans.features import (
    FeatureScaler,
    calendar_features,
    cohort_features,
    cohort_table,
    loan_features,
)
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.schemas.states import PADDING
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import COHORT_FEATURES, LOAN_FEATURES, MACRO_NAMES


@pytest.fixture(scope="module")
def trajectories(book: LoanBook, macro: pl.DataFrame) -> Trajectories:
    return prepare_trajectories(book.panel, book.loans, macro)


def test_one_trajectory_per_loan_and_path_and_every_row_in_its_place(trajectories, book: LoanBook):
    assert len(trajectories) == 2 * book.loans.height
    assert trajectories.mask.sum() == book.panel.height
    assert (trajectories.initial_state == 0).all()
    assert ((trajectories.states == PADDING) == ~trajectories.mask).all()
    row = 1234
    key = trajectories.keys.row(row, named=True)
    own = book.panel.filter(pl.col("loan_id") == key["loan_id"], pl.col("scenario") == key["scenario"]).sort(
        "reporting_month"
    )
    n = own.height
    assert trajectories.states[row, :n].tolist() == own["loan_state"].to_list()
    assert trajectories.balances[row, :n].tolist() == own["outstanding_balance"].to_list()
    assert trajectories.payments[row, :n].tolist() == own["actual_payment"].to_list()
    assert trajectories.start_month[row] == month_index(own["reporting_month"][0])
    assert trajectories.initial_balance[row] == pytest.approx(own["original_balance"][0])


def test_nothing_follows_a_terminal_state(trajectories):
    ended = np.cumsum(np.isin(trajectories.states, [4, 5, 6]), axis=1)
    after = np.zeros_like(ended, dtype=bool)
    after[:, 1:] = ended[:, :-1] > 0
    assert not trajectories.mask[after].any()


def test_macro_calendar_and_cohort_are_those_of_the_row(trajectories, book: LoanBook, macro: pl.DataFrame):
    row, column = 777, 5
    key = trajectories.keys.row(row, named=True)
    month = trajectories.months[row, column]
    when = date(month // 12, month % 12 + 1, 1)
    path = macro.filter(
        pl.col("scenario") == key["scenario"],
        pl.col("macro_path_id") == key["macro_path_id"],
        pl.col("month") == when,
    )
    np.testing.assert_array_equal(trajectories.macro_values()[row, column], path.select(MACRO_NAMES).row(0))
    assert trajectories.calendar()[row, column, 0] == when.month - 1
    loan = book.loans.filter(pl.col("loan_id") == key["loan_id"]).row(0, named=True)
    cohort = trajectories.cohorts.row(int(trajectories.cohort_row[row]), named=True)
    assert (cohort["asset_class"], cohort["vintage_month"]) == (loan["asset_class"], loan["vintage_month"])


def test_is_final_and_recoveries(trajectories, book: LoanBook):
    assert (trajectories.states[trajectories.is_final] != 0).all()
    matured = trajectories.states == 6
    assert trajectories.is_final[matured].all()
    defaulted = (trajectories.states == 4).any(axis=1)
    assert (np.isfinite(trajectories.recovery_rate) == defaulted).all()
    performing = (trajectories.states == 0) & ~trajectories.is_final
    assert trajectories.payment_ratio[performing].min() >= 1.0 - 1e-4


def test_a_gap_starts_a_new_trajectory(book: LoanBook):
    loan = (
        book.panel.filter(pl.col("scenario") == "baseline")
        .group_by("loan_id")
        .len()
        .sort("len")["loan_id"][-1]
    )
    own = book.panel.filter(pl.col("scenario") == "baseline", pl.col("loan_id") == loan).sort(
        "reporting_month"
    )
    torn = own.filter(pl.int_range(pl.len()) != 10)
    got = prepare_trajectories(torn, book.loans)
    assert len(got) == 2
    assert got.lengths.tolist() == [10, own.height - 12]
    assert got.initial_state[1] == own["loan_state"][11]
    assert got.initial_balance[1] == pytest.approx(own["outstanding_balance"][11])
    assert (
        got.features[1, LOAN_FEATURES.index("age_months")]
        > got.features[0, LOAN_FEATURES.index("age_months")]
    )


def test_pandas_gives_the_same(book: LoanBook):
    panel, loans = book.panel.head(3000), book.loans
    ours, theirs = (
        prepare_trajectories(panel, loans),
        prepare_trajectories(panel.to_pandas(), loans.to_pandas()),
    )
    np.testing.assert_array_equal(ours.states, theirs.states)
    np.testing.assert_array_equal(ours.features, theirs.features)


def test_refusals(book: LoanBook, macro: pl.DataFrame):
    with pytest.raises(DataError, match="macro paths are missing"):
        prepare_trajectories(book.panel, book.loans, macro.filter(pl.col("scenario") == "baseline"))
    with pytest.raises(DataError, match="no maturity"):
        prepare_trajectories(book.panel, book.loans.head(3))
    with pytest.raises(DataError, match="without macro"):
        prepare_trajectories(book.panel.head(100), book.loans).macro_values()


def test_features_are_scaled_flagged_and_repeatable(book: LoanBook):
    values, scaler, missing = loan_features(book.loans)
    assert values.shape == missing.shape == (book.loans.height, 24)
    assert values.dtype == np.float32
    ltv = LOAN_FEATURES.index("ltv")
    assert missing[:, ltv].tolist() == book.loans["ltv_origination"].is_null().to_list()
    assert (values[missing] == 0.0).all()
    known = values[~missing[:, ltv], ltv]
    assert abs(known.mean()) < 1e-5
    assert known.std() == pytest.approx(1.0, abs=1e-4)
    again = FeatureScaler.from_json(scaler.to_json())
    np.testing.assert_array_equal(loan_features(book.loans.head(7), again).values, values[:7])
    with pytest.raises(DataError, match="not a feature scaler"):
        FeatureScaler.from_json("{}")


def test_cohorts_by_hand():
    loans = pl.DataFrame(
        {
            "asset_class": ["corporate", "corporate"], "vintage_month": [date(2024, 3, 1)] * 2,
            "original_balance": [100.0, 300.0], "interest_rate": [0.04, 0.06], "ltv_origination": [0.5, None],
            "dti_dscr_origination": [1.5, 2.5], "internal_score_origination": [60.0, 80.0],
            "rate_type": ["fixed", "floating"], "amortization_type": ["annuity", "bullet"],
        }
    )  # fmt: skip
    row = cohort_table(loans, as_of=date(2024, 6, 1)).row(0, named=True)
    assert [row[name] for name in COHORT_FEATURES] == pytest.approx(
        [1, 0, 0, 0, 3, np.log(200.0), 0.05, 0.5, 2.0, 70.0, 0.5, 0.5]
    )
    scaled, _ = cohort_features(cohort_table(loans))
    assert scaled.shape == (1, 12)


def test_calendar_features_by_hand():
    # 31 Jan 2024 was a Wednesday, 29 Feb 2024 a Thursday, 30 Jun 2024 a Sunday.
    got = calendar_features([date(2024, 1, 1), date(2024, 2, 1), date(2024, 6, 1)])
    assert got.tolist() == [[0, 2], [1, 3], [5, 6]]


def test_fresh_pool_is_the_tape(book: LoanBook):
    pool = pool_snapshot(book.loans)
    validate("pool", pool)
    assert pool["current_balance"].equals(book.loans["original_balance"].alias("current_balance"))
    assert pool["remaining_term_months"].equals(book.loans["term_months"].alias("remaining_term_months"))


def test_seasoned_pool_holds_the_living(book: LoanBook):
    baseline = book.panel.filter(pl.col("scenario") == "baseline")
    pool = pool_snapshot(book.loans, baseline, as_of=date(2024, 8, 1))
    validate("pool", pool)
    here = baseline.filter(pl.col("reporting_month") == date(2024, 8, 1), pl.col("loan_state") <= 3)
    fresh = book.loans.filter(pl.col("vintage_month") == date(2024, 8, 1))
    assert sorted(pool["loan_id"]) == sorted([*here["loan_id"], *fresh["loan_id"]])
    joined = pool.join(here, on="loan_id", suffix="_panel")
    assert (joined["current_balance"] == joined["outstanding_balance"]).all()
    late = pool.filter(pl.col("loan_state") > 0)
    assert (late["months_since_miss"] == 0).all()
    assert (pool["age_months"] + pool["remaining_term_months"] >= pool["term_months"]).all()


def test_pool_refuses_two_lives_of_one_loan(book: LoanBook):
    with pytest.raises(DataError, match="one history per loan"):
        pool_snapshot(book.loans, book.panel)
    with pytest.raises(DataError, match="no loan is alive"):
        pool_snapshot(book.loans, book.panel.filter(pl.col("scenario") == "baseline"), as_of=date(2050, 1, 1))
