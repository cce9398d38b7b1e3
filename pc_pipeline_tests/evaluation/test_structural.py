"""Quarterly mortgages by structure: covariates by hand, penalties weighed by what they forecast."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import DataError, ModelError
from pc_pipeline.evaluation.structural import PENALTIES, StructuralHazard, covariates, mortgage_rows


def panel(n_loans: int = 150, n_quarters: int = 24, seed: int = 0) -> pl.DataFrame:
    """Loans whose default follows current LTV above 100, whose payoff follows the rate incentive."""
    random = np.random.default_rng(seed)
    index = 200 * np.exp(np.cumsum(random.normal(-0.01, 0.03, n_quarters + 1)))
    rows = []
    for number in range(n_loans):
        start, first_ltv, coupon = int(random.integers(1, 8)), random.uniform(60, 110), random.uniform(4, 9)
        for time in range(start, n_quarters + 1):
            ltv = first_ltv * index[start] / index[time]
            default = 0.02 * np.exp(0.05 * max(ltv - 100, 0))
            payoff = 0.05 * np.exp(0.3 * (coupon - 6))
            draw = random.random()
            status = 1 if draw < default else 2 if draw < default + payoff else 0
            rows.append((number, time, start, 120, 1e5, ltv, first_ltv, coupon, coupon, 5.0, index[time],
                         5.0 + 0.1 * time, 650.0 + number, 0, 0, 1, 0, status))  # fmt: skip
            if status:
                break
    names = (
        "id", "time", "orig_time", "mat_time", "balance_orig_time", "LTV_time", "LTV_orig_time",
        "interest_rate_time", "Interest_Rate_orig_time", "rate_time", "hpi_time", "uer_time",
        "FICO_orig_time", "REtype_CO_orig_time", "REtype_PU_orig_time", "REtype_SF_orig_time",
        "investor_orig_time", "status_time",
    )  # fmt: skip
    return pl.DataFrame(rows, schema=list(names), orient="row")


def test_growth_and_kinks_by_hand() -> None:
    rows = mortgage_rows(panel())
    some = rows.filter(pl.col("time") == 12).head(1)
    now, then = (rows.filter(pl.col("time") == time)["hpi_time"].first() for time in (12, 8))
    assert some["hpi_growth"].item() == pytest.approx(now / then - 1)
    structural, plain = covariates(rows, "structural"), covariates(rows, "three macro")
    ltv = plain[:, -1]
    assert np.allclose(structural[:, plain.shape[1]], np.maximum(ltv - 80, 0))
    assert np.allclose(structural[:, plain.shape[1] + 1], np.maximum(ltv - 100, 0))


def test_penalties_weigh_by_what_they_forecast_of_the_last_three_years() -> None:
    rows = mortgage_rows(panel(80))
    model = StructuralHazard("loan")
    model.fit(rows)
    assert sum(model.weights.values()) == pytest.approx(1.0)
    assert set(model.weights) <= set(PENALTIES)
    losses = {}
    for penalty in list(model.weights)[:2]:  # by hand: each of the three years from the rows before it
        total = 0.0
        for first in (13, 17, 21):
            alone = StructuralHazard("loan")
            alone.fit(rows.filter(pl.col("time") < first), {penalty: 1.0})
            total += alone.losses(rows.filter(pl.col("time").is_between(first, first + 3))).sum()
        losses[penalty] = total
    a, b = losses
    assert model.weights[a] / model.weights[b] == pytest.approx(np.exp(losses[b] - losses[a]), rel=1e-6)


def test_the_average_is_a_law_and_no_worse_than_the_mean_of_its_parts() -> None:
    rows = mortgage_rows(panel())
    model = StructuralHazard("loan")
    model.fit(rows, {0.01: 0.5, 0.04: 0.5})
    p = model.probabilities(rows)
    assert np.allclose(p.sum(axis=1), 1.0)
    alone = []
    for penalty in (0.01, 0.04):
        one = StructuralHazard("loan")
        one.fit(rows, {penalty: 1.0})
        alone.append(one.losses(rows).mean())
    assert model.losses(rows).mean() <= np.mean(alone) + 1e-12


def test_what_does_not_fit_is_refused() -> None:
    rows = mortgage_rows(panel(40))
    with pytest.raises(DataError, match="columns are missing"):
        mortgage_rows(panel(5).drop("uer_time"))
    with pytest.raises(ModelError, match="fit comes first"):
        StructuralHazard("loan").probabilities(rows)
    with pytest.raises(DataError, match="never happened"):
        StructuralHazard("loan").fit(rows.filter(pl.col("status_time") == 0), {0.01: 1.0})
    with pytest.raises(ModelError, match="covariates"):
        covariates(rows, "all")
