"""Small hands of the figures: labels, axes and legends. Not here: any figure (`plots`, `model_plots`)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from pc_pipeline.reports import formats
from pc_pipeline.reports.ink import SERIES_COLOURS, SERIES_DASHES

WIDE: Final = (4.8, 2.8)  # inches; readable at the width of a phone
PANEL: Final = (3.6, 2.1)


def short_name(text: str) -> str:
    """A user's name as a label: no control characters, short, never hidden from the legend."""
    clean = formats.plain(text, 28)
    return f" {clean}" if clean.startswith("_") else clean


def line_look(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line: told apart in colour and in black and white."""
    return {
        "color": SERIES_COLOURS[index % len(SERIES_COLOURS)],
        "linestyle": SERIES_DASHES[index % len(SERIES_DASHES)],
    }


def label_axes(axes: Axes, x_label: str, y_label: str, title: str | None) -> None:
    """What the axes show, with units; a title only where no caption stands beside the figure."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if title:
        axes.set_title(formats.plain(title, 70))


def percent_axis(axes: Axes, which: str) -> None:
    """Decimals written as percent; the tick at 0.025 reads 2.5."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value * 100, 6):g}"))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def month_axis(axes: Axes) -> None:
    """Ticks at whole months, quarters or years."""
    span = float(np.ptp(axes.get_xlim()))
    step = next((step for step in (1, 2, 3, 6, 12, 24, 60) if span / step <= 7), 120)
    axes.xaxis.set_major_locator(MultipleLocator(step))


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend under the figure, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(len(label) for label in labels)
        columns = min(len(handles), max(1, 84 // (longest + 9)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=2.4)


def money_label(currency: str, word: str) -> str:
    """'USD, million'."""
    name = formats.plain(currency, 12)
    return f"{name}, {word}" if word else name
