"""What reports are made of. Here: accepting frames and notes from a caller and reading names from them.
Not here: schema checks (the caller's asset checks do those) and any layout.

Frames go by table name: `pool_report`, `tranche_report`, `cash_flow_report`, `tranche_balance_report`,
`macro_fan_report` and `quarantine` as in `schemas.tables`; `loss_distribution` (scenario, path_id, loss,
weight), loss as share of the original pool balance; `data_quality`, here the sums of the stored
table of that name (table, rows_accepted, rows_quarantined). Any other frame is shown as it is. Notes are
(label, text) pairs; a label 'group: name' puts the note into a group: run, convention, model, next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import narwhals as nw
import polars as pl

from pc_pipeline.core.errors import DataError, SchemaError
from pc_pipeline.schemas.tables import TABLES, columns
from pc_pipeline.schemas.units import STANDARD_SCENARIOS, canonical_scenario

Frames = Mapping[str, Any]
Notes = Mapping[str, str] | Sequence[tuple[str, str]]

LOSS_DISTRIBUTION: Final = "loss_distribution"
DATA_QUALITY: Final = "data_quality"
EXTRA_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    LOSS_DISTRIBUTION: ("scenario", "loss"),
    DATA_QUALITY: ("table", "rows_accepted", "rows_quarantined"),
}
NOTE_GROUPS: Final = ("run", "convention", "model", "next")


def as_polars(frames: Frames) -> dict[str, pl.DataFrame]:
    """Every frame as eager polars, in the caller's order; a frame without columns counts as absent.

    Raises:
        DataError: a value is no data frame.
        SchemaError: a known table lacks columns of its contract.
    """
    found: dict[str, pl.DataFrame] = {}
    for name, frame in frames.items():
        if frame is None:
            continue
        polars_frame = _to_polars(name, frame)
        if not polars_frame.columns:
            continue
        needed = EXTRA_COLUMNS.get(name) or (columns(name) if name in TABLES else ())
        absent = [column for column in needed if column not in polars_frame.columns]
        if absent:
            raise SchemaError(
                f"frame {name!r} lacks columns", expected=absent, got=polars_frame.columns, where="report"
            )
        found[name] = _as_contract(name, polars_frame)
    return found


def _to_polars(name: str, frame: Any) -> pl.DataFrame:
    try:
        wrapped = nw.from_native(frame)
    except TypeError:
        raise DataError(
            f"{name!r} is no data frame",
            expected="polars or pandas",
            got=type(frame).__name__,
            where="report",
        ) from None
    eager = wrapped.collect() if isinstance(wrapped, nw.LazyFrame) else wrapped
    return eager.to_polars()


def _as_contract(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Figures as Float64 and names as String where the contract says so: an all-null column, pandas
    integers and categories come in other types.
    """
    wanted = {LOSS_DISTRIBUTION: {"scenario": pl.String, "loss": pl.Float64, "weight": pl.Float64}}.get(name)
    if name in TABLES:
        wanted = {column: field.dtype.type for column, field in TABLES[name].to_schema().columns.items()}
    casts = [
        pl.col(column).cast(dtype)
        for column, dtype in (wanted or {}).items()
        if column in frame.columns and dtype in (pl.Float64, pl.String) and frame.schema[column] != dtype
    ]
    try:
        return frame.with_columns(casts) if casts else frame
    except pl.exceptions.PolarsError as error:
        raise SchemaError(
            f"frame {name!r} holds text where figures belong", expected="numbers", got=error, where="report"
        ) from None


def scenarios_in(frames: Mapping[str, pl.DataFrame]) -> list[str]:
    """Scenario names in any frame: the standard ones in their order, then others as they appear."""
    seen: dict[str, None] = {}
    for frame in frames.values():
        if "scenario" in frame.columns:
            seen.update(dict.fromkeys(frame["scenario"].drop_nulls().unique(maintain_order=True).to_list()))
    rank = {name: place for place, name in enumerate(STANDARD_SCENARIOS)}
    return sorted(seen, key=lambda name: rank.get(canonical_scenario(str(name)), len(rank)))


def of_scenario(frames: Mapping[str, pl.DataFrame], table: str, scenario: str) -> pl.DataFrame:
    """The rows of one scenario; an empty frame without columns when the table is absent."""
    frame = frames.get(table)
    if frame is None or "scenario" not in frame.columns:
        return pl.DataFrame()
    return frame.filter(pl.col("scenario") == scenario)


def note_pairs(notes: Notes | None) -> list[tuple[str, str]]:
    """Notes as (label, text) pairs, in order."""
    if notes is None:
        return []
    pairs = notes.items() if isinstance(notes, Mapping) else notes
    return [(str(label), str(text)) for label, text in pairs]


def grouped_notes(notes: Notes | None) -> dict[str, list[tuple[str, str]]]:
    """Notes by group; a label without a known group belongs to 'run'."""
    groups: dict[str, list[tuple[str, str]]] = {group: [] for group in NOTE_GROUPS}
    for label, text in note_pairs(notes):
        head, colon, rest = label.partition(":")
        group = head.strip().lower()
        if colon and group in groups:
            groups[group].append((rest.strip(), text))
        else:
            groups["run"].append((label, text))
    return groups


def quarantine_counts(quarantine: pl.DataFrame) -> pl.DataFrame:
    """Refused rows by table, column and reason, most frequent first (ties by name)."""
    return (
        quarantine.group_by("table", "column", "reason")
        .agg(pl.len().cast(pl.Int64).alias("n_rows"), pl.col("source_file").n_unique().alias("n_files"))
        .sort(["n_rows", "table", "column", "reason"], descending=[True, False, False, False])
    )


def quality_line(n_accepted: int, n_quarantined: int) -> str:
    """'88,361 rows accepted, 12 quarantined (0.01%)'."""
    total = n_accepted + n_quarantined
    if total == 0:
        return "no rows were read"
    share = n_quarantined / total
    written = "<0.01%" if 0 < share < 0.00005 else f"{share:.2%}"
    return f"{n_accepted:,} rows accepted, {n_quarantined:,} quarantined ({written})"
