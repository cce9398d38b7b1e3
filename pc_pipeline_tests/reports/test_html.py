"""The page: complete, self-contained, safe, the same bytes twice."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure

from pc_pipeline.core.errors import SchemaError
from pc_pipeline.reports import model_plots
from pc_pipeline.reports.html import render_html, write_html

from .samples import NOTES, report_frames

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects tags and text, and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(report_frames(("adverse",)), NOTES, title="Test deal")


def light_frames() -> dict[str, pl.DataFrame]:
    """One scenario with few figures, for tests of text."""
    frames = report_frames(("baseline",))
    return {name: frames[name] for name in ("pool_report", "tranche_report", "data_quality", "quarantine")}


def test_two_writes_give_the_same_bytes(page: str, tmp_path: Path) -> None:
    path = write_html(
        tmp_path / "deep" / "a.html", report_frames(("adverse",)), dict(NOTES), title="Test deal"
    )
    assert path.read_bytes() == page.encode()
    assert [found.name for found in path.parent.iterdir()] == ["a.html"]


def test_every_section_is_there(page: str) -> None:
    reader = read(page)
    text = " ".join(reader.text)
    for words in (
        "Test deal",
        "Scenarios compared",
        "Tranches",
        "Mean cash by month and channel",
        "Cash by channel",
        "Macro paths",
        "Quarantine by reason",
        "422,732 rows accepted, 12 quarantined",
        "Conventions used",
        "Model scores",
        "What the figures mean",
        "Next steps",
        "make run TAPE=path/to/tape.csv",
        "USD, million",
    ):
        assert words in text, words
    # two comparisons; losses, stack, balances, five channels, nine macro series
    assert sum(tag == "svg" for tag, _ in reader.tags) == 2 + 3 + 5 + 9


def test_the_page_asks_for_nothing(page: str) -> None:
    reader = read(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "iframe", "object", "embed", "img", "base", "form"}
    addresses = [
        attrs[name]
        for _, attrs in reader.tags
        for name in ("src", "href", "xlink:href", "action")
        if name in attrs
    ]
    assert addresses
    assert all(address.startswith("#") or address == "data:," for address in addresses)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert {"http-equiv": "Content-Security-Policy"}.items() <= next(
        attrs for tag, attrs in reader.tags if tag == "meta" and "http-equiv" in attrs
    ).items()


def test_ids_are_unique_and_links_arrive(page: str) -> None:
    reader = read(page)
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for tag, attrs in reader.tags if tag == "a"}
    assert links <= set(ids)


def test_colours_of_figures_turn_with_the_page(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", " ".join(figures)))
    assert colours <= {"#ffffff"}
    defined = set(re.findall(r"(--[a-z]+):", page))
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= defined


def test_headline_figures_are_those_of_the_frames() -> None:
    frames = light_frames()
    frames["pool_report"] = pl.DataFrame(
        {
            "scenario": ["baseline"] * 3,
            "measure": ["expected_loss", "var_99", "cvar_99"],
            "value": [0.0123, 0.0456, 0.0789],
            "lower": [0.0111, 0.0444, None],
            "upper": [0.0133, 0.0466, None],
        }
    )
    text = " ".join(read(render_html(frames, {})).text)
    assert "The pool loses 1.23% of its original balance on average (95% interval 1.11% to 1.33%)" in text
    assert "one path in a hundred loses 4.56% or more, and those lose 7.89% on average" in text
    assert "Senior 0.00%, Mezzanine 0.00%, Junior 1.75%, Equity 100.00%" in text


def test_hostile_text_stays_text() -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}"
    frames = report_frames(("baseline",))
    frames = {
        name: frames[name]
        for name in ("pool_report", "tranche_report", "tranche_balance_report", "quarantine")
    }
    frames["pool_report"] = frames["pool_report"].with_columns(scenario=pl.lit(evil))
    frames["tranche_report"] = frames["tranche_report"].with_columns(
        tranche=pl.lit(evil), scenario=pl.lit(evil)
    )
    frames["tranche_balance_report"] = frames["tranche_balance_report"].with_columns(
        scenario=pl.lit(evil), tranche=pl.lit(evil)
    )
    frames["quarantine"] = frames["quarantine"].with_columns(reason=pl.lit(evil), column=pl.lit("日本語 🏦"))
    frames[f"model {evil}"] = pl.DataFrame({evil: [evil]})
    page = render_html(frames, [(evil, evil), (f"convention: {evil}", evil)], title=evil)
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert "{{ 7*7 }}" in page
    assert "日本語 🏦" in page


def test_nothing_at_all_still_makes_a_page() -> None:
    for frames in (
        {},
        {name: frame.clear() for name, frame in report_frames().items()},
        {"pool_report": pl.DataFrame()},
    ):
        text = " ".join(read(render_html(frames, {})).text)
        assert "No results were handed to this report." in text
        assert "What the figures mean" in text


def test_an_analysis_shows_its_figures_and_no_empty_sections() -> None:
    figure = Figure()
    figure.add_subplot().plot([0.0, 1.0])
    text = " ".join(read(render_html({}, {}, figures=[("Sensitivity", figure)])).text)
    assert "Sensitivity" in text
    assert "handed to this report" not in text


def test_missing_figures_are_dashes_and_further_columns_are_shown() -> None:
    frames = light_frames()
    frames["tranche_report"] = frames["tranche_report"].with_columns(
        irr=pl.lit(None), irr_p05=pl.lit(None), irr_p95=pl.lit(None), implied_rating=pl.lit("BBB")
    )
    reader = read(render_html(frames, {}))
    text = [piece.strip() for piece in reader.text]
    assert "Implied rating" in text
    assert text.count("BBB") == 4
    assert not any(word in text for word in ("None", "nan", "NaN", "null"))


def test_one_custom_scenario_and_pandas_frames() -> None:
    frames = {
        name: pd.DataFrame(frame.with_columns(scenario=pl.lit("rates_up_300")).to_dict(as_series=False))
        for name, frame in light_frames().items()
        if "scenario" in frame.columns
    }
    text = " ".join(read(render_html(frames, {})).text)
    assert "Rates up 300" in text
    assert "Baseline" not in text


def test_scenarios_without_all_tables_leave_gaps() -> None:
    frames = report_frames(("baseline", "adverse"))
    shown = {"pool_report": frames["pool_report"], "tranche_report": frames["tranche_report"].head(4)}
    text = " ".join(read(render_html(shown, {})).text)
    assert "Adverse" in text
    assert "–" in text


def test_figures_of_models_are_taken_in() -> None:
    figure = model_plots.training_curves({"train": [2.0, 1.0]})
    page = render_html({}, {}, figures=[("Training <curves>", figure)])
    assert "Training &lt;curves&gt;" in page
    assert figure.axes == []


def test_long_unknown_tables_are_cut() -> None:
    text = " ".join(read(render_html({"sectors": pl.DataFrame({"n": range(500)})}, {})).text)
    assert "The first 200 of 500 rows." in text


def test_a_frame_that_breaks_its_contract_is_named() -> None:
    with pytest.raises(SchemaError, match="cash_flow_report"):
        render_html({"cash_flow_report": pl.DataFrame({"scenario": ["a"]})}, {})


def test_a_page_of_an_analysis_has_findings_figures_and_tables_alone(tmp_path: Path) -> None:
    table = pl.DataFrame({"class": ["Senior"], "value": [0.25]})
    text = write_html(
        tmp_path / "a.html", {"by class": table}, [], title="A", findings=[("Senior", "Loses <nothing>.")]
    ).read_text()
    assert "Loses &lt;nothing&gt;." in text
    assert "No results were handed" not in text
    assert "Data quality" not in text
    assert text.index("Findings") < text.index("Tables") < text.index("Senior</th>")
