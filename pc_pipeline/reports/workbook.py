"""The workbook. Here: frames and notes to one .xlsx that people can read and programs can read back.
Not here: any calculation, and charts (the page has those).

First a summary sheet, then one sheet per frame (header in the first row, figures unrounded, units in
header comments), last a sheet that explains every column. The same input gives the same bytes: stamps
inside the file are fixed, what is written says when it is as of.
"""

from __future__ import annotations

import datetime as dt
import io
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.comments import Comment
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.hyperlink import Hyperlink
from openpyxl.worksheet.properties import PageSetupProperties

from pc_pipeline.reports import formats
from pc_pipeline.reports.files import replace_file
from pc_pipeline.reports.inputs import Frames, Notes, as_polars, grouped_notes, scenarios_in
from pc_pipeline.reports.tables import HEADLINE_MEASURES

STAMP: Final = dt.datetime(2000, 1, 1)
ZIP_STAMP: Final = (2000, 1, 1, 0, 0, 0)
MAX_ROWS: Final = 100_000
LONGEST_CELL: Final = 32_000  # the format's own limit is 32,767
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\u2212")
LARGEST_EXACT: Final = 10**15  # spreadsheet numbers keep 15 digits
WIDTHS: Final = (9.0, 48.0)
FORMATS: Final[dict[formats.Unit, str]] = {
    "percent": "0.00%",
    "bps": "#,##0.0",
    "money": "#,##0.00",
    "years": "0.00",
    "integer": "#,##0",
    "number": "General",
    "text": "@",
    "date": "yyyy-mm-dd",
}
UNIT_WORDS: Final[dict[formats.Unit, str]] = {
    "percent": "share, shown in percent",
    "bps": "basis points",
    "money": "currency",
    "years": "years",
    "integer": "count",
    "number": "number",
    "text": "text",
    "date": "date",
}
NOTE_TITLES: Final = {
    "run": "About this report",
    "convention": "Conventions used",
    "model": "Models",
    "next": "Next steps",
}
_INK, _HEAD_FILL, _RULE, _FACE = "1F2A37", "E8EEF4", "B8C2CC", "Calibri"
_HEAD_FONT = Font(name=_FACE, bold=True, color=_INK)
_TITLE_FONT = Font(name=_FACE, bold=True, size=16, color=_INK)
_SECTION_FONT = Font(name=_FACE, bold=True, size=12, color="0072B2")
_LINK_FONT = Font(name=_FACE, color="0072B2", underline="single")
_QUIET_FONT = Font(name=_FACE, color="5B6675", italic=True)
_HEAD_BORDER = Border(bottom=Side(style="thin", color=_RULE))
_RIGHT = Alignment(horizontal="right")


def write_workbook(
    path: str | Path,
    frames: Frames,
    notes: Notes,
    *,
    title: str = "Credit portfolio report",
    max_rows: int = MAX_ROWS,
) -> Path:
    """Write a workbook; byte-identical for the same input.

    Args:
        path: .xlsx file, replaced in one step.
        frames: table name -> frame (polars or pandas), one sheet each, in this order.
        notes: (label, text) pairs for the summary: what, as of when, seeds, conventions, model versions.
        title: first line of the summary.
        max_rows: rows per sheet; what is left out is said on the summary sheet.

    Returns:
        The path.

    Raises:
        DataError: a value in `frames` is no data frame.
        SchemaError: a known table lacks columns.
    """
    known = as_polars(frames)
    names = sheet_names(known)
    book = Workbook(write_only=True)
    _summary_sheet(book, title, known, names, grouped_notes(notes), max_rows)
    for table, frame in known.items():
        _frame_sheet(book, names[table], table, frame.head(max_rows))
    _columns_sheet(book, known, names)
    book.properties.creator = "pc-pipeline"
    book.properties.title = safe_text(title)
    book.properties.created = STAMP
    out = io.BytesIO()
    book.save(out)
    return replace_file(path, _settled(out.getvalue()))


# --- cells ----------------------------------------------------------------------------------------


def safe_text(text: object) -> str:
    """Text that no spreadsheet takes for a formula: a leading = + - @ (also full-width, also after
    blanks) gets an apostrophe in front; control characters become blanks.
    """
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", " ", str(text))
    if len(clean) > LONGEST_CELL:
        clean = clean[:LONGEST_CELL] + "…"
    return f"'{clean}" if clean.lstrip().startswith(FORMULA_STARTS) else clean


