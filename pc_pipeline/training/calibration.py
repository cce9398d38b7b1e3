"""Stage 3: last corrections after training, each in closed form, each with a before and an after.

Here: default (and other) rates by class through intercepts, macro correlations through the decoder's
factor, recoveries through the quantiles of the value head. Not here: training (`training.joint`).
Formulas are numbered in docs/methods/joint.md, section 6.

A correction is kept only where it improves what it is for and the model's own log-loss is not more than
1 % worse; otherwise the model comes back as it was, and the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, previous_states
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, N_MACRO
from pc_pipeline.training.trajectories import (
    TrajectoryData,
    class_rows,
    cohort_rows,
    outputs,
    trajectory_data,
)

GUARD: Final = 0.01
SHRINK: Final = 5.0  # moves added to both sides of a ratio: a cell with few moves hardly shifts
MAX_SHIFT: Final = 1.0  # largest change of one intercept, log-odds
_PASSES: Final = 2
_MAX_HISTORIES: Final = 6000
_FEW_GROUPS: Final = 8
_MIN_DEFAULTS: Final = 30
_SEVERITY: Final = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was corrected.

    Attributes:
        table: rows of measure, group, observed, before, after.
        is_kept: by correction ('default_rates', 'macro_correlations', 'recoveries').
    """

    table: pl.DataFrame
    is_kept: dict[str, bool]


def calibrate(
    macro_vae: MacroVAE,
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
    loans: Any,
    panel: Any,
    macro_data: Any,
    *,
    seed: int = 0,
) -> Calibration:
    """Run the three corrections in place.

    Args:
        loans, panel: tape and panel. macro_data: table `macro_scenarios` the panel lived through.

    Raises:
        DataError: tables that do not fit.
    """
    paths = macro_paths(macro_data)
    trajectories = prepare_trajectories(panel, loans, macro_data)
    rates = calibrate_rates(transition_model, trajectory_model, trajectories, macro_data)
    known = [k for k, key in enumerate(paths.keys) if key[0] in macro_vae.scenario_labels]
    values = torch.from_numpy(paths.values[known]).float()
    labels = torch.tensor([macro_vae.scenario_code(paths.keys[k][0]) for k in known], dtype=torch.long)
    macro = calibrate_macro(macro_vae, values, labels)
    recovery = calibrate_recoveries(trajectory_model, trajectories, seed=seed)
    parts = (("default_rates", rates), ("macro_correlations", macro), ("recoveries", recovery))
    schema = {
        "measure": pl.String,
        "group": pl.String,
        "observed": pl.Float64,
        "before": pl.Float64,
        "after": pl.Float64,
    }
    rows = [row for _, (found, _) in parts for row in found]
    return Calibration(
        table=pl.DataFrame(rows, schema=schema, orient="row"),
        is_kept={name: kept for name, (_, kept) in parts},
    )


Rows = list[tuple[str, str, float, float, float]]

# ---- default rates ------------------------------------------------------------------------------


@torch.no_grad()
def calibrate_rates(
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
    trajectories: Trajectories,
    macro_data: Any,
) -> tuple[Rows, bool]:
    """Shift each class's intercepts towards where expected moves equal observed ones, eq. (12).

    Expected moves are one month ahead, loan by loan given its own past, so the shift corrects the pair
    (cohort model, loan model) as it is used. A cell moves only by the part of its gap that its spread over
    macro paths (over groups of loans, with few paths) does not explain: matching a few paths to the last
    default would teach their luck. Default rates by class and vintage year are reported.
    """
    paths = macro_paths(macro_data)
    start = transition_model.base.detach().clone()
    before = _expected_moves(transition_model, trajectory_model, trajectories, paths)
    now, beyond = before, _beyond_chance(before)
    for _ in range(_PASSES):
        ratio = torch.log((now.observed + SHRINK) / (now.expected + SHRINK)) * beyond
        moved = transition_model.base + ratio * transition_model.allowed
        transition_model.base.copy_(start + (moved - start).clamp(-MAX_SHIFT, MAX_SHIFT))
        now = _expected_moves(transition_model, trajectory_model, trajectories, paths)
    gaps = [_default_gap(moves) for moves in (before, now)]
    kept = gaps[1] <= gaps[0] and now.log_loss <= before.log_loss * (1 + GUARD)
    if not kept:
        transition_model.base.copy_(start)
        now = before
    rows: Rows = [("log_loss", "all", float("nan"), before.log_loss, now.log_loss)]
    for code, name in enumerate(ASSET_CLASSES):
        if float(before.months[code]) > 0:
            share = [
                float(value[code, :, LoanState.default].sum() / before.months[code])
                for value in (before.observed, before.expected, now.expected)
            ]
            rows.append(("monthly_default_rate", name, share[0], share[1], share[2]))
    for label, observed, first in before.by_cohort:
        second = {row[0]: row[2] for row in now.by_cohort}[label]
        rows.append(("defaults", label, observed, first, second))
    return rows, kept


