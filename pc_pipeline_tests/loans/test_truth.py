"""The law: an independent softmax, the stated ratios, and the panel it made."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.loans.asset_classes import asset_classes, base_moves
from pc_pipeline.loans.effects import loan_effects
from pc_pipeline.loans.identities import maturity_breaches, panel_breaches
from pc_pipeline.loans.macro_index import MISS, macro_index, pooled_moments
from pc_pipeline.loans.oracle import oracle_log_loss, oracle_rows
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.truth import LawConfig, TrueLaw, kind_strengths, true_transition_probabilities
from pc_pipeline.schemas.states import contract_moves
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES

from .conftest import make_path


@pytest.fixture(scope="module")
def rows(book: LoanBook, macro: pl.DataFrame):
    return oracle_rows(book.panel, book.loans, macro, world_seed=11)


def test_rows_are_probabilities_of_contract_moves(generator, book: LoanBook):
    loans = book.loans.head(40)
    law = generator.true_transition_probabilities(loans, make_path("adverse", 0))
    assert law.shape == (40, 60, 7, 7)
    np.testing.assert_allclose(law.sum(axis=-1), 1.0, atol=1e-12)
    assert (law[:, :, ~contract_moves()] == 0.0).all()
    assert (law[:, :, 4:] == np.eye(7)[4:]).all()


def test_a_miss_row_written_out_by_hand(book: LoanBook):
    """Performing row of one fixed-rate loan in one December, from the formulas of the docs."""
    loan = book.loans.filter(pl.col("rate_type") == "fixed", pl.col("term_months") > 30).head(1)
    path = make_path("adverse", 1)
    december = 23  # 2025-12
    cls = loan["asset_class"][0]
    index = macro_index(path.select(MACRO_NAMES).to_numpy()[None])[0, december, ASSET_CLASSES.index(cls)]
    own = loan_effects(loan, 11)[0] @ np.sqrt([0.25, 0.10, 0.05])
    strength = kind_strengths(LawConfig())
    table = asset_classes()[cls].values
    low, high = asset_classes()[cls].range("rate")
    miss, prepay = table["p_performing_to_30dpd"], table["p_performing_to_prepaid"]
    logit_miss = np.log(miss) + 0.8 * (np.sqrt(0.6) * index[MISS] + own) + 0.30 + np.log(3.0)
    logit_prepay = np.log(prepay) + strength[3] * (np.sqrt(0.6) * index[3] - own)
    logit_prepay += 8.0 * (loan["interest_rate"][0] - (low + high) / 2)
    odds = np.exp([np.log(1 - miss - prepay), logit_miss, logit_prepay])
    law = true_transition_probabilities(loan, path, world_seed=11, months_since_miss=1)[0, december, 0]
    np.testing.assert_allclose(law[[0, 1, 5]], odds / odds.sum(), rtol=1e-12)


def test_the_base_table_is_the_assumption_file():
    moves = base_moves()[ASSET_CLASSES.index("consumer")]
    np.testing.assert_allclose(moves.sum(axis=1), 1.0, atol=1e-15)
    assert moves[0, 1] == 0.025
    assert moves[1, 2] == 0.35
    assert moves[3, 4] == 0.55
    assert moves[2, :2].sum() == pytest.approx(0.15)  # cures, to any better bucket


def test_a_recent_miss_triples_the_odds_and_fades(book: LoanBook):
    loan = book.loans.filter(pl.col("term_months") > 60).head(1)
    path = make_path("baseline", 0)

    def miss_odds(since: int) -> float:
        row = true_transition_probabilities(loan, path, world_seed=11, months_since_miss=since)[0, 30, 0]
        return float(row[1] / row[0])

    never = miss_odds(-1)
    ratios = [miss_odds(since) / never for since in range(1, 15)]
    assert ratios[0] == pytest.approx(3.0)
    assert (np.diff(ratios[:12]) < 0).all()
    assert ratios[11] > 1.0
    assert ratios[12] == ratios[13] == pytest.approx(1.0)


def test_only_the_macro_of_the_arrival_month_and_before_matters(book: LoanBook):
    path = make_path("baseline", 0)
    late = pl.int_range(pl.len()) >= 30
    bent = path.with_columns(
        unemployment_rate=pl.when(late).then(0.12).otherwise(pl.col("unemployment_rate"))
    )
    loans = book.loans.head(20)
    before, after = (true_transition_probabilities(loans, p, world_seed=11) for p in (path, bent))
    assert (before[:, :30] == after[:, :30]).all()
    assert (before[:, 30:, 0, 1] != after[:, 30:, 0, 1]).any()


def test_every_series_moves_every_class():
    mean = pooled_moments().mean
    base = macro_index(mean[None, None])
    np.testing.assert_allclose(base, 0.0, atol=1e-12)
    for place in range(len(MACRO_NAMES)):
        shocked = mean.copy()
        shocked[place] += pooled_moments().sd[place]
        assert (macro_index(shocked[None, None]) != 0.0).all()


def test_oracle_beats_any_table_fitted_to_the_same_panel(rows, book: LoanBook):
    cell = rows.from_state * 2 + rows.is_final
    counts = np.zeros((8, 7))
    np.add.at(counts, (cell, rows.to_state), 1.0)
    fitted = counts / counts.sum(axis=1, keepdims=True)
    table_loss = -np.log(fitted[cell, rows.to_state]).mean()
    assert rows.log_loss < table_loss
    assert rows.to_state.size == book.panel.height


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_frequencies_agree_with_the_law_within_four_standard_errors(seed: int, macro: pl.DataFrame):
    """Indicators less probabilities, summed over any cell known before the move, have mean zero."""
    world = LoanTapeGenerator(n_loans=3000, random_seed=seed).generate_scenario(macro)
    assert panel_breaches(world.panel).is_empty()
    assert maturity_breaches(world.panel, world.loans).is_empty()
    rows = oracle_rows(world.panel, world.loans, macro, world_seed=seed)
    compared = 0
    late_before = np.digitize(rows.months_since_miss, [0, 1, 2, 4, 8, 13])
    month = rows.keys["reporting_month"].dt.month().to_numpy()
    scenario = (rows.keys["scenario"] == "adverse").to_numpy().astype(int)
    for group in (np.zeros_like(month), late_before, month, scenario, rows.is_final.astype(int)):
        for value in np.unique(group):
            for state in range(4):
                chosen = (group == value) & (rows.from_state == state)
                for to in range(7):
                    p = rows.probabilities[chosen, to]
                    variance = (p * (1 - p)).sum()
                    if variance > 5.0:  # else the normal law is no guide
                        compared += 1
                        gap = (rows.to_state[chosen] == to).sum() - p.sum()
                        assert abs(gap) < 4.0 * np.sqrt(variance), (value, state, to, gap / np.sqrt(variance))
    assert compared > 100


def test_truth_of_a_wrong_world_scores_worse(rows, book: LoanBook, macro: pl.DataFrame):
    assert oracle_log_loss(book.panel, book.loans, macro, world_seed=99) > rows.log_loss + 1e-3


def test_refusals():
    with pytest.raises(ConfigError, match="sum to 1"):
        LawConfig(macro_share=0.7)
    real = LoanTapeGenerator(n_loans=1).generate_static_features().with_columns(loan_id=pl.lit("A"))
    with pytest.raises(DataError, match="known truth"):
        true_transition_probabilities(real, make_path("baseline", 0))
    with pytest.raises(DataError, match="start month"):
        true_transition_probabilities(real, np.zeros((3, 9)))


def test_law_needs_months_inside_the_paths(book: LoanBook, macro: pl.DataFrame):
    short = macro.filter(pl.col("month") < date(2026, 1, 1))
    with pytest.raises(DataError, match="outside the macro paths"):
        oracle_rows(book.panel, book.loans, short, world_seed=11)


def test_scores_tell_the_hidden_effects(book: LoanBook):
    own = loan_effects(book.loans, 11) @ np.sqrt([0.25, 0.10, 0.05])
    score = book.loans["internal_score_origination"].to_numpy()
    assert np.corrcoef(own, score)[0, 1] < -0.80
    assert isinstance(TrueLaw().config, LawConfig)
