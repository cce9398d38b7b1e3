"""Counts of moves: a hand-made panel, DuckDB against the compiled pass, pandas, gaps and duplicates."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.rng import stream
from pc_pipeline.loans import move_counts
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.transitions import count_transitions, extract_transitions, transition_table
from pc_pipeline.schemas.tables import validate


def hand_panel() -> pl.DataFrame:
    """Loan A from its first month; B starts late, has a gap; C is reported twice, alike and contradicting."""
    rows = [
        ("A", date(2024, 2, 1), 0), ("A", date(2024, 3, 1), 1), ("A", date(2024, 4, 1), 6),
        ("B", date(2024, 4, 1), 1), ("B", date(2024, 6, 1), 2), ("B", date(2024, 7, 1), 3),
        ("C", date(2024, 2, 1), 0), ("C", date(2024, 2, 1), 0), ("C", date(2024, 3, 1), 1),
        ("C", date(2024, 3, 1), 2), ("C", date(2024, 4, 1), 0), ("C", date(2024, 5, 1), 0),
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=["loan_id", "reporting_month", "loan_state"], orient="row").with_columns(
        scenario=pl.lit("observed"),
        macro_path_id=pl.lit(0, dtype=pl.Int64),
        asset_class=pl.lit("consumer"),
        vintage_month=pl.lit(date(2024, 1, 1)),
    )


def hand_tape() -> pl.DataFrame:
    return pl.DataFrame(
        {"loan_id": ["A", "B", "C"], "maturity_date": [date(2024, 4, 1), *[date(2026, 1, 1)] * 2]}
    )


# A: origin->0 (Feb), 0->1 (Mar), 1->6 (Apr, final). B: only 2->3 (Jul). C: origin->0 (Feb), 0->0 (May).
HAND_MOVES = {(2, 0, 0): 2, (3, 0, 1): 1, (4, 1, 6): 1, (7, 2, 3): 1, (5, 0, 0): 1}


def test_hand_counts():
    found = count_transitions(hand_panel())
    expected = np.zeros((6, 7, 7))
    for (month, came, to), n in HAND_MOVES.items():
        expected[month - 2, came, to] = n
    assert found.start_month == 2024 * 12 + 1
    np.testing.assert_array_equal(found.counts, expected)


def test_hand_table():
    table = transition_table(hand_panel(), hand_tape())
    validate("transitions", table)
    found = {
        (row["reporting_month"].month, row["from_state"], row["to_state"]): row["n_moves"]
        for row in table.iter_rows(named=True)
    }
    assert found == HAND_MOVES
    assert table.filter("is_final").select("from_state", "to_state").rows() == [(1, 6)]


def dense(table: pl.DataFrame, start: int, n_months: int) -> np.ndarray:
    month = (
        table["reporting_month"].dt.year() * 12 + table["reporting_month"].dt.month().cast(pl.Int32) - 1
    ).to_numpy()
    counts = np.zeros((n_months, 7, 7), dtype=np.int64)
    place = (month - start, table["from_state"].to_numpy(), table["to_state"].to_numpy())
    np.add.at(counts, place, table["n_moves"].to_numpy())
    return counts


@pytest.mark.parametrize("mess", ["tidy", "shuffled", "holes and doubles"])
def test_duckdb_and_the_compiled_pass_agree(book: LoanBook, mess: str):
    panel = book.panel
    rng = stream(5, mess)
    if mess != "tidy":
        panel = panel[rng.permutation(panel.height)]
    if mess == "holes and doubles":
        doubled = panel.head(3000).with_columns(loan_state=pl.Series(rng.integers(0, 2, 3000)))
        panel = pl.concat([panel.filter(pl.Series(rng.random(panel.height) > 0.05)), doubled])
    table = transition_table(panel, book.loans)
    found = count_transitions(panel)
    np.testing.assert_array_equal(dense(table, found.start_month, found.counts.shape[0]), found.counts)
    for by, group in (("scenario", ["scenario"]), ("cohort", ["asset_class", "vintage_month"])):
        grouped = count_transitions(panel, by)
        np.testing.assert_array_equal(grouped.counts.sum(axis=0), found.counts)
        sums = table.group_by(group).agg(pl.col("n_moves").sum()).sort(group)["n_moves"]
        np.testing.assert_array_equal(grouped.counts.sum(axis=(1, 2, 3)), sums.to_numpy())
        assert grouped.groups.columns == group


def test_pandas_is_welcome(book: LoanBook):
    panel = book.panel.head(2000)
    np.testing.assert_array_equal(extract_transitions(panel.to_pandas()), extract_transitions(panel))
    pandas_table = transition_table(panel.to_pandas(), book.loans.to_pandas())
    assert pandas_table.equals(transition_table(panel, book.loans))


@pytest.mark.parametrize("shuffle", [False, True])
def test_long_text_keys_count_alike(book: LoanBook, shuffle: bool):
    """Text beyond 12 bytes is compared by place too; however it lies in memory, counts are the same."""
    panel = book.panel.head(4000).with_columns(loan_id="servicer/2024/" + pl.col("loan_id"))
    expected = extract_transitions(book.panel.head(4000))
    scattered = pl.concat([panel.filter(pl.int_range(pl.len()) % 3 == part) for part in range(3)])
    if not shuffle:
        scattered = pl.concat([panel.slice(start, 7) for start in range(0, 4000, 7)])
    np.testing.assert_array_equal(extract_transitions(scattered), expected)
    rebuilt = pl.DataFrame(scattered.to_dict(as_series=False), schema=scattered.schema)
    np.testing.assert_array_equal(extract_transitions(rebuilt), expected)
    np.testing.assert_array_equal(extract_transitions(rebuilt.to_pandas()), expected)


def test_every_row_of_a_generated_panel_is_a_move(book: LoanBook):
    assert extract_transitions(book.panel).sum() == book.panel.height


def test_refusals(book: LoanBook):
    with pytest.raises(ConfigError, match="grouping"):
        count_transitions(book.panel, "industry")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not on the tape"):
        transition_table(book.panel, book.loans.head(5))
    with pytest.raises(DataError, match="columns are missing"):
        extract_transitions(book.panel.drop("loan_state"))


@pytest.mark.parametrize("size", [1, 7, 20_000])
def test_chunks_and_integer_keys_count_alike(book: LoanBook, size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(move_counts, "_FEWEST", 3)  # many slices, cut inside loans
    panel = book.panel.filter(pl.col("scenario") == "baseline").head(4_000 if size == 1 else 20_000)
    whole = ordered_counts(panel)
    parts = [panel.slice(start, size).rechunk() for start in range(0, panel.height, size)]
    chunked = pl.concat(parts, rechunk=False)
    assert np.array_equal(extract_transitions(chunked), whole)
    coded = chunked.with_columns(loan_id=pl.col("loan_id").str.slice(1).cast(pl.Int64))
    assert np.array_equal(extract_transitions(coded), whole)
    named = chunked.with_columns(pl.col("loan_id", "scenario").cast(pl.Categorical))
    assert np.array_equal(extract_transitions(named), whole)


def ordered_counts(panel: pl.DataFrame) -> np.ndarray:
    """Counts by the way that serves any order: all scenarios, then summed."""
    return extract_transitions(panel, by="scenario").sum(axis=0)


def test_states_outside_the_alphabet_are_refused(book: LoanBook):
    panel = book.panel.head(200).with_columns(loan_state=pl.lit(7, pl.Int64))
    with pytest.raises(DataError, match="alphabet"):
        extract_transitions(panel)