def _beyond_chance(moves: _Moves) -> Tensor:
    """(4,4,7) positive-part shrinkage max(0, 1 - se^2 / r^2) of the log ratios r of eq. (12): eq. (13).

    se is that of a ratio over G groups, at least that of a Poisson count:
    se^2 = max(G / (G - 1) sum_g (O_g - (O / E) E_g)^2 / O^2, 1 / O).
    """
    observed, expected = moves.observed_by_group, moves.expected_by_group
    groups = len(observed)
    level = moves.observed / moves.expected.clamp(min=1e-9)
    spread = groups / max(groups - 1, 1) * (observed - level * expected).square().sum(0)
    seen = moves.observed + SHRINK
    noise = torch.maximum(spread / seen.square(), 1.0 / seen)
    ratio = torch.log(seen / (moves.expected + SHRINK))
    return (1.0 - noise / ratio.square().clamp(min=1e-12)).clamp(min=0.0)


@dataclass(frozen=True, kw_only=True)
class _Moves:
    """Observed and expected moves (4 classes, 4, 7), loan-months (4,), mean log-loss, defaults by cohort.

    observed_by_group, expected_by_group: (G, 4, 4, 7) by macro path, or by groups of loans with few paths.
    """

    months: Tensor
    log_loss: float
    by_cohort: list[tuple[str, float, float]]
    observed_by_group: Tensor
    expected_by_group: Tensor

    @property
    def observed(self) -> Tensor:
        """(4, 4, 7) moves before the final month; maturity mixes performing and prepaid."""
        return self.observed_by_group.sum(0)

    @property
    def expected(self) -> Tensor:
        """(4, 4, 7) beside them."""
        return self.expected_by_group.sum(0)


def _expected_moves(
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
    trajectories: Trajectories,
    paths: Any,
) -> _Moves:
    trajectory_model.eval()
    data = trajectory_data(trajectories, cohort_rows(transition_model, trajectories, paths))
    n_classes = len(ASSET_CLASSES)
    every, group = _thinned(data), _groups(trajectories)
    shape = (int(group.max()) + 1, n_classes, N_LIVING, N_STATES)
    observed, expected = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    months, total, count = torch.zeros(n_classes, dtype=torch.float64), 0.0, 0
    defaults = torch.zeros(len(data), 2, dtype=torch.float64)
    code = torch.nan_to_num(data.features[:, :n_classes]).argmax(1)
    for rows in every.split(1024):
        batch = data.take(rows)
        chance = outputs(trajectory_model, batch)["state_logits"].double().softmax(-1)
        n_loans, n_months = batch.raw_states.shape
        previous = previous_states(batch.raw_states, batch.initial_state, n_loans, n_months, chance.device)
        seen = (batch.states >= 0) & (previous < N_LIVING)
        happened = torch.nn.functional.one_hot(batch.states.clamp(min=0), N_STATES).double()
        total -= float(
            chance.gather(2, batch.states.clamp(min=0)[..., None])[..., 0][seen].clamp(min=1e-12).log().sum()
        )
        count += int(seen.sum())
        defaults[rows, 0] = (happened[..., LoanState.default] * seen).sum(1)
        defaults[rows, 1] = (chance[..., LoanState.default] * seen).sum(1)
        # Before the final month only: maturity mixes performing and prepaid.
        plain = seen & ~batch.is_final
        place = ((group[rows] * n_classes + code[rows])[:, None] * N_LIVING + previous)[plain]
        observed.view(-1, N_STATES).index_add_(0, place, happened[plain])
        expected.view(-1, N_STATES).index_add_(0, place, chance[plain])
        months.index_add_(0, code[rows], plain.sum(1).double())
    return _Moves(
        months=months,
        log_loss=total / max(count, 1),
        by_cohort=_by_cohort(trajectories, code, defaults, every),
        observed_by_group=observed,
        expected_by_group=expected,
    )


def _groups(trajectories: Trajectories) -> Tensor:
    """(N,) macro path of each history; with fewer than `_FEW_GROUPS` paths, a group of loans."""
    keys = trajectories.keys.select(pl.struct("scenario", "macro_path_id").rank("dense") - 1).to_series()
    if int(str(keys.max())) + 1 >= _FEW_GROUPS:
        return torch.from_numpy(keys.to_numpy().astype(np.int64))
    return torch.from_numpy(trajectories.loan_row.astype(np.int64) % _FEW_GROUPS)


