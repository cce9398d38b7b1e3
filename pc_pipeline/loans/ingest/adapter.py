"""What every adapter is: a name, a rule of delinquency, what it expects, and two functions.

Here: the protocol, the options passed to every adapter, small helpers they share. Not here: the list of
adapters (`read`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Protocol, runtime_checkable

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest.files import NULL_WORDS, Part, read_part, where
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.schemas.tables import TABLES
from pc_pipeline.schemas.units import OBSERVED

_CALENDAR: Final = (-719_162, 2_932_896)  # days since 1970 of the years 1 to 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller may say about a delivery.

    Attributes:
        as_of: months after this one are refused; None: the last month delivered.
        macro: months and the nine series, for structural covariates.
    """

    as_of: date | None = None
    macro: pl.DataFrame | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What an adapter makes of its parts (columns of the tables of the same name).

    Attributes:
        filed: the months as filed, where they hang on months of other deliveries (`rejoin`).
    """

    loans: pl.DataFrame
    panel: pl.DataFrame
    recoveries: pl.DataFrame
    filed: pl.DataFrame | None = None


class Adapter(Protocol):
    """One format of delivery.

    Attributes:
        name: as the user names it.
        rule: its rule of delinquency, in words.
        expects: what files and columns it recognises, in words.
    """

    name: str
    rule: str
    expects: str

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether the parts are this format, by their columns alone."""
        ...

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """The tables; what is odd goes to the log."""
        ...


