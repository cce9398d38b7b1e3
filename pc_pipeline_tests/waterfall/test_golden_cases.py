"""Published worked examples: SIFMA/BMA cash flow A, speed conversions, cures, level payments, IRR.

Each case file names its source, inputs, outputs and tolerance; it is read from the shared folder and the
test is skipped where that is absent.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import pyxirr

from pc_pipeline.waterfall import irr, parse_deal, run_waterfall
from pc_pipeline.waterfall.pool_projection import PoolLines, Speeds, project_pool
from pc_pipeline.waterfall.rates import (
    abs_from_factors,
    annual_from_monthly,
    cpr_from_psa,
    level_payment,
    monthly_from_annual,
    psa_from_cpr,
    scheduled_balance,
    smm_from_abs,
    smm_from_factors,
)
from pc_pipeline_tests.shared_data import shared_path

NAMES = {
    "amortized_default_balance_at_recovery": "liquidated_balance",
    "amortized_default_balance": "liquidated_balance",
}
HALF_UNIT = 0.5001


def case(name: str) -> dict[str, Any]:
    return json.loads(shared_path(f"cases/waterfall/{name}.json").read_text())


def single_line(balance: float, rate: float, term: int, age: int) -> PoolLines:
    def one(value: float) -> np.ndarray:
        return np.array([float(value)])

    left = term - age
    return PoolLines(balance=one(balance), rate=one(rate), original_term=one(term), remaining_term=one(left),
                     age=one(age), amortization_term=one(left))  # fmt: skip


def test_bma_cash_flow_a_to_the_dollar() -> None:
    golden = case("01_bma_cashflow_a")
    given = golden["inputs"]
    speeds = Speeds(smm=given["smm"], mdr=given["mdr"], severity=given["loss_severity"], advances=True,
                    lag_months=given["months_to_liquidation"], convention="bma")  # fmt: skip
    lines = single_line(given["balance"], given["wac"], given["term_months"], given["age_months"])
    pool = project_pool(lines, speeds, n_months=360)
    for row in golden["expected"]["months"]:
        for name, expected in row.items():
            if name == "month":
                continue
            got = getattr(pool, NAMES.get(name, name))[row["month"] - 1]
            tolerance = golden["tolerance"]["amort_factor"] if name == "amort_factor" else HALF_UNIT
            assert abs(got - expected) <= tolerance, (row["month"], name, got, expected)
    for name, expected in golden["expected"]["totals"].items():
        assert getattr(pool, NAMES.get(name, name)).sum() == pytest.approx(expected, abs=1.0), name


def test_bma_rate_conversions_to_the_printed_digit() -> None:
    cases = {entry["name"]: entry for entry in case("04_bma_rate_conversions")["cases"]}
    history = cases["SF-7 single pool history"]
    given, want = history["inputs"], history["expected"]
    first, second = (
        scheduled_balance(given["gross_wac"], given["remaining_at_issue"], given[f"remaining_{i}"])
        for i in (1, 2)
    )
    assert float(first) == pytest.approx(want["bal1"], abs=5e-7)
    assert float(second) == pytest.approx(want["bal2"], abs=5e-9)
    assert given["F1"] * float(second / first) == pytest.approx(want["F_sched"], abs=5e-9)
    smm = smm_from_factors(given["F1"], given["F2"], second / first)
    cpr = annual_from_monthly(smm)
    assert 100 * float(smm) == pytest.approx(want["smm_pct"], abs=5e-6)
    assert 100 * float(cpr) == pytest.approx(want["cpr_pct"], abs=0.05)
    assert 100 * float(psa_from_cpr(cpr, given["loan_month"])) == pytest.approx(want["psa_pct"], abs=0.5)

    two = cases["SF-12 two pools, six months"]
    pools, want = [two["inputs"]["pool1"], two["inputs"]["pool2"]], two["expected"]
    scheduled = sum(
        p["face"] * p["F_start"]
        * float(scheduled_balance(two["inputs"]["gross_wac"], 360, p["rem_end"])
                / scheduled_balance(two["inputs"]["gross_wac"], 360, p["rem_start"]))
        for p in pools
    )  # fmt: skip
    final = sum(p["face"] * p["F_end"] for p in pools)
    assert final == pytest.approx(want["actual_final"], abs=0.005)
    assert scheduled == pytest.approx(want["scheduled_final"], abs=0.005)
    smm = smm_from_factors(scheduled, final, 1.0, 6)
    assert 100 * float(smm) == pytest.approx(want["smm_avg_pct"], abs=5e-7)
    assert 100 * float(annual_from_monthly(smm)) == pytest.approx(want["cpr_avg_pct"], abs=5e-5)


def test_bma_abs_and_psa_tables() -> None:
    cases = {entry["name"]: entry for entry in case("04_bma_rate_conversions")["cases"]}
    single = cases["SF-14 ABS"]
    given = single["inputs"]
    assert 100 * float(smm_from_abs(given["abs_pct"] / 100, given["loan_month"])) == pytest.approx(2.5)
    history = cases["SF-14 ABS history"]["inputs"]
    ratio = scheduled_balance(history["gross_wac"], 36, history["rem_end"]) / scheduled_balance(
        history["gross_wac"], 36, history["rem_start"]
    )
    found = abs_from_factors(1.0, history["F_end"], ratio, history["age_start"], history["age_end"])
    assert 100 * float(found) == pytest.approx(1.7, abs=0.005)
    table = cases["SF-15 ABS to SMM table (pct, 2dp)"]
    speeds, months = np.array(table["inputs"]["abs_pct"]) / 100, np.array(table["inputs"]["month"])
    got = 100 * smm_from_abs(speeds[:, None], months[None, :])
    np.testing.assert_allclose(got, table["expected"]["smm_pct"], atol=0.00501)
    seasoned = cases["SF-9 SMM to CPR to PSA (seasoned)"]
    cpr = annual_from_monthly(np.array(seasoned["inputs"]["smm_pct"]) / 100)
    np.testing.assert_allclose(100 * cpr, seasoned["expected"]["cpr_pct"], atol=0.0501)
    np.testing.assert_allclose(100 * psa_from_cpr(cpr, 360), seasoned["expected"]["psa_pct"], atol=HALF_UNIT)
    ramp = cases["SF-10 one-month PSA to SMM (pct)"]
    psa, months = np.array(ramp["inputs"]["psa_pct"]) / 100, np.array(ramp["inputs"]["month"])
    smm = 100 * monthly_from_annual(cpr_from_psa(psa[:, None], months[None, :]))
    np.testing.assert_allclose(smm, ramp["expected"]["smm_pct"], atol=0.00501)


def coverage_deal(trigger: float, kind: str, coupon: float, sources: list[str], months: int = 1) -> Any:
    """One class of notes, one test, cured from `sources`; nothing else may pay principal before."""
    return parse_deal({
        "name": "cure", "payments": {"every_months": months},
        "tranches": [{"name": "A", "amount": 1e8, "coupon": coupon, "day_count": "30/360"}],
        "tests": [{"name": "t", "kind": kind, "of": "A", "trigger": trigger}],
        "waterfall": {
            "interest": [{"interest": "A"}, {"cure": "t", "from": sources}],
            "principal": [{"principal": ["A"]}],
        },
    })  # fmt: skip


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_oc_cure_amounts(index: int) -> None:
    """The engine's own ratio and cure, with plenty of interest, or of principal cash, to cure with."""
    golden = case("11_oc_ic_cure_amounts")["cases"][index]
    given, want = golden["inputs"], golden["expected"]
    principal = given.get("principal_cash", 0.0)
    if "cure_interest" in want:
        deal = coverage_deal(given["trigger"], "oc", 0.0, ["interest"])
        result = run_waterfall(np.array([[2e7, 0, 0, 0, 0.0]]), deal, pool_balance=given["collateral"])
        assert result.totals["cured"][0, 0] == pytest.approx(want["cure_interest"], abs=0.01)
    deal = coverage_deal(given["trigger"], "oc", 0.0, ["principal"])
    cash = principal or 6e7  # par that has just been repaid counts at par
    pool = given["collateral"] + principal
    result = run_waterfall(np.array([[0, cash, 0, 0, 0.0]]), deal, pool_balance=pool)
    assert result.ratios[0, 0, 0] == pytest.approx(want["ratio"], abs=1e-6)
    assert bool(result.test_passed[0, 0, 0]) == want["passes"]
    if "cure_principal" in want:
        assert result.totals["cured"][0, 0] == pytest.approx(want["cure_principal"], abs=0.01)


