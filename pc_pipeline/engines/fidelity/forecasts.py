"""One-month-ahead forecasts of a pool as draws, and a backtest as figures; for `backtests`, `auto_record`.

Here: `monthly_forecasts`, `observed_severities`, `test_rows`. Not here: whose chances they are, the tests
themselves (`evaluation.backtests`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from scipy import special

from pc_pipeline.core.rng import stream
from pc_pipeline.engines.fidelity.table import figure
from pc_pipeline.evaluation.backtests import SIGNIFICANCE
from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES

SECTION: Final = "backtests"
FIRST_MONTH: Final = 12  # of the paths: pools are whole from here on
N_DRAWS: Final = 400
Forecasts = tuple[np.ndarray, np.ndarray]  # realised (R, T), draws (R, T, S)


def test_rows(label: str, table: pl.DataFrame, note: str) -> list[dict[str, Any]]:
    """A backtest's rows as figures: the p-value is the value, at least 5 % the goal."""
    rows = []
    for row in table.iter_rows(named=True):
        level = "" if row["level"] is None else f" {row['level']:.0%}"
        hits = "" if row["hits"] is None else f"{row['hits']} exceptions, {row['expected']:.1f} expected; "
        rows.append(
            figure(
                SECTION,
                f"{label}{level}: {row['test']}, p-value",
                row["p_value"],
                goal=f">= {SIGNIFICANCE:g}",
                passed=row["passed"],
                note=f"{hits}{row['n']} forecasts; {note}",
            )
        )
    return rows


def observed_severities(learned: Trajectories) -> list[np.ndarray]:
    """Severities of observed defaults by asset class; all of them where a class has none, else one half."""
    code = np.nan_to_num(learned.features[:, : len(ASSET_CLASSES)]).argmax(1)
    severity = 1.0 - learned.recovery_rate.astype(float)
    seen = np.isfinite(severity)
    pooled = severity[seen] if seen.any() else np.array([0.5])
    return [
        severity[seen & (code == k)] if (seen & (code == k)).any() else pooled
        for k in range(len(ASSET_CLASSES))
    ]


def monthly_forecasts(
    judged: Trajectories,
    chances: np.ndarray,
    severities: list[np.ndarray],
    seed: int,
    *,
    sequence: np.ndarray | None = None,
    first_month: int | None = None,
    event: int = LoanState.default,
    shocks_TS: np.ndarray | None = None,
) -> tuple[Forecasts, Forecasts]:
    """((realised (R, T), draws (R, T, S)) of event counts, the same of losses in currency).

    Args:
        judged: histories. chances: (N, 7) one month ahead, in the order of `judged.mask`.
        severities: observed ones by class. sequence: (H,) which sequence a history belongs to; None: its
            macro path. first_month: calendar month index to begin at; None is `FIRST_MONTH` after the first.
        event: state whose entry is counted. shocks_TS: (T, N_DRAWS) log-odds that all loans of a month share.
    """
    history, month = np.nonzero(judged.mask)
    calendar = judged.start_month[history] + month
    start = int(calendar.min()) + FIRST_MONTH if first_month is None else first_month
    if sequence is None:
        keys = judged.keys.select(pl.struct("scenario", "macro_path_id").rank("dense") - 1).to_series()
        sequence = keys.to_numpy().astype(np.int64)
    used = calendar >= start
    history, month, calendar, chance = history[used], month[used], calendar[used], chances[used, event]
    states = judged.states[history, month]
    before = np.where(
        month == 0, judged.initial_balance[history], judged.balances[history, np.maximum(month - 1, 0)]
    )
    code = np.nan_to_num(judged.features[:, : len(ASSET_CLASSES)]).argmax(1)[history]
    shape = (int(sequence.max()) + 1, int(calendar.max()) - start + 1)
    cell = sequence[history] * shape[1] + calendar - start
    counted = np.bincount(cell, weights=states == event, minlength=shape[0] * shape[1])
    lost = np.bincount(cell, weights=judged.losses[history, month], minlength=shape[0] * shape[1])
    counts, losses = (np.zeros((shape[0] * shape[1], N_DRAWS)) for _ in range(2))
    random = stream(seed, "fidelity", "monthly")
    order = np.argsort(cell, kind="stable")
    logit = special.logit(chance)
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        moved = chance[rows, None]
        if shocks_TS is not None:
            moved = special.expit(logit[rows, None] + shocks_TS[calendar[rows[0]] - start])
        hit = random.random((len(rows), N_DRAWS)) < moved
        counts[cell[rows[0]]] = hit.sum(axis=0)
        loan, draw = np.nonzero(hit)
        if len(loan):
            drawn = np.array([random.choice(severities[k]) for k in code[rows[loan]]])
            np.add.at(losses[cell[rows[0]]], draw, drawn * before[rows[loan]])
    return (
        (counted.reshape(shape), counts.reshape(*shape, N_DRAWS)),
        (lost.reshape(shape), losses.reshape(*shape, N_DRAWS)),
    )
