"""Published servicer months, to the cent: SEC form 10-D figures in the shared folder."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from pc_pipeline.waterfall import Deal, load_deal, run_waterfall
from pc_pipeline_tests.shared_data import ROOT, shared_path

CENT = 0.0051
ONE_CENT = (
    0.0101  # a report's balances are rounded figures of unrounded books: begin - principal may miss by one
)
NISSAN = [
    ("nissan_2016_a", "Nissan Auto Receivables 2016-A Owner Trust", dt.date(2017, 6, 15)),
    ("nissan_2021_a", "Nissan Auto Receivables 2021-A Owner Trust", dt.date(2024, 10, 15)),
    ("nissan_2020_a", "Nissan Auto Receivables 2020-A Owner Trust", dt.date(2024, 2, 15)),
]


def published(name: str) -> pl.DataFrame:
    return pl.read_csv(shared_path(f"data/deals_published/{name}.csv"), infer_schema_length=None)


def shipped(slug: str) -> Deal:
    return load_deal(ROOT / "data" / "deals" / f"{slug}.yaml")


@pytest.mark.parametrize(("slug", "name", "last_payment"), NISSAN)
def test_nissan_months_to_the_cent(slug: str, name: str, last_payment: dt.date) -> None:
    """Interest by 30/360 and actual/360, principal by the fall of the adjusted pool, A-2a/A-2b pro rata."""
    classes = published("class_months").filter(pl.col("deal") == name)
    pool = published("pool_months").filter(pl.col("deal") == name).row(0, named=True)
    begin = dict(zip(classes["class"], classes["beginning_balance"].cast(float), strict=True))
    deal = shipped(slug).as_of(last_payment, pool=pool["pool_begin"], balances=begin)
    assert pool["pool_end"] - pool["ysoc_end"] == pytest.approx(pool["adjusted_pool_end"], abs=CENT)
    fall = pool["pool_begin"] - pool["pool_end"]
    principal = fall if pool["total_available_principal"] is None else pool["total_available_principal"]
    interest = pool["interest_collected"] or 0.0
    cash = np.array([[interest, principal, 0.0, fall - principal, 0.0]])
    floating = classes.filter(pl.col("class") == "A-2b")["coupon_percent"].to_list()
    index = {"LIBOR plus margin": floating[0] / 100} if floating else None
    result = run_waterfall(cash, deal, index_rate_PT=index, extra_PT={"ysoc": np.array([pool["ysoc_end"]])})
    assert (result.payment_dates[1] - result.payment_dates[0]).days == classes["days_actual_360"][0]
    for row in classes.iter_rows(named=True):
        place = result.tranche(row["class"])
        assert result.balance[0, 0, place] == pytest.approx(row["ending_balance"], abs=ONE_CENT)
        if row["class"] != "Certificates":
            assert result.interest_paid[0, 0, place] == pytest.approx(row["interest_payment"], abs=CENT)
            assert result.principal_paid[0, 0, place] == pytest.approx(row["principal_payment"], abs=CENT)


def cik_cash(rows: pl.DataFrame) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Collections in the five channels, and the rest of available interest."""
    prepaid = rows["prepaid_principal"] + rows["warranty_principal"]
    gone = rows["pool_begin"] - rows["pool_end"] - rows["scheduled_principal"] - prepaid
    channels = [
        rows["interest_collected"],
        rows["scheduled_principal"],
        prepaid,
        gone,
        rows["liquidation_proceeds"],
    ]
    cash = np.stack([series.to_numpy().astype(float) for series in channels], axis=1)
    other = rows["total_available_interest"] - rows["interest_collected"]
    lines = ["servicer_advances", "warranty_interest", "recoveries", "investment_earnings"]
    added = sum(rows[line].cast(float) for line in lines) - rows["servicer_advance_reimbursement"]
    np.testing.assert_allclose(other.to_numpy(), added.to_numpy(), atol=CENT)
    return cash, {"other_interest": other.to_numpy().astype(float), "ysoc": rows["ysoc_end"].to_numpy()}


@pytest.mark.parametrize("periods", [[14, 15, 16, 17], [19]])
def test_cik_1678487_to_the_cent(periods: list[int]) -> None:
    """Four months in a chain, and one: funds, adjusted pool, OC, reserve, every class."""
    pool = published("pool_months").filter(pl.col("deal") == "CIK 1678487", pl.col("period").is_in(periods))
    classes = published("class_months").filter(pl.col("deal") == "CIK 1678487")
    first = pool.row(0, named=True)
    start = classes.filter(pl.col("collection_period_end") == first["collection_period_end"])
    begin = dict(zip(start["class"], start["beginning_balance"].cast(float), strict=True))
    collected = dt.date.fromisoformat(first["collection_period_end"])
    deal = shipped("auto_cik_1678487").as_of(
        collected.replace(day=25),
        pool=first["pool_begin"],
        balances=begin,
        accounts={"reserve": first["reserve_begin"]},
    )
    cash, extra = cik_cash(pool)
    padded = np.concatenate([cash, np.zeros((1, 5))])  # a later month, so that the reserve is not released
    more = {name: np.append(values, values[-1] if name == "ysoc" else 0.0) for name, values in extra.items()}
    result = run_waterfall(padded, deal, extra_PT=more)
    for t, month in enumerate(pool.iter_rows(named=True)):
        funds = month["total_available_interest"] + month["total_available_principal"]
        assert result.totals["collections"][0, t] == pytest.approx(funds, abs=CENT)
        assert result.pool[0, t] == pytest.approx(month["pool_end"], abs=CENT)
        assert result.reserve[0, t] == pytest.approx(month["reserve_end"], abs=CENT)
        notes = result.balance[0, t].sum()
        assert notes == pytest.approx(month["notes_end"], abs=CENT)
        assert result.pool[0, t] - month["ysoc_end"] - notes == pytest.approx(month["oc_end"], abs=CENT)
        for row in classes.filter(
            pl.col("collection_period_end") == month["collection_period_end"]
        ).iter_rows(named=True):
            place = result.tranche(row["class"])
            assert result.balance[0, t, place] == pytest.approx(row["ending_balance"], abs=CENT), (
                t,
                row["class"],
            )
            assert result.principal_paid[0, t, place] == pytest.approx(row["principal_payment"], abs=CENT)


def test_class_terms_are_those_published() -> None:
    """Sizes, coupons, day counts and final dates of all six deals, line by line."""
    issues = ("2022-A", "2023-B", "2016-A", "2021-A", "2020-A")
    slugs = {issue: f"nissan_{issue.lower().replace('-', '_')}" for issue in issues} | {
        "1678487": "auto_cik_1678487"
    }
    for row in published("tranches").iter_rows(named=True):
        slug = next(slug for part, slug in slugs.items() if part in row["deal"])
        tranche = shipped(slug).tranche(row["class"])
        assert tranche.amount == pytest.approx(row["initial_balance"], abs=CENT)
        if row["coupon_type"] == "fixed":
            assert tranche.coupon is not None
            assert tranche.coupon.rate == pytest.approx(row["coupon_percent"] / 100)
        if row["day_count"]:
            assert tranche.day_count == row["day_count"].replace("Actual", "Act")
        if row["final_scheduled_distribution_date"]:
            assert tranche.maturity == dt.date.fromisoformat(row["final_scheduled_distribution_date"])
