"""Workbooks, read without trusting them: sizes, entities, formulas and links are checked first.

Here: what makes an .xlsx file safe to open, its sheets and their frames (fastexcel). Not here: writing
workbooks (`reports`). A tape is values: a workbook with formulas is refused, because what a formula
shows depends on the program that last opened it.
"""

from __future__ import annotations

import html
import re
import zipfile
import zlib
from pathlib import Path
from typing import Final

import fastexcel
import polars as pl

from pc_pipeline.core.errors import IngestError

MAX_UNPACKED: Final = 512 * 2**20
MAX_RATIO: Final = 200
EXACT: Final = 1e15
MAX_MEMBERS: Final = 2_000
_CHUNK: Final = 1 << 20
_FORMULA: Final = re.compile(rb"<(?:\w+:)?f[ >/]")
_CELL: Final = re.compile(rb'<(?:\w+:)?c[^>]*\br="([A-Z]+[0-9]+)"')


def check_workbook(file: Path) -> None:
    """Refuse what a tape never needs.

    Raises:
        IngestError: no workbook, a zip bomb, a document type or entity, a formula, or an external link.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise IngestError("not a workbook", expected="an .xlsx file", got=str(error), where=file) from None
    with archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        packed = max(sum(member.compress_size for member in members), 1)
        bomb = unpacked > MAX_UNPACKED or (unpacked > 16 * 2**20 and unpacked / packed > MAX_RATIO)
        if bomb or len(members) > MAX_MEMBERS:
            raise IngestError(
                "the workbook unpacks to too much",
                expected=f"at most {MAX_UNPACKED} bytes in {MAX_MEMBERS} members, {MAX_RATIO} times its size",
                got=f"{unpacked} bytes in {len(members)} members, {unpacked / packed:.0f} times its size",
                where=file,
            )
        for member in members:
            if member.filename.startswith("xl/externalLinks/"):
                raise IngestError("the workbook links to other files", expected="values only", where=file)
            if member.filename.endswith((".xml", ".rels")):
                _scan_member(archive, member, file)


def _scan_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
    """Read one member in pieces, never more than it declared, looking for what is refused."""
    is_sheet = member.filename.startswith("xl/worksheets/")
    seen, tail = 0, b""
    try:
        with archive.open(member) as handle:
            while chunk := handle.read(_CHUNK):
                seen += len(chunk)
                if seen > member.file_size:
                    raise IngestError("a member of the workbook is longer than it says", where=file)
                window = tail + chunk
                if b"<!DOCTYPE" in window or b"<!ENTITY" in window:
                    raise IngestError(
                        "the workbook declares a document type or entity",
                        expected="plain spreadsheet XML",
                        got=member.filename,
                        where=file,
                    )
                found = _FORMULA.search(window) if is_sheet else None
                if found is not None:
                    cells = _CELL.findall(window[: found.start()])
                    raise IngestError(
                        "the workbook holds formulas",
                        expected="values (paste as values, or deliver CSV or Parquet)",
                        got=f"a formula in cell {cells[-1].decode() if cells else '?'} of "
                        + _sheet_name(archive, member.filename),
                        where=file,
                    )
                tail = window[-4096:]
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise IngestError("the workbook is torn", got=str(error), where=file) from None


def _sheet_name(archive: zipfile.ZipFile, member: str) -> str:
    """A sheet's name as the user knows it; its file in the archive where that cannot be told."""
    try:
        links = archive.open("xl/_rels/workbook.xml.rels").read(_CHUNK)
        book = archive.open("xl/workbook.xml").read(_CHUNK)
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError):
        return member
    target = re.escape(member.removeprefix("xl/").encode())
    for tag in re.findall(rb"<(?:\w+:)?Relationship\b[^>]*>", links):
        found = re.search(rb'\bId="([^"]+)"', tag)
        if found and re.search(rb'Target="(?:/xl/)?' + target + rb'"', tag):
            for sheet in re.findall(rb"<(?:\w+:)?sheet\b[^>]*>", book):
                name = re.search(rb'\bname="([^"]+)"', sheet)
                if name and b'"' + found[1] + b'"' in sheet:
                    return f"sheet {html.unescape(name[1].decode('utf-8', errors='replace'))!r}"
    return member


def survey_sheets(file: Path) -> dict[str, tuple[str, ...]]:
    """Names and header fields of the sheets that hold anything.

    Raises:
        IngestError: see `check_workbook`; or no sheet holds anything.
    """
    check_workbook(file)
    try:
        reader = fastexcel.read_excel(file)
        sheets = {}
        for name in reader.sheet_names:
            first = reader.load_sheet(name, header_row=None, n_rows=1, dtypes="string").to_polars()
            if first.width and first.height:
                sheets[name] = tuple(str(value or "").strip() for value in first.row(0))
    except fastexcel.FastExcelError as error:
        raise IngestError("not a workbook", expected="an .xlsx file", got=str(error), where=file) from None
    if not sheets:
        raise IngestError("the workbook is empty", expected="a sheet with a header line", where=file)
    return sheets


def read_sheet(file: Path, sheet: str) -> pl.DataFrame:
    """One sheet as a frame; cells keep their type, a column of mixed types comes as text."""
    try:
        frame = fastexcel.read_excel(file).load_sheet(sheet, schema_sample_rows=None).to_polars()
    except fastexcel.FastExcelError as error:
        raise IngestError("the sheet cannot be read", got=str(error), where=f"{file.name}:{sheet}") from None
    # a workbook keeps numbers as floats; whole ones of at most 15 digits it keeps exactly
    floats = [name for name, kind in frame.schema.items() if kind.is_float()]
    whole = frame.select(((pl.col(floats) == pl.col(floats).round()) & (pl.col(floats).abs() < EXACT)).all())
    exact = [name for name, is_whole in whole.row(0, named=True).items() if is_whole] if floats else []
    frame = frame.with_columns(pl.col(exact).cast(pl.Int64, strict=False))
    return frame.rename({name: name.strip() for name in frame.columns if name != name.strip()})
