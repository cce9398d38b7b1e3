"""A user's columns, units and codes to ours, as a YAML file.

Here: the mapping's form, its checks, and a mapped part that the canonical adapter reads like any other. Not
here: guessing one (`draft`), what our columns mean (`schemas.tables`).

    format: 1
    tables:
      - table: loan_tape            # or loan_panel, recoveries
        file: pool.csv              # file or sheet name; may be left out when there is only one
        columns:
          loan_id: AccountNo                                   # short form
          interest_rate: {from: Rate, unit: percent}           # 7.04 -> 0.0704
          spread_bps: {from: Margin, unit: decimal}            # 0.025 -> 250
          origination_date: {from: Opened, format: "%d.%m.%Y"}
          asset_class: {from: Product, codes: {AUTO: consumer, CRE: realestate}}
          amortization_type: {value: annuity}                  # the same for every row
          loan_state: {from: DaysLate, unit: days}             # 0-29, 30-59, 60-89, 90 and more

A code that is not listed passes as it came and, being none of ours, sends its row to quarantine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl
import yaml

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.schemas.tables import columns

MAPPED_TABLES: Final = ("loan_tape", "loan_panel", "recoveries")
UNITS: Final = {
    "decimal": 1.0,
    "percent": 1e-2,
    "bps": 1e-4,
    "units": 1.0,
    "thousands": 1e3,
    "millions": 1e6,
    "months": 1.0,
    "years": 12.0,
}
DAYS: Final = "days"  # of delinquency, for loan_state
_TARGET: Final = {"spread_bps": "bps"}  # unit of our column where it is not the plain one
_KEYS: Final = {"from", "unit", "format", "codes", "value"}
MAX_MAPPING_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """How one of our columns comes from one of the user's.

    Attributes:
        name: our column.
        source: the user's column, '' for a constant.
        unit: one of UNITS or 'days'; '' as is.
        format: of dates, strptime form; '' for ISO.
        codes: the user's code, as text -> our value.
        value: constant for every row, where there is no source.
    """

    name: str
    source: str = ""
    unit: str = ""
    format: str = ""
    codes: tuple[tuple[str, Any], ...] = ()
    value: Any = None

    def expression(self) -> pl.Expr:
        """Our column over the user's frame (text or typed)."""
        if not self.source:
            return pl.lit(self.value).alias(self.name)
        value = pl.col(self.source)
        if self.codes:
            text = value.cast(pl.String).str.strip_chars()
            known, ours = zip(*self.codes, strict=True)
            value = text.replace(list(known), [str(code) for code in ours])
        if self.format:
            value = parse_date(value.cast(pl.String), self.format)
        if self.unit == DAYS:
            value = (_number(value) // 30).clip(0, 3)
        elif self.unit:
            value = _number(value) * (UNITS[self.unit] / UNITS[_TARGET.get(self.name, "decimal")])
        return value.alias(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMap:
    """How one of our tables comes from one file or sheet."""

    table: str
    file: str
    columns: tuple[ColumnMap, ...]

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The user's frame (with `_row`) under our names; constants filled in."""
        return frame.select("_row", *(column.expression() for column in self.columns))


def load_mapping(path: str | Path) -> list[TableMap]:
    """Read and check a mapping file.

    Raises:
        IngestError: not YAML, or a table, column, unit or key that does not exist.
    """
    place = Path(path)
    if not place.is_file():
        raise IngestError("there is no such mapping file", expected="YAML", got="nothing", where=place)
    if place.stat().st_size > MAX_MAPPING_BYTES:
        raise IngestError("the mapping file is too large", expected=f"{MAX_MAPPING_BYTES} bytes", where=place)
    try:
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise IngestError("the mapping is not YAML", got=str(error), where=place) from None
    tables = content.get("tables") if isinstance(content, dict) else None
    if not isinstance(tables, list) or not tables or content.get("format", 1) != 1:
        raise IngestError(
            "not a mapping", expected="format: 1 and a list 'tables'", got=str(content)[:200], where=place
        )
    return [_table_map(entry, place) for entry in tables]


def mapped_parts(parts: Sequence[Part], mapping: Sequence[TableMap]) -> list[Part]:
    """The parts of a delivery as our tables, by the mapping.

    Raises:
        IngestError: a file or column that the mapping names is not there.
    """
    return [_mapped(_find(parts, entry), entry) for entry in mapping]


def parse_date(text: pl.Expr, form: str) -> pl.Expr:
    """A date in strptime form, first of month where the form has no day; null where it does not fit."""
    trimmed = text.str.strip_chars()
    if "%d" in form:
        return trimmed.str.to_date(form, strict=False)
    return ("01 " + trimmed).str.to_date(f"%d {form}", strict=False).alias(text.meta.output_name())


def _number(value: pl.Expr) -> pl.Expr:
    return (
        value.cast(pl.String)
        .str.strip_chars()
        .str.strip_suffix("%")
        .str.replace_all(",", "")
        .cast(pl.Float64, strict=False)
    )


def _table_map(entry: Any, place: Path) -> TableMap:
    if not isinstance(entry, dict) or entry.get("table") not in MAPPED_TABLES:
        raise IngestError(
            "no such table", expected=", ".join(MAPPED_TABLES), got=str(entry)[:200], where=place
        )
    table, given = entry["table"], entry.get("columns")
    if not isinstance(given, dict) or not given:
        raise IngestError(
            f"table {table} maps no columns", expected="columns: {ours: yours}", got=given, where=place
        )
    ours = columns(table)
    unknown = [name for name in given if name not in ours]
    if unknown:
        raise IngestError(
            f"table {table} has no such column",
            expected=", ".join(ours),
            got=", ".join(map(str, unknown)),
            where=place,
        )
    maps = tuple(_column_map(name, how, place) for name, how in given.items())
    return TableMap(table=table, file=str(entry.get("file", "")), columns=maps)


def _column_map(name: str, how: Any, place: Path) -> ColumnMap:
    if isinstance(how, str):
        how = {"from": how}
    if not isinstance(how, dict) or not set(how) <= _KEYS or ("from" in how) == ("value" in how):
        raise IngestError(
            f"column {name} is not mapped rightly",
            expected="a column name, or {from: ..., unit: ..., format: ..., codes: {...}}, or {value: ...}",
            got=how,
            where=place,
        )
    unit, codes = str(how.get("unit", "")), how.get("codes", {})
    if (unit and unit not in UNITS and unit != DAYS) or (unit == DAYS and name != "loan_state"):
        raise IngestError(
            f"no such unit for {name}", expected=", ".join([*UNITS, DAYS]), got=unit, where=place
        )
    if not isinstance(codes, dict):
        raise IngestError(f"codes of {name} are no map", expected="{yours: ours}", got=codes, where=place)
    return ColumnMap(
        name=name,
        source=str(how.get("from", "")),
        unit=unit,
        format=str(how.get("format", "")),
        codes=tuple((str(code), value) for code, value in codes.items()),
        value=how.get("value"),
    )


def _find(parts: Sequence[Part], entry: TableMap) -> Part:
    if not entry.file and len(parts) == 1:
        return parts[0]
    wanted = entry.file.lower()
    found = [
        part for part in parts if wanted in (part.path.name.lower(), part.name.lower(), where(part).lower())
    ]
    if len(found) != 1:
        raise IngestError(
            f"the mapping's file for {entry.table} is not there",
            expected=entry.file or "a file name (the delivery holds more than one)",
            got=", ".join(where(part) for part in parts),
        )
    return found[0]


def _mapped(part: Part, entry: TableMap) -> Part:
    missing = [
        column.source for column in entry.columns if column.source and column.source not in part.columns
    ]
    if missing:
        raise IngestError(
            "columns that the mapping names are not there",
            expected=", ".join(missing),
            got=", ".join(part.columns[:40]),
            where=where(part),
        )
    return replace(part, columns=tuple(column.name for column in entry.columns), source=part, view=entry)
