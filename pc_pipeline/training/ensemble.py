"""How far would the loan models be from themselves, had other loans and macro paths been seen?

Here: `refit_ensemble`, members moved from the trained pair as a resample of its data would move them. Not
here: the history classes (`simulation`, handed in), what is simulated with the members (`engines`), the first
training.

The unit of a resample is the macro path, drawn with replacement within its scenario: loans of one path share
its luck (Davison and Hinkley 1997, 3.8). Where a scenario has one path its loans are drawn, and uncertainty
about macro effects is not seen. A resample counts unit c w_c times. A part of a model that is a multinomial
logit with linear terms moves by one step of Newton's method (the one-step bootstrap, Shao and Tu 1995, 5.4),

    delta = H^-1 sum_c (w_c - 1) s_c,    H = - Hessian of log-likelihood and log-prior, s_c score of c    (1)

both at the part's own best fit (a few Newton steps from where the model stands).

First the additive part of the transition model (levels, season, macro effects), its network as an offset;
then levels and slopes of the compiled loan model, on rows that the first step has moved: what one part has
learnt the other does not learn again. H is block-diagonal by starting state. The networks' hidden layers
stay: the spread is a lower bound. docs/methods/analytics.md, section 5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
import torch
from scipy.linalg import cho_solve

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.loan_residual import N_MOVES, LoanResidual
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, LOAN_FEATURES, N_MACRO
from pc_pipeline.training.trajectory_data import cohort_rows, raw_features
from pc_pipeline.training.transitions import additive_prior_sd

# states (N, T), initial state (N,), months since a miss (N,) -> history class held before each month (N, T)
Histories = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]
_FEWEST_PATHS: Final = 2  # of a scenario, to be drawn; with one its loans are
_LEVEL_SD: Final = 1.0  # prior of a loan level, logits
_LEAST_SLOPE_SD: Final = 1e-3
_FOR_HESSIAN: Final = 60_000  # loan-months of a state; more are thinned
_NEWTON: Final = 3
_LONGEST: Final = 2.0  # logits a term moves in one step towards the best fit
_N_CLASSES: Final = len(ASSET_CLASSES)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleConfig:
    """Size of an ensemble.

    Attributes:
        members: >= 1. seed: of the resamples.
    """

    members: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ConfigError("an ensemble needs members", expected=">= 1", got=self.members)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One refitted pair, in eval mode; residual is None where there was none. seed: of its resample."""

    transitions: TransitionTransformer
    residual: LoanResidual | None
    seed: int


def refit_ensemble(
    transition_model: TransitionTransformer,
    residual: LoanResidual | None,
    loans: pl.DataFrame,
    panel: pl.DataFrame,
    macro_data: pl.DataFrame,
    histories: Histories,
    config: EnsembleConfig | None = None,
    *,
    progress: Progress | None = None,
) -> list[Member]:
    """Members of an ensemble; the trained pair itself is left alone.

    Args:
        residual: the compiled loan model. loans, panel, macro_data: what the pair learned from;
            `macro_data` the paths the panel lived through.
        histories: `simulation.history.history_along`.
        progress: called with members done, members in all.

    Returns:
        Members; member k depends on the seed and on k only, not on how many there are.

    Raises:
        DataError: tables that do not fit.
    """
    chosen = config or EnsembleConfig()
    seen = panel.select("scenario", "macro_path_id").unique()
    known = macro_data.join(seen, on=["scenario", "macro_path_id"], how="semi", maintain_order="left")
    tracks = prepare_trajectories(panel, loans, known)
    moves = observed_moves(transition_model, tracks, known, histories)
    cohort_parts = [_cohort_part(transition_model, moves, state) for state in range(N_LIVING)]
    loan_parts = [] if residual is None else [_loan_part(residual, tracks, moves, k) for k in range(N_LIVING)]
    found = []
    for number in range(chosen.members):
        seed = derive_seed(chosen.seed, "ensemble", number)
        weights = resample(moves.groups, seed)
        deltas = [part.step(weights) for part in cohort_parts]
        transitions = copy.deepcopy(transition_model)
        _move_transitions(transitions, deltas)
        member_residual = None
        if residual is not None:
            member_residual = copy.deepcopy(residual)
            for cohort, loan, delta in zip(cohort_parts, loan_parts, deltas, strict=True):
                _move_residual(member_residual, loan, loan.step(weights, shift=cohort.logits(delta)))
            member_residual.eval()
        found.append(Member(transitions=transitions.eval(), residual=member_residual, seed=seed))
        if progress is not None:
            progress(number + 1, chosen.members)
    return found


