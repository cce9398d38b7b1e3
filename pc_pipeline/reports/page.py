"""The page's content: frames and notes turned into the texts, rows and figures a template shows.
Not here: markup and colours (`templates/`), drawing (`plots`), writing the file (`html`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from pc_pipeline.reports import formats, plots
from pc_pipeline.reports.ink import to_inline_svg
from pc_pipeline.reports.inputs import (
    DATA_QUALITY,
    LOSS_DISTRIBUTION,
    grouped_notes,
    of_scenario,
    quarantine_counts,
    scenarios_in,
)
from pc_pipeline.reports.tables import HEADLINE_MEASURES, data_quality_line
from pc_pipeline.schemas.tables import columns
from pc_pipeline.schemas.units import CASH_CHANNELS, MACRO_NAMES

MAX_ROWS: Final = 200  # of a frame that the page shows as it is
MAX_REASONS: Final = 25
FULL_FROM: Final = 6.0  # inches
SHOWN_TABLES: Final = (
    "pool_report",
    "tranche_report",
    "cash_flow_report",
    "tranche_balance_report",
    "macro_fan_report",
    "quarantine",
    LOSS_DISTRIBUTION,
    DATA_QUALITY,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One table cell: the figure, and a second line under it."""

    text: str
    below: str = ""
    is_number: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table: headings, and rows of cells; a row of one cell is a group's heading."""

    headings: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An inline figure with its caption; size is 'full', 'wide' or 'panel'."""

    svg: Markup
    caption: str
    size: str = "wide"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioPart:
    """All that is shown of one scenario."""

    anchor: str
    title: str
    pool: Grid | None
    tranches: Grid | None
    pictures: tuple[Picture, ...]
    channels: tuple[Picture, ...]
    macro: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Everything the template needs, already written out."""

    title: str
    findings: tuple[tuple[str, str], ...]  # scenario, sentences
    headline: Grid | None
    comparisons: tuple[Picture, ...]
    scenarios: tuple[ScenarioPart, ...]
    quality_line: str
    quality: Grid | None
    reasons: Grid | None
    scores: tuple[Grid, ...]
    model_pictures: tuple[Picture, ...]
    further: tuple[Grid, ...]
    is_analysis: bool = False  # findings, figures and tables alone
    notes: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)


def build_page(
    frames: Mapping[str, pl.DataFrame],
    notes: Any,
    *,
    title: str,
    figures: Sequence[tuple[str, Figure]] = (),
    findings: Sequence[tuple[str, str]] = (),
) -> Page:
    """The content of the page from known frames (see `inputs.as_polars`), notes and further figures.

    Given `findings` take the place of those that the measures of a run give.
    """
    scenarios = scenarios_in({name: frames[name] for name in SHOWN_TABLES if name in frames})
    others = {name: frame for name, frame in frames.items() if name not in SHOWN_TABLES}
    quarantine = frames.get("quarantine")
    groups = grouped_notes(notes)
    currency = next((text for label, text in groups["run"] if label.lower() == "currency"), plots.CURRENCY)
    return Page(
        title=formats.plain(title),
        is_analysis=bool(findings),
        findings=tuple(findings) or tuple(_findings(frames, scenarios)),
        headline=headline_grid(frames, scenarios),
        comparisons=tuple(_comparisons(frames)),
        scenarios=tuple(
            _scenario_part(frames, name, f"scenario-{place}", currency)
            for place, name in enumerate(scenarios, 1)
        ),
        quality_line=data_quality_line(frames),
        quality=plain_grid(DATA_QUALITY, frames[DATA_QUALITY], "By table")
        if DATA_QUALITY in frames
        else None,
        reasons=_reasons(quarantine) if quarantine is not None and quarantine.height else None,
        scores=tuple(plain_grid(name, frame) for name, frame in others.items() if name.startswith("model")),
        model_pictures=tuple(
            _picture(figure, f"model-{place}", caption, _size_of(figure))
            for place, (caption, figure) in enumerate(figures, start=1)
        ),
        further=tuple(
            plain_grid(name, frame) for name, frame in others.items() if not name.startswith("model")
        ),
        notes=groups,
    )


# --- headline -------------------------------------------------------------------------------------


