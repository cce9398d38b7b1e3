"""Every real data set through the ingest; outcomes without history; files that are no tape, and why."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.core.store import Store
from pc_pipeline.loans.ingest import deliver, read_tape, recognise
from pc_pipeline.loans.ingest.sba import ASSUMED_RATE
from pc_pipeline_tests.loans.ingest_checks import assert_contract
from pc_pipeline_tests.shared_data import shared_path

TAPES = [  # data set, adapter, loans as its README counts them
    ("sec_auto_aart2017", "sec_auto", 3513),
    ("sec_cmbs_ubs2017c1", "sec_cmbs", None),
    ("fannie_2000q1_sample", "fannie_mae", None),
    ("dcr_mortgage", "quarterly_mortgage", None),
    ("uci_credit_card", "uci_cards", None),
    ("sba_california", "sba", 815),
]
NO_TAPES = [
    ("sec_auto_chargeoffs_2017", "picked because they were charged off"),
    ("macro_fred", "macro history"),
    ("macro_fed_scenarios", "macro scenario"),
    (
        "transitions_published",
        "JLT.csv: a published rating migration matrix.*sp_1981-2016.csv: published rating migrations",
    ),
    ("deals_published", "tranches.csv: the classes of deals"),
]


@pytest.mark.parametrize(("name", "adapter", "n_loans"), TAPES, ids=[tape[0] for tape in TAPES])
def test_every_real_tape_passes(name: str, adapter: str, n_loans: int | None, tmp_path: Path) -> None:
    source = shared_path(f"data/{name}")
    assert recognise(source) == adapter
    result = read_tape(source)
    assert_contract(result)
    rows = result.quality.filter((pl.col("column") == "*") & pl.col("month").is_null())
    assert (rows["rows_in"] == rows["accepted"] + rows["quarantined"]).all()
    assert rows["quarantined"].sum() == result.quarantine.height
    if n_loans is not None:
        assert result.loans.height == n_loans
    stored = deliver(Store(tmp_path), source, read=result)
    assert stored.table("panel").equals(result.panel)
    assert not deliver(Store(tmp_path), source).is_new


@pytest.mark.parametrize(("name", "why"), NO_TAPES, ids=[entry[0] for entry in NO_TAPES])
def test_what_is_no_tape_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(IngestError, match=why):
        read_tape(shared_path(f"data/{name}"))


def test_sba_outcomes_are_those_of_its_readme() -> None:
    result = read_tape(shared_path("data/sba_california"))
    gone = result.panel
    assert (gone.height, result.counts["paid_in_full_without_a_month"]) == (131, 684)
    assert gone["loan_state"].unique().to_list() == [4]
    share = (gone["charge_off_amount"] / gone["original_balance"]).mean()
    weighted = gone["charge_off_amount"].sum() / gone["original_balance"].sum()
    assert (round(float(str(share)), 3), round(weighted, 3)) == (0.639, 0.551)
    part = gone["charge_off_amount"] / gone["original_balance"]
    quartiles = [part.quantile(q, "linear") for q in (0.25, 0.5, 0.75)]
    assert quartiles == pytest.approx([0.45, 0.65, 0.87], abs=0.006)
    facts = gone.join(result.loans.select("loan_id", "origination_date"), on="loan_id")
    index = month_index_expr("reporting_month") - month_index_expr("origination_date")
    months = facts.select(index.alias("n"))["n"]
    quartiles = [months.quantile(q, "linear") for q in (0.25, 0.5, 0.75)]
    assert quartiles == pytest.approx([35, 58, 71], abs=0.6)  # ours count calendar months
    assert (gone["loss_amount"] == gone["charge_off_amount"]).all()
    assert gone["reporting_month"].max() == dt.date(2014, 7, 1) == result.as_of
    assert result.recoveries.is_empty()


def sba(place: Path, **changes: object) -> Path:
    """Two loans: one paid, one charged off for 400 of 1,000; `changes` on the second."""
    base = {
        "LoanNr_ChkDgt": 1,
        "Term": 84,
        "DisbursementDate": dt.date(2001, 4, 30),
        "DisbursementGross": 1000,
        "MIS_Status": "P I F",
        "ChgOffDate": None,
        "ChgOffPrinGr": 0,
    }
    second = base | {
        "LoanNr_ChkDgt": 2,
        "MIS_Status": "CHGOFF",
        "ChgOffDate": dt.date(2003, 2, 14),
        "ChgOffPrinGr": 400,
    }
    path = place / "loans.parquet"
    pl.DataFrame([base, second | changes], infer_schema_length=None).write_parquet(path)
    return path


def test_a_charge_off_by_hand(tmp_path: Path) -> None:
    result = read_tape(sba(tmp_path))
    assert result.loans["interest_rate"].to_list() == [ASSUMED_RATE] * 2
    row = result.panel.row(0, named=True)
    assert (row["loan_id"], row["reporting_month"]) == ("2", dt.date(2003, 2, 1))
    assert (row["principal_paid"], row["charge_off_amount"], row["loss_amount"]) == (600.0, 400.0, 400.0)
    assert row["outstanding_balance"] == 0.0
    assert_contract(result)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"MIS_Status": "EXEMPT"}, "MIS_Status"),
        ({"ChgOffDate": None}, "ChgOffDate"),
        ({"ChgOffPrinGr": 0}, "ChgOffDate"),
    ],
)
def test_an_outcome_that_is_not_known_is_refused(
    tmp_path: Path, changes: dict[str, object], column: str
) -> None:
    result = read_tape(sba(tmp_path, **changes))
    assert result.loans["loan_id"].to_list() == ["1"]
    assert result.panel.is_empty()
    assert result.quarantine["column"].to_list() == [column]


def test_a_charge_off_above_the_amount_disbursed_is_the_amount(tmp_path: Path) -> None:
    result = read_tape(sba(tmp_path, ChgOffPrinGr=1500))
    assert result.panel["charge_off_amount"].to_list() == [1000.0]
    assert "above the amount disbursed" in " ".join(result.quality["how"])


def test_sign_identity_of_filed_charge_offs() -> None:
    """begin - principal - charge-off - adjustment = end, to the cent; two servicers' end is before it."""
    rows = pl.read_parquet(shared_path("data/sec_auto_chargeoffs_2017") / "chargeoff_rows.parquet")
    begin = pl.col("reportingPeriodBeginningLoanBalanceAmount")
    gone = pl.col("chargedoffPrincipalAmount")
    adjusted = pl.col("otherPrincipalAdjustmentAmount").fill_null(0.0)
    rest = begin - pl.col("actualPrincipalCollectedAmount") - pl.col("reportingPeriodActualEndBalanceAmount")
    tested = rows.with_columns(
        (rest - gone - adjusted).abs().lt(0.015).alias("minus"),
        (rest - gone + adjusted).abs().lt(0.015).alias("plus"),
        rest.abs().lt(0.015).alias("before_charge_off"),
        pl.col("securitizationKey").str.contains("Ford|Ally").alias("late"),
    )
    usual, late = tested.filter(~pl.col("late")), tested.filter("late")
    assert usual["minus"].all()
    assert usual.filter(adjusted != 0)["plus"].sum() == 0  # the sign of the adjustment is not free
    assert (usual.height, late.height) == (2667, 376)
    assert late["minus"].sum() == 128
    assert late.filter(pl.col("minus") | pl.col("before_charge_off")).height > 300
    assert rows.filter(gone < 0).height == 329
    assert rows.filter(pl.col("repossessedProceedsAmount") < 0).height == 484