def cell_value(value: Any) -> Any:
    """A value as a cell holds it: NaN is blank, infinity and over-long integers are text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < LARGEST_EXACT else str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("infinite" if value > 0 else "minus infinite")
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, dt.date):
        return value
    return safe_text(value)


def column_unit(table: str, column: str, dtype: pl.DataType) -> formats.Unit:
    """Unit of any column: its type first, then its schema description."""
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return formats.column_unit(table, column)
    return "date" if dtype in (pl.Date, pl.Datetime) else "text"


def sheet_names(frames: Iterable[str]) -> dict[str, str]:
    """Table name -> sheet name: legal, at most 31 characters, unique without regard to case."""
    taken = {"summary", "columns", "history"}  # 'History' is reserved by the format
    names: dict[str, str] = {}
    for table in frames:
        base = re.sub(r"[\[\]:*?/\\]", " ", formats.plain(table)).strip().strip("'") or "sheet"
        name, count = base[:31], 1
        while name.lower() in taken:
            count += 1
            name = f"{base[: 31 - len(str(count)) - 1]} {count}"
        taken.add(name.lower())
        names[table] = name
    return names


def _cell(
    sheet: Any,
    value: Any,
    *,
    font: Font | None = None,
    number_format: str | None = None,
    is_right: bool = False,
) -> WriteOnlyCell:
    cell = WriteOnlyCell(sheet, value=value)
    if font is not None:
        cell.font = font
    if number_format is not None:
        cell.number_format = number_format
    if is_right:
        cell.alignment = _RIGHT
    return cell


def _head(sheet: Any, text: str, note: str = "", *, is_right: bool = False) -> WriteOnlyCell:
    cell = _cell(sheet, safe_text(text), font=_HEAD_FONT, is_right=is_right)
    cell.fill = PatternFill("solid", fgColor=_HEAD_FILL)
    cell.border = _HEAD_BORDER
    if note:
        cell.comment = Comment(note, "pc-pipeline", height=70, width=260)
    return cell


# --- sheets ---------------------------------------------------------------------------------------


def _page_setup(sheet: Any) -> None:
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    sheet.page_setup.orientation = "landscape"
    sheet.page_setup.fitToHeight = 0
    sheet.page_setup.paperSize = 9  # A4


def _frame_sheet(book: Workbook, name: str, table: str, frame: pl.DataFrame) -> None:
    sheet = book.create_sheet(name)
    _page_setup(sheet)
    sheet.freeze_panes = "B2" if frame.width > 1 else "A2"
    sheet.print_title_rows = "1:1"
    sheet.auto_filter.ref = f"A1:{get_column_letter(frame.width)}{frame.height + 1}"
    units = [column_unit(table, column, dtype) for column, dtype in frame.schema.items()]
    for place, (column, unit) in enumerate(zip(frame.columns, units, strict=True), start=1):
        sheet.column_dimensions[get_column_letter(place)].width = _width(column, frame[column], unit)
    sheet.append(
        [
            _head(sheet, column, _comment(table, column, unit), is_right=unit not in ("text", "date"))
            for column, unit in zip(frame.columns, units, strict=True)
        ]
    )
    by_series = frame.columns.index("series") if table == "macro_fan_report" else None
    number_formats = [None if unit in ("text", "number") else FORMATS[unit] for unit in units]
    for row in frame.iter_rows():
        row_formats = number_formats
        if by_series is not None:
            of_series = FORMATS[formats.series_unit(str(row[by_series]))]
            row_formats = [of_series if unit == "number" else FORMATS[unit] for unit in units]
        sheet.append(_row(sheet, row, row_formats))


def _row(sheet: Any, row: Sequence[Any], number_formats: Sequence[str | None]) -> list[Any]:
    cells: list[Any] = []
    for raw, number_format in zip(row, number_formats, strict=True):
        value = cell_value(raw)
        if number_format is None or value is None or isinstance(value, str):
            cells.append(value)
        else:
            cells.append(_cell(sheet, value, number_format=number_format))
    return cells


def _comment(table: str, column: str, unit: formats.Unit) -> str:
    description = formats.describe_column(table, column)
    return f"{description} [{UNIT_WORDS[unit]}]" if description else ""


def _width(column: str, values: pl.Series, unit: formats.Unit) -> float:
    longest = len(column) + 3  # room for the filter button
    if unit == "text":
        sample = values.head(200).drop_nulls().to_list()
        longest = max([longest, *(len(str(value)) + 2 for value in sample)])
    elif unit == "money":
        longest = max(longest, 16)
    elif unit in ("date", "number"):
        longest = max(longest, 12)
    return float(min(max(longest, WIDTHS[0]), WIDTHS[1]))


def _summary_sheet(
    book: Workbook,
    title: str,
    frames: Mapping[str, pl.DataFrame],
    names: Mapping[str, str],
    notes: Mapping[str, list[tuple[str, str]]],
    max_rows: int,
) -> None:
    sheet = book.create_sheet("Summary")
    _page_setup(sheet)
    sheet.sheet_view.showGridLines = False
    sheet.column_dimensions["A"].width = 34
    for letter in "BCDEFGH":
        sheet.column_dimensions[letter].width = 26
    rows: list[list[Any]] = [[_cell(sheet, safe_text(title), font=_TITLE_FONT)]]
    rows += _headline_rows(sheet, frames)
    for group, pairs in notes.items():
        if pairs:
            rows += _section(sheet, NOTE_TITLES[group])
            rows += [
                [_cell(sheet, safe_text(label), font=_HEAD_FONT), safe_text(text)] for label, text in pairs
            ]
    rows += _section(sheet, "Sheets")
    rows.append([_head(sheet, "sheet"), _head(sheet, "rows", is_right=True), _head(sheet, "note")])
    for table, frame in frames.items():
        cut = f"the first {max_rows:,} of {frame.height:,} rows" if frame.height > max_rows else None
        n_rows = _cell(sheet, min(frame.height, max_rows), number_format="#,##0")
        rows.append([_link(sheet, names[table], len(rows) + 1), n_rows, cut])
    for row in rows:
        sheet.append(row)


def _link(sheet: Any, name: str, row: int) -> WriteOnlyCell:
    """A cell in column A of `row` that leads to the sheet `name` (a link inside the file, no formula)."""
    cell = _cell(sheet, safe_text(name), font=_LINK_FONT)
    cell.row = row
    cell.hyperlink = Hyperlink(ref=f"A{row}", location="'{}'!A1".format(name.replace("'", "''")))
    return cell


def _section(sheet: Any, text: str) -> list[list[Any]]:
    return [[], [_cell(sheet, text, font=_SECTION_FONT)]]


def _headline_rows(sheet: Any, frames: Mapping[str, pl.DataFrame]) -> list[list[Any]]:
    pool = frames.get("pool_report")
    if pool is None or pool.is_empty():
        return []
    scenarios = scenarios_in({"pool_report": pool})
    found = {(row["scenario"], row["measure"]): row for row in pool.iter_rows(named=True)}
    rows = _section(sheet, "Pool loss, share of original balance")
    rows.append(
        [
            _head(sheet, "measure"),
            *(_head(sheet, formats.humanize(name), is_right=True) for name in scenarios),
        ]
    )
    for measure in HEADLINE_MEASURES:
        cells = [found.get((name, measure)) for name in scenarios]
        if not any(cells):
            continue
        values = [cell_value(row["value"]) if row else None for row in cells]
        shown = [_cell(sheet, value, number_format="0.00%") for value in values]
        rows.append([formats.measure_title(measure), *shown])
        ends = [formats.percent_interval(row["lower"], row["upper"]) if row else "" for row in cells]
        shown = [_cell(sheet, text, font=_QUIET_FONT, is_right=True) for text in ends]
        rows.append([_cell(sheet, "  95% interval", font=_QUIET_FONT), *shown])
    return rows


def _columns_sheet(book: Workbook, frames: Mapping[str, pl.DataFrame], names: Mapping[str, str]) -> None:
    sheet = book.create_sheet("Columns")
    _page_setup(sheet)
    sheet.freeze_panes = "A2"
    for letter, width in zip("ABCD", (26, 30, 26, 80), strict=True):
        sheet.column_dimensions[letter].width = width
    sheet.append([_head(sheet, text) for text in ("sheet", "column", "unit", "meaning")])
    for table, frame in frames.items():
        for column, dtype in frame.schema.items():
            unit = UNIT_WORDS[column_unit(table, column, dtype)]
            meaning = formats.describe_column(table, column)
            sheet.append([safe_text(names[table]), safe_text(column), unit, safe_text(meaning)])


# --- bytes ----------------------------------------------------------------------------------------


def _settled(content: bytes) -> bytes:
    """The same archive with fixed entry times and a fixed 'modified' stamp."""
    stamp = STAMP.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name == "docProps/core.xml":
                data = re.sub(rb"(<dcterms:modified[^>]*>)[^<]*", rb"\g<1>" + stamp, data)
            entry = zipfile.ZipInfo(name, date_time=ZIP_STAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o600 << 16
            target.writestr(entry, data)
    return out.getvalue()
