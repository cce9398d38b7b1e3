"""Macro paths and a small portfolio for the tests of this room."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.periods import month_range
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES

START = date(2024, 1, 1)
STRESS = {"baseline": 0.0, "adverse": 0.03}  # points of unemployment, and of GDP the other way


def make_path(scenario: str, path_id: int, n_months: int = 60) -> pl.DataFrame:
    """One independent AR path per series around the baseline means, with a stress plateau."""
    rng = stream(7, "test macro", scenario, path_id)
    mean, sd, persistence, lower, upper = (
        np.array([getattr(series, name) for series in MACRO_SERIES])
        for name in ("mean", "sd", "persistence", "lower", "upper")
    )
    noise = rng.standard_normal((n_months, len(mean)))
    for month in range(1, n_months):
        noise[month] = persistence * noise[month - 1] + np.sqrt(1 - persistence**2) * noise[month]
    values = mean + sd * noise
    values[10:34, 1] += STRESS[scenario]
    values[10:34, 0] -= STRESS[scenario]
    values = np.clip(values, lower, upper)
    return pl.DataFrame(
        {
            "scenario": [scenario] * n_months,
            "macro_path_id": [path_id] * n_months,
            "month": month_range(START, n_months),
            **{name: values[:, place] for place, name in enumerate(MACRO_NAMES)},
        }
    )


def make_table(n_paths: int = 4, n_months: int = 60) -> pl.DataFrame:
    """A `macro_scenarios` table of two scenarios."""
    return pl.concat(make_path(name, path, n_months) for name in STRESS for path in range(n_paths))


@pytest.fixture(scope="session")
def macro() -> pl.DataFrame:
    return make_table()


@pytest.fixture(scope="session")
def generator() -> LoanTapeGenerator:
    return LoanTapeGenerator(n_loans=1500, random_seed=11, start_date=START)


@pytest.fixture(scope="session")
def book(generator: LoanTapeGenerator, macro: pl.DataFrame) -> LoanBook:
    return generator.generate_scenario(macro)
