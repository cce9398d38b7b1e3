"""Canonical tapes: what is derived, what is refused, what fails as a whole."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest import read_tape, recognise
from pc_pipeline.schemas.tables import failures
from pc_pipeline_tests.loans.ingest_checks import assert_contract

LOANS = pl.DataFrame(
    {
        "loan_id": ["a", "b", "c"],
        "origination_date": [dt.date(2023, 1, 15), dt.date(2023, 1, 1), dt.date(2023, 2, 1)],
        "term_months": [24, 12, 36],
        "original_balance": [2400.0, 1200.0, 3600.0],
        "interest_rate": [0.0, 0.12, 0.05],
        "amortization_type": ["annuity", "bullet", "annuity"],
        "asset_class": ["consumer", "corporate", "realestate"],
    }
)
PANEL = pl.DataFrame(
    {
        "loan_id": ["a", "a", "a", "b", "b", "c"],
        "reporting_month": [dt.date(2023, m, 1) for m in (2, 3, 4, 2, 3, 3)],
        "loan_state": [0, 1, 0, 0, 4, 0],
        "outstanding_balance": [2300.0, 2300.0, 2100.0, 1200.0, 0.0, 3500.0],
    }
)


def folder(place: Path, loans: pl.DataFrame, panel: pl.DataFrame | None = None) -> Path:
    place.mkdir(exist_ok=True)
    loans.write_csv(place / "loans.csv")
    if panel is not None:
        panel.write_csv(place / "panel.csv")
    return place


def test_what_follows_is_derived_and_said(tmp_path: Path) -> None:
    result = read_tape(folder(tmp_path / "d", LOANS, PANEL))
    assert result.adapter == "canonical"
    for table, frame in (("loan_tape", result.loans), ("loan_panel", result.panel)):
        assert failures(table, frame).is_empty(), failures(table, frame)
    assert result.loans["maturity_date"].to_list() == [
        dt.date(2025, 1, 1),
        dt.date(2024, 1, 1),
        dt.date(2026, 2, 1),
    ]
    assert result.loans["borrower_type"].to_list() == ["consumer", "corporate", "corporate"]
    said = dict(result.quality.filter(pl.col("how") != "").select("column", "how").iter_rows())
    assert said["maturity_date"] == "derived: origination plus term"
    assert said["payment_frequency"] == "assumed: monthly"
    a = result.panel.filter(pl.col("loan_id") == "a")
    assert a["principal_paid"].to_list() == [100.0, 0.0, 200.0]
    assert a["prepayment_amount"].to_list() == [0.0, 0.0, 0.0]  # the 200 cure arrears
    assert a["months_in_state"].to_list() == [1, 1, 1]
    assert a["days_past_due"].to_list() == [0, 30, 0]
    b = result.panel.filter(pl.col("loan_id") == "b")
    assert b["charge_off_amount"].to_list() == [0.0, 1200.0]
    assert b["interest_paid"].to_list() == [12.0, 0.0]
    assert result.panel["month_end_weekday"].to_list()[:2] == [
        2,
        5,
    ]  # 28 Feb 2023 a Tuesday, 31 March a Friday


def test_a_tape_alone_has_no_history(tmp_path: Path) -> None:
    LOANS.write_parquet(tmp_path / "pool.parquet")
    result = read_tape(tmp_path / "pool.parquet")
    assert result.panel.is_empty()
    assert result.panel.columns[0] == "loan_id"
    assert result.as_of == dt.date(2023, 2, 1)


def test_csv_parquet_and_xlsx_say_the_same(tmp_path: Path) -> None:
    LOANS.write_csv(tmp_path / "pool.csv")
    LOANS.write_parquet(tmp_path / "pool.parquet")
    LOANS.write_csv(tmp_path / "pool.tsv", separator="\t")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(LOANS.columns)
    for row in LOANS.iter_rows():
        sheet.append(list(row))
    book.save(tmp_path / "pool.xlsx")
    frames = [read_tape(tmp_path / f"pool.{kind}").loans for kind in ("csv", "parquet", "tsv", "xlsx")]
    assert all(frame.equals(frames[0]) for frame in frames[1:])
    assert recognise(tmp_path / "pool.xlsx") == "canonical"


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("original_balance", -5.0, "expected more than 0"),
        ("original_balance", float("nan"), "expected a finite number"),
        ("original_balance", float("inf"), "expected a finite number"),
        ("original_balance", 1e300, "expected at most"),
        ("interest_rate", 7.5, "expected at most 1"),
        ("asset_class", "yacht", "expected one of corporate"),
        ("origination_date", dt.date(1800, 1, 1), "expected a date from"),
        ("origination_date", dt.date(2900, 1, 1), "expected a date from"),
        ("term_months", 0, "expected at least 1"),
        ("loan_id", "=cmd|' /C calc'!A0", "formula"),
        ("loan_id", "a", "duplicate loan"),
    ],
)
def test_a_bad_loan_is_quarantined_and_its_months_go_with_it(
    tmp_path: Path, column: str, value: Any, reason: str
) -> None:
    bad = LOANS.with_columns(
        pl.when(pl.col("loan_id") == "c").then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )
    result = read_tape(folder(tmp_path / "d", bad, PANEL))
    assert result.loans["loan_id"].to_list() == ["a", "b"]
    loan = result.quarantine.filter(pl.col("table") == "loan_tape").row(0, named=True)
    assert reason in loan["reason"]
    assert loan["row_number"] == 3
    assert json.loads(loan["row_json"])
    months = result.quarantine.filter(pl.col("table") == "loan_panel")
    assert months["reason"].to_list() == ["its loan is not on the tape, or was refused there"]
    assert result.panel["loan_id"].unique().sort().to_list() == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("loan_state", 9, "expected at most 6"),
        ("loan_state", -1, "expected at least 0"),
        ("outstanding_balance", -1.0, "expected at least 0"),
        ("outstanding_balance", 4000.0, "impossible balance"),
        ("outstanding_balance", float("nan"), "expected a finite number"),
        ("reporting_month", dt.date(2022, 12, 1), "dates out of order"),
        ("loan_state", 5, "a loan that ended still has a balance"),
    ],
)
def test_a_bad_month_is_quarantined(tmp_path: Path, column: str, value: Any, reason: str) -> None:
    full = read_tape(folder(tmp_path / "good", LOANS, PANEL)).panel.sort("loan_id", "reporting_month")
    bad = full.with_columns(
        pl.when(pl.col("loan_id") == "c").then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )
    result = read_tape(folder(tmp_path / "bad", LOANS, bad))
    assert result.panel.height == full.height - 1
    assert reason in result.quarantine["reason"][0]
    assert result.loans.height == 3


def test_doubles_and_disorder(tmp_path: Path) -> None:
    shuffled = pl.concat([PANEL.reverse(), PANEL.head(1)])
    result = read_tape(folder(tmp_path / "d", LOANS, shuffled))
    assert result.panel.equals(read_tape(folder(tmp_path / "e", LOANS, PANEL)).panel)
    assert result.quarantine["reason"].to_list() == ["duplicate loan-month"]
    assert result.quarantine["row_number"].to_list() == [7]
    assert result.counts["duplicate_loan_months"] == 1


def test_months_after_the_end_are_refused(tmp_path: Path) -> None:
    after = pl.concat(
        [PANEL, PANEL.filter(pl.col("loan_state") == 4).with_columns(reporting_month=dt.date(2023, 4, 1))]
    )
    result = read_tape(folder(tmp_path / "d", LOANS, after))
    assert result.quarantine["reason"].to_list() == ["reported after the loan ended"]


def test_a_text_among_numbers_is_one_bad_row(tmp_path: Path) -> None:
    text = LOANS.write_csv().replace("3600.0", "three thousand")
    (tmp_path / "loans.csv").write_text(text)
    result = read_tape(tmp_path / "loans.csv")
    assert result.loans["loan_id"].to_list() == ["a", "b"]
    assert result.quarantine["column"].to_list() == ["original_balance"]
    assert "three thousand" in result.quarantine["row_json"][0]


def test_quality_adds_up(tmp_path: Path) -> None:
    bad = PANEL.with_columns(
        pl.when(pl.col("loan_id") == "c")
        .then(-1.0)
        .otherwise("outstanding_balance")
        .alias("outstanding_balance")
    )
    quality = read_tape(folder(tmp_path / "d", LOANS, bad)).quality
    whole = quality.filter((pl.col("column") == "*") & (pl.col("file") == "panel.csv"))
    total = whole.filter(pl.col("month").is_null()).row(0, named=True)
    assert (total["rows_in"], total["accepted"], total["quarantined"]) == (6, 5, 1)
    months = whole.drop_nulls("month")
    assert months["rows_in"].sum() == 6
    assert dict(months.select("month", "quarantined").iter_rows())[dt.date(2023, 3, 1)] == 1


class TestFailsWhole:
    def fails(self, path: Path, match: str) -> str:
        with pytest.raises(IngestError, match=match) as caught:
            read_tape(path)
        return str(caught.value)

    def test_missing_column(self, tmp_path: Path) -> None:
        LOANS.drop("interest_rate").write_csv(tmp_path / "loans.csv")
        message = self.fails(tmp_path / "loans.csv", "required column is missing")
        assert "interest_rate" in message
        assert "loans.csv" in message

    def test_wrong_type(self, tmp_path: Path) -> None:
        LOANS.with_columns(original_balance=pl.lit("much")).write_parquet(tmp_path / "loans.parquet")
        assert "Float64" in self.fails(tmp_path / "loans.parquet", "wrong type")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "loans.csv").write_bytes(b"")
        self.fails(tmp_path / "loans.csv", "the file is empty")
        LOANS.head(0).write_csv(tmp_path / "loans.csv")
        self.fails(tmp_path / "loans.csv", "holds no rows")

    def test_double_column(self, tmp_path: Path) -> None:
        (tmp_path / "loans.csv").write_text("loan_id,loan_id\na,b\n")
        self.fails(tmp_path / "loans.csv", "appears twice")

    def test_unknown_format(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("alpha,beta\n1,2\n")
        message = self.fails(tmp_path / "x.csv", "no adapter knows")
        assert "alpha, beta" in message
        assert "sec_auto" in message

    def test_rounded_ids(self, tmp_path: Path) -> None:
        LOANS.with_columns(loan_id=pl.Series([1.0, 2.0, 3.0])).write_parquet(tmp_path / "l.parquet")
        self.fails(tmp_path / "l.parquet", "rounded to floating-point")
        LOANS.with_columns(loan_id=pl.Series(["1.00007E+11", "1.00008E+11", "1.0E+11"])).write_csv(
            tmp_path / "l.csv"
        )
        self.fails(tmp_path / "l.csv", "rounded to floating-point")

    def test_a_formula_in_a_workbook(self, tmp_path: Path) -> None:
        book = openpyxl.Workbook()
        sheet = book.active
        sheet.append(LOANS.columns)
        sheet.append([*list(LOANS.row(0))[:3], "=1+1", 0.0, "annuity", "consumer"])
        book.save(tmp_path / "l.xlsx")
        assert "cell D2" in self.fails(tmp_path / "l.xlsx", "holds formulas")

    def test_all_bad(self, tmp_path: Path) -> None:
        LOANS.with_columns(original_balance=pl.lit(-1.0)).write_csv(tmp_path / "loans.csv")
        self.fails(tmp_path / "loans.csv", "no loan of the delivery is good")


MONTHS = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3_000, allow_nan=False)), min_size=1, max_size=14)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=st.lists(MONTHS, min_size=1, max_size=3),
    end=st.sampled_from([None, 4, 5]),
    start=st.integers(1, 6),
)
def test_any_history_balances_to_the_cent(
    tmp_path: Path, histories: list[list[tuple[int, float]]], end: int | None, start: int
) -> None:
    rows = []
    for loan, months in zip("abc", histories, strict=False):
        for k, (state, balance) in enumerate(months):
            last = k == len(months) - 1 and end is not None
            month = dt.date(2023 + (start + k) // 12, (start + k) % 12 + 1, 1)
            rows.append((loan, month, end if last else state, 0.0 if last else round(balance, 2)))
    names = ["loan_id", "reporting_month", "loan_state", "outstanding_balance"]
    panel = pl.DataFrame(rows, schema=names, orient="row")
    tape = LOANS.with_columns(original_balance=pl.lit(3_000.0), origination_date=pl.lit(dt.date(2023, 1, 1)))
    place = tmp_path / "d"
    for old in place.glob("*"):
        old.unlink()
    result = read_tape(folder(place, tape, panel))
    assert_contract(result)
    assert result.panel.height + result.quarantine.height == panel.height


def test_workbook_numbers_as_identifiers(tmp_path: Path) -> None:
    for ids, fine in (([1001, 1002, 1003], True), ([10**18 + 1, 10**18 + 2, 10**18 + 3], False)):
        book = openpyxl.Workbook()
        book.active.append(LOANS.columns)
        for number, row in zip(ids, LOANS.iter_rows(), strict=True):
            book.active.append([number, *row[1:]])
        book.save(tmp_path / "pool.xlsx")
        if fine:
            assert read_tape(tmp_path / "pool.xlsx").loans["loan_id"].to_list() == ["1001", "1002", "1003"]
        else:  # a workbook keeps 15 digits: these are no longer the identifiers they were
            with pytest.raises(IngestError, match="rounded to floating-point"):
                read_tape(tmp_path / "pool.xlsx")