def _measures(frames: Mapping[str, pl.DataFrame], scenario: str) -> dict[str, dict[str, Any]]:
    rows = of_scenario(frames, "pool_report", scenario)
    return {str(row["measure"]): row for row in rows.iter_rows(named=True)} if rows.height else {}


def _findings(frames: Mapping[str, pl.DataFrame], scenarios: Sequence[str]) -> Iterable[tuple[str, str]]:
    """What an investment committee wants first, in words: the first scenario, then the hardest one."""
    expected: dict[str, float] = {}
    for name in scenarios:
        value = _measures(frames, name).get("expected_loss", {}).get("value")
        if value is not None and not formats.is_missing(value):
            expected[name] = value
    if not expected:
        return
    hardest = max(expected, key=expected.__getitem__)
    for name in dict.fromkeys((next(iter(expected)), hardest)):
        tranches = _tranche_sentence(of_scenario(frames, "tranche_report", name))
        yield formats.humanize(name), " ".join([_loss_sentence(_measures(frames, name)), *tranches])


def _loss_sentence(measures: Mapping[str, Mapping[str, Any]]) -> str:
    loss = measures["expected_loss"]
    text = f"The pool loses {formats.percent(loss['value'])} of its original balance on average"
    interval = formats.percent_interval(loss["lower"], loss["upper"])
    text += f" (95% interval {interval})" if interval else ""
    var, cvar = (measures.get(name, {}).get("value") for name in ("var_99", "cvar_99"))
    if not formats.is_missing(var):
        text += f"; one path in a hundred loses {formats.percent(var)} or more"
        text += "" if formats.is_missing(cvar) else f", and those lose {formats.percent(cvar)} on average"
    return text + "."


def _tranche_sentence(tranches: pl.DataFrame) -> list[str]:
    if tranches.is_empty():
        return []
    parts = [
        f"{formats.plain(row['tranche'], 40)} {formats.percent(row['loss_probability'])}"
        for row in tranches.iter_rows(named=True)
    ]
    return [f"Share of paths in which a tranche loses principal: {', '.join(parts)}."]


def headline_grid(frames: Mapping[str, pl.DataFrame], scenarios: Sequence[str]) -> Grid | None:
    """All scenarios side by side: pool measures, then expected loss, P(loss) and IRR of each tranche."""
    rows: list[tuple[Cell, ...]] = []
    measures = {name: _measures(frames, name) for name in scenarios}
    for measure in HEADLINE_MEASURES:
        if any(measure in found for found in measures.values()):
            cells = (_measure_cell(measures[name].get(measure)) for name in scenarios)
            rows.append((_text(formats.measure_title(measure)), *cells))
    if rows:
        rows.insert(0, (_text("Pool, share of original balance"),))
    rows += _tranche_rows(frames.get("tranche_report"), scenarios)
    if not rows:
        return None
    headings = (_text(""), *(Cell(text=formats.humanize(name)) for name in scenarios))
    return Grid(headings=headings, rows=tuple(rows))


def _tranche_rows(report: pl.DataFrame | None, scenarios: Sequence[str]) -> Iterable[tuple[Cell, ...]]:
    if report is None or report.is_empty():
        return
    found = {(row["scenario"], row["tranche"]): row for row in report.iter_rows(named=True)}
    for tranche in report["tranche"].unique(maintain_order=True).to_list():
        yield (_text(formats.plain(tranche, 60)),)
        rows = [found.get((name, tranche)) for name in scenarios]
        yield (_text("Expected loss"), *(_with_interval(row, "expected_loss") for row in rows))
        yield (_text("Loss probability"), *(_with_interval(row, "loss_probability") for row in rows))
        yield (_text("IRR"), *(Cell(text=formats.percent(row["irr"] if row else None)) for row in rows))


def _measure_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(text=formats.MISSING)
    interval = formats.percent_interval(row["lower"], row["upper"])
    return Cell(text=formats.percent(row["value"]), below=interval)


def _with_interval(row: Mapping[str, Any] | None, name: str) -> Cell:
    if row is None:
        return Cell(text=formats.MISSING)
    interval = formats.percent_interval(row[f"{name}_lower"], row[f"{name}_upper"])
    return Cell(text=formats.percent(row[name]), below=interval)


def _text(text: str) -> Cell:
    return Cell(text=text, is_number=False)


