"""Figures of the report. Here: what each figure draws, from frames or arrays. Not here: colours, SVG and
PNG (`ink`), nor where a figure stands in the page (`html`).

Every function returns a matplotlib Figure built without pyplot; `ink.to_svg`, `ink.to_inline_svg` and
`ink.to_png_uri` turn it into text and clear it. Figures of models stand in `model_plots`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pc_pipeline.core.errors import DataError
from pc_pipeline.reports import formats
from pc_pipeline.reports.axes import (
    PANEL,
    WIDE,
    label_axes,
    legend_below,
    line_look,
    money_label,
    month_axis,
    percent_axis,
    short_name,
)
from pc_pipeline.reports.ink import (
    INK,
    MUTED,
    PALETTE,
    blank,
    inked,
)
from pc_pipeline.reports.inputs import scenarios_in
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_NAMES

MONTHS: Final = "months from cut-off"
CURRENCY: Final = "currency"  # label of money axes until the caller names one
N_BINS: Final = 60
N_CURVE_POINTS: Final = 240
LAST_MONTH_DWARFS: Final = 2.5
CASH_IN: Final = ("interest", "scheduled_principal", "prepaid_principal", "recovery")
CHANNEL_COLOURS: Final = {
    "interest": PALETTE["blue"],
    "scheduled_principal": PALETTE["sky"],
    "prepaid_principal": PALETTE["green"],
    "recovery": PALETTE["orange"],
    "defaulted_balance": PALETTE["red"],
}


# --- losses ---------------------------------------------------------------------------------------


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Smallest value at or below which at least `share` of the weight lies."""
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    place = int(np.searchsorted(cumulated, share * cumulated[-1] * (1 - 1e-12)))
    return float(values[order][min(place, values.size - 1)])


