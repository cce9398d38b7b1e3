"""Tape and panel: contracts, identities, reproducibility, and agreement with the law that made them."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.identities import (
    balance_breaches,
    cash_breaches,
    loss_breaches,
    maturity_breaches,
    move_breaches,
    panel_breaches,
    recovery_breaches,
    terminal_breaches,
)
from pc_pipeline.loans.panel_generator import LoanBook, generate_book
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.schemas.tables import columns, validate

from .conftest import START, make_path


def test_tables_keep_their_contract(book: LoanBook):
    validate("loan_tape", book.loans)
    validate("loan_panel", book.panel)
    validate("recoveries", book.recoveries)
    assert book.panel.columns == columns("loan_panel")
    assert book.loans.columns == columns("loan_tape")


def test_identities_hold_on_every_row(book: LoanBook):
    assert panel_breaches(book.panel).is_empty()
    assert maturity_breaches(book.panel, book.loans).is_empty()
    assert recovery_breaches(book.panel, book.recoveries).is_empty()


@pytest.mark.parametrize(
    ("column", "check"),
    [
        ("principal_paid", balance_breaches),
        ("interest_paid", cash_breaches),
        ("loss_amount", loss_breaches),
    ],
)
def test_identities_find_one_wrong_cent(book: LoanBook, column: str, check):
    bent = book.panel.head(500).with_columns(
        pl.when(pl.int_range(pl.len()) == 250).then(pl.col(column) + 0.01).otherwise(pl.col(column))
    )
    assert check(bent).height >= 1


def test_identities_find_life_after_death_and_illegal_moves(book: LoanBook):
    dead = book.panel.filter(pl.col("loan_state") >= 4).head(1)
    ghost = dead.with_columns(pl.col("reporting_month").dt.offset_by("1mo"))
    assert terminal_breaches(pl.concat([dead, ghost])).height == 1
    assert move_breaches(dead.with_columns(loan_state=pl.lit(3))).height == 1


def test_rows_run_from_the_month_after_origination_to_the_end(book: LoanBook):
    spans = book.panel.group_by("scenario", "loan_id").agg(
        pl.col("reporting_month").min().alias("first"),
        pl.col("reporting_month").max().alias("last"),
        pl.col("vintage_month").first(),
        pl.col("loan_state").last(),
    )
    assert (spans["first"] == spans["vintage_month"].dt.offset_by("1mo")).all()
    assert (spans.filter(pl.col("loan_state") < 4)["last"] == date(2028, 12, 1)).all()
    assert book.panel["loan_id"].n_unique() == book.loans.height


def test_loans_spread_over_all_paths(book: LoanBook):
    paths = book.panel.group_by("scenario", "macro_path_id").agg(pl.col("loan_id").n_unique())
    assert paths.height == 8
    assert paths["loan_id"].to_list() == [375] * 8


def test_same_seed_same_bytes_and_chunks_do_not_matter(generator, book: LoanBook, macro: pl.DataFrame):
    again = LoanTapeGenerator(n_loans=1500, random_seed=11, start_date=START).generate_scenario(macro)
    assert again.panel.equals(book.panel)
    chunk = generate_book(
        book.loans[400:500], macro, law=generator.law, seed=11, last_month=generator.start_month + 59
    )
    wanted = book.panel.filter(pl.col("loan_id").is_in(chunk.loans["loan_id"].implode()))
    assert chunk.panel.equals(wanted)
    other = LoanTapeGenerator(n_loans=1500, random_seed=12, start_date=START).generate_static_features()
    assert not other.equals(book.loans)


def test_pandas_macro_gives_the_same_panel():
    small = LoanTapeGenerator(n_loans=50, n_months=24, random_seed=3)
    path = make_path("baseline", 0, 24).drop("scenario", "macro_path_id")
    loans, panel = small.generate(path)
    _, from_pandas = small.generate(path.to_pandas())
    assert panel.equals(from_pandas)
    assert panel["scenario"].unique().to_list() == ["baseline"]
    assert loans.height == 50


def test_features_stay_in_their_class_ranges_and_scores_rank_risk(book: LoanBook):
    consumer = book.loans.filter(pl.col("asset_class") == "consumer")
    assert consumer["original_balance"].is_between(1_000, 100_000).all()
    assert consumer["interest_rate"].is_between(0.05, 0.20).all()
    assert consumer["ltv_origination"].null_count() == consumer.height
    receivables = book.loans.filter(pl.col("asset_class") == "receivables")
    assert receivables["term_months"].is_between(1, 6).all()
    assert set(receivables["amortization_type"]) == {"bullet"}
    ever_late = book.panel.group_by("loan_id").agg(
        (pl.col("loan_state").is_between(1, 4)).any().alias("late")
    )
    joined = book.loans.join(ever_late, on="loan_id")
    means = joined.group_by("late").agg(pl.col("internal_score_origination").mean()).sort("late")
    scores = means["internal_score_origination"].to_list()
    assert scores[1] < scores[0] - 3.0


def test_recoveries_arrive_later_and_within_the_class_range(book: LoanBook):
    defaults = book.panel.filter(pl.col("loan_state") == 4)
    assert defaults.height == book.recoveries.height > 50
    severity = defaults.select(
        "asset_class", severity=1 - pl.col("recovery_amount") / pl.col("charge_off_amount")
    )
    corporate = severity.filter(pl.col("asset_class") == "corporate")["severity"]
    assert corporate.is_between(0.2999, 0.6001).all()
    assert (book.recoveries["recovery_month"] > book.recoveries["default_month"]).all()


def test_refusals_say_what_is_wrong(macro: pl.DataFrame):
    with pytest.raises(ConfigError, match="counts make no portfolio"):
        LoanTapeGenerator(n_loans=0)
    with pytest.raises(ConfigError, match="weights"):
        LoanTapeGenerator(asset_class_weights={"yachts": 1.0})
    late = LoanTapeGenerator(n_loans=5, start_date="2020-01-01")
    with pytest.raises(DataError, match="begins after the first vintage"):
        late.generate_scenario(macro)
    with pytest.raises(DataError, match="each month once"):
        LoanTapeGenerator(n_loans=5).generate_scenario(macro.slice(1))


def test_weights_choose_the_classes():
    tape = LoanTapeGenerator(n_loans=200, asset_class_weights={"realestate": 2.0}).generate_static_features()
    assert set(tape["asset_class"]) == {"realestate"}
    share = (tape["amortization_type"] == "balloon").mean()
    assert abs(share - 0.30) < 4 * np.sqrt(0.3 * 0.7 / 200)