# --- scenarios ------------------------------------------------------------------------------------


def _scenario_part(
    frames: Mapping[str, pl.DataFrame], scenario: str, anchor: str, currency: str
) -> ScenarioPart:
    tranches = of_scenario(frames, "tranche_report", scenario)
    measures = _measures(frames, scenario)
    return ScenarioPart(
        anchor=anchor,
        title=formats.humanize(scenario),
        pool=_pool_grid(measures) if measures else None,
        tranches=tranche_grid(tranches) if tranches.height else None,
        pictures=tuple(_scenario_pictures(frames, scenario, anchor, currency)),
        channels=tuple(_channel_pictures(frames, scenario, anchor, currency)),
        macro=tuple(_macro_pictures(frames.get("macro_fan_report"), scenario, anchor)),
    )


def _pool_grid(measures: Mapping[str, Mapping[str, Any]]) -> Grid:
    order = [*formats.MEASURE_TITLES, *(name for name in measures if name not in formats.MEASURE_TITLES)]
    found = [name for name in order if name in measures]
    rows = tuple(
        (
            _text(formats.measure_title(name)),
            Cell(text=formats.percent(measures[name]["value"])),
            Cell(
                text=formats.percent_interval(measures[name]["lower"], measures[name]["upper"])
                or formats.MISSING
            ),
        )
        for name in found
    )
    headings = (_text("Pool loss"), Cell(text="Share of pool"), Cell(text="95% interval"))
    return Grid(headings=headings, rows=rows)


def tranche_grid(tranches: pl.DataFrame) -> Grid:
    """The tranches of one scenario; columns beyond the schema's are appended."""
    extra = [name for name in tranches.columns if name not in columns("tranche_report")]
    titles = (
        "Size",
        "Share",
        "Coupon",
        "Expected loss",
        "Loss probability",
        "IRR",
        "WAL",
        "OC fails",
        "IC fails",
    )
    headings = (_text("Tranche"), *(Cell(text=text) for text in (*titles, *map(formats.humanize, extra))))
    rows = [
        (
            _text(formats.plain(row["tranche"], 60)),
            Cell(text=formats.money(row["original_balance"])),
            Cell(text=formats.percent(row["share"], 1)),
            Cell(text=formats.percent(row["coupon"])),
            _with_interval(row, "expected_loss"),
            _with_interval(row, "loss_probability"),
            _irr_cell(row),
            Cell(text=formats.years(row["wal_years"])),
            Cell(text=formats.percent(row["oc_failure_probability"], 1)),
            Cell(text=formats.percent(row["ic_failure_probability"], 1)),
            *(_any_cell("tranche_report", name, row[name]) for name in extra),
        )
        for row in tranches.iter_rows(named=True)
    ]
    return Grid(headings=headings, rows=tuple(rows))


def _irr_cell(row: Mapping[str, Any]) -> Cell:
    interval = formats.percent_interval(row["irr_p05"], row["irr_p95"])
    return Cell(text=formats.percent(row["irr"]), below=f"5–95%: {interval}" if interval else "")


# --- figures --------------------------------------------------------------------------------------


def _size_of(figure: Figure) -> str:
    """Figures of several panels take the whole width."""
    return "full" if figure.get_size_inches()[0] > FULL_FROM else "wide"


def _picture(figure: Figure, key: str, caption: str, size: str = "wide") -> Picture:
    caption = formats.plain(caption)
    return Picture(svg=Markup(to_inline_svg(figure, key, caption)), caption=caption, size=size)


def _comparisons(frames: Mapping[str, pl.DataFrame]) -> Iterable[Picture]:
    pool, losses = frames.get("pool_report"), frames.get(LOSS_DISTRIBUTION)
    if pool is not None and pool.height:
        yield _picture(
            plots.measures_by_scenario(pool), "measures", "Pool loss by scenario, with 95% intervals"
        )
    if losses is not None and losses.height:
        caption = "How often the pool loses more than a given share (logarithmic scale)"
        yield _picture(plots.loss_exceedance(losses), "exceedance", caption)


