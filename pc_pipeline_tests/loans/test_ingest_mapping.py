"""Mapping files: units, dates and codes by hand; a draft that reads back; what a mapping may not say."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest import ADAPTERS, draft_mapping, read_tape
from pc_pipeline.loans.ingest.draft import likeness
from pc_pipeline_tests.loans.ingest_checks import assert_contract
from pc_pipeline_tests.shared_data import shared_path

POOL = """AccountNo;Opened;Tenor years;Amount k;APR;Margin;Product;Plan
X1;15.01.2023;2;12.5;7.04%;0.025;AUTO;L
X2;01.02.2023;5;1,000;11.5;;CRE;B
X3;01.02.2023;5;7;3.5;;YACHT;L
"""
MAPPING = """
format: 1
tables:
  - table: loan_tape
    columns:
      loan_id: AccountNo
      origination_date: {from: Opened, format: "%d.%m.%Y"}
      term_months: {from: Tenor years, unit: years}
      original_balance: {from: Amount k, unit: thousands}
      interest_rate: {from: APR, unit: percent}
      spread_bps: {from: Margin, unit: decimal}
      asset_class: {from: Product, codes: {AUTO: consumer, CRE: realestate}}
      amortization_type: {from: Plan, codes: {L: annuity, B: bullet}}
      originator_id: {value: bank}
"""


def test_units_dates_and_codes(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text(POOL)
    (tmp_path / "map.yaml").write_text(MAPPING)
    result = read_tape(tmp_path / "pool.csv", mapping=tmp_path / "map.yaml")
    assert_contract(result)
    first, second = result.loans.iter_rows(named=True)
    assert first["loan_id"] == "X1"
    assert first["origination_date"] == dt.date(2023, 1, 15)
    assert first["term_months"] == 24
    assert first["original_balance"] == 12_500.0
    assert first["interest_rate"] == pytest.approx(0.0704)
    assert first["spread_bps"] == 250.0
    assert (first["asset_class"], first["amortization_type"], first["rate_type"]) == (
        "consumer",
        "annuity",
        "floating",
    )
    assert (second["original_balance"], second["amortization_type"]) == (1e6, "bullet")
    assert result.quarantine["column"].to_list() == ["asset_class"]  # YACHT is none of ours
    assert "YACHT" in result.quarantine["row_json"][0]


def test_a_panel_with_days_late(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text(POOL)
    (tmp_path / "hist.csv").write_text(
        "Acct;Period;Late;Bal\nX1;2023-02-01;0;12000\nX1;2023-03-01;45;12000\nX1;2023-04-01;100;12000\n"
    )
    (tmp_path / "map.yaml").write_text(
        MAPPING.replace("table: loan_tape", "table: loan_tape\n    file: pool.csv")
        + "  - table: loan_panel\n    file: hist.csv\n    columns: {loan_id: Acct, reporting_month: Period, "
        "loan_state: {from: Late, unit: days}, days_past_due: Late, outstanding_balance: Bal}\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    for name in ("pool.csv", "hist.csv"):
        (tmp_path / name).rename(data / name)
    result = read_tape(data, mapping=tmp_path / "map.yaml")
    assert_contract(result)
    assert result.panel["loan_state"].to_list() == [0, 1, 3]
    assert result.panel["days_past_due"].to_list() == [0, 45, 100]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not YAML"),
        ("just text", "not a mapping"),
        ("tables: [{table: yachts, columns: {a: b}}]", "no such table"),
        ("tables: [{table: loan_tape, columns: {colour: b}}]", "no such column"),
        ("tables: [{table: loan_tape, columns: {loan_id: {from: a, unit: furlongs}}}]", "no such unit"),
        ("tables: [{table: loan_tape, columns: {loan_id: {from: a, colour: b}}}]", "not mapped rightly"),
        ("tables: [{table: loan_tape, columns: {loan_id: Missing}}]", "are not there"),
        (
            "tables: [{table: loan_tape, file: other.csv, columns: {loan_id: AccountNo}}]",
            "file for loan_tape",
        ),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_mapping_says_so(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "pool.csv").write_text(POOL)
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(IngestError, match=match):
        read_tape(tmp_path / "pool.csv", mapping=tmp_path / "map.yaml")


def test_a_draft_reads_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "book.csv").write_text(
        "Loan Number,Orig Date,Original Term,Original UPB,Note Rate,FICO,OLTV,Product Type,Amort Type,State\n"
        + "".join(
            f"{100 + k},{1 + k % 12:02d}/15/2021,360,{250_000 + k},{3.5 + k / 100},{650 + k},{80 - k},"
            "realestate,annuity,CA\n"
            for k in range(30)
        )
    )
    text = draft_mapping(data)
    (tmp_path / "map.yaml").write_text(text)
    result = read_tape(data, mapping=tmp_path / "map.yaml")
    assert_contract(result)
    loan = result.loans.filter(pl.col("loan_id") == "100").row(0, named=True)
    assert loan["origination_date"] == dt.date(2021, 1, 15)
    assert loan["interest_rate"] == pytest.approx(0.035)
    assert loan["ltv_origination"] == pytest.approx(0.80)
    assert loan["external_score_origination"] == 650.0
    assert loan["geography_region"] == "CA"
    assert "range 3.5..3.79" in text


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("AcctNo", "loan_id"),
        ("coupon", "interest_rate"),
        ("OrigBal", "original_balance"),
        ("MaturityDt", "maturity_date"),
    ],
)
def test_desk_words_are_known(theirs: str, ours: str) -> None:
    from pc_pipeline.schemas.tables import columns

    assert max(columns("loan_tape"), key=lambda name: likeness(theirs, name)) == ours


def test_small_business_loans_through_a_mapping(tmp_path: Path) -> None:
    tape = shared_path("data/sba_california/loans.parquet")
    (tmp_path / "map.yaml").write_text(
        "tables: [{table: loan_tape, columns: {loan_id: LoanNr_ChkDgt, origination_date: DisbursementDate, "
        "term_months: Term, original_balance: DisbursementGross, interest_rate: {value: 0.08}, "
        "asset_class: {value: corporate}, borrower_type: {value: sme}, amortization_type: {value: annuity}, "
        "originator_id: Bank, geography_region: State}}]"
    )
    result = read_tape(tape, mapping=tmp_path / "map.yaml")
    assert_contract(result)
    assert result.loans.height + result.quarantine.height == 815
    assert result.loans["maturity_date"].null_count() == 0


def test_the_documented_mapping_works(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "ingest.md").read_text(
        encoding="utf-8"
    )
    (tmp_path / "map.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    data = tmp_path / "data"
    data.mkdir()
    (data / "book.csv").write_text(
        "AccountNo,Opened,Years,AmountK,APR,Margin,Product\n7,15.01.2023,2,12,7.2,0.02,CRE\n"
    )
    (data / "months.csv").write_text(
        "AccountNo,Period,DaysLate,Balance\n7,02/2023,0,11500\n7,03/2023,35,11500\n"
    )
    result = read_tape(data, mapping=tmp_path / "map.yaml")
    assert_contract(result)
    assert result.loans.select("interest_rate", "spread_bps", "original_balance").row(0) == (
        pytest.approx(0.072),
        200.0,
        12_000.0,
    )
    assert result.panel["loan_state"].to_list() == [0, 1]


def test_the_documented_adapters_are_all_there() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "methods" / "ingest.md").read_text(
        encoding="utf-8"
    )
    named = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(named) == sorted(ADAPTERS)
