"""The validation of generated payment histories as figures and one self-contained page.

Here: frames in, figures and HTML out. Not here: the tests themselves (`evaluation.sequences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pc_pipeline.reports.axes import WIDE, label_axes, legend_below, line_look, percent_axis
from pc_pipeline.reports.files import replace_file
from pc_pipeline.reports.ink import GRID, INK, MUTED, PALETTE, blank, inked, to_inline_svg

_MOST_CELLS: Final = 24
_STYLE: Final = f"""
:root{{--ink:{INK};--muted:{MUTED};--grid:{GRID};--blue:{PALETTE["blue"]};--orange:{PALETTE["orange"]};
--green:{PALETTE["green"]};--red:{PALETTE["red"]};--pink:{PALETTE["pink"]};--sky:{PALETTE["sky"]}}}
body{{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%;font-size:13px}}
th,td{{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--grid)}}
td.n{{text-align:right;font-variant-numeric:tabular-nums}}
.no{{color:var(--red);font-weight:600}}
svg{{width:100%;height:auto}}
"""


@inked
def survival_figure(survival: pl.DataFrame) -> Figure:
    """Share not yet in default by month, real and synthetic."""
    figure = blank(WIDE[0], 2.8)
    axes = figure.subplots()
    for place, name in enumerate(("real", "synthetic")):
        axes.step(
            survival["month"].to_numpy(),
            survival[name].to_numpy(),
            where="post",
            label=name,
            **line_look(place),
        )
    percent_axis(axes, "y")
    label_axes(axes, "month", "not in default", None)
    legend_below(figure, axes)
    return figure


@inked
def family_figure(cells: pl.DataFrame, family: str) -> Figure:
    """Differences of one family of rates with 95 % intervals, real value in the label; zero is agreement."""
    chosen = cells.filter((pl.col("family") == family) & pl.col("judged"))
    if chosen.height > _MOST_CELLS:
        gap = (pl.col("synthetic") - pl.col("real")).abs()
        chosen = chosen.with_row_index().sort(gap, descending=True).head(_MOST_CELLS).sort("index")
    figure = blank(WIDE[0], 1.0 + 0.2 * max(chosen.height, 1))
    axes = figure.subplots()
    y = np.arange(chosen.height)
    low, high = chosen["low"].to_numpy(), chosen["high"].to_numpy()
    axes.hlines(y, low, high, color=PALETTE["sky"], linewidth=2.0)
    axes.plot((low + high) / 2, y, "o", color=PALETTE["blue"], markersize=3.5)
    axes.axvline(0.0, color=MUTED, linewidth=0.8)
    axes.set_yticks(
        y, [f"{cell}  ({real:.1%})" for cell, real in zip(chosen["cell"], chosen["real"], strict=True)]
    )
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    percent_axis(axes, "x")
    label_axes(axes, "synthetic less real, 95 % interval", "", None)
    return figure


def write_cascade_page(
    path: Path, table: pl.DataFrame, cells: pl.DataFrame, survival: pl.DataFrame, lines: Sequence[str] = ()
) -> None:
    """Write the page.

    Args:
        table, cells, survival: of `evaluation.sequences.SequenceValidation`. lines: what made the histories.
    """
    families = cells.filter(pl.col("judged"))["family"].unique(maintain_order=True).to_list()
    parts = ["<h1>Payment cascade: generated histories against real ones</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in lines]
    parts += [_table(table), "<h2>survival</h2>"]
    parts.append(to_inline_svg(survival_figure(survival), "survival", "share not yet in default by month"))
    for place, family in enumerate(families):
        parts.append(f"<h2>{escape(family)}</h2>")
        parts.append(to_inline_svg(family_figure(cells, family), f"family-{place}", f"differences: {family}"))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Payment cascade</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    replace_file(path, page.encode())


def _table(table: pl.DataFrame) -> str:
    rows = []
    for row in table.iter_rows(named=True):
        verdict = "yes" if row["passed"] else '<span class="no">no</span>'
        rows.append(
            f"<tr><td>{escape(row['figure'])}</td><td class=n>{row['value']:.4f}</td>"
            f"<td class=n>{row['low']:.4f} to {row['high']:.4f}</td><td>{escape(row['goal'])}</td>"
            f"<td>{verdict}</td><td>{escape(row['note'])}</td></tr>"
        )
    heads = ("figure", "value", "95 % interval", "pass mark", "passed", "note")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"
