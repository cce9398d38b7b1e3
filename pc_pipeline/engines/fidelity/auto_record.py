"""The real auto pool, forecast half-year by half-year: every model learned only from what was known by then.

Here: `auto_rows`, for the section on backtests; `half_year`, one origin;
`real_networks`, what the sections on the real pool train. Not here: log-loss against
challengers (section `auto`), what a record of forecasts says of the next ones (`evaluation.forecast_record`).

At each origin the networks are trained on the months up to it (without the loans held out by id), then give
every living loan its chances one month ahead for the next `HALF_YEAR` months, given the loan's own past up
to each month and that month's macro. The record of earlier origins decides two things: whose level is taken,
the loan network's or its cohort's (a loan's memory begins where the tape does and grows with it, so what was
learnt on short records misstates longer ones; the cohort has no memory), and how far all loans of a month
stray together. `WARM_UP` is forecast for the record only. Loans keep the order that the network gives them.

The pool is cut into `N_GROUPS` sub-pools by row, one sequence each. They share the month's shock, and the
tests know it (`are_joint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import add_months, month_index, month_range
from pc_pipeline.core.rng import stream
from pc_pipeline.engines.fidelity.forecasts import (
    N_DRAWS,
    Forecasts,
    monthly_forecasts,
    observed_severities,
    test_rows,
)
from pc_pipeline.engines.fidelity.table import Request, SizedRecipe, figure
from pc_pipeline.engines.stages.learning import Models, train_loan_trajectory, train_transition_transformer
from pc_pipeline.engines.stages.scoring import learning_rows
from pc_pipeline.evaluation.backtests import backtest
from pc_pipeline.evaluation.forecast_record import CommonShock, at_level, better_level, common_shock
from pc_pipeline.evaluation.rows import scoring_rows
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.scenarios.history import load_history
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import MACRO_NAMES, OBSERVED
from pc_pipeline.training.trajectories import move_probabilities

DATA: Final = ("sec_auto_aart2017", "macro_fred")
WARM_UP: Final = date(2017, 12, 1)
ORIGINS: Final = (date(2018, 6, 1), date(2018, 12, 1), date(2019, 6, 1))
HALF_YEAR: Final = 6
N_GROUPS: Final = 4
WITHIN: Final = 0.10
NETWORK, COHORT = "loan network", "cohort"
_EVENTS: Final = {"30dpd": LoanState.dpd30, "defaults": LoanState.default}


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfYear:
    """What models of one origin say of the months after it; N moves in these months.

    Attributes:
        origin: last month known. judged: histories to the last month forecast.
        ahead: (A,) bool, which of the A observed moves of `judged` are forecast ones.
        chances: name -> (A, 7) one month ahead. happened, from_state: (A,) of the moves. month: (A,) indices.
        severities: observed by the origin, by class.
    """

    origin: date
    judged: Trajectories
    ahead: np.ndarray
    chances: dict[str, np.ndarray]
    happened: np.ndarray
    from_state: np.ndarray
    month: np.ndarray
    severities: list[np.ndarray]

    def counts(self, event: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(expected (M,) by whose chances, happened (M,)) of an event in the months forecast."""
        place = self.month[self.ahead] - (month_index(self.origin) + 1)

        def by_month(values: np.ndarray) -> np.ndarray:
            return np.bincount(place, weights=values[self.ahead].astype(float), minlength=HALF_YEAR)

        return (
            {name: by_month(p[:, event]) for name, p in self.chances.items()},
            by_month(self.happened == event),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """Forecasts of one origin for one event: what the record before it said, and what came."""

    origin: date
    level: str
    shock: CommonShock
    counts: Forecasts
    losses: Forecasts
    as_trained: float  # expected count by the network alone


def auto_rows(request: Request) -> list[dict[str, Any]]:
    """Backtests of misses, defaults and losses, and expected over realised; a note where data are missing."""
    folder = request.data / DATA[0]
    if not folder.is_dir():
        missing = f"no {DATA[0]} under the folder of data sets (SHARED=)"
        return [figure("backtests", "real auto", float("nan"), passed=False, note=missing)]
    delivered = read_tape(folder)
    macro = observed_macro(request.data / DATA[1], delivered.panel)
    parts = [
        half_year(request, delivered.loans, delivered.panel, macro, origin) for origin in (WARM_UP, *ORIGINS)
    ]
    return record_rows(parts, request.recipe.seed)


def record_rows(parts: list[HalfYear], seed: int) -> list[dict[str, Any]]:
    """Figures of a record of half-years, the first of which only serves the second."""
    found = []
    for event in _EVENTS:
        judged = [_judge(parts[: k + 1], event, seed) for k in range(1, len(parts))]
        found += _figures(event, judged, [one.counts for one in judged], seed)
        found += [_origin_row(event, one) for one in judged]
        if event == "defaults":
            found += _figures("loss", judged, [one.losses for one in judged], seed)
    return found


def _judge(parts: list[HalfYear], event: str, seed: int) -> _Judged:
    """Forecasts of the last half-year at the level and with the shock that the earlier ones suggest."""
    state, now = _EVENTS[event], parts[-1]
    records = [part.counts(state) for part in parts[:-1]]
    happened = np.concatenate([record[1] for record in records])
    expected = {name: np.concatenate([record[0][name] for record in records]) for name in now.chances}
    level = better_level(expected, happened)
    shock = common_shock(expected[level], happened)
    own = now.chances[NETWORK][:, state]
    chances = now.chances[NETWORK].copy()
    if level != NETWORK:
        group = now.month * len(LoanState) + now.from_state
        chances[:, state] = at_level(own, now.chances[level][:, state], group)
    shocks = shock.draw((HALF_YEAR, N_DRAWS), stream(seed, "auto_record", event, str(now.origin)))
    counts, losses = monthly_forecasts(
        now.judged,
        chances,
        now.severities,
        seed,
        sequence=now.judged.loan_row.astype(np.int64) % N_GROUPS,
        first_month=month_index(now.origin) + 1,
        event=state,
        shocks_TS=shocks,
    )
    as_trained = float(own[now.ahead].sum())
    return _Judged(
        origin=now.origin, level=level, shock=shock, counts=counts, losses=losses, as_trained=as_trained
    )


def _figures(label: str, judged: list[_Judged], parts: list[Forecasts], seed: int) -> list[dict[str, Any]]:
    realised = np.concatenate([part[0] for part in parts], axis=1)
    draws = np.concatenate([part[1] for part in parts], axis=1)
    spread = ", ".join(f"{one.shock.sd:.2f}" for one in judged)
    note = (
        f"real auto, {len(judged)} origins refitted, {N_GROUPS} sub-pools under one shock a month "
        f"(sd by origin {spread} in log-odds), given the month's macro"
    )
    table = backtest(realised, draws, (0.95,), seed=seed, are_joint=True)
    return [
        *test_rows(f"real auto, monthly {label}, VaR", table, note),
        _expected_row(label, realised, draws, seed),
    ]


def observed_macro(history: Path, panel: pl.DataFrame) -> pl.DataFrame:
    """Table `macro_scenarios` of what the economy did, from a year before the panel begins."""
    first, last = panel["reporting_month"].min(), panel["reporting_month"].max()
    if not isinstance(first, date) or not isinstance(last, date):
        raise DataError("the panel has no months", expected="dates", got=first, where="reporting_month")
    begin = add_months(first, -12)
    months = pl.DataFrame({"month": month_range(begin, month_index(last) - month_index(begin) + 1)})
    values = months.join(load_history(history).frame, on="month", how="left").sort("month")
    return values.select(
        pl.lit(OBSERVED).alias("scenario"), pl.lit(0, pl.Int64).alias("macro_path_id"), "month", *MACRO_NAMES
    )


def real_networks(
    recipe: SizedRecipe, panel: pl.DataFrame, loans: pl.DataFrame, macro: pl.DataFrame, device: str
) -> Models:
    """Cohort and loan network of a real panel, learned without the loans held out by id."""
    counts = transition_table(learning_rows(panel), loans)
    models = train_transition_transformer(recipe.transition_transformer, counts, loans, macro, device).models
    return models | train_loan_trajectory(recipe.loan_trajectory, panel, loans, macro, models, device).models


def half_year(
    request: Request, loans: pl.DataFrame, panel: pl.DataFrame, macro: pl.DataFrame, origin: date
) -> HalfYear:
    """Chances in the months after an origin by models that know nothing of them."""
    known = panel.filter(pl.col("reporting_month") <= origin)
    lived = macro.filter(pl.col("month") <= origin)
    models = real_networks(request.recipe, known, loans, lived, request.device)
    last = add_months(origin, HALF_YEAR)
    learned = prepare_trajectories(known, loans, lived)
    judged = prepare_trajectories(
        panel.filter(pl.col("reporting_month") <= last),
        loans,
        macro.filter(pl.col("month") <= last),
        scaler=learned.scaler,
    )
    cohort, rows = models["transition_transformer"][0], scoring_rows(judged)
    month = judged.start_month[rows.history] + rows.month
    return HalfYear(
        origin=origin,
        judged=judged,
        ahead=month > month_index(origin),
        chances={
            NETWORK: move_probabilities(models["loan_trajectory"][0], judged, cohort),
            COHORT: move_probabilities(None, judged, cohort),
        },
        happened=rows.happened,
        from_state=rows.from_state,
        month=month,
        severities=observed_severities(learned),
    )


def _origin_row(event: str, one: _Judged) -> dict[str, Any]:
    """Expected over realised of one origin; no goal, for the reader."""
    expected, happened = float(one.counts[1].mean(-1).sum()), float(one.counts[0].sum())
    return figure(
        "backtests",
        f"real auto, {one.origin:%Y-%m}, expected / realised {event}",
        expected / happened if happened else float("nan"),
        note=f"{expected:,.1f} expected, {happened:,.0f} happened; level of the {one.level} by the record "
        f"before; the loan network alone {one.as_trained:,.1f}",
    )


def _expected_row(label: str, realised: np.ndarray, draws: np.ndarray, seed: int) -> dict[str, Any]:
    """Sum of expectations over sum of outcomes, with the interval that the forecast's own law leaves."""
    expected, happened = float(draws.mean(-1).sum()), float(realised.sum())
    if happened <= 0:
        return figure(
            "backtests", f"real auto, expected / realised {label}", float("nan"), note="none happened"
        )
    n_months, n_draws = draws.shape[1:]
    chosen = stream(seed, "auto_record", "totals").integers(0, n_draws, (4000, n_months))
    totals = draws.sum(axis=0)[np.arange(n_months), chosen].sum(axis=1)
    low, high = np.quantile(totals, [0.025, 0.975]) / happened
    ratio, right = expected / happened, expected / np.maximum(totals, 1e-9)
    able = float((np.abs(right - 1) <= WITHIN).mean())
    return figure(
        "backtests",
        f"real auto, expected / realised {label}",
        ratio,
        low=low,
        high=high,
        goal="0.9..1.1",
        passed=abs(ratio - 1) <= WITHIN,
        note=f"{expected:,.0f} expected, {happened:,.0f} happened, months after each origin; "
        f"1 lies {'within' if low <= 1 <= high else 'outside'} chance; a right forecast would meet the goal "
        f"in {able:.0%} of such records",
    )