@pytest.mark.parametrize("index", [4, 5, 6])
def test_ic_cure_amounts(index: int) -> None:
    golden = case("11_oc_ic_cure_amounts")["cases"][index]
    given, want = golden["inputs"], golden["expected"]
    months = 12 // given.get("periods_per_year", 1) if "coupon" in given else 12
    coupon = given.get("coupon", given.get("interest_due", 0.0) / given["notes"])
    deal = coverage_deal(given["trigger"], "ic", coupon, ["principal"], months)
    cash = np.zeros((months, 5))
    cash[0, :2] = given["interest_available"], 5e7
    result = run_waterfall(cash, deal, pool_balance=2e8)
    assert result.ratios[0, 0, 0] == pytest.approx(want["ratio"], abs=1e-6)
    assert bool(result.test_passed[0, 0, 0]) == want["passes"]
    assert result.totals["cured"][0, 0] == pytest.approx(want.get("cure_interest", 0.0), abs=0.01)


def test_level_payments() -> None:
    golden = case("16_quantlib_level_payments")
    given = golden["inputs"]
    got = level_payment(given["pv"], np.array(given["annual_rates"]), given["periods"])
    np.testing.assert_allclose(got, golden["expected"]["payment"], atol=golden["tolerance"])


def test_irr_edge_cases() -> None:
    golden = case("17_irr_edge_cases")
    for entry in golden["cases"]:
        found = irr(np.array(entry["flows"], dtype=float))
        if entry["irr"] is None:
            assert np.isnan(found.rate)
            assert str(found.reason) != ""
        else:
            assert float(found.rate) == pytest.approx(entry["irr"], rel=entry["rtol"])
    other = golden["other"]
    assert pyxirr.npv(0.05, other["npv_5pct"]["flows"]) == pytest.approx(other["npv_5pct"]["npv"], rel=0.01)
    payment = -float(level_payment(15000.0, 0.08, 60))
    assert payment == pytest.approx(other["pmt"]["value"], rel=1e-12)
    assert -float(level_payment(15000.0, 0.0, 60)) == other["pmt_zero"]["value"]
    mirr = other["mirr"]
    assert pyxirr.mirr(mirr["flows"], mirr["finance"], mirr["reinvest"]) == pytest.approx(
        mirr["value"], abs=5e-7
    )