def loss_marks(losses: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """expected_loss, var_99 and cvar_99 (mean of losses at or above VaR) of a weighted sample."""
    losses_P, weights_P = _sample(losses, weights)
    var = weighted_quantile(losses_P, weights_P, 0.99)
    tail = losses_P >= var
    return {
        "expected_loss": float(np.average(losses_P, weights=weights_P)),
        "var_99": var,
        "cvar_99": float(np.average(losses_P[tail], weights=weights_P[tail])),
    }


def _sample(losses: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    losses_P = np.asarray(losses, dtype=float)
    weights_P = np.ones_like(losses_P) if weights is None else np.asarray(weights, dtype=float)
    if losses_P.ndim != 1 or losses_P.shape != weights_P.shape:
        raise DataError(
            "losses and weights must be two equal columns",
            expected="(P,) and (P,)",
            got=f"{losses_P.shape} and {weights_P.shape}",
            where="loss distribution",
        )
    keep = np.isfinite(losses_P) & np.isfinite(weights_P) & (weights_P >= 0)
    losses_P, weights_P = losses_P[keep], weights_P[keep]
    if losses_P.size == 0 or weights_P.sum() <= 0:
        raise DataError(
            "no losses to draw", expected="a path with weight", got="none", where="loss distribution"
        )
    return losses_P, weights_P


@inked
def loss_distribution(
    losses: Any, weights: Any = None, *, marks: Mapping[str, float] | None = None, title: str | None = None
) -> Figure:
    """Histogram of pool losses with the expected loss, VaR 99 and CVaR 99 marked.

    Args:
        losses: (P,) share of the original pool balance.
        weights: (P,) likelihood weights; None = equal.
        marks: measure -> value to mark, e.g. from `pool_report`; None = computed from the sample.

    Raises:
        DataError: no path with weight, or unequal lengths.
    """
    losses_P, weights_P = _sample(losses, weights)
    marked = loss_marks(losses_P, weights_P) if marks is None else marks
    figure = blank(*WIDE)
    axes = figure.subplots()
    low, high = float(losses_P.min()), float(losses_P.max())
    if high - low < 1e-9:
        low, high = low - 0.005, high + 0.005
    shares, edges = np.histogram(
        losses_P, bins=N_BINS, range=(low, high), weights=weights_P / weights_P.sum()
    )
    axes.stairs(shares, edges, fill=True, color=PALETTE["sky"], linewidth=0)
    looks = {
        "expected_loss": (INK, "-"),
        "var_99": (PALETTE["blue"], (0, (5, 2))),
        "cvar_99": (PALETTE["red"], (0, (2, 1.5))),
    }
    for measure, value in marked.items():
        if measure in looks and not formats.is_missing(value):
            colour, dashes = looks[measure]
            label = f"{formats.measure_title(measure)}  {formats.percent(value)}"
            axes.axvline(value, color=colour, linestyle=dashes, linewidth=1.4, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right")
    percent_axis(axes, "x")
    percent_axis(axes, "y")
    label_axes(axes, "loss, % of original pool balance", "share of paths, %", title)
    return figure


@inked
def loss_exceedance(frame: pl.DataFrame, *, title: str | None = None) -> Figure:
    """Probability that the pool loss exceeds a level, one line per scenario, logarithmic.

    Args:
        frame: scenario, loss and (optionally) weight, one row per path.

    Raises:
        DataError: a scenario without a path of positive weight.
    """
    figure = blank(*WIDE)
    axes = figure.subplots()
    smallest = 1.0
    for index, scenario in enumerate(scenarios_in({"": frame})):
        rows = frame.filter(pl.col("scenario") == scenario)
        weights = rows["weight"].to_numpy() if "weight" in rows.columns else None
        losses_P, weights_P = _sample(rows["loss"].to_numpy(), weights)
        level, beyond = _exceedance(losses_P, weights_P)
        smallest = min(smallest, 1.0 / losses_P.size)
        axes.plot(level, beyond, **line_look(index), label=short_name(formats.humanize(scenario)))
    axes.set_yscale("log")
    axes.set_ylim(min(max(smallest, 1e-5), 0.1), 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g}"))
    axes.minorticks_off()
    percent_axis(axes, "x")
    legend_below(figure, axes)
    label_axes(axes, "loss, % of original pool balance", "paths that lose more, %", title)
    return figure


def _exceedance(losses_P: np.ndarray, weights_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(losses_P, kind="stable")
    level = losses_P[order]
    beyond = 1.0 - np.cumsum(weights_P[order]) / weights_P.sum()
    if level.size > N_CURVE_POINTS:
        # even steps in log probability: the tail keeps its points
        wanted = np.geomspace(1.0, 1.0 / level.size, N_CURVE_POINTS)
        places = np.unique(np.clip(np.searchsorted(-beyond, -wanted), 0, level.size - 1))
        level, beyond = level[places], beyond[places]
    return level, np.maximum(beyond, 1e-12)


@inked
def measures_by_scenario(
    pool_report: pl.DataFrame,
    measures: Sequence[str] = ("expected_loss", "var_99", "cvar_99"),
    *,
    title: str | None = None,
) -> Figure:
    """Pool measures as dots with their 95 % intervals, one row per scenario.

    Args:
        pool_report: table `pool_report`.
    """
    scenarios = scenarios_in({"": pool_report})
    figure = blank(WIDE[0], 1.1 + 0.42 * max(len(scenarios), 1))
    axes = figure.subplots()
    for index, measure in enumerate(measures):
        rows = pool_report.filter((pl.col("measure") == measure) & pl.col("value").is_finite())
        if rows.is_empty():
            continue
        place = np.array([scenarios.index(name) for name in rows["scenario"]]) + 0.2 * (index - 1)
        value = rows["value"].to_numpy()
        # an end without a figure draws no whisker
        lower = np.nan_to_num(value - rows["lower"].fill_null(float("nan")).to_numpy())
        upper = np.nan_to_num(rows["upper"].fill_null(float("nan")).to_numpy() - value)
        axes.errorbar(
            value,
            place,
            xerr=np.maximum([lower, upper], 0.0),
            fmt=("o", "s", "D")[index % 3],
            markersize=4.5,
            linewidth=1.2,
            capsize=2.5,
            color=(INK, PALETTE["blue"], PALETTE["red"])[index % 3],
            label=formats.measure_title(measure),
        )
    axes.set_yticks(range(len(scenarios)), [short_name(formats.humanize(name)) for name in scenarios])
    axes.set_ylim(max(len(scenarios), 1) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", colors=INK)
    percent_axis(axes, "x")
    legend_below(figure, axes)
    label_axes(axes, "% of original pool balance, with 95% interval", "", title)
    return figure


# --- months ---------------------------------------------------------------------------------------


def cut_last_month(axes: Axes, tops: np.ndarray, unit: str) -> None:
    """Where the last month dwarfs all others (balances sold at the horizon), end the axis above the others.

    The figure of the last month is then written beside it.

    Args:
        tops: (T,) highest value of each month, in the axis's unit.
    """
    axes.set_ylim(bottom=0)
    if tops.size < 4 or not tops[-1] > LAST_MONTH_DWARFS * (others := float(np.nanmax(tops[:-1]))):
        return
    axes.set_ylim(0, max(others, 1e-9) * 1.15)
    text = f"last month {formats.number(round(float(tops[-1]), 1))}{' ' if unit else ''}{unit}"
    axes.annotate(
        text,
        (1.0, 1.0),
        (-4, -3),
        "axes fraction",
        "offset points",
        ha="right",
        va="top",
        color=MUTED,
        fontsize=7,
    )


@inked
def cash_stack(
    cash_flow_report: pl.DataFrame, scenario: str, *, currency: str = CURRENCY, title: str | None = None
) -> Figure:
    """Mean cash received each month, channels stacked; charged-off balance (no cash) as a line.

    Args:
        cash_flow_report: table `cash_flow_report`.
    """
    rows = cash_flow_report.filter(pl.col("scenario") == scenario)
    figure = blank(*WIDE)
    axes = figure.subplots()
    months = rows["month_index"].unique().sort()
    scale, word = formats.money_scale(float(_top(rows, "mean")))
    stacked, labels, colours = [], [], []
    for channel in CASH_IN:
        mean = _by_month(rows.filter(pl.col("channel") == channel), months, "mean")
        if mean is not None:
            stacked.append(mean / scale)
            labels.append(formats.channel_title(channel))
            colours.append(CHANNEL_COLOURS[channel])
    if stacked:
        axes.stackplot(months.to_numpy(), stacked, labels=labels, colors=colours, linewidth=0, alpha=0.85)
    defaulted = _by_month(rows.filter(pl.col("channel") == "defaulted_balance"), months, "mean")
    if defaulted is not None:
        axes.plot(
            months.to_numpy(),
            defaulted / scale,
            color=CHANNEL_COLOURS["defaulted_balance"],
            linestyle=(0, (5, 2)),
            label="Defaulted balance (no cash)",
        )
    axes.margins(x=0)
    if stacked:
        cut_last_month(axes, np.sum(stacked, axis=0), word)
    legend_below(figure, axes)
    label_axes(axes, MONTHS, money_label(currency, word), title)
    month_axis(axes)
    return figure


@inked
def cash_channel(
    cash_flow_report: pl.DataFrame,
    scenario: str,
    channel: str,
    *,
    currency: str = CURRENCY,
    title: str | None = None,
) -> Figure:
    """One cash channel by month: mean and the band from the 5th to the 95th percentile of paths."""
    figure = blank(*PANEL)
    axes = figure.subplots()
    _draw_channel(axes, cash_flow_report, scenario, channel, currency)
    label_axes(axes, MONTHS, axes.get_ylabel(), title)
    return figure


@inked
def cash_flow_bands(cash_flow_report: pl.DataFrame, scenario: str, *, currency: str = CURRENCY) -> Figure:
    """All cash channels of a scenario, one panel each: mean and 5-95 % band."""
    present = _present(cash_flow_report.filter(pl.col("scenario") == scenario), "channel", CASH_CHANNELS)

    def panel(axes: Axes, channel: str) -> None:
        _draw_channel(axes, cash_flow_report, scenario, channel, currency)
        axes.set_title(short_name(formats.channel_title(channel)))

    return _grid(present, panel, n_columns=3)


def _draw_channel(axes: Axes, frame: pl.DataFrame, scenario: str, channel: str, currency: str) -> None:
    rows = frame.filter((pl.col("scenario") == scenario) & (pl.col("channel") == channel)).sort("month_index")
    scale, word = formats.money_scale(float(max(_top(rows, "p95"), _top(rows, "mean"))))
    months = rows["month_index"].to_numpy()
    colour = CHANNEL_COLOURS.get(channel, MUTED)
    p05, p95 = (_floats(rows, end) / scale for end in ("p05", "p95"))
    axes.fill_between(months, p05, p95, color=colour, alpha=0.25, linewidth=0)
    mean = _floats(rows, "mean") / scale
    axes.plot(months, mean, color=colour)
    axes.margins(x=0)
    cut_last_month(axes, np.fmax(p95, mean), word)
    axes.set_ylabel(money_label(currency, word))
    month_axis(axes)


@inked
def tranche_balances(
    tranche_balance_report: pl.DataFrame,
    scenario: str,
    *,
    currency: str = CURRENCY,
    title: str | None = None,
) -> Figure:
    """Balance of each tranche by month: mean and the band from the 5th to the 95th percentile."""
    rows = tranche_balance_report.filter(pl.col("scenario") == scenario).sort("month_index")
    figure = blank(*WIDE)
    axes = figure.subplots()
    scale, word = formats.money_scale(float(_top(rows, "mean")))
    for index, tranche in enumerate(rows["tranche"].unique(maintain_order=True).to_list()):
        part = rows.filter(pl.col("tranche") == tranche)
        months = part["month_index"].to_numpy()
        p05, p95 = (_floats(part, end) / scale for end in ("p05", "p95"))
        look = line_look(index)
        axes.fill_between(months, p05, p95, color=look["color"], alpha=0.2, linewidth=0)
        axes.plot(months, _floats(part, "mean") / scale, **look, label=short_name(tranche))
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    legend_below(figure, axes)
    label_axes(axes, MONTHS, money_label(currency, word), title)
    month_axis(axes)
    return figure


@inked
def macro_series(
    macro_fan_report: pl.DataFrame,
    scenario: str,
    series: str,
    *,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Fan of one macro series: median, 25-75 % and 5-95 % bands.

    Args:
        macro_fan_report: table `macro_fan_report`.
        limits: ends of the vertical axis in the series' own unit, so that scenarios can be compared.
    """
    figure = blank(*PANEL)
    axes = figure.subplots()
    _draw_fan(axes, macro_fan_report, scenario, series, limits)
    label_axes(axes, MONTHS, axes.get_ylabel(), title)
    return figure


@inked
def macro_fan(macro_fan_report: pl.DataFrame, scenario: str) -> Figure:
    """Fans of all macro series of a scenario, one panel each."""
    rows = macro_fan_report.filter(pl.col("scenario") == scenario)

    def panel(axes: Axes, series: str) -> None:
        _draw_fan(axes, macro_fan_report, scenario, series, None)
        axes.set_title(short_name(formats.series_title(series)))

    return _grid(_present(rows, "series", MACRO_NAMES), panel, n_columns=3)


def fan_limits(macro_fan_report: pl.DataFrame, series: str) -> tuple[float, float] | None:
    """Ends of a vertical axis that holds the 5-95 % bands of all scenarios; None without figures."""
    rows = macro_fan_report.filter(pl.col("series") == series)
    low, high = rows["p05"].fill_nan(None).min(), rows["p95"].fill_nan(None).max()
    if not isinstance(low, float) or not isinstance(high, float):
        return None
    margin = 0.06 * (high - low) or 0.01 * max(abs(high), 1e-3)
    return low - margin, high + margin


def _draw_fan(
    axes: Axes, frame: pl.DataFrame, scenario: str, series: str, limits: tuple[float, float] | None
) -> None:
    rows = frame.filter((pl.col("scenario") == scenario) & (pl.col("series") == series)).sort("month_index")
    months = rows["month_index"].to_numpy()
    is_percent = formats.series_unit(series) == "percent"
    scale = 0.01 if is_percent else 1.0
    p05, p25, p50, p75, p95 = (_floats(rows, name) / scale for name in ("p05", "p25", "p50", "p75", "p95"))
    axes.fill_between(months, p05, p95, color=PALETTE["blue"], alpha=0.18, linewidth=0)
    axes.fill_between(months, p25, p75, color=PALETTE["blue"], alpha=0.32, linewidth=0)
    axes.plot(months, p50, color=PALETTE["blue"])
    if limits is not None:
        axes.set_ylim(limits[0] / scale, limits[1] / scale)
    axes.margins(x=0)
    axes.set_ylabel({"percent": "%", "bps": "bps"}.get(formats.series_unit(series), "index"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    month_axis(axes)


# --- shared -----


def _grid(names: Sequence[str], draw: Callable[[Axes, str], None], n_columns: int) -> Figure:
    n_rows = max(1, -(-len(names) // n_columns))
    figure = blank(3.2 * n_columns, 2.1 * n_rows)
    cells = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, name in zip(cells, names, strict=False):
        draw(axes, name)
    for axes in cells[len(names) :]:
        axes.set_visible(False)
    if names:
        figure.supxlabel(MONTHS, fontsize=8, color=MUTED)
    return figure


def _present(rows: pl.DataFrame, column: str, order: Sequence[str]) -> list[str]:
    found = rows[column].unique(maintain_order=True).to_list()
    return [name for name in order if name in found] + [name for name in found if name not in order]


def _floats(rows: pl.DataFrame, column: str) -> np.ndarray:
    return rows[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _top(rows: pl.DataFrame, column: str) -> float:
    top = rows[column].fill_nan(None).abs().max()
    return float(top) if isinstance(top, (int, float)) else 0.0


def _by_month(rows: pl.DataFrame, months: pl.Series, column: str) -> np.ndarray | None:
    """(T,) values aligned to `months`, zero where a month is absent; None without rows."""
    if rows.is_empty():
        return None
    aligned = months.to_frame().join(rows.select("month_index", column), on="month_index", how="left")
    return aligned.sort("month_index")[column].fill_null(0.0).fill_nan(0.0).to_numpy()
