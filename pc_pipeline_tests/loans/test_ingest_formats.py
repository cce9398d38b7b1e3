"""Commercial mortgages, Fannie Mae, quarterly mortgages, cards: each rule by hand, then the real files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.loans.ingest import IngestResult, read_tape, recognise
from pc_pipeline.loans.ingest.fannie_mae import ACQUISITION, COMBINED, PERFORMANCE
from pc_pipeline_tests.loans.ingest_checks import assert_contract, moves, percent
from pc_pipeline_tests.shared_data import shared_path

# ---- commercial mortgages ------------------------------------------------------------------------


def cmbs_rows(changes: list[dict[str, object]]) -> pl.DataFrame:
    """One interest-only loan of 1,000,000 at 6 %; a row per dict of changes, months from 2020-01."""
    base: dict[str, object] = {
        "loanID": "t-1",
        "assetNumber": "1",
        "trustName": "T",
        "formType": "ABS-EE",
        "dateFiled": None,
        "originationDate": dt.date(2019, 12, 10),
        "maturityDate": dt.date(2029, 12, 6),
        "originalLoanAmount": 1e6,
        "originalTermLoanNumber": 120,
        "originalInterestRatePercentage": 0.06,
        "reportPeriodInterestRatePercentage": 0.06,
        "paymentTypeCode": 3,
        "originalInterestRateTypeCode": 1,
        "reportPeriodBeginningScheduleLoanBalanceAmount": 1e6,
        "reportPeriodEndActualBalanceAmount": 1e6,
        "scheduledInterestAmount": 5000.0,
        "totalScheduledPrincipalInterestDueAmount": 5000.0,
        "unscheduledPrincipalCollectedAmount": 0.0,
        "realizedLossToTrustAmount": None,
        "liquidationPrepaymentCode": None,
        "workoutStrategyCode": None,
        "paymentStatusLoanCode": "0",
    }
    rows = []
    for k, change in enumerate(changes):
        month = dt.date(2020, 1 + k, 11)
        rows.append(
            base | {"reportingPeriodEndDate": month, "dateFiled": month + dt.timedelta(days=20)} | change
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def test_cmbs_filed_status_loss_and_refiling(tmp_path: Path) -> None:
    rows = cmbs_rows(
        [
            {},
            {"paymentStatusLoanCode": "B"},
            {"paymentStatusLoanCode": "1"},
            {"paymentStatusLoanCode": "2"},
            {"paymentStatusLoanCode": "3", "workoutStrategyCode": "2,7"},
            {
                "reportPeriodEndActualBalanceAmount": 0.0,
                "liquidationPrepaymentCode": "3",
                "realizedLossToTrustAmount": 400_000.0,
                "paymentStatusLoanCode": None,
            },
            {"reportPeriodEndActualBalanceAmount": None, "paymentStatusLoanCode": None},
        ]
    )
    refiled = rows[1:2].with_columns(
        formType=pl.lit("ABS-EE/A"), dateFiled=pl.lit(dt.date(2020, 4, 1)), paymentStatusLoanCode=pl.lit("0")
    )
    pl.concat([refiled, rows]).write_parquet(tmp_path / "cmbs.parquet")
    result = read_tape(tmp_path)
    assert_contract(result)
    assert result.adapter == "sec_cmbs"
    assert result.panel["loan_state"].to_list() == [0, 0, 1, 2, 3, 4]
    assert result.panel["interest_paid"].to_list() == [5000.0, 5000.0, 0.0, 0.0, 0.0, 0.0]
    last = result.panel.row(-1, named=True)
    assert (last["charge_off_amount"], last["recovery_amount"], last["loss_amount"]) == (
        1e6,
        600_000.0,
        400_000.0,
    )
    assert result.recoveries["recovery_amount"].to_list() == [600_000.0]
    assert result.counts["refiled_rows_replaced"] == 1
    assert result.counts["rows_after_end"] == 1


def test_cmbs_cure_pays_arrears(tmp_path: Path) -> None:
    rows = cmbs_rows([{}, {"paymentStatusLoanCode": "1"}, {"paymentStatusLoanCode": "2"}, {}])
    rows.write_csv(tmp_path / "cmbs.csv")
    assert read_tape(tmp_path).panel["interest_paid"].to_list() == [5000.0, 0.0, 0.0, 15000.0]


def test_real_cmbs() -> None:
    result = read_tape(shared_path("data/sec_cmbs_ubs2017c1"))
    assert_contract(result)
    ours = percent(result.panel)
    published = {
        (1, 1): 28.57,
        (1, 2): 42.86,
        (2, 3): 75.0,
        (2, 2): 12.5,
        (2, 0): 12.5,
        (3, 3): 99.15,
        (3, 0): 0.85,
    }
    assert {key: ours[key] for key in published} == published
    assert ours[(1, 0)] == pytest.approx(14.29 + 14.29, abs=0.011)  # current and under 30 days are one state
    assert result.counts["rows_after_end"] == 4
    year = pl.col("reporting_month").dt.year()
    late = result.panel.filter(pl.col("loan_state") == 3).group_by(year).len()
    assert dict(late.iter_rows()) == {2018: 1, 2019: 18, 2020: 39, 2021: 65}
    assert result.panel.filter(pl.col("loan_state") > 3)["loan_state"].to_list() == [5]  # one, without loss
    assert result.panel.height == 2052 - 4
    by_year = (
        result.panel.filter(pl.col("loan_state") == 3).group_by(pl.col("reporting_month").dt.year()).len()
    )
    assert dict(by_year.iter_rows()) == {2018: 1, 2019: 18, 2020: 39, 2021: 65}
    assert result.loans["collateral_type"].n_unique() > 3
    assert result.loans["ltv_origination"].null_count() == 1  # one property without a value


# ---- Fannie Mae ----------------------------------------------------------------------------------

ACQUIRED = {
    "loan_id": "100000000001",
    "seller_name": "BANK",
    "orig_interest_rate": "6",
    "orig_upb": "100000",
    "orig_loan_term": "360",
    "orig_date": "12/1999",
    "first_pay_date": "02/2000",
    "orig_ltv": "80",
    "dti": "NULL",
    "borrower_credit_score": "700",
    "property_type": "SF",
    "property_state": "PA",
    "product_type": "FRM",
}
# month, balance, months past due, zero balance code
HISTORY = (
    ("02/01/2000", "", "0", "NULL"),
    ("01/01/2000", "", "0", "NULL"),
    ("03/01/2000", "99600.00", "1", "NULL"),
    ("04/01/2000", "99600.00", "-1", "NULL"),
    ("05/01/2000", "99600.00", "3", "NULL"),
    ("06/01/2000", "99600.00", "-1", "09"),
)


def old_layout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "Acquisition_2000Q1.txt").write_text(
        "|".join(ACQUIRED.get(name, "") for name in ACQUISITION[:25]) + "\n"
    )
    lines = []
    for month, balance, late, code in HISTORY:
        row = dict.fromkeys(PERFORMANCE, "") | {
            "loan_id": "100000000001",
            "monthly_reporting_period": month,
            "servicer": "NULL",
            "interest_rate": "6.0",
            "current_actual_upb": balance,
            "current_loan_delinquency_status": late,
            "zero_balance_code": code,
        }
        if code == "09":
            row |= {
                "disposition_date": "09/01/2000",
                "net_sale_proceeds": "70000.0",
                "foreclosure_costs": "4000.0",
            }
        lines.append("|".join(row[name] for name in PERFORMANCE))
    (folder / "Performance_2000Q1.txt").write_text("\n".join(lines) + "\n")
    return folder


def combined_layout(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for month, balance, late, code in HISTORY:
        row = dict.fromkeys(COMBINED, "") | ACQUIRED
        row |= {
            "orig_date": "121999",
            "first_pay_date": "022000",
            "dti": "",
            "monthly_reporting_period": month[:2] + month[6:],
            "interest_rate": "6.0",
            "current_actual_upb": "0.00" if code == "09" else balance,
            "current_loan_delinquency_status": "XX" if late == "-1" else late.zfill(2),
            "zero_balance_code": "" if code == "NULL" else code,
        }
        if code == "09":
            row |= {
                "disposition_date": "092000",
                "net_sale_proceeds": "70000.0",
                "foreclosure_costs": "4000.0",
            }
        lines.append("|".join([*(row[name] for name in COMBINED), *[""] * 44]))
    (folder / "2000Q1.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("write", [old_layout, combined_layout])
def test_fannie_layouts_by_hand(tmp_path: Path, write: object) -> None:
    result = read_tape(write(tmp_path / "f"))  # type: ignore[operator]
    assert result.adapter == "fannie_mae"
    assert_contract(result)
    assert result.panel["loan_state"].to_list() == [0, 0, 1, 3, 4]
    assert [month.month for month in result.panel["reporting_month"]] == [1, 2, 3, 5, 6]
    assert result.quarantine["column"].to_list() == ["current_loan_delinquency_status"]
    assert result.counts["blank_balances"] == 2
    loan = result.loans.row(0, named=True)
    assert loan["interest_rate"] == 0.06
    assert loan["ltv_origination"] == 0.8
    assert loan["dti_dscr_origination"] is None
    assert loan["maturity_date"] == dt.date(2030, 1, 1)
    assert result.panel["outstanding_balance"][1] == pytest.approx(
        99_900.45, abs=0.01
    )  # one instalment of 599.55
    last = result.panel.row(-1, named=True)
    assert last["charge_off_amount"] == 99_600.0
    assert last["recovery_amount"] == 66_000.0
    assert result.recoveries["recovery_month"].to_list() == [dt.date(2000, 9, 1)]


def test_real_fannie() -> None:
    result = read_tape(shared_path("data/fannie_2000q1_sample"))
    assert_contract(result)
    published = {(0, 0): 95.74, (0, 1): 1.48, (1, 0): 44.89, (1, 1): 32.44, (1, 2): 18.22, (2, 0): 38.30}
    published |= {(2, 1): 27.66, (2, 2): 6.38, (2, 3): 25.53, (3, 3): 89.29, (3, 0): 3.57}
    ours = percent(result.panel)
    assert {key: ours[key] for key in published} == pytest.approx(published, abs=0.011)
    counted = moves(result.panel)  # the file lists repurchases apart from prepayments; here they are paid off
    assert (
        counted[(0, 5)] + counted[(1, 5)] + counted[(2, 5)] + counted[(3, 5)]
        == 266 + result.counts["repurchased"]
    )
    assert result.counts["repurchased"] == 5
    assert result.counts["ended_by_loss"] == 4
    assert result.panel.height + result.quarantine.height == 10_000


# ---- quarterly mortgages -------------------------------------------------------------------------


def quarterly(rows: list[tuple[int, float, int, float | None, int | None]]) -> pl.DataFrame:
    """One loan of 100,000; rows are (time, balance, status, lgd, res_time)."""
    return pl.DataFrame(
        {
            "id": [4] * len(rows),
            "time": [row[0] for row in rows],
            "orig_time": [-2] * len(rows),
            "mat_time": [117] * len(rows),
            "balance_time": [row[1] for row in rows],
            "balance_orig_time": [100_000.0] * len(rows),
            "interest_rate_time": [6.0] * len(rows),
            "Interest_Rate_orig_time": [0.0] * len(rows),
            "status_time": [row[2] for row in rows],
            "LTV_time": [60.0] * len(rows),
            "LTV_orig_time": [80.0] * len(rows),
            "FICO_orig_time": [650] * len(rows),
            "state_orig_time": ["TX"] * len(rows),
            "lgd_time": pl.Series([row[3] for row in rows], dtype=pl.Float64),
            "res_time": pl.Series([row[4] for row in rows], dtype=pl.Int64),
        }
    )


def test_quarters_become_months(tmp_path: Path) -> None:
    rows = [(2, 90_000.0, 0, None, None), (3, 89_000.0, 0, None, None), (6, 88_000.0, 0, None, None)]
    quarterly([*rows, (7, 88_000.0, 1, 0.4, 9)]).write_parquet(tmp_path / "q.parquet")
    result = read_tape(tmp_path / "q.parquet")
    assert_contract(result)
    panel = result.panel
    # quarters 2-3 and 6-7 are filled (July to October 2000, July to October 2001), the gap 3-6 is not
    assert [(m.year, m.month) for m in panel["reporting_month"]] == [
        (2000, 7), (2000, 8), (2000, 9), (2000, 10), (2001, 7), (2001, 8), (2001, 9), (2001, 10),
    ]  # fmt: skip
    assert panel["loan_state"].to_list() == [0] * 7 + [4]
    assert panel["outstanding_balance"].to_list()[:5] == [90_000.0, 90_000.0, 90_000.0, 89_000.0, 88_000.0]
    assert panel["recovery_amount"][-1] == pytest.approx(0.6 * 88_000)
    assert result.recoveries["recovery_month"].to_list() == [dt.date(2002, 4, 1)]
    assert result.loans["interest_rate"].to_list() == [0.06]  # the zero is missing; the first rate stands in
    assert result.counts["gaps"] == 1
    assert moves(panel) == {(0, 0): 5, (0, 4): 1}


def test_real_quarterly() -> None:
    result = read_tape(shared_path("data/dcr_mortgage"))
    assert_contract(result)
    ends = dict(result.panel.group_by("loan_state").len().iter_rows())
    assert ends[4] == 886
    assert ends[5] + ends.get(6, 0) == 1632
    quarters = result.panel.height - result.counts["months_filled"]
    assert quarters + result.quarantine.filter(pl.col("table") == "loan_panel").height == pytest.approx(
        32_268, abs=2
    )
    assert 100 * ends[4] / 32_268 == pytest.approx(2.75, abs=0.005)
    assert result.counts["unresolved_defaults"] == 886 - 548
    assert result.counts["quarters_missing_inside_a_loan"] == 73
    assert result.counts["losses_above_the_balance"] == 47
    assert 100 * (ends[5] + ends.get(6, 0)) / 32_268 == pytest.approx(5.06, abs=0.005)


def test_real_quarterly_by_year_and_vintage() -> None:
    """Hazards by calendar year are per filed quarter; events stand in a quarter's last month."""
    source = shared_path("data/dcr_mortgage")
    result = read_tape(source)
    year = pl.col("reporting_month").dt.year()
    filed = pl.read_parquet(source / "panel.parquet", columns=["time"])
    quarters = dict(filed.group_by(2000 + (pl.col("time") * 3).cast(pl.Int64) // 12).len().iter_rows())
    ended = result.panel.group_by(year.alias("year"), "loan_state").len().rows()
    count = {(when, state): n for when, state, n in ended}
    default = {when: round(100 * count[(when, 4)] / quarters[when], 2) for when in range(2004, 2011)}
    payoff = {
        when: round(100 * (count[(when, 5)] + count.get((when, 6), 0)) / quarters[when], 2)
        for when in range(2004, 2011)
    }
    assert list(default.values()) == [1.04, 0.81, 1.38, 2.53, 4.21, 4.81, 2.73]
    assert list(payoff.values()) == [11.86, 9.96, 7.81, 5.51, 2.73, 2.03, 1.39]
    gone = result.panel.filter(pl.col("loan_state") == 4).select("loan_id", pl.lit(1).alias("gone"))
    ever = result.loans.join(gone, on="loan_id", how="left").group_by(pl.col("vintage_month").dt.year())
    shares = dict(ever.agg((100 * pl.col("gone").count() / pl.len()).round(1)).iter_rows())
    assert [shares[when] for when in range(2003, 2008)] == [7.7, 11.5, 24.5, 42.8, 36.3]


# ---- cards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cards() -> IngestResult:
    return read_tape(shared_path("data/uci_credit_card"))


def test_real_cards(cards: IngestResult) -> None:
    assert_contract(cards)
    ours = percent(cards.panel)
    published = {
        (0, 0): 93.84,
        (0, 1): 1.43,
        (0, 2): 4.73,
        (2, 0): 25.33,
        (2, 1): 10.21,
        (2, 2): 58.0,
        (2, 3): 6.46,
    }
    published |= {(3, 0): 10.30, (3, 1): 8.33, (3, 2): 28.94, (3, 3): 52.42}
    assert {key: ours[key] for key in published} == published
    assert cards.counts["accounts_with_a_negative_bill"] == 1330
    assert cards.counts["undocumented_education"] == 250
    assert cards.counts["undocumented_marriage"] == 35


def test_the_break_of_a_status_code_is_found(cards: IngestResult) -> None:
    assert cards.counts["data_breaks"] == 1
    said = cards.quality.filter(pl.col("how").str.starts_with("data break"))["how"].to_list()
    assert said == [
        "data break in 2005-09: status 1 goes from 14 to 2594 accounts; it has changed its meaning"
    ]


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("sec_cmbs_ubs2017c1", "sec_cmbs"),
        ("fannie_2000q1_sample", "fannie_mae"),
        ("dcr_mortgage", "quarterly_mortgage"),
        ("uci_credit_card", "uci_cards"),
    ],
)
def test_recognised(name: str, adapter: str) -> None:
    assert recognise(shared_path(f"data/{name}")) == adapter
