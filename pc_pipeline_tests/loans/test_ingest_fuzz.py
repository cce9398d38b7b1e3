"""Bad input: one clear error, or good rows beside a quarantine; bounded time and memory; nothing written."""

from __future__ import annotations

import datetime as dt
import io
import resource
import time
import zipfile
from pathlib import Path

import openpyxl
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.store import Store
from pc_pipeline.loans.ingest import deliver, read_tape
from pc_pipeline.schemas.tables import failures

N = 12
LOANS = pl.DataFrame(
    {
        "loan_id": [f"L{k}" for k in range(N)],
        "origination_date": [dt.date(2023, 1, 1 + k) for k in range(N)],
        "term_months": [24 + k for k in range(N)],
        "original_balance": [1000.0 + 7.5 * k for k in range(N)],
        "interest_rate": [0.01 * k for k in range(N)],
        "amortization_type": ["annuity"] * N,
        "asset_class": ["consumer"] * N,
        "originator_id": [f"bank {k}" for k in range(N)],
    }
)
CSV = LOANS.write_csv().encode()


def as_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "parquet":
        LOANS.write_parquet(buffer)
        return buffer.getvalue()
    if kind == "xlsx":
        book = openpyxl.Workbook()
        book.active.append(LOANS.columns)
        for row in LOANS.iter_rows():
            book.active.append(list(row))
        book.save(buffer)
        return buffer.getvalue()
    return CSV


BYTES = {kind: as_bytes(kind) for kind in ("csv", "parquet", "xlsx")}


def refused(path: Path, match: str) -> None:
    """`path` gives one readable error, in little time and memory, and no store is written."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(IngestError, match=match) as caught:
        read_tape(path)
    assert time.monotonic() - start < 10.0  # milliseconds on an idle machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    message = str(caught.value)
    assert len(message) < 8_000
    assert "Traceback" not in message
    store = Store(path.parent / "store")
    with pytest.raises(IngestError):
        deliver(store, path)
    assert list(store.root.rglob("*.parquet")) == []


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "xlsx"])
def test_truncated_binary_files(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"tape.{kind}"
    path.write_bytes(BYTES[kind][: int(len(BYTES[kind]) * keep)])
    refused(path, "cannot be read|not a workbook|torn")


def test_a_csv_cut_in_the_middle_of_a_line_loses_only_that_line(tmp_path: Path) -> None:
    path = tmp_path / "tape.csv"
    path.write_bytes(CSV[: CSV.rindex(b"consumer") + 3])
    result = read_tape(path)
    assert result.loans.height == N - 1
    assert result.quarantine.height == 1


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.csv", b"", "empty"),
        ("empty.parquet", b"", "empty"),
        ("empty.xlsx", b"", "empty"),
        ("header.csv", CSV.partition(b"\n")[0] + b"\n", "no rows"),
        ("blank.csv", b"\n\n\n", "blank"),
        ("text.parquet", CSV, "cannot be read"),
        ("text.xlsx", CSV, "not a workbook"),
        ("binary.csv", BYTES["parquet"], "not text|not UTF-8"),
        ("utf16.csv", CSV.decode().encode("utf-16"), "byte order mark"),
        ("latin.csv", CSV.replace(b"bank 5", "Bank Zürich".encode("latin-1")), "not UTF-8"),
        ("mixed.csv", CSV.replace(b"bank 5", "Zürich ".encode() + "Zürich".encode("latin-1")), "not UTF-8"),
        ("ragged.csv", CSV + b"a,b,c,d,e,f,g,h,i,j,k\n", "not a clean delimited table"),
        (
            "semicolons.csv",
            CSV.replace(b",", b";").replace(b";", b",", 7),
            "no loan of the delivery|wrong type|clean",
        ),
        ("space.csv", CSV.replace(b",", b" "), "first line is one field"),
        ("long.csv", b"x" * (2 << 20), "first line never ends"),
        ("page.xml", b"<html><body>Not found</body></html>", "no adapter knows"),
        ("tape.pdf", b"%PDF-1.7", "not a kind of file"),
    ],
)
def test_not_what_it_claims_to_be(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, match)


def test_late_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "tape.csv"
    rows = b"".join(b"Q%d,2023-01-01,24,1000.0,0.05,annuity,consumer,bank\n" % k for k in range(40_000))
    path.write_bytes(CSV + rows + b"Z1,2023-01-01,24,1000.0,0.05,annuity,consumer,Z\xfcrich\n")
    refused(path, "UTF-8")


def test_ten_thousand_columns(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{k}" for k in range(10_000)) + "\n" + ",".join(["1"] * 10_000) + "\n")
    refused(path, "too many columns")
    wide = tmp_path / "wide.parquet"
    pl.DataFrame({f"c{k}": [1] for k in range(10_000)}).write_parquet(wide)
    refused(wide, "too many columns")


def test_folders(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "holds no tape")
    (tmp_path / "tape.csv").mkdir()
    refused(tmp_path / "tape.csv", "holds no tape")


# ---- workbooks -----------------------------------------------------------------------------------


def rezip(change: dict[str, bytes], add: dict[str, bytes] | None = None) -> bytes:
    """The good workbook with members changed (old text -> new in every sheet) or added."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(BYTES["xlsx"])) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change.get(name, old.read(name)))
        for name, content in (add or {}).items():
            new.writestr(name, content)
    return buffer.getvalue()


