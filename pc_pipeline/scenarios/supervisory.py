"""The Federal Reserve's supervisory scenarios as further named scenarios.

Here: baseline and severely adverse projections turned into `ScenarioDefinition`s with a supplied path for all
nine series, noise around it, and a return to the long-run law after its end. Not here: reading the tables
(`fed_files`), the same tables as history (`history`).

Growth over a year, the equity return and the property index of the first projected months reach back into
what had happened, so each projection is appended to the historic table of the same place before it is mapped.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import add_months, month_index
from pc_pipeline.scenarios.definitions import ScenarioDefinition
from pc_pipeline.scenarios.fed_files import QuarterlyTable, fed_series, fed_tables
from pc_pipeline.schemas.units import MACRO_SERIES


def load_supervisory(path: str | Path, noise_scale: float = 1.0) -> list[ScenarioDefinition]:
    """Scenario definitions of all projections in a folder of supervisory files.

    Names are `fed_<year>_<scenario>`, e.g. `fed_2025_severely_adverse`, where the year is that of the first
    projected quarter. Month 0 is that quarter's first month. Values beyond a series' bounds are moved onto
    the bound and counted in the description.

    Args:
        path: folder with the historic domestic table and at least one projection (or one file with both).
        noise_scale: factor on the long-run law's standard deviations around the path; 0 for the bare path.

    Raises:
        IngestError: no historic table, no projection, or quarters that do not follow the historic ones.
    """
    place = Path(path)
    tables = fed_tables(place)
    history = [table for table in tables if table.is_historic]
    projections = [table for table in tables if not table.is_historic]
    if not history or not projections:
        raise IngestError(
            "supervisory scenarios need the historic table and a projection",
            expected="a folder with both",
            got=f"{len(history)} historic, {len(projections)} projected",
            where=place,
        )
    definitions = [_definition(_history_for(table, history), table, noise_scale) for table in projections]
    return sorted(definitions, key=lambda definition: definition.name)


def _history_for(projection: QuarterlyTable, history: list[QuarterlyTable]) -> QuarterlyTable:
    """The historic table that reaches the quarter before the projection, cut there."""
    before = add_months(projection.quarters[0], -3)
    for table in history:
        if before in table.quarters:
            known = table.quarters.index(before) + 1
            cut = {key: values[:known] for key, values in table.columns.items()}
            return replace(table, quarters=table.quarters[:known], columns=cut)
    raise IngestError(
        "no historic table reaches the projection",
        expected=f"a table with the quarter of {before:%Y-%m}",
        got=", ".join(f"{table.source} to {table.quarters[-1]:%Y-%m}" for table in history),
        where=projection.source,
    )


def _definition(
    history: QuarterlyTable, projection: QuarterlyTable, noise_scale: float
) -> ScenarioDefinition:
    joined = QuarterlyTable(
        projection.name,
        history.quarters + projection.quarters,
        {key: np.concatenate([history.columns[key], projection.columns[key]]) for key in projection.columns},
        projection.source,
    )
    first, n_months = projection.quarters[0], 3 * len(projection.quarters)
    path, moved = {}, []
    series = fed_series(joined)
    for bounds in MACRO_SERIES:
        months, values = series[bounds.name]
        offset = month_index(first) - month_index(months[0])
        wanted = values[offset : offset + n_months]
        if offset < 0 or len(wanted) < n_months or not np.isfinite(wanted).all():
            raise IngestError(
                "projection lacks values",
                expected=f"{bounds.name} in {n_months} months",
                got=f"{int(np.isfinite(wanted).sum())}",
                where=projection.source,
            )
        inside = np.clip(wanted, bounds.lower, bounds.upper)
        if (inside != wanted).any():
            moved.append(f"{bounds.name} {int((inside != wanted).sum())}")
        path[bounds.name] = tuple(float(value) for value in inside)
    clipped = f"; months on a bound: {', '.join(moved)}" if moved else ""
    return ScenarioDefinition(
        name=f"fed_{first.year}_{_short(projection.name)}",
        description=f"{projection.name}, Federal Reserve, from {first:%Y-%m} ({projection.source}){clipped}",
        path=path,
        noise_scale=noise_scale,
    )


def _short(name: str) -> str:
    """'Supervisory Severely Adverse', '2016-Table_4A_..._Severely_Adverse_Domestic' -> 'severely_adverse'."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    known = re.search(r"severely_adverse|adverse|baseline", plain)
    return known[0] if known else plain.removeprefix("supervisory_") or "projection"
