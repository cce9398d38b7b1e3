"""Figures of analyses: attribution bars, sensitivity heat map, reverse-stress paths, uncertainty. Not here:
figures of a run (`plots`), of models (`model_plots`), the analyses themselves (`engines`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports import formats
from pc_pipeline.reports.axes import (
    WIDE,
    label_axes,
    legend_below,
    line_look,
    month_axis,
    percent_axis,
    short_name,
)
from pc_pipeline.reports.ink import INK, MUTED, PALETTE, SERIES_COLOURS, blank, inked
from pc_pipeline.schemas.units import MACRO_NAMES

LONGEST: Final = 12  # bars of one figure; smaller parts are drawn as one


@inked
def attribution_bars(
    parts: pl.DataFrame, key: str, measures: tuple[str, ...] = ("expected_loss", "cvar_99"), of: str = "pool"
) -> Figure:
    """Parts of a measure as horizontal bars, one colour per measure.

    Args:
        parts: of, measure, `key`, part. of: 'pool' or a class.

    Raises:
        DataError: no part of that name.
    """
    rows = parts.filter(pl.col("of") == of)
    if rows.is_empty():
        raise DataError(
            "nothing to draw", expected=parts["of"].unique().to_list(), got=of, where="attribution"
        )
    names = _largest(rows, key)
    figure = blank(WIDE[0], 1.0 + 0.3 * len(names))
    axes = figure.subplots()
    shown = [m for m in measures if rows.filter(pl.col("measure") == m).height]
    height = 0.8 / max(len(shown), 1)
    for k, measure in enumerate(shown):
        by_name = dict(
            rows.filter(pl.col("measure") == measure).select(pl.col(key).cast(pl.String), "part").rows()
        )
        values = [by_name.get(name, 0.0) for name in names]
        place = np.arange(len(names)) + height * (k - (len(shown) - 1) / 2)
        axes.barh(place, values, height, color=SERIES_COLOURS[k], label=formats.measure_title(measure))
    written = formats.series_title if key == "series" else formats.humanize
    axes.set_yticks(range(len(names)), [short_name(written(name)) for name in names])
    axes.invert_yaxis()
    axes.axvline(0.0, color=MUTED, linewidth=0.6)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    percent_axis(axes, "x")
    legend_below(figure, axes)
    label_axes(axes, f"part, % of {of}", "", None)
    return figure


def _largest(rows: pl.DataFrame, key: str) -> list[str]:
    size = rows.group_by(pl.col(key).cast(pl.String), maintain_order=True).agg(pl.col("part").abs().max())
    kept = size.sort("part", descending=True)[key].head(LONGEST).to_list()
    return [name for name in size[key].to_list() if name in kept]


@inked
def sensitivity_heat_map(macro: pl.DataFrame, target: str) -> Figure:
    """Derivatives of one target by macro series and month, per standard deviation of the series.

    Args:
        macro: target, series, month_index, per_sd.

    Raises:
        DataError: no such target.
    """
    rows = macro.filter(pl.col("target") == target).sort("month_index")
    if rows.is_empty():
        known = macro["target"].unique().to_list()
        raise DataError("nothing to draw", expected=known, got=target, where="sensitivities")
    names = [name for name in MACRO_NAMES if name in rows["series"].to_list()]
    grid = np.stack([rows.filter(pl.col("series") == name)["per_sd"].to_numpy() for name in names]) * 1e4
    limit = float(np.abs(grid).max()) or 1.0
    figure = blank(WIDE[0] + 0.6, 2.8)
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        np.arange(grid.shape[1] + 1), np.arange(len(names) + 1), grid, cmap="RdBu_r", vmin=-limit, vmax=limit
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, [short_name(formats.series_title(name)) for name in names])
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", colors=INK)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("bps per sd of the month")
    month_axis(axes)
    label_axes(axes, "month of the move", "", None)
    return figure


@inked
def reverse_stress_paths(frame: pl.DataFrame) -> Figure:
    """The path found against the scenario's centre, one panel a series.

    Args:
        frame: target, series, month_index, value, centre; several targets are several lines.
    """
    names = [name for name in MACRO_NAMES if name in frame["series"].to_list()]
    wanted = frame["target"].unique(maintain_order=True).to_list()
    figure = blank(9.6, 6.0)
    panels = figure.subplots(3, 3, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for k, target in enumerate(wanted):
            rows = frame.filter((pl.col("series") == name) & (pl.col("target") == target)).sort("month_index")
            months = rows["month_index"].to_numpy()
            if k == 0:
                axes.plot(
                    months, rows["centre"].to_numpy(), color=MUTED, linestyle=(0, (1, 1)), label="centre"
                )
            axes.plot(months, rows["value"].to_numpy(), **line_look(k), label=formats.plain(target, 40))
        axes.set_title(short_name(formats.series_title(name)))
        if float(frame.filter(pl.col("series") == name)["value"].abs().max()) < 2:  # type: ignore[arg-type]
            percent_axis(axes, "y")
        axes.margins(x=0)
        month_axis(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    legend_below(figure, panels[0])
    return figure


@inked
def uncertainty_bars(table: pl.DataFrame, measure: str = "expected_loss") -> Figure:
    """Estimate and interval of each row, and how its variance splits, side by side.

    Args:
        table: of, measure, value, lower, upper, sampling, parameter, model.
    """
    moves = pl.sum_horizontal("sampling", "parameter", "model") > 1e-16
    rows = table.filter((pl.col("measure") == measure) & moves)
    names = [short_name(name) for name in rows["of"]]
    figure = blank(9.6, 1.2 + 0.32 * max(len(names), 1))
    left, right = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(names))
    value = rows["value"].to_numpy()
    ends = np.abs(np.stack([value - rows["lower"].to_numpy(), rows["upper"].to_numpy() - value]))
    left.errorbar(value, place, xerr=ends, fmt="o", color=INK, capsize=2.5, markersize=4)
    texts = rows.select(pl.col("value", "lower", "upper") * 100).rows()
    for height, (middle, low, high) in zip(place, texts, strict=True):
        text = f"{middle:.3g} ({low:.3g} to {high:.3g})"
        left.annotate(
            text, (high / 100, height), (6, 0), "data", "offset points", va="center", color=MUTED, fontsize=7
        )
    left.margins(x=0.25)
    left.set_yticks(place, names)
    left.invert_yaxis()
    percent_axis(left, "x")
    label_axes(left, f"{formats.measure_title(measure)}, %, with 95% interval", "", None)
    total = np.maximum(rows.select("sampling", "parameter", "model").sum_horizontal().to_numpy(), 1e-300)
    start = np.zeros(len(names))
    for k, part in enumerate(("sampling", "parameter", "model")):
        share = rows[part].to_numpy() / total
        colour = (PALETTE["sky"], PALETTE["blue"], PALETTE["orange"])[k]
        right.barh(place, share, 0.6, left=start, color=colour, label=part)
        start = start + share
    right.set_xlim(0, 1)
    percent_axis(right, "x")
    legend_below(figure, right)
    label_axes(right, "share of the variance, %", "", None)
    return figure
