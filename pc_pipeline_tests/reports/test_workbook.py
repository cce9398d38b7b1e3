"""The workbook, read back."""

from __future__ import annotations

import datetime as dt
import os
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import load_workbook

from pc_pipeline.reports.workbook import cell_value, safe_text, sheet_names, write_workbook

from .samples import NOTES, losses, report_frames

HOSTILE = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "  =cmd|'/c calc'!A0",
    "\t=1",
    "\uff1d1+1",
    "\u22121",
    "<script>alert(1)</script>",
    "日本語 🏦",
    "a\x00b\x1b",
]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory):
    frames = report_frames(("baseline", "severely_adverse"))
    path = write_workbook(tmp_path_factory.mktemp("book") / "report.xlsx", frames, NOTES, title="Test deal")
    return load_workbook(path)


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    frames = report_frames(("baseline",))
    del frames["loss_distribution"]
    first = write_workbook(tmp_path / "a.xlsx", frames, NOTES).read_bytes()
    assert write_workbook(tmp_path / "b.xlsx", frames, dict(NOTES)).read_bytes() == first
    with zipfile.ZipFile(tmp_path / "a.xlsx") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2000, 1, 1, 0, 0, 0)}
        core = archive.read("docProps/core.xml").decode()
    assert core.count("2000-01-01T00:00:00Z") == 2
    assert str(dt.date.today().year) not in core


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    write_workbook(tmp_path / "deep" / "a.xlsx", {}, {})
    assert os.listdir(tmp_path / "deep") == ["a.xlsx"]


def test_summary_comes_first_and_says_what_it_is(book) -> None:
    assert book.sheetnames[0] == "Summary"
    assert book.sheetnames[-1] == "Columns"
    texts = [[cell.value for cell in row] for row in book["Summary"].iter_rows()]
    assert texts[0][0] == "Test deal"
    assert ["As of", "2024-01-01"] in [row[:2] for row in texts]
    assert ["Seed", "20240101"] in [row[:2] for row in texts]
    loss = next(row for row in texts if row[0] == "Expected loss")
    assert loss[1] == pytest.approx(losses("baseline").mean(), rel=1e-12)
    assert loss[2] == pytest.approx(losses("severely_adverse").mean(), rel=1e-12)


def test_links_lead_to_existing_sheets(book) -> None:
    links = [cell.hyperlink for row in book["Summary"].iter_rows() for cell in row if cell.hyperlink]
    assert [link.location.split("'!")[0].lstrip("'") for link in links] == book.sheetnames[1:-1]
    assert all(link.target is None for link in links)


def test_sheets_hold_the_frames_unrounded(book) -> None:
    frames = report_frames(("baseline", "severely_adverse"))
    for table in ("pool_report", "tranche_report", "quarantine"):
        rows = list(book[table].iter_rows(values_only=True))
        assert list(rows[0]) == frames[table].columns
        for found, given_row in zip(rows[1:], frames[table].rows(), strict=True):
            wanted = [
                pytest.approx(item, rel=1e-14) if isinstance(item, float) else item for item in given_row
            ]
            assert list(found) == wanted


@pytest.mark.parametrize(
    ("sheet", "column", "number_format"),
    [
        ("pool_report", "value", "0.00%"),
        ("tranche_report", "original_balance", "#,##0.00"),
        ("tranche_report", "coupon", "0.00%"),
        ("tranche_report", "wal_years", "0.00"),
        ("cash_flow_report", "month_index", "#,##0"),
        ("cash_flow_report", "mean", "#,##0.00"),
        ("loss_distribution", "loss", "0.00%"),
    ],
)
def test_number_formats(book, sheet: str, column: str, number_format: str) -> None:
    place = [cell.value for cell in book[sheet][1]].index(column) + 1
    assert book[sheet].cell(row=2, column=place).number_format == number_format


