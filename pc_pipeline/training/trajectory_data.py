"""Histories as tensors beside the rows of their cohorts.

Here: `TrajectoryData` and how trajectories become it. Not here: aligned histories (`loans.trajectories`), the
network (`models.loan_trajectory`), its training (`training.trajectories`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.features import FeatureScaler, calendar_features, loan_features
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.segments import loan_extras
from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.models.diffusion import MAX_PAYMENT_RATIO
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, previous_states
from pc_pipeline.models.payment_history import MAX_RATIO, WINDOW
from pc_pipeline.models.transition_transformer import TransitionTransformer, matrix_from
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, COHORT_FEATURES, LOAN_FEATURES


@dataclass(frozen=True, kw_only=True)
class TrajectoryData:
    """N histories of at most T months on tensors.

    Attributes:
        features: (N,38) raw units with `LOAN_EXTRAS`, NaN where missing, at the end of the month before
            column 0.
        states: (N,T) int64, -1 after the end; maturity booked as `schemas.states.mature_rows` does.
        raw_states: (N,T) as reported. initial_state, since0: (N,). is_final: (N,T) bool.
        rows: (R,T',4,7) cohort rows; rows_of, first_column: (N,) where each history reads them.
        values, known: (N,T,V) ratios and which are observed. lengths: (N,).
        calendar: (N,T,2) uint8 month of year and month-end weekday.
        paid: (N,12+T) payment ratios from a year before column 0 on, NaN where unknown.
        taught: (N,T,7) probabilities of a teacher, or None.
    """

    features: Tensor
    states: Tensor
    raw_states: Tensor
    initial_state: Tensor
    since0: Tensor
    is_final: Tensor
    rows: Tensor
    rows_of: Tensor
    first_column: Tensor
    values: Tensor
    known: Tensor
    lengths: Tensor
    calendar: Tensor
    paid: Tensor
    taught: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_months(self) -> int:
        """Observed loan-months."""
        return int(self.lengths.sum())

    def take(self, which: Tensor) -> TrajectoryData:
        """Some histories, cut to the longest of them."""
        months = int(self.lengths[which].max()) if len(which) else 1
        cut = {
            name: getattr(self, name)[which][:, :months]
            for name in ("states", "raw_states", "is_final", "values", "known", "calendar")
        }
        paid = self.paid[which][:, : WINDOW + months]
        single = {
            name: getattr(self, name)[which]
            for name in ("features", "initial_state", "since0", "rows_of", "first_column", "lengths")
        }
        taught = None if self.taught is None else self.taught[which][:, :months]
        return dataclasses.replace(self, **cut, **single, paid=paid, taught=taught)

    @property
    def windows(self) -> Tensor:
        """(N,T,12) payment windows known at the end of the month before each column."""
        return self.paid.unfold(1, WINDOW, 1)[:, :-1]

    def cohort_rows(self, previous: Tensor) -> Tensor:
        """(N,T,7) the cohort's row of each month's starting state; absorbing states stay."""
        months = torch.arange(previous.shape[1], device=previous.device)
        column = (self.first_column[:, None] + months).clamp(max=self.rows.shape[1] - 1)
        living = previous.clamp(max=N_LIVING - 1)
        place = (self.rows_of[:, None] * self.rows.shape[1] + column) * N_LIVING + living
        rows = self.rows.reshape(-1, N_STATES)[place]
        stay = torch.eye(N_STATES, dtype=rows.dtype, device=rows.device)[previous]
        return torch.where((previous < N_LIVING)[..., None], rows, stay)

    def to(self, device: torch.device) -> TrajectoryData:
        """On another device."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **moved)


# ---- from tables to tensors -----------------------------------------------------------------


def raw_features(trajectories: Trajectories) -> Tensor:
    """(N,38) loan features and `LOAN_EXTRAS`, raw, NaN where missing; payments before column 0: unknown."""
    scaler = trajectories.scaler
    raw = trajectories.features.astype(np.float64) * np.array(scaler.sd) + np.array(scaler.mean)
    raw = np.where(trajectories.missing, np.nan, raw)
    before = np.full((len(raw), WINDOW), np.nan)
    return torch.from_numpy(np.column_stack([raw, trajectories.segments, before]).astype(np.float32))


def model_features(model: LoanTrajectoryModel, loans: Any) -> Tensor:
    """(L,38) raw inputs of a tape or pool, as `model` expects them (its own reference month).

    Args:
        loans: tape, or pool with `age_months`; polars or pandas.
    """
    size = len(LOAN_FEATURES)
    plain = FeatureScaler(
        names=LOAN_FEATURES,
        mean=(0.0,) * size,
        sd=(1.0,) * size,
        reference_month=int(model.reference_month),
    )
    found = loan_features(loans, plain)
    extras = loan_extras(nw.from_native(loans, eager_only=True).to_polars())
    values = np.where(found.missing, np.nan, found.values)
    return torch.from_numpy(np.column_stack([values, extras]).astype(np.float32))


def cohort_rows(
    transition_model: TransitionTransformer, trajectories: Trajectories, paths: MacroPaths
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the (path, cohort) pairs that occur: (R,T,4,7), and per history its pair and first column.

    Raises:
        DataError: a history lies outside the macro paths' months.
    """
    first = trajectories.start_month - paths.start_month
    last = first + trajectories.lengths
    if first.min() < 0 or last.max() > paths.n_months:
        raise DataError(
            "histories outside the macro paths' months",
            expected=f"0..{paths.n_months} months after the paths begin",
            got=f"{first.min()}..{last.max()}",
        )
    path = paths.rows_of(trajectories.keys)
    cohorts = trajectories.cohorts
    pairs, rows_of = np.unique(path * cohorts.height + trajectories.cohort_row, return_inverse=True)
    vintage = np.array([month.year * 12 + month.month - 1 for month in cohorts["vintage_month"]])
    used, path_of = np.unique(pairs // cohorts.height, return_inverse=True)
    cohort_of = pairs % cohorts.height
    device = transition_model.base.device
    features = matrix_from(cohorts, COHORT_FEATURES)[cohort_of]
    age0 = torch.from_numpy((paths.start_month - 1 - vintage)[cohort_of]).float()
    macro = torch.from_numpy(paths.values[used].astype(np.float32)).to(device)
    calendar = torch.from_numpy(calendar_features(paths.start_month + np.arange(paths.n_months))).to(device)
    transition_model.eval()
    with torch.no_grad():
        parts = [
            transition_model.pair_rows(
                features[some].to(device),
                macro,
                torch.from_numpy(path_of)[some].to(device),
                calendar,
                age0[some].to(device),
            )
            for some in torch.arange(len(pairs)).split(512)
        ]
    return torch.cat(parts).cpu(), torch.from_numpy(rows_of), torch.from_numpy(first)


def rows_for(
    trajectories: Trajectories, transition_model: TransitionTransformer | None, macro_data: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`cohort_rows` of a transition model along `macro_data` or the histories' own macro, else `class_rows`.

    Raises:
        DataError: there is a transition model but no macro.
    """
    if transition_model is None:
        return class_rows(trajectories)
    paths = macro_paths(macro_data) if macro_data is not None else trajectories.macro
    if paths is None:
        raise DataError("cohort rows need the macro paths", expected="macro_data=...", got=None)
    return cohort_rows(transition_model, trajectories, paths)


def class_rows(trajectories: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """`cohort_rows` without a transition model: each class's mean row before the final month."""
    states = torch.from_numpy(trajectories.states).long()
    initial = torch.from_numpy(trajectories.initial_state).long()
    previous = previous_states(states, initial, states.shape[0], states.shape[1], states.device)
    code = torch.nan_to_num(raw_features(trajectories)[:, : len(ASSET_CLASSES)]).argmax(1)
    chosen = torch.from_numpy(trajectories.mask & ~trajectories.is_final) & (previous < N_LIVING)
    target = torch.where(states == LoanState.matured, torch.full_like(states, LoanState.prepaid), states)
    cell = (code[:, None] * N_LIVING + previous) * N_STATES + target
    counts = torch.bincount(cell[chosen], minlength=len(ASSET_CLASSES) * N_LIVING * N_STATES)
    counts = counts.view(len(ASSET_CLASSES), N_LIVING, N_STATES).double()
    alive = torch.from_numpy(trajectories.mask) & (previous < N_LIVING)
    seen = torch.bincount((previous * N_STATES + target)[alive], minlength=N_LIVING * N_STATES)
    # A move seen only in final months is rare, not impossible.
    pooled = counts.sum(0) + 1e-3 * (seen.view(N_LIVING, N_STATES) > 0)
    stay = torch.eye(N_STATES, dtype=torch.double)[:N_LIVING]
    total = pooled.sum(-1, keepdim=True)
    pooled = torch.where(total > 0, pooled / total.clamp(min=1e-9), stay)
    rows = (counts + 5.0 * pooled) / (counts.sum(-1, keepdim=True) + 5.0)
    return rows.float()[:, None], code, torch.zeros(len(code), dtype=torch.long)


def trajectory_data(
    trajectories: Trajectories, rows: tuple[Tensor, Tensor, Tensor], taught: np.ndarray | None = None
) -> TrajectoryData:
    """Tensors of histories beside their cohorts' rows; histories that never begin alive are left out."""
    raw = torch.from_numpy(trajectories.states).long()
    final = torch.from_numpy(trajectories.is_final)
    paid_up = final & ((raw == LoanState.performing) | (raw == LoanState.prepaid))
    early = ~final & (raw == LoanState.matured)
    booked = torch.where(paid_up, torch.full_like(raw, LoanState.matured), raw)
    booked = torch.where(early, torch.full_like(raw, LoanState.prepaid), booked)
    living = (raw >= 0) & (raw < N_LIVING)
    is_default = raw == LoanState.default
    recovery = torch.from_numpy(trajectories.recovery_rate)[:, None].expand(raw.shape)
    ratio = torch.from_numpy(trajectories.payment_ratio).clamp(0.0, MAX_PAYMENT_RATIO)
    values = torch.stack([ratio, (1.0 - torch.nan_to_num(recovery)).clamp(0.0, 1.0)], dim=-1)
    known = torch.stack([living & torch.isfinite(ratio), is_default & torch.isfinite(recovery)], dim=-1)
    features = raw_features(trajectories)
    seen = torch.where(living & (ratio >= 0), ratio.clamp(max=MAX_RATIO), torch.nan)
    return TrajectoryData(
        features=features,
        states=booked,
        raw_states=raw,
        initial_state=torch.from_numpy(trajectories.initial_state).long(),
        since0=torch.from_numpy(trajectories.initial_months_since_miss).long(),
        is_final=final,
        rows=rows[0],
        rows_of=rows[1],
        first_column=rows[2],
        values=torch.where(known, torch.nan_to_num(values), torch.zeros_like(values)).float(),
        known=known,
        lengths=torch.from_numpy(trajectories.lengths).long(),
        calendar=torch.from_numpy(trajectories.calendar().astype(np.uint8)),
        paid=torch.cat([features[:, -WINDOW:], seen], dim=1).float(),
        taught=None if taught is None else torch.from_numpy(taught.astype(np.float32)),
    )