SHEET = "xl/worksheets/sheet1.xml"


def sheet_text() -> bytes:
    with zipfile.ZipFile(io.BytesIO(BYTES["xlsx"])) as book:
        return book.read(SHEET)


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xlsx"
    path.write_bytes(rezip({SHEET: sheet_text() + b" " * (80 << 20)}))
    assert path.stat().st_size < 1 << 20
    refused(path, "unpacks to too much")


def test_a_zip_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    honest = rezip({SHEET: sheet_text() + b" " * (8 << 20)})
    with zipfile.ZipFile(io.BytesIO(honest)) as book:
        size = book.getinfo(SHEET).file_size
    lie = honest.replace(size.to_bytes(4, "little"), (1_000).to_bytes(4, "little"))
    path = tmp_path / "lie.xlsx"
    path.write_bytes(lie)
    refused(path, "torn|longer than it says|not a workbook|cannot be read|empty")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            rezip(
                {
                    SHEET: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
                    + sheet_text().replace(b"<?xml version", b"<?xml version")
                }
            ),
            "document type or entity",
        ),
        (rezip({}, {"xl/externalLinks/externalLink1.xml": b"<externalLink/>"}), "links to other files"),
        (rezip({SHEET: sheet_text().replace(b"<v>", b"<f>1+1</f><v>", 1)}), "holds formulas"),
        (rezip({}, {f"xl/extra{k}.bin": b"" for k in range(3_000)}), "unpacks to too much"),
    ],
)
def test_hostile_workbooks(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "tape.xlsx"
    path.write_bytes(content)
    refused(path, match)


def test_a_formula_is_named_by_its_sheet_and_cell_and_a_title_line_is_seen(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "tape"
    book.active.append(LOANS.columns)
    for row in LOANS.iter_rows():
        book.active.append(row)
    notes = book.create_sheet("Notes & totals")
    notes["B2"] = "=SUM(tape!D2:D4)"
    book.save(tmp_path / "formula.xlsx")
    refused(tmp_path / "formula.xlsx", "formula in cell B2 of sheet 'Notes & totals'")
    del book["Notes & totals"]
    book.active.insert_rows(1)
    book.active["A1"] = "Our book, June"
    book.save(tmp_path / "title.xlsx")
    refused(tmp_path / "title.xlsx", "title, not column names")


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\tx"])
def test_formulas_as_text_are_quarantined(tmp_path: Path, text: str) -> None:
    frame = LOANS.with_columns(
        pl.when(pl.col("loan_id") == "L3")
        .then(pl.lit(text))
        .otherwise("originator_id")
        .alias("originator_id")
    )
    frame.write_parquet(tmp_path / "tape.parquet")
    result = read_tape(tmp_path / "tape.parquet")
    assert result.loans.height == N - 1
    assert result.quarantine["reason"].to_list() == ["text that a spreadsheet would run as a formula"]


# ---- anything at all -----------------------------------------------------------------------------


def holds(path: Path) -> None:
    """Either one readable error, or tables that keep their contract with every row accounted for."""
    try:
        result = read_tape(path)
    except IngestError:
        return
    assert failures("loan_tape", result.loans).is_empty()
    assert failures("quarantine", result.quarantine).is_empty()
    whole = result.quality.filter((pl.col("column") == "*") & pl.col("month").is_null())
    assert whole["accepted"].sum() == result.loans.height
    assert whole["rows_in"].sum() == whole["accepted"].sum() + whole["quarantined"].sum()


FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    kind=st.sampled_from(["csv", "parquet", "xlsx"]),
    place=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
def test_any_bytes_overwritten(tmp_path: Path, kind: str, place: float, junk: bytes) -> None:
    good = BYTES[kind]
    at = int(place * len(good))
    path = tmp_path / f"tape.{kind}"
    path.write_bytes(good[:at] + junk + good[at + len(junk) :])
    holds(path)


CELLS = st.one_of(
    st.text(max_size=12),
    st.floats().map(repr),
    st.integers().map(str),
    st.dates().map(str),
    st.sampled_from(
        ["NaN", "inf", "-inf", "1e999", "NULL", "0x1F", "2900-01-01", "1800-12-31", "1,5", "１２", "−3"]
    ),
)


@FUZZ
@given(column=st.sampled_from(LOANS.columns), row=st.integers(0, N - 1), cell=CELLS)
def test_any_cell_in_any_column(tmp_path: Path, column: str, row: int, cell: str) -> None:
    text = LOANS.with_columns(pl.all().cast(pl.String)).with_row_index("n")
    text = text.with_columns(
        pl.when(pl.col("n") == row).then(pl.lit(cell)).otherwise(column).alias(column)
    ).drop("n")
    text.write_csv(tmp_path / "tape.csv")
    holds(tmp_path / "tape.csv")