@runtime_checkable
class Rejoinable(Protocol):
    """An adapter that reads several deliveries' months as one history."""

    def rejoin(self, filed: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> Tables:
        """The tables of `Tables.filed` of several deliveries together, sorted, one row a loan and month."""
        ...


def find_part(parts: Sequence[Part], needed: Sequence[str], what: str) -> Part:
    """The one part that holds all `needed` columns.

    Raises:
        IngestError: none does; the message names the columns that the nearest part lacks.
    """
    found = [part for part in parts if part.has(needed)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise IngestError(
            f"more than one {what}",
            expected="one",
            got=", ".join(where(part) for part in found),
            where=found[0].path.parent,
        )
    nearest = min(parts, key=lambda part: len(set(needed) - set(part.columns)))
    raise IngestError(
        f"no {what}",
        expected=f"columns {', '.join(needed)}",
        got=f"{where(nearest)} lacks {', '.join(sorted(set(needed) - set(nearest.columns)))}",
        where=nearest.path.parent,
    )


def read_typed(part: Part, types: Mapping[str, Any], log: QualityLog, table: str) -> pl.DataFrame:
    """Read the columns named in `types` (those present) with those types; `_row` first.

    A value that does not fit quarantines its row. A column where most values do not fit is a wrong dtype.

    Raises:
        IngestError: a column of the wrong type.
    """
    present = {name: dtype for name, dtype in types.items() if name in part.columns}
    if part.kind == "delimited" and part.view is None:
        try:
            return _null_words(read_part(part, columns=list(present), types=present))
        except pl.exceptions.ComputeError:
            pass  # some value does not fit: read as text and find it
    return cast_columns(read_part(part, columns=list(present)), present, log, file=where(part), table=table)


def _null_words(frame: pl.DataFrame) -> pl.DataFrame:
    """The words that mean missing as null, in text columns that hold any (numbers fail on them before)."""
    text = [name for name, kind in frame.schema.items() if kind == pl.String]
    found = frame.select(pl.col(text).is_in(NULL_WORDS).any()).row(0, named=True) if text else {}
    hit = [name for name, has in found.items() if has]
    return frame.with_columns(pl.when(~pl.col(hit).is_in(NULL_WORDS)).then(pl.col(hit))) if hit else frame


def cast_columns(
    frame: pl.DataFrame, types: Mapping[str, Any], log: QualityLog, *, file: str, table: str
) -> pl.DataFrame:
    """Cast columns; rows with a value that does not fit go to quarantine.

    Raises:
        IngestError: more than half the values of a column do not fit.
    """
    cast = frame.with_columns(
        cast_expression(name, frame.schema[name], dtype) for name, dtype in types.items()
    )
    lost = {
        name: cast[name].null_count() - frame[name].null_count()
        for name in types
        if cast[name].null_count() > frame[name].null_count()
    }
    if not lost:
        return cast
    for name, n in lost.items():
        if n > 0.5 * (frame.height - frame[name].null_count()):
            raise IngestError(
                f"column {name!r} has the wrong type",
                expected=str(types[name]),
                got=f"{frame.schema[name]}, for example {_first_lost(frame[name], cast[name])!r}",
                where=file,
            )
    bad = frame.select((frame[name].is_not_null() & cast[name].is_null()).alias(name) for name in lost)
    column = pl.coalesce(pl.when(pl.col(name)).then(pl.lit(name)) for name in lost)
    culprit = bad.select(column.alias("_column"))["_column"]
    rows = frame.with_columns(culprit)
    log.refuse(
        rows.filter(pl.col("_column").is_not_null()),
        file=file,
        table=table,
        column=pl.col("_column"),
        reason=pl.lit("expected ") + pl.col("_column").replace_strict({n: str(types[n]) for n in lost}),
    )
    return cast.filter(culprit.is_null())


def _first_lost(before: pl.Series, after: pl.Series) -> Any:
    return before.filter(after.is_null()).drop_nulls()[0]


def cast_expression(name: str, have: Any, want: Any) -> pl.Expr:
    """A column cast to the type wanted; what does not fit becomes null.

    Raises:
        IngestError: an identifier that has been through a floating-point number.
    """
    value = pl.col(name)
    if want == pl.String and have.is_float():
        raise IngestError(
            f"column {name!r} holds identifiers rounded to floating-point numbers",
            expected="text or integers",
            got=str(have),
            where=name,
        )
    if want == pl.Date and have == pl.String:
        text = value.str.strip_chars()
        day = text.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
        return pl.coalesce(day, (text + "-01").str.to_date("%Y-%m-%d", strict=False)).alias(name)
    if have == pl.String and want != pl.String:
        value = value.str.strip_chars()
        if want == pl.Int64:  # '12' and '12.0' are the same count
            number = value.cast(pl.Float64, strict=False)
            whole = number.is_finite() & (number == number.round()) & (number.abs() < 2**53)
            return pl.coalesce(
                value.cast(pl.Int64, strict=False), pl.when(whole).then(number).cast(pl.Int64, strict=False)
            ).alias(name)
        return value.cast(want, strict=False)
    if have.is_float() and want == pl.Int64:
        return (
            pl.when(value.is_finite() & (value == value.round()))
            .then(value)
            .cast(pl.Int64, strict=False)
            .alias(name)
        )
    if want == pl.Date and not (have in (pl.Date, pl.Datetime) or have == pl.Null):
        return pl.lit(None, pl.Date).alias(name)
    if want == pl.Date:  # a damaged file can hold days that no calendar has, on which polars panics
        day = value.cast(pl.Date, strict=False)
        return pl.when(day.to_physical().is_between(*_CALENDAR)).then(day).alias(name)
    return value.cast(want, strict=False)


def check_ids(frame: pl.DataFrame, name: str, file: str) -> None:
    """Refuse text identifiers that carry the mark of a float: 1.00007E+11, 100007365142.0.

    Raises:
        IngestError: more than half of them do.
    """
    marked = frame[name].cast(pl.String).str.contains(r"^[0-9]+(\.[0-9]*)?[eE]\+?[0-9]+$|^[0-9]{6,}\.0+$")
    if (marked.sum() or 0) > 0.5 * frame.height:
        raise IngestError(
            f"column {name!r} holds identifiers rounded to floating-point numbers",
            expected="text or integers, every digit kept",
            got=frame.filter(marked)[name][0],
            where=file,
        )


def empty(table: str) -> pl.DataFrame:
    """A table without rows."""
    kinds = {
        "String": pl.String,
        "Date": pl.Date,
        "Float64": pl.Float64,
        "Int64": pl.Int64,
        "Boolean": pl.Boolean,
    }
    schema = TABLES[table].to_schema().columns
    return pl.DataFrame(schema={name: kinds[str(column.dtype)] for name, column in schema.items()})


def table_types(table: str) -> dict[str, Any]:
    """Column -> polars type of a table."""
    return dict(empty(table).schema)


def recoveries_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Table recoveries from loan_id, default_month, recovery_month, recovery_amount."""
    return rows.select(
        "loan_id",
        pl.lit(OBSERVED).alias("scenario"),
        pl.lit(0, pl.Int64).alias("macro_path_id"),
        "default_month",
        "recovery_month",
        pl.col("recovery_amount").round(2),
    ).sort("loan_id", "recovery_month")
