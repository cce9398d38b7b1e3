"""Segment codes mean the same in every tape; a pool carries its own last payments."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl

from pc_pipeline.loans.effects import INDUSTRIES, REGIONS
from pc_pipeline.loans.segments import loan_extras, segment_codes, with_payments
from pc_pipeline.schemas.units import LOAN_EXTRAS, N_SEGMENT_CODES


def test_known_names_have_their_own_codes_and_others_share_the_rest() -> None:
    tape = pl.DataFrame(
        {"industry_sector": ["retail", "Fishing", None], "geography_region": ["pacific", "TX", "TX"]}
    )
    codes = segment_codes(tape)
    assert codes[0].tolist() == [INDUSTRIES.index("retail"), REGIONS.index("pacific")]
    assert len(INDUSTRIES) <= codes[1, 0] < N_SEGMENT_CODES
    assert len(REGIONS) <= codes[1, 1] == codes[2, 1] < N_SEGMENT_CODES
    assert np.isnan(codes[2, 0])
    assert np.array_equal(segment_codes(tape[1:])[0], codes[1])
    assert np.isnan(segment_codes(pl.DataFrame({"loan_id": ["a"]}))).all()


def test_a_pool_carries_the_payments_of_the_year_before() -> None:
    months = [date(2019, 10, 1), date(2019, 11, 1), date(2019, 12, 1), date(2020, 1, 1)]
    panel = pl.DataFrame(
        {
            "loan_id": ["a"] * 4,
            "reporting_month": months,
            "actual_payment": [100.0, 0.0, 200.0, 999.0],
            "scheduled_payment": [100.0, 100.0, 100.0, 100.0],
        }
    )
    pool = with_payments(pl.DataFrame({"loan_id": ["b", "a"]}), panel, as_of_month=2019 * 12 + 11)
    assert pool["loan_id"].to_list() == ["b", "a"]
    extras = loan_extras(pool)
    assert extras.shape == (2, len(LOAN_EXTRAS))
    assert extras[1, -3:].tolist() == [1.0, 0.0, 2.0]
    assert np.isnan(extras[1, :-3]).all()
    assert np.isnan(extras[0]).all()
