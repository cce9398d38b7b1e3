"""Console tables. Here: what a run prints at its end, with rich. Not here: the page (`html`) and the
workbook (`workbook`), which show the same frames in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pc_pipeline.reports.formats import (
    MISSING,
    humanize,
    is_missing,
    measure_title,
    money_scale,
    percent,
    percent_interval,
    plain,
)
from pc_pipeline.reports.inputs import Frames, as_polars, of_scenario, quality_line, scenarios_in

HEADLINE_MEASURES: Final = ("expected_loss", "var_99", "cvar_99")
LONGEST_NAME: Final = 24


def print_report(console: Console, frames: Frames, *, n_accepted: int | None = None) -> None:
    """Print one block per scenario and the data-quality line.

    Args:
        console: where to print.
        frames: `pool_report` and `tranche_report`, polars or pandas; `quarantine` and `data_quality`
            if there are any.
        n_accepted: rows accepted by ingest; without it the count is taken from `data_quality`.

    Raises:
        SchemaError: a frame lacks columns of its table.
    """
    known = as_polars(frames)
    for scenario in scenarios_in(_reports_only(known)):
        console.print(scenario_block(known, scenario))
    line = data_quality_line(known, n_accepted)
    if line:
        console.print(Text("Data quality  ", style="bold").append(line, style="not bold"))


def _reports_only(frames: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return {name: frames[name] for name in ("pool_report", "tranche_report") if name in frames}


def scenario_block(frames: Mapping[str, pl.DataFrame], scenario: str) -> RenderableType:
    """Title, pool measures and tranche table of one scenario."""
    pool = of_scenario(frames, "pool_report", scenario)
    tranches = of_scenario(frames, "tranche_report", scenario)
    parts: list[RenderableType] = [Rule(Text(humanize(scenario), style="bold"), align="left")]
    if pool.height:
        parts.append(pool_table(pool))
    if tranches.height:
        parts.append(Padding(tranche_table(tranches), (1, 0, 0, 0)))
    return Padding(Group(*parts), (0, 0, 1, 0))


def pool_table(pool: pl.DataFrame) -> Table:
    """Expected loss, VaR 99 and CVaR 99, each with its 95 % interval, as shares of the pool."""
    table = _plain_table()
    table.add_column("Loss, share of pool")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", style="dim")
    rows = {row["measure"]: row for row in pool.iter_rows(named=True)}
    for measure in HEADLINE_MEASURES:
        row = rows.get(measure)
        if row is not None:
            table.add_row(
                measure_title(measure), percent(row["value"]), percent_interval(row["lower"], row["upper"])
            )
    return table


def tranche_table(tranches: pl.DataFrame) -> Table:
    """One line per tranche: size, coupon, EL with interval, P(loss), IRR, WAL, OC and IC failure.

    Fits a terminal of 80 characters for names up to 10 characters.
    """
    largest = tranches["original_balance"].fill_nan(None).max()
    scale, word = money_scale(largest if isinstance(largest, float) else 0.0)
    table = _plain_table()
    table.add_column("Tranche", overflow="fold")
    headings = (f"size,\n{word}" if word else "size", "coupon", "EL and\n95% interval")
    for heading in (*headings, "P(loss)", "IRR", "WAL,\nyears", "OC\nfails", "IC\nfails"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in tranches.iter_rows(named=True):
        table.add_row(*_tranche_cells(row, scale))
    return table


def _plain_table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold"
    )


def _tranche_cells(row: Mapping[str, Any], scale: float) -> list[Text | str]:
    size = row["original_balance"]
    expected_loss = Text(percent(row["expected_loss"]))
    interval = percent_interval(row["expected_loss_lower"], row["expected_loss_upper"], dash="–")
    if interval:
        expected_loss.append(f"\n{interval}", style="dim")
    return [
        Text(plain(row["tranche"], LONGEST_NAME)),
        MISSING if is_missing(size) else f"{size / scale:,.1f}",
        percent(row["coupon"]),
        expected_loss,
        percent(row["loss_probability"]),
        percent(row["irr"]),
        MISSING if is_missing(row["wal_years"]) else f"{row['wal_years']:.2f}",
        percent(row["oc_failure_probability"], 1),
        percent(row["ic_failure_probability"], 1),
    ]


def data_quality_line(frames: Mapping[str, pl.DataFrame], n_accepted: int | None = None) -> str:
    """Rows accepted and quarantined in one line; empty when nothing is known about either."""
    quality, quarantine = frames.get("data_quality"), frames.get("quarantine")
    if quality is not None:
        accepted = int(quality["rows_accepted"].fill_null(0).sum())
        quarantined = int(quality["rows_quarantined"].fill_null(0).sum())
        return quality_line(accepted if n_accepted is None else n_accepted, quarantined)
    if quarantine is None and n_accepted is None:
        return ""
    refused = 0 if quarantine is None else quarantine.height
    if n_accepted is None:
        return f"{refused:,} rows quarantined"
    return quality_line(n_accepted, refused)