def _thinned(data: TrajectoryData) -> Tensor:
    """At most `_MAX_HISTORIES` histories, evenly spread."""
    step = max(1, len(data) // _MAX_HISTORIES)
    return torch.arange(0, len(data), step)


def _by_cohort(
    trajectories: Trajectories, code: Tensor, defaults: Tensor, rows: Tensor
) -> list[tuple[str, float, float]]:
    """(class and vintage year, observed defaults, expected defaults)."""
    years = np.array([month.year for month in trajectories.cohorts["vintage_month"]])[trajectories.cohort_row]
    labels = [f"{ASSET_CLASSES[int(code[k])]} {years[k]}" for k in rows.tolist()]
    frame = pl.DataFrame(
        {"label": labels, "observed": defaults[rows, 0].numpy(), "expected": defaults[rows, 1].numpy()}
    )
    return (
        frame.group_by("label", maintain_order=True)
        .agg(pl.col("observed", "expected").sum())
        .sort("label")
        .rows()
    )


def _default_gap(moves: _Moves) -> float:
    """Sum over classes of |log expected / observed| defaults, shrunk."""
    observed, expected = (value[..., LoanState.default].sum(1) for value in (moves.observed, moves.expected))
    return float(torch.log((expected + SHRINK) / (observed + SHRINK)).abs().sum())


# ---- macro correlations -------------------------------------------------------------------------


@torch.no_grad()
def calibrate_macro(model: MacroVAE, paths: Tensor, labels: Tensor) -> tuple[Rows, bool]:
    """Whiten the innovations of the data: L <- L chol(C), with C their second moments, eq. (14).

    With few paths C is noise: below 20 innovations per entry nothing is done.
    """
    n_innovations = len(paths) * (paths.shape[1] - 1) if len(paths) else 0
    if n_innovations < 20 * N_MACRO * (N_MACRO + 1) // 2:
        return [], False
    start = {name: value.clone() for name, value in model.state_dict().items()}
    first = _innovation_moments(model, paths, labels)
    nll = float(model.bound(paths, labels)["nll"].mean())
    factor = model._factor(model.log_diagonal_M, model.below_diagonal) @ torch.linalg.cholesky(first).float()
    below_rows, below_columns = model.below_MM
    model.log_diagonal_M.copy_(torch.log(factor.diagonal()))
    model.below_diagonal.copy_(factor[below_rows, below_columns])
    second = _innovation_moments(model, paths, labels)
    eye = torch.eye(N_MACRO, dtype=torch.float64)
    gaps = [float((moments - eye).abs().max()) for moments in (first, second)]
    kept = gaps[1] <= gaps[0] and float(model.bound(paths, labels)["nll"].mean()) <= nll + GUARD * abs(nll)
    if not kept:
        model.load_state_dict(start)
    return [("innovation_moments_gap", "macro", 0.0, gaps[0], gaps[1] if kept else gaps[0])], kept


def _innovation_moments(model: MacroVAE, paths: Tensor, labels: Tensor) -> Tensor:
    eps = model.innovations(paths, labels)[0][:, 1:].reshape(-1, N_MACRO).double()
    return eps.T @ eps / len(eps)


# ---- recoveries ---------------------------------------------------------------------------------


@torch.no_grad()
def calibrate_recoveries(
    model: LoanTrajectoryModel, trajectories: Trajectories, *, seed: int = 0
) -> tuple[Rows, bool]:
    """Map the quantiles of drawn severities onto the observed ones, eq. (15)."""
    severity = 1.0 - trajectories.recovery_rate[np.isfinite(trajectories.recovery_rate)].astype(np.float64)
    if len(severity) < _MIN_DEFAULTS:
        return [], False
    knots = model.value_head.transform.knots
    start = knots.clone()
    before = _drawn_severities(model, trajectories, seed)
    levels = np.linspace(0.0, 1.0, knots.shape[-1])
    old = knots[LoanState.default, _SEVERITY].double().numpy()
    rank = np.interp(old, np.quantile(before, levels), levels)
    mapped = np.maximum.accumulate(np.quantile(severity, rank))
    knots[LoanState.default, _SEVERITY] = torch.from_numpy(mapped).to(knots)
    after = _drawn_severities(model, trajectories, seed)
    gaps = [
        float(np.abs(np.quantile(drawn, levels) - np.quantile(severity, levels)).mean())
        for drawn in (before, after)
    ]
    kept = gaps[1] <= gaps[0]
    if not kept:
        knots.copy_(start)
        after = before
    rows: Rows = [
        ("severity", label, float(measure(severity)), float(measure(before)), float(measure(after)))
        for label, measure in (
            ("mean", np.mean),
            ("sd", np.std),
            ("p10", lambda x: np.quantile(x, 0.1)),
            ("p90", lambda x: np.quantile(x, 0.9)),
        )
    ]
    return rows, kept


def _drawn_severities(model: LoanTrajectoryModel, trajectories: Trajectories, seed: int) -> np.ndarray:
    """Severities the value head draws for the observed defaults, given their own histories."""
    data = trajectory_data(trajectories, class_rows(trajectories))
    chosen = (data.states == LoanState.default).any(1).nonzero()[:, 0]
    batch = data.take(chosen)
    context = outputs(model, batch)["value_params"]
    at = batch.states == LoanState.default
    generator = torch.Generator().manual_seed(derive_seed(seed, "calibration", "severity"))
    values = model.value_head.sample(
        context[at], batch.states[at], generator=generator, window_NW=batch.windows[at]
    )
    return values[..., _SEVERITY].double().numpy()
