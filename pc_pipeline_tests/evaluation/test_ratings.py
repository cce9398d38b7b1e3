"""Implied ratings against a table small enough to check by hand, and the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.ratings import GRADES, implied_ratings, read_default_rates
from pc_pipeline_tests.shared_data import shared_path

DEFAULTS = (0.0, 0.1, 0.4, 1.0, 4.0, 10.0, 30.0)  # percent in a year; twice that in two


def write_table(path: Path, withdrawn: float = 0.0) -> Path:
    lines = ["From States,To States,Periods,Tenor,Tenor", "7,9,2,1,2"]
    for times in (1, 2):
        for place, default in enumerate(DEFAULTS):
            cells = [0.0] * 9
            cells[7], cells[8] = default * times, withdrawn
            cells[place] = 100.0 - default * times - withdrawn
            lines.append(",".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n")
    return path


def tranche(probability: float, life: float = 1.0, **more: object) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "tranche": ["A"],
            "coupon": [0.05],
            "loss_probability": [probability],
            "loss_probability_lower": [probability / 3],
            "loss_probability_upper": [probability * 3],
            "expected_loss": [probability / 2],
            "wal_years": [life],
        }
        | {name: [value] for name, value in more.items()}
    )


def test_by_hand(tmp_path: Path) -> None:
    rates = read_default_rates(write_table(tmp_path / "t.csv"))
    # 0.9 % in a year: A defaults at 0.4 %, BBB at 1.0 %; a third of it is A, three times it is BB
    row = implied_ratings(tranche(0.009), rates).row(0, named=True)
    assert (row["implied_by_probability"], row["best"], row["worst"]) == ("BBB", "A", "BB")
    assert row["published_rate"] == pytest.approx(0.01)
    # expected loss .45 % over .6 is .75 %: BBB; over two years A defaults at .8 %, so .7 % is A
    assert row["implied_by_loss"] == "BBB"
    assert rates.implied(0.007, 2.0) == "A"
    # a year and a half lies half way
    np.testing.assert_allclose(rates.at(1.5), 0.015 * np.array(DEFAULTS))
    assert rates.implied(0.5, 1.0) == "below CCC"
    assert rates.implied(0.0, 1.0) == "AAA"


def test_withdrawn_ratings_are_left_out(tmp_path: Path) -> None:
    rates = read_default_rates(write_table(tmp_path / "t.csv", withdrawn=20.0))
    np.testing.assert_allclose(rates.at(1.0), np.array(DEFAULTS) / 80.0)


def test_residuals_are_not_rated(tmp_path: Path) -> None:
    rates = read_default_rates(write_table(tmp_path / "t.csv"))
    assert implied_ratings(tranche(0.2, coupon=None), rates).is_empty()
    with pytest.raises(DataError, match="lack columns"):
        implied_ratings(pl.DataFrame({"tranche": ["A"]}), rates)


def test_the_published_table() -> None:
    rates = read_default_rates(shared_path("data/transitions_published/sp_1981-2016.csv"))
    assert rates.grades == GRADES
    np.testing.assert_allclose(rates.years, [1, 2, 3, 5, 7, 10, 15, 20])
    assert rates.rates_GY[3, 0] == pytest.approx(0.18 / 93.77)  # BBB: .18 % in a year, 6.23 % withdrawn
    assert (np.diff(rates.at(5.0)) >= 0).all()


def test_a_torn_table_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(DataError, match="other sizes"):
        read_default_rates(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_default_rates(tmp_path / "none.csv")
