"""Files in, data out; pricing by hand; sweeps; the ledger ties."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.waterfall import load_deal, parse_deal, run_waterfall
from pc_pipeline.waterfall.dates import payment_calendar, year_fraction
from pc_pipeline.waterfall.desk import deal_check, price_deal_json, run_deal_json
from pc_pipeline.waterfall.ledger import run_with_ledger
from pc_pipeline.waterfall.pool_projection import Speeds, pool_lines, project_pool
from pc_pipeline.waterfall.pricing import (
    convexity,
    discount_margin,
    effective_convexity,
    effective_duration,
    modified_duration,
    price_from_yield,
    yield_from_price,
)
from pc_pipeline.waterfall.sweeps import (
    break_even_cdr,
    break_even_multiple,
    crossings,
    decrement_table,
    scale_losses,
    scenario_grid,
)
from pc_pipeline.waterfall.terms import Payments
from pc_pipeline_tests.shared_data import ROOT
from pc_pipeline_tests.waterfall.random_deals import POOL, collections, extras

DEALS = ROOT / "data" / "deals"
POOL_CSV = "balance,rate,original_term,remaining_term,age\n600000,0.072,72,66,6\n400000,0.065,60,50,10\n"
LINES = pool_lines(pl.read_csv(POOL_CSV.encode()))


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.csv"
    path.write_text(POOL_CSV)
    return path


# ---- the two commands ---------------------------------------------------------------------------


def test_price_a_deal(pool_file: Path) -> None:
    answer = price_deal_json(DEALS / "clo_four_tranche.yaml", pool_file, cpr=10, cdr=2, severity=40, lag=12)
    json.dumps(answer, allow_nan=False)
    senior = answer["classes"]["Senior"]
    assert senior["yield_percent"] == pytest.approx(5.0, abs=1e-9)  # at par a class yields its coupon
    assert senior["percent_of_original_repaid"] == pytest.approx(100.0)
    assert senior["effective_duration"] == pytest.approx(senior["modified_duration"], rel=1e-4)
    assert len(answer["payments"]) == 66 + 12
    assert answer["payments"][0]["date"] == "2024-02-01"


def test_a_floater_at_par_has_its_spread_as_margin(pool_file: Path) -> None:
    answer = price_deal_json(
        DEALS / "clo_six_tranche.yaml", pool_file, cpr=10, cdr=1, severity=40, lag=12, index_rate=0.04
    )
    margins = [answer["classes"][name]["discount_margin_bps"] for name in "ABCDE"]
    np.testing.assert_allclose(margins, [145, 200, 275, 400, 700], atol=1e-6)
    floater = answer["classes"]["A"]
    assert abs(floater["effective_duration"]) < 0.3  # its coupons follow the index
    assert floater["modified_duration"] > 3


def test_run_given_collections(tmp_path: Path) -> None:
    path = tmp_path / "collections.csv"
    path.write_text("month,interest,principal,prepaid_principal,defaulted_balance,recovery\n"
                    "2024-01,8000,10000,2000,1000,0\n2024-02,7900,10000,2000,0,400\n")  # fmt: skip
    answer = run_deal_json(DEALS / "clo_four_tranche.yaml", path, pool_balance=1e6)
    first = answer["payments"][0]
    assert first["classes"]["Senior"]["interest"] == pytest.approx(7e5 * 0.05 / 12)
    assert first["collections"] == 20000
    assert first["reinvested"] == pytest.approx(12000)
    assert first["tests"]["oc_Senior"] == {"ratio": pytest.approx(999000 / 7e5), "passed": True}


def test_charge_offs_follow_from_pool_balances(tmp_path: Path) -> None:
    """1,000,000 - 10,000 - 2,000 - 987,500 = 500 charged off."""
    path = tmp_path / "c.csv"
    path.write_text("Interest,Scheduled Principal,Prepayments,Ending Pool Balance\n8000,10000,2000,987500\n")
    answer = run_deal_json(DEALS / "clo_four_tranche.yaml", path, pool_balance=1e6)
    assert answer["payments"][0]["tests"]["oc_Senior"]["ratio"] == pytest.approx(999500 / 7e5)
    path.write_text("interest,principal,pool_balance\n8000,10000,995000\n")
    with pytest.raises(DataError, match="less than its principal"):
        run_deal_json(DEALS / "clo_four_tranche.yaml", path, pool_balance=1e6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("month,interest\n2024-01,1\n2024-03,1\n", "months must follow"),
        ("interest\nabc\n", "not a number"),
        ("interest,colour\n1,2\n", "unknown column"),
        ("month\n2024-01\n", "no collections"),
        ("interest\n-4\n", "not negative"),
        ("interest\nNaN\n", "finite"),
    ],
)
def test_bad_collections_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        run_deal_json(DEALS / "clo_four_tranche.yaml", path, pool_balance=1e6)


def test_deal_check_tells_the_line(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("name: x\ntranches:\n  - {name: A, size: 1.0, coupon: 5}\n")
    answer = deal_check(path)
    assert not answer["ok"]
    assert "d.yaml:3: tranches.0.coupon" in " ".join(answer["problems"])
    assert deal_check(DEALS / "rmbs_sequential_z.yaml")["ok"]


# ---- calendar -----------------------------------------------------------------------------------


def test_day_counts_by_hand() -> None:
    start, end = dt.date(2024, 1, 31), dt.date(2024, 2, 29)
    assert year_fraction(start, end, "30/360") == pytest.approx(29 / 360)
    assert year_fraction(start, end, "Act/360") == pytest.approx(29 / 360)
    assert year_fraction(start, end, "Act/365") == pytest.approx(29 / 365)
    assert year_fraction(dt.date(2023, 7, 1), dt.date(2024, 7, 1), "Act/Act") == pytest.approx(
        184 / 365 + 182 / 366
    )


def test_payment_dates_move_off_weekends_and_holidays() -> None:
    terms = Payments(day=15, business_days="following", holidays=[dt.date(2024, 7, 15)])
    calendar = payment_calendar(dt.date(2024, 5, 15), terms, 3)
    assert [d.isoformat() for d in calendar.payment] == [
        "2024-05-15",
        "2024-06-17",
        "2024-07-16",
        "2024-08-15",
    ]
    np.testing.assert_allclose(calendar.year_fractions("30/360"), 1 / 12)
    np.testing.assert_allclose(calendar.year_fractions("Act/360") * 360, [33, 29, 30])


def test_a_payment_delay_lowers_the_price_and_not_the_interest() -> None:
    calendar = payment_calendar(dt.date(2024, 1, 1), Payments(day=1, delay_days=24), 2)
    assert [d.isoformat() for d in calendar.payment] == ["2024-01-01", "2024-02-25", "2024-03-25"]
    np.testing.assert_allclose(calendar.year_fractions("Act/360") * 360, [31, 29])
    np.testing.assert_allclose(calendar.yield_times() * 360, [54, 84])


# ---- pricing ------------------------------------------------------------------------------------


def test_a_bullet_bond_by_hand() -> None:
    """Two years, 6 % monthly coupons, at 6 %: par; modified duration by the closed form."""
    times = np.arange(1, 25) / 12
    flows = np.full(24, 0.5)
    flows[-1] += 100.0
    assert price_from_yield(flows, times, 0.06, 100.0) == pytest.approx(1.0)
    assert yield_from_price(flows, times, 1.0, 100.0)[0] == pytest.approx(0.06)
    closed = (1 - 1.005**-24) / 0.06
    assert modified_duration(flows, times, 0.06) == pytest.approx(closed)

    def price(shift: float) -> float:
        return float(price_from_yield(flows, times, 0.06 + shift, 100.0))

    assert effective_duration(price, 1e-4) == pytest.approx(modified_duration(flows, times, 0.06), rel=1e-6)
    assert effective_convexity(price, 1e-4) == pytest.approx(convexity(flows, times, 0.06), rel=1e-4)


def test_discount_margin_by_hand() -> None:
    years, index = np.full(8, 0.25), np.linspace(0.02, 0.05, 8)
    flows = 100.0 * (index + 0.015) * years
    flows[-1] += 100.0
    assert discount_margin(flows, years, index, 1.0, 100.0)[0] == pytest.approx(0.015)
    assert discount_margin(flows, years, index, 0.98, 100.0)[0] > 0.02


# ---- projection and sweeps ------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["bma", "default_first"])
@pytest.mark.parametrize("lag", [0, 1, 6])
@pytest.mark.parametrize("advances", [True, False])
def test_projection_conserves_principal(convention: str, lag: int, advances: bool) -> None:
    speeds = Speeds(psa=1.5, sda=2.0, severity=0.4, lag_months=lag, advances=advances, convention=convention)
    pool = project_pool(LINES, speeds)
    repaid = pool.actual_amort.sum() + pool.voluntary_prepay.sum()
    resolved = pool.principal_recovery.sum() + pool.principal_loss.sum() + pool.amort_from_defaults.sum()
    assert repaid + resolved == pytest.approx(1e6)
    assert pool.cash[:, 1:4].sum() == pytest.approx(1e6)
    assert (pool.cash >= 0).all()
    assert pool.cash[:, 4].sum() == pytest.approx(pool.new_defaults.sum() - pool.principal_loss.sum())


def test_default_first_by_hand() -> None:
    """1 % default, then level principal of the rest, then 2 % of what is left."""
    frame = pl.DataFrame({"balance": [1000.0], "rate": [0.12], "remaining_term": [10]})
    pool = project_pool(frame, Speeds(mdr=0.01, smm=0.02, convention="default_first", stop_defaults=False))
    share = 0.01 / (1.01**10 - 1)
    assert pool.new_defaults[0] == 10.0
    assert pool.actual_amort[0] == pytest.approx(990 * share)
    assert pool.voluntary_prepay[0] == pytest.approx(0.02 * 990 * (1 - share))


def test_balloon_bullet_and_vectors() -> None:
    frame = {"balance": [1000.0], "rate": [0.06], "remaining_term": [24], "amortization_term": [0]}
    bullet = project_pool(pl.DataFrame(frame), Speeds())
    assert bullet.actual_amort[:-1].sum() == 0.0
    assert bullet.actual_amort[-1] == pytest.approx(1000.0)
    balloon = project_pool(pl.DataFrame(frame | {"amortization_term": [360]}).to_pandas(), Speeds())
    assert balloon.actual_amort[0] == pytest.approx(1000 * 0.005 / (1.005**360 - 1))
    assert balloon.actual_amort[-1] > 950
    vector = project_pool(pl.DataFrame(frame), Speeds(smm=[0.1, 0.0], convention="bma"))
    assert vector.voluntary_prepay[0] == pytest.approx(100.0)
    assert vector.voluntary_prepay[1:].sum() == 0.0


def test_speeds_are_checked() -> None:
    with pytest.raises(ConfigError, match="one speed"):
        Speeds(cpr=0.1, psa=1.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Speeds(cpr=10.0)
    with pytest.raises(DataError, match="percent"):
        pool_lines(pl.DataFrame({"balance": [1.0], "rate": [7.2], "remaining_term": [10]}))


def test_break_even_and_grid() -> None:
    deal = load_deal(DEALS / "clo_four_tranche.yaml")
    base = Speeds(cpr=0.1, severity=0.5, lag_months=3)
    found = break_even_cdr(deal, LINES, base, "Junior", grid=np.linspace(0, 0.4, 9))
    assert len(found) == 1
    assert found[0].rising
    at = found[0].at
    grid = scenario_grid(deal, LINES, base, cpr=[0.1], cdr=[at * 0.999, at * 1.001], severity=[0.5])
    losses = grid.filter(pl.col("tranche") == "Junior")["loss_share"].to_list()
    assert losses[0] <= 1e-6 < losses[1]
    order = [
        break_even_cdr(deal, LINES, base, name, grid=np.linspace(0, 0.6, 7)) for name in ("Mezz", "Senior")
    ]
    assert at < order[0][0].at < order[1][0].at


def test_all_crossings_of_a_measure_that_turns_back() -> None:
    found = crossings(lambda x: np.sin(x), np.linspace(0.5, 9.0, 30), 0.0)
    np.testing.assert_allclose([c.at for c in found], [np.pi, 2 * np.pi], atol=1e-9)
    assert [c.rising for c in found] == [False, True]


def test_loss_multiples_and_decrements() -> None:
    deal = load_deal(DEALS / "clo_four_tranche.yaml")
    pool = project_pool(LINES, Speeds(cpr=0.1, cdr=0.01, severity=0.5))
    same = scale_losses(pool.cash, 1e6, 1.0, 0.5)
    np.testing.assert_allclose(same, pool.cash, atol=1e-6)
    found = break_even_multiple(
        pool.cash, deal, "Junior", pool_balance=1e6, severity=0.5, grid=np.linspace(0, 20, 11)
    )
    assert len(found) == 1
    table = decrement_table(run_waterfall(pool.cash, deal, pool_balance=1e6))
    assert table["Senior"][0] == 100.0
    assert table["Senior"][-1] == 0.0
    assert (np.diff(table["Senior"].to_numpy()) <= 1e-12).all()


# ---- ledger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clo_four_tranche", "auto_four_tranche", "clo_six_tranche", "rmbs_sequential_z"]
)
def test_the_ledger_ties(name: str) -> None:
    cash = collections(4, 2, 24, default_rate=0.02, recovery=0.4)
    extra = {"delinquent": extras(4, 2, 24)["delinquent"]}
    deal = load_deal(DEALS / f"{name}.yaml")
    result, ledger = run_with_ledger(cash, deal, pool_balance=POOL, index_rate_PT=0.04, extra_PT=extra)
    assert ledger["amount"].min() > -1e-6  # type: ignore[operator]
    paid = ledger.filter(pl.col("payee") == result.tranche_names[0])["amount"].sum()
    assert paid == pytest.approx(result.cash[:, :, 0].sum())


def test_ledger_rows_by_hand() -> None:
    deal = parse_deal(
        {
            "name": "one",
            "tranches": [
                {"name": "A", "size": 0.9, "coupon": 0.06},
                {"name": "E", "kind": "residual", "size": 0.1},
            ],
        }
    )
    _, ledger = run_with_ledger(np.array([[1.0, 4.0, 0, 0, 0]]), deal, pool_balance=100.0)
    assert ledger.select("step", "payer", "payee", "amount").rows() == [
        ("collect", "collections", "interest", 1.0),
        ("collect", "collections", "principal", 4.0),
        ("interest A", "interest", "A", pytest.approx(0.45)),
        ("residual E", "interest", "E", pytest.approx(0.55)),
        ("principal A (all)", "principal", "A", 4.0),
    ]
