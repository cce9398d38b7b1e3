"""Real macro history as one type: nine monthly series, where they came from, by which rules.

Here: `MacroHistory` and `load_history`, which knows the FRED panels, the Federal Reserve's supervisory files
and a user's own table. Not here: the mapping of each format (`fred_files`, `fed_files`), fitting
(`calibration`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import narwhals as nw
import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError, IngestError
from pc_pipeline.core.periods import add_months, month_index, month_range, parse_month
from pc_pipeline.scenarios import fed_files, fred_files
from pc_pipeline.scenarios.quarterly import METHOD
from pc_pipeline.schemas.tables import validate
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, OBSERVED

CLIP_LIMIT: Final = 0.2  # share of months beyond the bounds above which the units must be wrong


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MacroHistory:
    """What really happened, month by month.

    Attributes:
        frame: month (first of month, consecutive) and the nine series in our units, within bounds.
        source: one line on where it came from.
        rules: series -> how it was made.
        clipped: series -> number of months moved onto a bound.
        interpolated: series made monthly from quarters; within a quarter they move in straight lines.
        licence: terms under which the source may be passed on.
    """

    frame: pl.DataFrame
    source: str
    rules: Mapping[str, str]
    clipped: Mapping[str, int]
    interpolated: frozenset[str] = frozenset()
    licence: str = ""

    @property
    def coverage(self) -> tuple[date, date]:
        """First and last month."""
        return self.frame["month"][0], self.frame["month"][-1]

    def values(self) -> np.ndarray:
        """(T, 9) float64."""
        return self.frame.select(MACRO_NAMES).to_numpy()

    def last_values(self, month: str | date | None = None) -> dict[str, float]:
        """The nine values in a month (the last one by default), ready as `initial` of the generator.

        Raises:
            DataError: the month is not covered.
        """
        row = self.window(month or self.coverage[1], 1)
        return {name: float(row[name][0]) for name in MACRO_NAMES}

    def window(self, start: str | date, n_months: int) -> pl.DataFrame:
        """`n_months` rows from `start`.

        Raises:
            DataError: not all of them are covered.
        """
        first = parse_month(start)
        offset = month_index(first) - month_index(self.coverage[0])
        if n_months < 1 or offset < 0 or offset + n_months > self.frame.height:
            raise DataError(
                "macro history does not cover the months asked for",
                expected=f"within {self.coverage[0]:%Y-%m} .. {self.coverage[1]:%Y-%m}",
                got=f"{first:%Y-%m} .. {add_months(first, n_months - 1):%Y-%m}",
                where=self.source,
            )
        return self.frame.slice(offset, n_months)

    def table(self) -> pl.DataFrame:
        """Table `macro_scenarios`: scenario 'observed', path 0."""
        identity = [pl.lit(OBSERVED).alias("scenario"), pl.lit(0, dtype=pl.Int64).alias("macro_path_id")]
        return validate(
            "macro_scenarios", self.frame.select(*identity, "month", *MACRO_NAMES), where=self.source
        )


def load_history(path: str | Path, complete_with: str | Path | None = None) -> MacroHistory:
    """Macro history from any of the known forms.

    Args:
        path: a folder with the FRED-MD and FRED-QD panels (CSV as published, or Parquet); a folder or CSV
            file of the Federal Reserve's supervisory scenarios (the historic domestic table is used); or a
            user's CSV or Parquet file with `month` and our nine column names in our units.
        complete_with: for FRED folders, a supervisory folder or file that gives what the panels lack (the
            public subset has no stock index) and, in place of FRED's substitutes, the BBB spread and house
            prices. By default the first sibling folder that has one.

    Raises:
        IngestError: nothing known is there, or a series cannot be made.
        DataError: months are missing, or values are in other units.
    """
    place = Path(path)
    if not place.exists():
        raise IngestError("no macro history there", expected="a file or folder", got="nothing", where=place)
    panels = fred_files.fred_panels(place)
    if panels is not None:
        return _from_fred(panels, Path(complete_with) if complete_with is not None else _fed_sibling(place))
    if place.is_dir() or fed_files.looks_like_fed(place):
        table = _historic(place)
        source = f"{table.source} (Federal Reserve)"
        rules = _with_method(fed_files.RULES)
        series = fed_files.fed_series(table)
        return _assemble(series, rules, source, frozenset(MACRO_NAMES), fed_files.LICENCE)
    return history_from_frame(_read_user_file(place), source=place.name)


def _with_method(rules: Mapping[str, str]) -> dict[str, str]:
    return {series: f"{rule}; quarters to months by {METHOD}" for series, rule in rules.items()}


def _historic(place: Path) -> fed_files.QuarterlyTable:
    tables = [table for table in fed_files.fed_tables(place) if table.is_historic]
    if not tables:
        raise IngestError(
            "no historic table among the supervisory files",
            expected="scenario name 'Actual'",
            got="none",
            where=place,
        )
    return max(tables, key=lambda table: (table.quarters[-1], table.source))


def _fed_sibling(folder: Path) -> Path | None:
    for other in sorted(folder.resolve().parent.iterdir()):
        if other.is_dir() and any(fed_files.looks_like_fed(file) for file in other.glob("*.csv")):
            return other
    return None


_BETTER_FROM_FED: Final = ("credit_spread_ig", "credit_spread_hy", "property_price_index")


def _from_fred(panels: tuple[Path, Path], fed: Path | None) -> MacroHistory:
    series = fred_files.fred_series(*panels)
    interpolated = set(MACRO_NAMES) - set(fred_files.MONTHLY_SERIES)
    rules = {
        name: f"{fred_files.RULES[name]}; {METHOD}" if name in interpolated else fred_files.RULES[name]
        for name in series
    }
    source, licence = "FRED-MD and FRED-QD", fred_files.LICENCE
    if fed is not None:
        table = _historic(fed)
        for name, supervisory in fed_files.fed_series(table).items():
            if name in _BETTER_FROM_FED or name not in series:
                series[name] = supervisory
                rules[name] = f"{fed_files.RULES[name]} (from {table.source}); {METHOD}"
                interpolated.add(name)
        source += f", completed from {table.source} (Federal Reserve)"
        licence += f"; {fed_files.LICENCE}"
    missing = [name for name in MACRO_NAMES if name not in series]
    if missing:
        raise IngestError(
            "FRED panels lack series",
            expected="a folder of supervisory scenario files beside them, or complete_with=",
            got="no " + ", ".join(missing),
            where=panels[0].parent,
        )
    return _assemble(series, rules, source, frozenset(interpolated), licence)


def _assemble(
    series: Mapping[str, tuple[list[date], np.ndarray]],
    rules: Mapping[str, str],
    source: str,
    interpolated: frozenset[str],
    licence: str,
) -> MacroHistory:
    """Months that all nine series cover."""
    known = {}
    for name in MACRO_NAMES:
        months, values = series[name]
        good = np.flatnonzero(np.isfinite(values))
        known[name] = {months[i]: float(values[i]) for i in good}
    first = max(min(values) for values in known.values())
    last = min(max(values) for values in known.values())
    months = month_range(first, month_index(last) - month_index(first) + 1)
    for name, by_month in known.items():
        gap = next((month for month in months if month not in by_month), None)
        if gap is not None:
            raise DataError(
                "macro history has a gap", expected=f"{name} in every month", got=f"{gap:%Y-%m}", where=source
            )
    frame = pl.DataFrame(
        [pl.Series("month", months, dtype=pl.Date)]
        + [pl.Series(name, [known[name][month] for month in months]) for name in MACRO_NAMES]
    )
    return replace(_bounded(frame, source, rules), interpolated=interpolated, licence=licence)


def _bounded(frame: pl.DataFrame, source: str, rules: Mapping[str, str]) -> MacroHistory:
    clipped: dict[str, int] = {}
    for series in MACRO_SERIES:
        column = frame[series.name]
        outside = int(((column < series.lower) | (column > series.upper)).sum())
        if outside > CLIP_LIMIT * frame.height:
            raise DataError(
                "macro history seems to be in other units",
                expected=f"{series.unit}, {series.lower:g}..{series.upper:g}",
                got=f"{outside} of {frame.height} months outside, e.g. {column.max()!r}",
                where=f"{source}: {series.name}",
            )
        if outside:
            clipped[series.name] = outside
    frame = frame.with_columns(
        pl.col(series.name).clip(series.lower, series.upper) for series in MACRO_SERIES
    )
    return MacroHistory(frame=frame, source=source, rules=dict(rules), clipped=clipped)


def _read_user_file(path: Path) -> pl.DataFrame:
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".csv": pl.read_csv,
        ".parquet": pl.read_parquet,
        ".pq": pl.read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise IngestError(
            "macro history of unknown form",
            expected="CSV, Parquet, or a known folder",
            got=path.suffix,
            where=path,
        )
    try:
        return reader(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IngestError(
            "macro history cannot be read", expected=path.suffix, got=error, where=path
        ) from error


def history_from_frame(data: Any, source: str = "frame") -> MacroHistory:
    """History from a polars or pandas frame with `month` and our nine columns in our units.

    Raises:
        DataError: columns or months are missing, or values are in other units or no numbers.
    """
    frame = nw.from_native(data, eager_only=True).to_polars()
    missing = [column for column in ("month", *MACRO_NAMES) if column not in frame.columns]
    if missing:
        raise DataError(
            "macro history lacks columns",
            expected=", ".join(("month", *MACRO_NAMES)),
            got="no " + ", ".join(missing),
            where=source,
        )
    months = [parse_month(value.date() if isinstance(value, datetime) else value) for value in frame["month"]]
    frame = frame.select(
        pl.Series("month", months, dtype=pl.Date), pl.col(MACRO_NAMES).cast(pl.Float64, strict=False)
    )
    frame = frame.sort("month")
    index = np.array([month_index(month) for month in frame["month"]])
    if len(index) == 0 or (np.diff(index) != 1).any():
        raise DataError(
            "months of the macro history do not follow each other",
            expected="one row per month, no gap",
            got=f"{len(set(index.tolist()))} different months in {len(index)} rows",
            where=source,
        )
    for name in MACRO_NAMES:
        if not np.isfinite(frame[name].fill_null(float("nan")).to_numpy()).all():
            raise DataError(
                "macro history has missing values", expected="a number in every month", got=name, where=source
            )
    return _bounded(frame, source, dict.fromkeys(MACRO_NAMES, "as supplied"))