# ---- observations --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Observed monthly moves of living loans before the final month, N in all.

    Attributes:
        origin, target: (N,) states; maturity ahead of the final month is a prepayment.
        history: (N,) class 0..14. track: (N,) row of the trajectories. unit: (N,) what is resampled.
        groups: units that are drawn among one another. log_rows: (N, 7) log of the cohort's row.
        asset: (N,) class code. z: (N, 9) scaled macro of the month. calendar: (N, 2).
        n_months: of the macro paths.
    """

    origin: np.ndarray
    target: np.ndarray
    history: np.ndarray
    track: np.ndarray
    unit: np.ndarray
    groups: list[np.ndarray]
    log_rows: np.ndarray
    asset: np.ndarray
    z: np.ndarray
    calendar: np.ndarray
    n_months: int


def observed_moves(
    model: TransitionTransformer, tracks: Trajectories, macro_data: pl.DataFrame, histories: Histories
) -> Moves:
    """Every move the histories hold, with the row its cohort gave it."""
    states = tracks.states.astype(np.int64)
    previous = np.concatenate([tracks.initial_state.astype(np.int64)[:, None], states[:, :-1]], axis=1)
    used = tracks.mask & ~tracks.is_final & (previous >= 0) & (previous < N_LIVING)
    track, column = np.nonzero(used)
    origin, target = previous[used], states[used]
    target = np.where(target == LoanState.matured, int(LoanState.prepaid), target)
    paths = macro_paths(macro_data)
    rows, rows_of, first = cohort_rows(model, tracks, paths)
    month = first.numpy()[track] + column
    given = rows.numpy()[rows_of.numpy()[track], month, origin]
    path = paths.rows_of(tracks.keys)
    unit_of_track, groups = _units(tracks, path)
    macro = torch.from_numpy(paths.values.astype(np.float32))
    with torch.no_grad():
        z = model.macro_scale(macro).numpy()
    classes = histories(tracks.states, tracks.initial_state, tracks.initial_months_since_miss)
    asset = np.nan_to_num(raw_features(tracks).numpy()[:, :_N_CLASSES]).argmax(axis=1)
    return Moves(
        origin=origin,
        target=target,
        history=classes[used],
        track=track,
        unit=unit_of_track[track],
        groups=groups,
        log_rows=np.log(np.maximum(given, 1e-30), where=given > 0, out=np.full(given.shape, -np.inf)),
        asset=asset[track],
        z=z[path[track], month],
        calendar=tracks.calendar()[track, column].astype(np.int64),
        n_months=paths.n_months,
    )


def _units(tracks: Trajectories, path: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(unit of each history, units by scenario): macro paths, or the loans of a scenario's only path."""
    scenario = tracks.keys["scenario"].to_numpy()
    unit, groups, used = np.empty(len(tracks), dtype=np.int64), [], 0
    for name in np.unique(scenario):
        here = np.flatnonzero(scenario == name)
        _, own = np.unique(path[here], return_inverse=True)
        if own.max() + 1 < _FEWEST_PATHS:
            _, own = np.unique(tracks.loan_row[here], return_inverse=True)
        unit[here] = own + used
        groups.append(np.arange(used, used + int(own.max()) + 1))
        used += int(own.max()) + 1
    return unit, groups


def resample(groups: list[np.ndarray], seed: int) -> np.ndarray:
    """(U,) how often each unit is drawn: with replacement within its group, as many as it has."""
    random = stream(seed, "ensemble", "resample")
    counts = np.zeros(sum(len(group) for group in groups))
    for group in groups:
        counts[group] = np.bincount(random.integers(0, len(group), len(group)), minlength=len(group))
    return counts


