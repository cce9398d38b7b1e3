"""The real auto pool, forecast half-year by half-year: every model learned only from what was known by then.

Here: `auto_rows`, for the section on backtests. Not here: log-loss against challengers (section `auto`).

At each origin the networks are trained on the months up to it (without the loans held out by id), then give
every living loan its chances one month ahead for the next `HALF_YEAR` months, given the loan's own past up to
each month and that month's macro. The pool is cut into `N_GROUPS` sub-pools by row, one sequence each; they
share the month's common shock, which makes the tests strict.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from scipy import stats

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import add_months, month_index, month_range
from pc_pipeline.engines.fidelity.forecasts import (
    Forecasts,
    monthly_forecasts,
    observed_severities,
    test_rows,
)
from pc_pipeline.engines.fidelity.table import Request, figure
from pc_pipeline.engines.stages.learning import train_loan_trajectory, train_transition_transformer
from pc_pipeline.engines.stages.scoring import learning_rows
from pc_pipeline.evaluation.backtests import backtest
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.scenarios.history import load_history
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import MACRO_NAMES, OBSERVED
from pc_pipeline.training.trajectories import move_probabilities

DATA: Final = ("sec_auto_aart2017", "macro_fred")
ORIGINS: Final = (date(2018, 6, 1), date(2018, 12, 1), date(2019, 6, 1))
HALF_YEAR: Final = 6
N_GROUPS: Final = 4
WITHIN: Final = 0.10


def auto_rows(request: Request) -> list[dict[str, Any]]:
    """Backtests of misses, defaults and losses, and expected over realised; a note where data are missing."""
    folder = request.data / DATA[0]
    if not folder.is_dir():
        missing = f"no {DATA[0]} under the folder of data sets (SHARED=)"
        return [figure("backtests", "real auto", float("nan"), passed=False, note=missing)]
    delivered = read_tape(folder)
    macro = observed_macro(request.data / DATA[1], delivered.panel)
    parts = [_half_year(request, delivered.loans, delivered.panel, macro, origin) for origin in ORIGINS]
    note = f"real auto, {len(ORIGINS)} origins refitted, {N_GROUPS} sub-pools, given the month's macro"
    found = []
    for label, which in (("30dpd", "misses"), ("defaults", "defaults"), ("loss", "losses")):
        realised = np.concatenate([part[which][0] for part in parts], axis=1)
        draws = np.concatenate([part[which][1] for part in parts], axis=1)
        table = backtest(realised, draws, (0.95,), seed=request.recipe.seed)
        found += test_rows(f"real auto, monthly {label}, VaR", table, note)
        found.append(_expected_row(label, realised, draws))
    return found


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


def _half_year(
    request: Request, loans: pl.DataFrame, panel: pl.DataFrame, macro: pl.DataFrame, origin: date
) -> dict[str, Forecasts]:
    """Forecasts of the months after an origin by models that know nothing of them."""
    recipe = request.recipe
    known = panel.filter(pl.col("reporting_month") <= origin)
    lived = macro.filter(pl.col("month") <= origin)
    counts = transition_table(learning_rows(known), loans)
    models = train_transition_transformer(
        recipe.transition_transformer, counts, loans, lived, request.device
    ).models
    models = (
        models
        | train_loan_trajectory(recipe.loan_trajectory, known, loans, lived, models, request.device).models
    )
    last = add_months(origin, HALF_YEAR)
    learned = prepare_trajectories(known, loans, lived)
    judged = prepare_trajectories(
        panel.filter(pl.col("reporting_month") <= last),
        loans,
        macro.filter(pl.col("month") <= last),
        scaler=learned.scaler,
    )
    chances = move_probabilities(models["loan_trajectory"][0], judged, models["transition_transformer"][0])
    options: dict[str, Any] = {
        "sequence": judged.loan_row.astype(np.int64) % N_GROUPS,
        "first_month": month_index(origin) + 1,
    }
    severities, seed = observed_severities(learned), recipe.seed
    defaults, losses = monthly_forecasts(judged, chances, severities, seed, **options)
    misses, _ = monthly_forecasts(judged, chances, severities, seed, event=LoanState.dpd30, **options)
    return {"misses": misses, "defaults": defaults, "losses": losses}


def _expected_row(label: str, realised: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    """Sum of expectations over sum of outcomes, with the interval that loans' own luck leaves to it."""
    expected, happened = float(draws.mean(-1).sum()), float(realised.sum())
    if happened <= 0:
        return figure(
            "backtests", f"real auto, expected / realised {label}", float("nan"), note="none happened"
        )
    if label == "loss":
        spread = 1.96 * float(draws.sum((0, 1)).std())
        low, high = expected / (expected + spread), expected / max(expected - spread, 1e-9)
        low, high = low * expected / happened, high * expected / happened
    else:
        low = expected / stats.chi2.ppf(0.975, 2 * (happened + 1)) * 2
        high = expected / stats.chi2.ppf(0.025, 2 * happened) * 2
    ratio = expected / happened
    return figure(
        "backtests",
        f"real auto, expected / realised {label}",
        ratio,
        low=low,
        high=high,
        goal="0.9..1.1",
        passed=abs(ratio - 1) <= WITHIN,
        note=f"{expected:,.0f} expected, {happened:,.0f} happened, months after each origin; "
        f"1 lies {'within' if low <= 1 <= high else 'outside'} chance",
    )
