"""Table contracts: values are really checked, and every column explains itself."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import SchemaError
from pc_pipeline.schemas.tables import TABLES, columns, describe, failures, validate
from pc_pipeline.schemas.tables_page import tables_page

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"

POOL = {
    "loan_id": ["a", "b"],
    "current_balance": [1.0, 2.0],
    "loan_state": [0, 3],
    "age_months": [0, 5],
    "remaining_term_months": [10, 1],
    "months_since_miss": [-1, 0],
}


def test_good_rows_pass_unchanged() -> None:
    frame = pl.DataFrame(POOL)
    assert validate("pool", frame) is frame
    assert failures("pool", frame).is_empty()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("current_balance", [1.0, -2.0]),
        ("current_balance", [1.0, float("nan")]),
        ("current_balance", [1.0, None]),
        ("loan_state", [0, 4]),
        ("loan_id", ["a", "a"]),
        ("age_months", ["0", "5"]),
    ],
)
def test_a_broken_value_is_named(column: str, values: list[object]) -> None:
    frame = pl.DataFrame({**POOL, column: values})
    with pytest.raises(SchemaError, match=column) as caught:
        validate("pool", frame, where="here")
    assert "here" in str(caught.value)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SchemaError, match="age_months"):
        validate("pool", pl.DataFrame(POOL).drop("age_months"))


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_column_has_a_description(table: str) -> None:
    described = describe(table)
    assert [name for name, _, _ in described] == columns(table)
    assert all(text for _, _, text in described)


def test_the_documentation_page_is_what_the_schemas_say() -> None:
    assert PAGE.read_text() == tables_page(), (
        "run: python -m pc_pipeline.schemas.tables_page > docs/tables.md"
    )