# ---- one part: a multinomial logit of one starting state --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """Linear terms of one starting state at the point where the models stand.

    Attributes:
        x: (N, F) design. offset: (N, J) logits at that point. y: (N,) move. unit: (N,).
        allowed: (J,) bool, J' of them. factor: Cholesky factor of H, (J' F, J' F).
    """

    x: np.ndarray
    offset: np.ndarray
    y: np.ndarray
    unit: np.ndarray
    allowed: np.ndarray
    factor: np.ndarray

    def step(self, weights_U: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
        """(F, J) eq. (1); `shift` (N, J): logits that another part has moved by meanwhile."""
        missed = self.missed()
        moved = missed if shift is None else self.missed(shift)
        return self.solve(self.x.T @ (weights_U[self.unit][:, None].astype(np.float32) * moved - missed))

    def solve(self, score: np.ndarray) -> np.ndarray:
        """(F, J) H^-1 score; 0 for moves that cannot be."""
        found = np.zeros(score.shape)
        flat = score[:, self.allowed].T.reshape(-1).astype(np.float64)
        found[:, self.allowed] = cho_solve((self.factor, True), flat).reshape(-1, len(score)).T
        return found

    def logits(self, delta: np.ndarray) -> np.ndarray:
        """(N, J) what a step does to the logits."""
        return np.asarray(self.x @ delta.astype(np.float32))

    def missed(self, shift: np.ndarray | None = None) -> np.ndarray:
        """(N, J) what happened less its probability."""
        p = -softmax(self.offset if shift is None else self.offset + shift[:, : self.offset.shape[1]])
        p[np.arange(len(p)), self.y] += 1.0
        return p


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def make_part(
    x: np.ndarray, offset: np.ndarray, y: np.ndarray, unit: np.ndarray, prior_sd: np.ndarray
) -> Part:
    """The part at its own best fit, with its Hessian there.

    Args:
        prior_sd: (F,) of each term, logits; normal, mean where the models stand.
    """
    allowed = np.isfinite(offset).any(axis=0) if len(offset) else np.zeros(offset.shape[1], dtype=bool)
    x, at = x.astype(np.float32, copy=False), np.zeros((x.shape[1], offset.shape[1]))
    precision = np.tile((1.0 / prior_sd**2)[:, None], (1, offset.shape[1]))
    part = Part(x=x, offset=offset, y=y, unit=unit, allowed=allowed, factor=np.zeros((0, 0)))
    for left in reversed(range(_NEWTON + 1)):
        part = replace(part, factor=_hessian_factor(part, prior_sd))
        if left == 0 or not len(y):
            break
        step = part.solve(x.T @ part.missed() - precision * at).clip(-_LONGEST, _LONGEST)
        at += step
        part = replace(part, offset=part.offset + part.logits(step))
    return part


def _hessian_factor(part: Part, prior_sd: np.ndarray) -> np.ndarray:
    kept = slice(0, None, max(1, -(-len(part.x) // _FOR_HESSIAN)))
    p = softmax(part.offset[kept])[:, part.allowed].astype(np.float64)
    design = part.x[kept].astype(np.float64)
    size, moves, scale = part.x.shape[1], p.shape[1], len(part.x) / max(len(p), 1)
    hessian = np.zeros((moves, size, moves, size))
    for i in range(moves):
        for j in range(i, moves):
            cell = p[:, i] * ((i == j) - p[:, j])
            hessian[i, :, j] = scale * design.T @ (design * cell[:, None])
            hessian[j, :, i] = hessian[i, :, j].T
    flat = hessian.reshape(moves * size, moves * size)
    flat[np.diag_indices(moves * size)] += np.tile(1.0 / prior_sd**2, moves)
    return np.linalg.cholesky(flat)


def _cohort_part(model: TransitionTransformer, moves: Moves, state: int) -> Part:
    """Additive terms: class levels, macro effects common and own (unless stated), month, weekday."""
    rows = np.flatnonzero(moves.origin == state)
    asset, z = _one_hot(moves.asset[rows], _N_CLASSES), moves.z[rows]
    own = (asset[:, :, None] * z[:, None, :]).reshape(len(rows), _N_CLASSES * N_MACRO)
    terms = {
        "level": asset,
        "month": _one_hot(moves.calendar[rows, 0], 12) - np.float32(1.0 / 12),
        "weekday": _one_hot(moves.calendar[rows, 1], 7) - np.float32(1.0 / 7),
    }
    terms |= {} if bool(model.macro_anchored) else {"shared": z, "own": own}
    sd = additive_prior_sd(bool(model.macro_anchored), moves.n_months)
    return make_part(
        np.concatenate(list(terms.values()), axis=1),
        moves.log_rows[rows],
        moves.target[rows],
        moves.unit[rows],
        np.concatenate([np.full(term.shape[1], sd[name]) for name, term in terms.items()]),
    )


def _one_hot(codes: np.ndarray, size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[codes]


def _move_transitions(model: TransitionTransformer, deltas: list[np.ndarray]) -> None:
    """Add the steps of all starting states to the additive part."""
    ends = np.cumsum([_N_CLASSES, 12, 7, N_MACRO])
    with torch.no_grad():
        for state, delta in enumerate(deltas):
            level, month, weekday, shared, own = (
                torch.from_numpy(np.ascontiguousarray(piece)).float() for piece in np.split(delta, ends)
            )
            cells = slice(state * N_STATES, (state + 1) * N_STATES)
            model.base[:, state] += level
            model.season.month[:, cells] += month
            model.season.weekday[:, cells] += weekday
            if len(shared):
                effect = own.view(_N_CLASSES, N_MACRO, N_STATES) + shared
                model.macro_effect[:, cells] += effect.transpose(1, 2)


def _loan_part(residual: LoanResidual, tracks: Trajectories, moves: Moves, state: int) -> Part:
    """A level for each history class, and slopes over the scaled features and their missing flags."""
    rows = np.flatnonzero(moves.origin == state)
    features = raw_features(tracks)[:, : len(LOAN_FEATURES)]
    with torch.inference_mode():
        own = residual(raw_features(tracks)).numpy()  # (tracks, classes, 6)
        x = residual_inputs(residual, features).numpy()
    classes = np.unique(moves.history[rows])
    level = (moves.history[rows][:, None] == np.arange(residual.config.n_classes)).astype(np.float32)
    log_rows = moves.log_rows[rows]
    offset = np.concatenate(
        [log_rows[:, : N_MOVES - 1], np.logaddexp(log_rows[:, 5:6], log_rows[:, 6:7])], axis=1
    )
    offset = offset + own[moves.track[rows], moves.history[rows]]
    spread = own[:, classes].std(axis=0).mean() if len(classes) else 0.0
    slope_sd = max(float(spread) / np.sqrt(x.shape[1]), _LEAST_SLOPE_SD)
    prior = np.concatenate([np.full(level.shape[1], _LEVEL_SD), np.full(x.shape[1], slope_sd)])
    return make_part(
        np.concatenate([level, x[moves.track[rows]]], axis=1),
        offset,
        moves.target[rows],
        moves.unit[rows],
        prior,
    )


def residual_inputs(residual: LoanResidual, features: torch.Tensor) -> torch.Tensor:
    """(N, 48) what the linear layer of the compiled model reads of (N, 24) raw features."""
    filler = torch.full((len(features), len(residual.scale.mean) - features.shape[1]), torch.nan)
    scaled = residual.scale(torch.cat([features, filler], dim=1))[:, : features.shape[1]]
    return torch.cat([scaled, torch.isnan(features).float()], dim=1)


def _move_residual(model: LoanResidual, part: Part, delta: np.ndarray) -> None:
    """Add a step of one starting state to the classes that lie in it."""
    n_classes = model.config.n_classes
    here = np.flatnonzero(part.x[:, :n_classes].any(axis=0))
    with torch.no_grad():
        bias = model.wide.bias.view(n_classes, N_MOVES)
        weight = model.wide.weight.view(n_classes, N_MOVES, -1)
        for row in here:
            bias[row] += torch.from_numpy(delta[row]).float()
            weight[row] += torch.from_numpy(np.ascontiguousarray(delta[n_classes:].T)).float()