def _scenario_pictures(
    frames: Mapping[str, pl.DataFrame], scenario: str, anchor: str, currency: str
) -> Iterable[Picture]:
    measures = _measures(frames, scenario)
    losses = of_scenario(frames, LOSS_DISTRIBUTION, scenario)
    if losses.height:
        marks: dict[str, float] = {
            name: measures[name]["value"] for name in HEADLINE_MEASURES if name in measures
        }
        weights = losses["weight"] if "weight" in losses.columns else None
        figure = plots.loss_distribution(losses["loss"], weights, marks=marks or None)
        yield _picture(figure, f"{anchor}-loss", "Distribution of pool losses over simulated paths")
    cash = of_scenario(frames, "cash_flow_report", scenario)
    if cash.height:
        yield _picture(
            plots.cash_stack(cash, scenario, currency=currency),
            f"{anchor}-cash",
            "Mean cash by month and channel",
        )
    balances = of_scenario(frames, "tranche_balance_report", scenario)
    if balances.height:
        caption = "Tranche balances: mean, and the band that holds 90% of paths"
        yield _picture(
            plots.tranche_balances(balances, scenario, currency=currency), f"{anchor}-balances", caption
        )


def _channel_pictures(
    frames: Mapping[str, pl.DataFrame], scenario: str, anchor: str, currency: str
) -> Iterable[Picture]:
    cash = of_scenario(frames, "cash_flow_report", scenario)
    if cash.is_empty():
        return
    for place, channel in enumerate(_ordered(cash["channel"], CASH_CHANNELS)):
        figure = plots.cash_channel(cash, scenario, channel, currency=currency)
        yield _picture(figure, f"{anchor}-channel-{place}", formats.channel_title(channel), "panel")


def _macro_pictures(fans: pl.DataFrame | None, scenario: str, anchor: str) -> Iterable[Picture]:
    if fans is None:
        return
    rows = fans.filter(pl.col("scenario") == scenario)
    for place, series in enumerate(_ordered(rows["series"], MACRO_NAMES)):
        figure = plots.macro_series(fans, scenario, series, limits=plots.fan_limits(fans, series))
        yield _picture(figure, f"{anchor}-macro-{place}", formats.series_title(series), "panel")


def _ordered(names: pl.Series, order: Sequence[str]) -> list[str]:
    found = names.drop_nulls().unique(maintain_order=True).to_list()
    return [name for name in order if name in found] + [name for name in found if name not in order]


# --- other tables ---------------------------------------------------------------------------------


def plain_grid(name: str, frame: pl.DataFrame, title: str | None = None) -> Grid:
    """Any frame as it is, the first rows of it."""
    is_number = [dtype.is_numeric() for dtype in frame.dtypes]
    headings = tuple(
        Cell(text=formats.humanize(column), is_number=number)
        for column, number in zip(frame.columns, is_number, strict=True)
    )
    rows = tuple(
        tuple(_any_cell(name, column, value) for column, value in row.items())
        for row in frame.head(MAX_ROWS).iter_rows(named=True)
    )
    remark = f"The first {MAX_ROWS} of {frame.height:,} rows." if frame.height > MAX_ROWS else ""
    return Grid(headings=headings, rows=rows, title=title or formats.humanize(name), remark=remark)


def _any_cell(table: str, column: str, value: Any) -> Cell:
    if value is None:
        return _text(formats.MISSING)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _text(formats.plain(value, 400))
    if isinstance(value, int):
        return Cell(text=formats.number(value))
    write = {"percent": formats.percent, "money": formats.money, "years": formats.years}
    return Cell(text=write.get(formats.column_unit(table, column), formats.number)(value))


def _reasons(quarantine: pl.DataFrame) -> Grid:
    counts = quarantine_counts(quarantine)
    headings = (_text("Table"), _text("Column"), _text("Expected"), Cell(text="Rows"), Cell(text="Files"))
    rows = tuple(
        (
            _text(formats.plain(row["table"], 80)),
            _text(formats.plain(row["column"], 80)),
            _text(formats.plain(row["reason"], 200)),
            Cell(text=f"{row['n_rows']:,}"),
            Cell(text=f"{row['n_files']:,}"),
        )
        for row in counts.head(MAX_REASONS).iter_rows(named=True)
    )
    remark = (
        f"The {MAX_REASONS} most frequent of {counts.height:,} reasons."
        if counts.height > MAX_REASONS
        else ""
    )
    return Grid(headings=headings, rows=rows, title="Quarantine by reason", remark=remark)
