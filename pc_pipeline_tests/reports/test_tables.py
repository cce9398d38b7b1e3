"""What the console shows."""

from __future__ import annotations

import io

import pandas as pd
import polars as pl
import pytest
from rich.console import Console

from pc_pipeline.core.errors import DataError, SchemaError
from pc_pipeline.reports.inputs import quality_line
from pc_pipeline.reports.tables import print_report

from .samples import pool_report, report_frames, tranche_report


def shown(frames, width: int = 80, **options) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=width, color_system=None), frames, **options)
    return out.getvalue()


def line_with(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(start)).split()


def test_a_hand_made_row_reads_as_it_should() -> None:
    pool = pl.DataFrame(
        {
            "scenario": ["baseline"],
            "measure": ["var_99"],
            "value": [0.0558],
            "lower": [0.046],
            "upper": [0.0656],
        }
    )
    tranche = tranche_report(("baseline",)).head(1).with_columns(expected_loss=0.00123, irr=0.051)
    text = shown({"pool_report": pool, "tranche_report": tranche})
    assert line_with(text, "VaR 99") == ["VaR", "99", "5.58%", "4.60%", "to", "6.56%"]
    assert line_with(text, "Senior") == [
        "Senior",
        "350.0",
        "5.00%",
        "0.12%",
        "0.00%",
        "5.10%",
        "2.31",
        "0.0%",
        "0.0%",
    ]


def test_every_scenario_in_standard_order_within_80_characters() -> None:
    frames = report_frames()
    frames["pool_report"] = frames["pool_report"].reverse()
    text = shown(frames)
    places = [text.index(name) for name in ("Baseline", "Adverse", "Severely adverse", "Stagflation")]
    assert places == sorted(places)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "422,732 rows accepted, 12 quarantined (<0.01%)" in text


def test_missing_figures_are_dashes() -> None:
    tranche = tranche_report(("severely_adverse",)).tail(1)
    assert tranche["irr"].to_list() == [None]
    row = line_with(shown({"tranche_report": tranche}), "Equity")
    assert row[-4:] == ["–", "–", "–", "–"]


def test_columns_without_any_figure_are_dashes_too() -> None:
    tranche = tranche_report(("baseline",)).with_columns(
        irr=pl.lit(None), original_balance=pl.lit(float("nan"))
    )
    assert "–" in line_with(shown({"tranche_report": tranche}), "Senior")[1]


def test_names_cannot_colour_or_move_the_terminal() -> None:
    tranche = tranche_report(("baseline",)).with_columns(tranche=pl.lit("[red]A\x1b[2J\u202e"))
    text = shown({"tranche_report": tranche})
    assert "[red]A" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_pandas_and_empty_frames() -> None:
    assert "Expected loss" in shown(
        {"pool_report": pd.DataFrame(pool_report(("adverse",)).to_dict(as_series=False))}
    )
    assert shown({"pool_report": pool_report().clear(), "tranche_report": tranche_report().clear()}) == ""
    assert shown({}) == ""


def test_bad_frames_are_named() -> None:
    with pytest.raises(SchemaError, match="pool_report") as caught:
        shown({"pool_report": pl.DataFrame({"scenario": ["a"], "measure": ["b"]})})
    assert "value" in str(caught.value)
    with pytest.raises(DataError, match="no data frame"):
        shown({"pool_report": [1, 2, 3]})
    with pytest.raises(SchemaError, match="figures"):
        shown({"pool_report": pool_report().with_columns(value=pl.lit("much"))})


def test_quality_line() -> None:
    assert quality_line(99, 1) == "99 rows accepted, 1 quarantined (1.00%)"
    assert quality_line(412_733, 12) == "412,733 rows accepted, 12 quarantined (<0.01%)"
    assert quality_line(0, 0) == "no rows were read"


def test_accepted_rows_may_come_from_the_caller() -> None:
    frames = {"quarantine": report_frames()["quarantine"]}
    assert "12 rows quarantined" in shown(frames)
    assert "88 rows accepted, 12 quarantined (12.00%)" in shown(frames, n_accepted=88)
