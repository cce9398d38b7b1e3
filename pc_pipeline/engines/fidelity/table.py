"""One row per fidelity figure: what was measured, its interval, the goal, whether it is met.

Here: `Request` (what a section is given), `figure` and `figures` (rows and frame of a section), how a frame
is printed. Not here: any measurement (a section per module beside this one), the order and the cache of
sections (`engines.fidelity.run`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.engines.stages.data import MacroPathsConfig, TapeConfig
from pc_pipeline.engines.stages.learning import (
    JointStage,
    LoanTrajectoryStage,
    MacroVAEStage,
    TransitionStage,
)
from pc_pipeline.engines.stages.results import SimulationStage

FIGURES: Final = {
    "section": pl.String,
    "figure": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,  # interval, 95 % unless the note says otherwise; null where there is none
    "high": pl.Float64,
    "goal": pl.String,  # in words: ">= 0.90", "0.9..1.1", "<= logistic - 1 se"
    "passed": pl.Boolean,  # null: reported, no goal
    "note": pl.String,
}


class SizedRecipe(Protocol):
    """What a section reads of a recipe (`pc_pipeline.recipes.Recipe` is one)."""

    @property
    def name(self) -> str:
        """Of the recipe."""

    @property
    def seed(self) -> int:
        """Master seed."""

    @property
    def tape(self) -> TapeConfig:
        """The generated pool."""

    @property
    def macro_paths(self) -> MacroPathsConfig:
        """Paths per scenario."""

    @property
    def macro_vae(self) -> MacroVAEStage:
        """Macro network."""

    @property
    def transition_transformer(self) -> TransitionStage:
        """Cohort network."""

    @property
    def loan_trajectory(self) -> LoanTrajectoryStage:
        """Loan network."""

    @property
    def joint(self) -> JointStage:
        """Joint fine-tuning."""

    @property
    def simulation(self) -> SimulationStage:
        """Monte Carlo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a section is asked for.

    Attributes:
        recipes: one complete recipe per training seed; the first is the one for what is measured once.
        data: folder of the real data sets (`real_auto/`, `mortgages/`, ... as delivered).
        scratch: a folder of this section's own for whatever lets a killed run go on; emptied when it is done.
        shared: a folder that sections share (trained chains, `engines.fidelity.chain`); None is `scratch`.
        device: 'cpu' or 'cuda'.
    """

    recipes: tuple[SizedRecipe, ...]
    data: Path
    scratch: Path
    shared: Path | None = None
    device: str = "cpu"

    @property
    def recipe(self) -> SizedRecipe:
        """The first seed's recipe."""
        return self.recipes[0]


def figure(
    section: str,
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    goal: str = "",
    passed: bool | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One row; `passed` None says that the figure has no goal."""
    return {
        "section": section,
        "figure": name,
        "value": float(value),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "goal": goal,
        "passed": None if passed is None else bool(passed),
        "note": note,
    }


def figures(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Frame of `FIGURES` from rows.

    Raises:
        DataError: a row lacks a column, has one too many, or names a figure twice.
    """
    found = list(rows)
    for row in found:
        if set(row) != set(FIGURES):
            raise DataError("a figure's columns are fixed", expected=sorted(FIGURES), got=sorted(row))
    frame = pl.DataFrame(found, schema=FIGURES, orient="row")
    twice = frame.filter(frame.select("section", "figure").is_duplicated())
    if twice.height:
        raise DataError("a figure is named twice", expected="one row per figure", got=twice.row(0)[:2])
    return frame


def as_markdown(frame: pl.DataFrame) -> str:
    """The rows of one section as a table a reader can check by eye."""
    lines = ["| figure | value | interval | goal | | note |", "|---|---|---|---|---|---|"]
    for row in frame.iter_rows(named=True):
        verdict = {True: "pass", False: "**miss**", None: ""}[row["passed"]]
        value, span = _number(row["value"]), _span(row["low"], row["high"])
        lines.append(f"| {row['figure']} | {value} | {span} | {row['goal']} | {verdict} | {row['note']} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"{_number(low)} .. {_number(high)}"
