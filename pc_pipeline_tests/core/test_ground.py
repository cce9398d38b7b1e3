"""Months, settings and the error tree."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pc_pipeline.core.config import Settings
from pc_pipeline.core.errors import ConfigError, DataError, IngestError, PcError
from pc_pipeline.core.periods import (
    add_months,
    month_end,
    month_from_index,
    month_index,
    month_index_expr,
    month_range,
    parse_month,
)

months = st.dates(date(1900, 1, 1), date(2200, 12, 31)).map(lambda d: d.replace(day=1))


@given(months, st.integers(-500, 500))
def test_months_add_like_numbers(month: date, step: int) -> None:
    moved = add_months(month, step)
    assert month_index(moved) - month_index(month) == step
    assert month_from_index(month_index(month)) == month


def test_month_range_and_month_end() -> None:
    assert month_range(date(2019, 11, 30), 3) == [date(2019, 11, 1), date(2019, 12, 1), date(2020, 1, 1)]
    assert month_end(date(2020, 2, 1)) == date(2020, 2, 29)


def test_month_index_agrees_between_python_and_polars() -> None:
    days = [date(1999, 12, 31), date(2000, 1, 1), date(2024, 2, 29)]
    frame = pl.DataFrame({"d": days}).select(month_index_expr("d"))
    assert frame["d"].to_list() == [month_index(day) for day in days]


@pytest.mark.parametrize("text", ["2020-13", "last month", "1800-01", "2900-01-01", ""])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_month(text)


def test_an_error_says_expected_got_where() -> None:
    error = IngestError("a column is missing", expected="loan_id", got="id, balance", where="tape.csv")
    assert isinstance(error, PcError)
    assert str(error).split("\n") == [
        "a column is missing",
        "  expected: loan_id",
        "  got:      id, balance",
        "  where:    tape.csv",
    ]


def test_settings_come_from_the_environment_only_when_asked(tmp_path: Path) -> None:
    settings = Settings.from_environment({"PC_RECIPE": "tiny", "PC_DATA": "elsewhere"}, tmp_path)
    assert settings.recipe == "tiny"
    assert settings.data_dir == (tmp_path / "elsewhere").resolve()
    with pytest.raises(ConfigError, match="PC_SEED"):
        Settings.from_environment({"PC_SEED": "lots"}, tmp_path)
