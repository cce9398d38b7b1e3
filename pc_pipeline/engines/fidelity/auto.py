"""The real auto pool: the loan network against tables, logistic and boosted trees on the same inputs.

Here: `measure`. Two splits. By time: learn to 2018-12, judge the second half of 2019 (its first half is what
a choice of settings may look at). By loan: learn from the loans that the chain learns from, judge those held
out by the hash of their id. No model knows a month or an id: the same code runs on another deal.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl
from scipy import stats

from pc_pipeline.core.periods import month_index
from pc_pipeline.engines.fidelity.auto_record import observed_macro, real_networks
from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.engines.stages.scoring import is_held_out, learning_rows
from pc_pipeline.evaluation.challengers import standard_challengers
from pc_pipeline.evaluation.metrics import (
    calibration_slope,
    clustered_mean,
    happened_over_expected,
    log_losses,
)
from pc_pipeline.evaluation.rows import ScoringRows, scoring_rows
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.schemas.states import LOAN_STATE_NAMES, LoanState
from pc_pipeline.training.trajectories import move_probabilities

SECTION: Final = "real auto"
DATA: Final = ("sec_auto_aart2017", "macro_fred")
LEARN_TO: Final = date(2018, 12, 1)
JUDGE_AFTER: Final = date(2019, 6, 1)
RIVAL_ROWS: Final = 200_000
_TREES: Final = "boosted trees"
_COUNTED: Final = (LoanState.dpd30, LoanState.dpd60, LoanState.dpd90, LoanState.default, LoanState.prepaid)


def measure(request: Request) -> pl.DataFrame:
    """Rows of the section; one note where the data are missing."""
    folder = request.data / DATA[0]
    if not folder.is_dir():
        return figures([figure(SECTION, "log-loss", float("nan"), note="data set missing")])
    delivered = read_tape(folder)
    macro = observed_macro(request.data / DATA[1], delivered.panel)
    early = delivered.panel.filter(pl.col("reporting_month") <= LEARN_TO)
    rows = _split(request, early, delivered.panel, delivered.loans, macro, "by time")
    known = learning_rows(delivered.panel)
    return figures([*rows, *_split(request, known, delivered.panel, delivered.loans, macro, "by loan")])


def _split(
    request: Request,
    learn: pl.DataFrame,
    panel: pl.DataFrame,
    loans: pl.DataFrame,
    macro: pl.DataFrame,
    name: str,
) -> list[dict[str, Any]]:
    """Figures of one split: `learn` is what may be learned from."""
    last = learn["reporting_month"].max()
    lived = macro.filter(pl.col("month") <= last)
    models = real_networks(request.recipe, learn, loans, lived, request.device)
    learned = prepare_trajectories(learning_rows(learn), loans, lived)
    judged = prepare_trajectories(panel, loans, macro, scaler=learned.scaler)
    rows, chosen = _judged_rows(judged, loans, name)
    network = models["loan_trajectory"][0]
    answers = {
        "loan network": move_probabilities(network, judged, models["transition_transformer"][0])[chosen]
    }
    training = scoring_rows(learned, with_payments=True)
    for rival in standard_challengers(RIVAL_ROWS):
        rival.fit(training)
        answers[rival.name] = rival.probabilities(rows)
    return [*_losses(answers, rows, name), *_calibration(answers, rows, name)]


def _judged_rows(judged: Trajectories, loans: pl.DataFrame, name: str) -> tuple[ScoringRows, np.ndarray]:
    """Rows that are judged, and their mask among all."""
    rows = scoring_rows(judged, with_payments=True)
    ids = loans["loan_id"].to_list()
    held = np.array([is_held_out(loan_id) for loan_id in ids])[rows.cluster]
    if name == "by loan":
        return rows.take(held), held
    chosen = judged.start_month[rows.history] + rows.month > month_index(JUDGE_AFTER)
    return rows.take(chosen), chosen


def _losses(answers: dict[str, np.ndarray], rows: ScoringRows, split: str) -> list[dict[str, Any]]:
    losses = {name: log_losses(p, rows.happened) for name, p in answers.items()}
    mine, found = losses["loan network"], []
    for name, loss in losses.items():
        mean = clustered_mean(loss, rows.cluster)
        found.append(
            figure(
                SECTION,
                f"{split}: log-loss, {name}",
                mean.value,
                low=mean.value - 1.96 * mean.se,
                high=mean.value + 1.96 * mean.se,
                note=f"{len(rows)} loan-months; late rows {loss[rows.from_state > 0].mean():.4f}",
            )
        )
    for name, loss in losses.items():
        if name == "loan network":
            continue
        gain = clustered_mean(loss - mine, rows.cluster)
        goal = ">= -1 se" if name == _TREES else "> 1 se"
        passed = gain.value >= -gain.se if name == _TREES else gain.value > gain.se
        found.append(
            figure(
                SECTION,
                f"{split}: log-loss gained on {name}",
                gain.value,
                low=gain.value - 1.96 * gain.se,
                high=gain.value + 1.96 * gain.se,
                goal=goal,
                passed=passed,
            )
        )
    return found


def _calibration(answers: dict[str, np.ndarray], rows: ScoringRows, split: str) -> list[dict[str, Any]]:
    p = answers["loan network"]
    performing = rows.from_state == LoanState.performing
    missed = (rows.happened >= LoanState.dpd30) & (rows.happened <= LoanState.default)
    chance = p[:, LoanState.dpd30 : LoanState.prepaid].sum(axis=1)
    slope, se, _ = calibration_slope(chance[performing], missed[performing])
    found = [
        figure(
            SECTION,
            f"{split}: calibration slope of a miss",
            slope,
            low=slope - 1.96 * se,
            high=slope + 1.96 * se,
            goal="0.9..1.1",
            passed=0.9 <= slope <= 1.1,
        )
    ]
    for state in _COUNTED:
        expected, happened = float(p[:, state].sum()), int((rows.happened == state).sum())
        low, high = stats.poisson.interval(0.95, max(expected, 1e-9))
        ratio = happened_over_expected(p[:, state], rows.happened == state, rows.cluster)
        rival = float(answers[_TREES][:, state].sum())
        found.append(
            figure(
                SECTION,
                f"{split}: {LOAN_STATE_NAMES[state]} months, happened / expected",
                happened / max(expected, 1e-9),
                low=low / max(expected, 1e-9),
                high=high / max(expected, 1e-9),
                goal="within the Poisson interval of 1",
                passed=bool(low <= happened <= high),
                note=f"{happened} happened, {expected:,.1f} expected; by loan +- {1.96 * ratio.se:.3f}; "
                f"{_TREES} expected {rival:,.1f}",
            )
        )
    return found
