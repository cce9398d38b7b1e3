"""The events that models are judged on: one row per observed move of a loan.

Here: `ScoringRows`, flat views of aligned histories with what a model may know before each move. Not here:
models (`challengers`), scores (`scoring`). Rows run history by history, month by month, so probabilities of
a network over aligned histories line up by `[mask]`, and those of `loans.oracle` as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.models.history import state_history
from pc_pipeline.models.payment_history import payment_facts, payment_windows
from pc_pipeline.models.transition_transformer import MIN_MACRO_PATHS
from pc_pipeline.schemas.states import N_LIVING, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringRows:
    """N moves.

    Attributes:
        moves: columns asset_class, from_state, to_state, since_miss, age_months, is_final.
        cluster: (N,) loan number, for standard errors. features: (N,24) scaled loan features.
        macro: (N,9) macro of the arrival month; None with fewer than `MIN_MACRO_PATHS` paths, where it only
            tells the time. observed: (N,F) payment facts, NaN where unknown, or None.
        past: (N,7) what the states before say, `models.history.state_history`.
        segments: (N,2) industry and region codes, or None.
        calendar: (N,2) month of year, weekday of the last day.
        history, month: (N,) place in the aligned histories.
    """

    moves: pl.DataFrame
    cluster: np.ndarray
    features: np.ndarray
    macro: np.ndarray | None
    observed: np.ndarray | None
    past: np.ndarray
    segments: np.ndarray | None
    calendar: np.ndarray
    history: np.ndarray
    month: np.ndarray

    def __len__(self) -> int:
        return self.moves.height

    @property
    def happened(self) -> np.ndarray:
        """(N,) state moved to."""
        return self.moves["to_state"].to_numpy()

    @property
    def from_state(self) -> np.ndarray:
        """(N,) state moved from."""
        return self.moves["from_state"].to_numpy()

    def take(self, chosen: np.ndarray) -> ScoringRows:
        """Some rows, by mask or number."""
        return ScoringRows(
            moves=self.moves.filter(chosen) if chosen.dtype == bool else self.moves[chosen],
            cluster=self.cluster[chosen],
            features=self.features[chosen],
            macro=None if self.macro is None else self.macro[chosen],
            observed=None if self.observed is None else self.observed[chosen],
            past=self.past[chosen],
            segments=None if self.segments is None else self.segments[chosen],
            calendar=self.calendar[chosen],
            history=self.history[chosen],
            month=self.month[chosen],
        )


def scoring_rows(
    trajectories: Trajectories, only: np.ndarray | None = None, with_payments: bool = False
) -> ScoringRows:
    """All observed moves of some histories.

    Args:
        trajectories: from `loans.prepare_trajectories`.
        only: (H,) bool, the histories wanted; None takes all.
        with_payments: whether what was paid before is known beside the states.

    Notes:
        Maturity is booked as the contract does: in and after the final month, performing and prepaid
        count as matured; before it, matured counts as prepaid.
    """
    mask = trajectories.mask if only is None else trajectories.mask & only[:, None]
    history, month = np.nonzero(mask)
    states = trajectories.states[history, month].astype(np.int64)
    is_final = trajectories.is_final[history, month]
    before = np.where(
        month == 0,
        trajectories.initial_state[history],
        trajectories.states[history, np.maximum(month - 1, 0)],
    )
    since = _since_miss(trajectories)[history, month]
    vintage = trajectories.cohorts["vintage_month"]
    vintage_index = (vintage.dt.year().to_numpy() * 12 + vintage.dt.month().to_numpy() - 1)[
        trajectories.cohort_row
    ]
    arrival = trajectories.start_month[history] + month
    classes = trajectories.cohorts["asset_class"].gather(trajectories.cohort_row)
    moves: dict[str, Any] = {
        "asset_class": classes.gather(history),
        "from_state": before.astype(np.int64),
        "to_state": _booked(states, is_final),
        "since_miss": since,
        "age_months": arrival - vintage_index[history],
        "is_final": is_final,
    }
    macro = None
    paths = trajectories.macro
    if paths is not None and trajectories.macro_row is not None and len(paths.keys) >= MIN_MACRO_PATHS:
        column = np.clip(arrival - paths.start_month, 0, paths.n_months - 1)
        macro = paths.values[trajectories.macro_row[history], column]
    return ScoringRows(
        moves=pl.DataFrame(moves),
        cluster=trajectories.loan_row[history],
        features=trajectories.features[history],
        macro=macro,
        observed=_payment_facts(trajectories, history, month) if with_payments else None,
        past=_past(trajectories, since0=trajectories.initial_months_since_miss)[history, month],
        segments=trajectories.segments[history],
        calendar=_calendar(trajectories, history, month),
        history=history,
        month=month,
    )


def class_codes(rows: ScoringRows) -> np.ndarray:
    """(N,) 0-3."""
    names = rows.moves["asset_class"]
    return names.replace_strict(
        list(ASSET_CLASSES), range(len(ASSET_CLASSES)), return_dtype=pl.Int64
    ).to_numpy()


def _booked(states: np.ndarray, is_final: np.ndarray) -> np.ndarray:
    paid_up = (states == LoanState.performing) | (states == LoanState.prepaid)
    booked = np.where(is_final & paid_up, int(LoanState.matured), states)
    return np.where(~is_final & (states == LoanState.matured), int(LoanState.prepaid), booked)


def _since_miss(trajectories: Trajectories) -> np.ndarray:
    """(H,T) months from the last miss to the month moved from, -1 never."""
    since = np.empty(trajectories.states.shape, dtype=np.int64)
    now = trajectories.initial_months_since_miss.astype(np.int64)
    state = trajectories.initial_state.astype(np.int64)
    for month in range(trajectories.n_months):
        now = np.where((state >= LoanState.dpd30) & (state <= LoanState.dpd90), 0, now)
        since[:, month] = now
        now = np.where(now >= 0, now + 1, now)
        state = trajectories.states[:, month].astype(np.int64)
    return since


def _past(trajectories: Trajectories, since0: np.ndarray) -> np.ndarray:
    """(H,T,7) run features of the states before each month."""
    states = torch.from_numpy(trajectories.states.astype(np.int64))
    initial = torch.from_numpy(trajectories.initial_state.astype(np.int64))
    before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
    return state_history(before, torch.from_numpy(since0.astype(np.int64))).run.numpy()


def _payment_facts(trajectories: Trajectories, history: np.ndarray, month: np.ndarray) -> np.ndarray:
    """(N,F) `models.payment_history.PAYMENT_FACTS`."""
    states = trajectories.states
    living = (states >= 0) & (states < N_LIVING)
    windows = payment_windows(np.where(living, trajectories.payment_ratio, np.nan))[history, month]
    return payment_facts(torch.from_numpy(windows.copy())).numpy()


def _calendar(trajectories: Trajectories, history: np.ndarray, month: np.ndarray) -> np.ndarray:
    return trajectories.calendar()[history, month]
