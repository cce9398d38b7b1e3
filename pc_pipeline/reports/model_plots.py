"""Figures of models: transition probabilities, training curves, calibration. Not here: figures of results
(`plots`), SVG and PNG (`ink`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports.axes import WIDE, label_axes, legend_below, line_look, percent_axis, short_name
from pc_pipeline.reports.ink import GRID, MUTED, PALETTE, blank, inked
from pc_pipeline.schemas.states import LOAN_STATE_NAMES


@inked
def transition_heat_map(
    matrix_KK: Any, labels: Sequence[str] = LOAN_STATE_NAMES, *, title: str | None = None
) -> Figure:
    """Monthly transition probabilities, from row to column, with the figures in the cells.

    Args:
        matrix_KK: (K, K) probabilities; rows that sum to zero (never visited) stay blank.
        labels: K state names.

    Raises:
        DataError: the matrix is not square, or labels do not fit it.
    """
    matrix = np.asarray(matrix_KK, dtype=float)
    if matrix.ndim != 2 or matrix.shape != (len(labels), len(labels)):
        raise DataError(
            "no transition matrix",
            expected=f"({len(labels)}, {len(labels)})",
            got=matrix.shape,
            where="heat map",
        )
    figure = blank(WIDE[0], 3.9)
    axes = figure.subplots()
    # a power scale: the rare moves are the ones that matter
    shades = np.ma.masked_equal(np.sqrt(np.clip(matrix, 0.0, 1.0)), 0.0)
    axes.pcolormesh(shades, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        if value > 0:
            colour = "white" if value > 0.35 else "black"
            text = f"{value:.1%}" if value >= 0.0005 else "<.1%"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=7)
    ticks = np.arange(len(labels)) + 0.5
    names = [short_name(label) for label in labels]
    axes.set_xticks(ticks, names, rotation=30, ha="right")
    axes.set_yticks(ticks, names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    label_axes(axes, "state next month", "state this month", title)
    return figure


@inked
def training_curves(
    history: Mapping[str, Sequence[float]], *, y_label: str = "loss, nats", title: str | None = None
) -> Figure:
    """Loss per epoch, one line per entry of a trainer's history (empty and non-numeric ones are left out)."""
    figure = blank(*WIDE)
    axes = figure.subplots()
    index = 0
    for name, values in history.items():
        curve = _curve(values)
        if curve is not None:
            marker = "o" if curve.size == 1 else None
            axes.plot(
                np.arange(1, curve.size + 1), curve, **line_look(index), marker=marker, label=short_name(name)
            )
            index += 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes)
    label_axes(axes, "epoch", y_label, title)
    return figure


def _curve(values: Any) -> np.ndarray | None:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)) or len(values) == 0:
        return None
    try:
        curve = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        return None
    return curve if curve.ndim == 1 else None


@inked
def calibration(
    predicted: Any, observed: Any, *, weights: Any = None, errors: Any = None, title: str | None = None
) -> Figure:
    """Observed against predicted probability; on the diagonal a model is calibrated.

    Args:
        predicted, observed: (G,) mean probability and frequency per group, decimals.
        weights: (G,) size of each group, drawn as area.
        errors: (G,) half-width of the interval of `observed`.
    """
    predicted_G, observed_G = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if predicted_G.shape != observed_G.shape or predicted_G.ndim != 1:
        raise DataError(
            "predicted and observed differ in length",
            expected=predicted_G.shape,
            got=observed_G.shape,
            where="calibration",
        )
    figure = blank(WIDE[0], 3.6)
    axes = figure.subplots()
    ends_G = observed_G if errors is None else observed_G + np.asarray(errors, dtype=float)
    top = float(max(predicted_G.max(initial=0.0), ends_G.max(initial=0.0))) * 1.08 or 1.0
    axes.plot([0, top], [0, top], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    if errors is not None:
        axes.errorbar(predicted_G, observed_G, yerr=errors, fmt="none", color=PALETTE["blue"], linewidth=1.0)
    size = 28.0 if weights is None else _areas(np.asarray(weights, dtype=float))
    axes.scatter(
        predicted_G, observed_G, s=size, color=PALETTE["blue"], edgecolors=GRID, linewidths=0.5, zorder=3
    )
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    percent_axis(axes, "x")
    percent_axis(axes, "y")
    label_axes(axes, "predicted, %", "observed, %", title)
    return figure


def _areas(weights_G: np.ndarray) -> np.ndarray:
    return 12.0 + 90.0 * weights_G / max(float(weights_G.max(initial=0.0)), 1e-12)