def test_macro_rows_are_formatted_by_their_series(book) -> None:
    found = {row[1].value: row[3].number_format for row in book["macro_fan_report"].iter_rows(min_row=2)}
    assert found["unemployment_rate"] == "0.00%"
    assert found["credit_spread_hy"] == "#,##0.0"
    assert found["property_price_index"] == "General"


def test_headers_are_frozen_explained_and_wide_enough(book) -> None:
    sheet = book["tranche_report"]
    assert sheet.freeze_panes == "B2"
    header = {cell.value: cell for cell in sheet[1]}
    assert (
        header["expected_loss"].comment.text
        == "mean unpaid principal, share of tranche [share, shown in percent]"
    )
    for cell in sheet[1]:
        assert sheet.column_dimensions[cell.column_letter].width >= len(str(cell.value))
    meanings = {(row[0], row[1]): row[3] for row in book["Columns"].iter_rows(min_row=2, values_only=True)}
    assert meanings["pool_report", "value"] == "share of original pool balance"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"=header()": HOSTILE, "n": range(len(HOSTILE))})
    path = write_workbook(
        tmp_path / "a.xlsx", {"=evil": frame}, [("=label", "=1+1"), ("@x", "-2")], title="=T()"
    )
    for sheet in load_workbook(path):
        for row in sheet.iter_rows():
            for cell in row:
                assert cell.data_type != "f"
                assert not str(cell.value or "").lstrip().startswith(("=", "+", "-", "@"))
    texts = [row[0] for row in load_workbook(path)["=evil"].iter_rows(min_row=2, values_only=True)]
    assert texts[0] == "'=1+1"
    assert texts[8:10] == HOSTILE[8:10]
    assert texts[10] == "a b "


@given(st.text())
def test_no_text_becomes_a_formula(text: str) -> None:
    assert not safe_text(text).lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\u2212"))


def test_values_a_cell_cannot_hold() -> None:
    assert cell_value(float("nan")) is None
    assert cell_value(float("inf")) == "infinite"
    assert cell_value(2**60) == str(2**60)
    assert cell_value(True) is True
    assert cell_value([1, 2]) == "[1, 2]"
    assert cell_value(dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)) == dt.datetime(2024, 1, 1, 12)
    assert len(cell_value("x" * 40_000)) <= 32_767


def test_all_column_types_survive(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "day": [dt.date(2024, 1, 31), None],
            "at": [dt.datetime(2024, 1, 31, 12), None],
            "flag": [True, None],
            "gone": [None, None],
            "x_rate": [float("nan"), 0.5],
            "list": [[1], []],
        }
    )
    sheet = load_workbook(write_workbook(tmp_path / "a.xlsx", {"t": frame}, {}))["t"]
    row = [cell.value for cell in sheet[2]]
    assert row[:5] == [dt.datetime(2024, 1, 31), dt.datetime(2024, 1, 31, 12), True, None, None]
    assert sheet["A2"].number_format == "yyyy-mm-dd"
    assert sheet["E3"].number_format == "0.00%"


def test_empty_frames_keep_their_headers(tmp_path: Path) -> None:
    frames = {name: frame.clear() for name, frame in report_frames(("baseline",)).items()}
    book = load_workbook(write_workbook(tmp_path / "a.xlsx", frames, {}))
    assert [cell.value for cell in book["pool_report"][1]] == frames["pool_report"].columns
    assert book["pool_report"].max_row == 1


def test_long_frames_are_cut_and_say_so(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"t": pl.DataFrame({"n": range(50)})}, {}, max_rows=10)
    book = load_workbook(path)
    assert book["t"].max_row == 11
    assert "the first 10 of 50 rows" in [
        row[2] for row in book["Summary"].iter_rows(values_only=True, max_col=3)
    ]


def test_sheet_names_are_legal_and_unique() -> None:
    names = sheet_names(["a/b", "a:b", "x" * 40, "x" * 41, "Summary", "", "'quoted'"])
    assert list(names.values()) == ["a b", "a b 2", "x" * 31, "x" * 29 + " 2", "Summary 2", "sheet", "quoted"]
