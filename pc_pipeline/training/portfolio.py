"""The portfolio side of joint fine-tuning: what history paid, and what the models expect to be paid.

Here: representative lines of a panel, observed pool cash on the loans' own clock, the models' expected
cash as a differentiable function of macro paths, and the distance between the two. Not here: the
optimisation (`training.joint`), the expectation itself (`models.expectation`), the deal (passed in).

Clock: month 0 is each loan's first observed month, so vintages are laid over each other on both sides
alike. The last month is the horizon, at which the living are sold (`expected_cash`, horizon_sale).
Formulas are numbered in docs/methods/joint.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.amortisation import amortisation_schedule
from pc_pipeline.loans.features import calendar_features
from pc_pipeline.loans.macro_index import MacroPaths
from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.models.expectation import Lines, expected_cash, representative_lines
from pc_pipeline.models.history import state_history
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel
from pc_pipeline.models.transition_transformer import TransitionTransformer, matrix_from
from pc_pipeline.schemas.states import N_LIVING
from pc_pipeline.schemas.units import ASSET_CLASSES, COHORT_FEATURES, LOAN_FEATURES, MACRO_NAMES
from pc_pipeline.training.trajectories import raw_features

MAX_HORIZON: Final = 60
MIN_HORIZON: Final = 6
# A performing loan's months since its last miss, as classes with a typical member each.
SINCE_CLASS: Final = (0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0)
_SINCE_TYPICAL: Final = (1, 4, 9)
_CLASS_STATE: Final = [0, 0, 0, 0, 1, 2, 3]  # state of each row class
_LEAD: Final = 3  # performing months before a probe's miss
DEFAULT_SEVERITY: Final = 0.5  # of a class without an observed default; our convention
TAIL_LEVEL: Final = 0.90
POLICY: Final = MACRO_NAMES.index("policy_rate")
_AGE, _RATE, _SPREAD, _FLOATING, _TERM, _SCORE = (
    LOAN_FEATURES.index(name)
    for name in ("age_months", "interest_rate", "spread", "is_floating", "term_months", "internal_score")
)

PayTranches = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class History:
    """Observed pool cash, one row per (scenario, macro path), each pool scaled to balance 1.

    Attributes:
        cash_PTC: (P, T, 5) shares of the initial balance. index_PT: (P, T) policy rate.
        scenario_P: (P,) position in `scenarios`. weight_P: (P,) share of the initial balance.
        loss_rate: of all loans. scenario_loss: (S,) loss rates. shrink: share of the spread of losses
            across paths that is not loan-level chance, 0..1. severity_C: (4,) by asset class.
    """

    cash_PTC: Tensor
    index_PT: Tensor
    scenario_P: Tensor
    weight_P: Tensor
    scenarios: tuple[str, ...]
    loss_rate: float
    scenario_loss: Tensor
    shrink: float
    severity_C: Tensor

    def losses(self) -> Tensor:
        """(P,) loss rates, their spread freed of loan-level chance, eq. (9)."""
        raw = (self.cash_PTC[..., 3] - self.cash_PTC[..., 4]).sum(1)
        return self.loss_rate + (raw - self.loss_rate) * self.shrink


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Representative lines with all that does not depend on weights or macro paths.

    Attributes:
        lines: on their own clock. features: (L, 24) raw. cohort_of, start_L: (L,) cohort row, and macro
            column of month 0. cohorts: (C, 12). age0_C: (C,) before macro column 0. calendar: (T, 2).
        is_floating, spread, coupon, severity: (L,). months: horizon.
    """

    lines: Lines
    features: Tensor
    cohort_of: Tensor
    start_L: Tensor
    cohorts: Tensor
    age0_C: Tensor
    calendar: Tensor
    is_floating: Tensor
    spread: Tensor
    coupon: Tensor
    severity: Tensor
    months: int

    @property
    def pool_balance(self) -> float:
        """Balance of all the loans that the lines stand for."""
        return float((self.lines.outstanding_L * self.lines.weight_L).sum())


def make_problem(
    trajectories: Trajectories, panel: pl.DataFrame, loans: pl.DataFrame, paths: MacroPaths, n_lines: int
) -> tuple[Problem, History]:
    """Lines and observed cash of the histories that are seen for the whole horizon.

    Raises:
        DataError: no history is long enough.
    """
    last = int(panel.select(month_index_expr("reporting_month").max()).item())
    seen = last - trajectories.start_month + 1
    keep, months = _whole_histories(trajectories, seen, paths)
    history = _observed(trajectories, panel, paths, keep, months)
    return _lines(trajectories, loans, paths, keep, months, n_lines, history.severity_C), history


def _whole_histories(
    trajectories: Trajectories, seen: np.ndarray, paths: MacroPaths
) -> tuple[np.ndarray, int]:
    """(rows, months): first histories of living loans seen for `months`, the longest horizon most allow."""
    keys = trajectories.keys.with_row_index("row")
    first = keys.unique(["scenario", "macro_path_id", "loan_id"], keep="first", maintain_order=True)["row"]
    is_first = np.zeros(len(trajectories), dtype=bool)
    is_first[first.to_numpy()] = True
    raw = raw_features(trajectories).numpy()
    age, term = np.nan_to_num(raw[:, _AGE]), np.nan_to_num(raw[:, _TERM], nan=0.0)
    state = trajectories.initial_state
    column = trajectories.start_month - paths.start_month
    sound = is_first & (state >= 0) & (state < N_LIVING) & (age < term) & (age >= state) & (column >= 0)
    sound &= trajectories.initial_balance > 0
    room = np.minimum(seen, paths.n_months - column)
    if not sound.any() or room[sound].max() < MIN_HORIZON:
        raise DataError(
            "no loan is observed for long enough", expected=f">= {MIN_HORIZON} months", where="panel"
        )
    months = int(np.clip(np.quantile(room[sound], 0.1), MIN_HORIZON, MAX_HORIZON))
    return np.flatnonzero(sound & (room >= months)), months


def _observed(
    trajectories: Trajectories, panel: pl.DataFrame, paths: MacroPaths, rows: np.ndarray, months: int
) -> History:
    """Pool cash by path on the loans' own clock."""
    keys = trajectories.keys[rows].with_columns(
        pl.Series("start", trajectories.start_month[rows]),
        pl.Series("opening", trajectories.initial_balance[rows]),
    )
    severity = _class_severities(panel)
    scaled = pl.col("asset_class").replace_strict(dict(zip(ASSET_CLASSES, severity.tolist(), strict=True)))
    frame = (
        panel.join(keys, on=["scenario", "macro_path_id", "loan_id"], how="inner")
        .with_columns((month_index_expr("reporting_month") - pl.col("start")).alias("month"))
        .filter((pl.col("month") >= 0) & (pl.col("month") < months))
        .with_columns(severity=scaled, is_end=pl.col("month") == months - 1)
    )
    left, late = pl.col("outstanding_balance"), pl.col("loan_state") == 3
    frame = frame.with_columns(
        interest=pl.col("interest_paid"),
        scheduled=pl.col("principal_paid") - pl.col("prepayment_amount"),
        prepaid=pl.col("prepayment_amount") + pl.when(pl.col("is_end") & ~late).then(left).otherwise(0.0),
        defaulted=pl.col("charge_off_amount") + pl.when(pl.col("is_end") & late).then(left).otherwise(0.0),
        recovered=pl.col("recovery_amount")
        + pl.when(pl.col("is_end") & late).then(left * (1 - pl.col("severity"))).otherwise(0.0),
    )
    channels = ["interest", "scheduled", "prepaid", "defaulted", "recovered"]
    pools = (
        keys.group_by("scenario", "macro_path_id", maintain_order=True)
        .agg(pl.col("opening").sum())
        .sort("scenario", "macro_path_id")
    )
    by_path = {key: number for number, key in enumerate(pools.select("scenario", "macro_path_id").rows())}
    totals = frame.group_by("scenario", "macro_path_id", "month", maintain_order=True).agg(
        pl.col(channels).sum()
    )
    cash = np.zeros((pools.height, months, len(channels)))
    place = [by_path[key] for key in totals.select("scenario", "macro_path_id").rows()]
    cash[place, totals["month"].to_numpy()] = totals.select(channels).to_numpy()
    opening = pools["opening"].to_numpy()
    scenarios = tuple(dict.fromkeys(pools["scenario"]))
    code = np.array([scenarios.index(name) for name in pools["scenario"]])
    loss_P = (cash[..., 3] - cash[..., 4]).sum(1)
    start = int(np.median(trajectories.start_month[rows])) - paths.start_month
    path_row = paths.rows_of(pools)
    return History(
        cash_PTC=torch.from_numpy(np.clip(cash / opening[:, None, None], 0.0, None)),
        index_PT=torch.from_numpy(paths.values[path_row, start : start + months, POLICY]),
        scenario_P=torch.from_numpy(code),
        weight_P=torch.from_numpy(opening / opening.sum()),
        scenarios=scenarios,
        loss_rate=float(loss_P.sum() / opening.sum()),
        scenario_loss=torch.tensor(
            [loss_P[code == k].sum() / opening[code == k].sum() for k in range(len(scenarios))]
        ),
        shrink=_systematic_share(frame, opening, loss_P / opening),
        severity_C=torch.from_numpy(severity),
    )


def _class_severities(panel: pl.DataFrame) -> np.ndarray:
    """(4,) loss over charge-off by class; `DEFAULT_SEVERITY` where nothing defaulted."""
    sums = panel.group_by("asset_class", maintain_order=True).agg(
        pl.col("charge_off_amount").sum(), pl.col("loss_amount").sum()
    )
    found = {row[0]: (row[1], row[2]) for row in sums.rows()}
    values = []
    for name in ASSET_CLASSES:
        charged, lost = found.get(name, (0.0, 0.0))
        values.append(float(np.clip(lost / charged, 0.0, 1.0)) if charged > 0 else DEFAULT_SEVERITY)
    return np.array(values)


def _systematic_share(frame: pl.DataFrame, opening: np.ndarray, loss_P: np.ndarray) -> float:
    """sqrt of the share of the variance of path losses that loans' own luck does not explain, eq. (9)."""
    if len(loss_P) < 3:
        return 1.0
    loan = frame.group_by("scenario", "macro_path_id", "loan_id", maintain_order=True).agg(
        (pl.col("defaulted") - pl.col("recovered")).sum().alias("loss")
    )
    chance = loan.group_by("scenario", "macro_path_id", maintain_order=True).agg(
        (pl.col("loss").var() * pl.len()).alias("v")
    )
    own = chance.sort("scenario", "macro_path_id")["v"].fill_null(0.0).to_numpy() / opening**2
    total = float(np.var(loss_P, ddof=1))
    return float(np.sqrt(np.clip(1.0 - own.mean() / total, 0.05, 1.0))) if total > 0 else 1.0


def _lines(
    trajectories: Trajectories,
    loans: pl.DataFrame,
    paths: MacroPaths,
    rows: np.ndarray,
    months: int,
    n_lines: int,
    severity_C: Tensor,
) -> Problem:
    raw = raw_features(trajectories).numpy()[rows]
    code = np.nan_to_num(raw[:, : len(ASSET_CLASSES)]).argmax(1)
    state = trajectories.initial_state[rows].astype(np.int64)
    # Sorted by what losses hang on most: class, state, own risk (score), then the schedule.
    keys = np.stack([code, state, raw[:, _SCORE], raw[:, _TERM] - raw[:, _AGE], raw[:, _RATE]], 1)
    picked, weight = representative_lines(trajectories.initial_balance[rows], np.nan_to_num(keys), n_lines)
    chosen, raw = rows[picked], raw[picked]
    tape = loans[trajectories.loan_row[chosen].tolist()]
    schedule = amortisation_schedule(
        tape["original_balance"].to_numpy(),
        tape["interest_rate"].to_numpy(),
        tape["term_months"].to_numpy(),
        tape["amortization_type"].to_numpy(),
    )
    age = np.minimum(np.nan_to_num(raw[:, _AGE]).round().astype(np.int64), tape["term_months"].to_numpy() - 1)
    since = trajectories.initial_months_since_miss[chosen].astype(np.int64)
    lines = Lines.make(
        torch.from_numpy(schedule),
        torch.from_numpy(tape["term_months"].to_numpy().astype(np.int64)),
        torch.from_numpy(age),
        torch.from_numpy(state[picked]),
        torch.from_numpy(state[picked]),
        torch.from_numpy(np.where(state[picked] > 0, 0, since)),
    )
    opening = torch.from_numpy(trajectories.initial_balance[chosen])
    lines = dataclasses.replace(
        lines, weight_L=torch.from_numpy(weight) * opening / lines.outstanding_L.clamp(min=0.01)
    )
    cohorts = trajectories.cohorts
    vintage = np.array([month.year * 12 + month.month - 1 for month in cohorts["vintage_month"]])
    used, cohort_of = np.unique(trajectories.cohort_row[chosen], return_inverse=True)
    floating = torch.from_numpy(np.nan_to_num(raw[:, _FLOATING]) > 0.5)
    return Problem(
        lines=lines,
        features=torch.from_numpy(raw),
        cohort_of=torch.from_numpy(cohort_of),
        start_L=torch.from_numpy(trajectories.start_month[chosen] - paths.start_month),
        cohorts=matrix_from(cohorts, COHORT_FEATURES)[used],
        age0_C=torch.from_numpy((paths.start_month - 1 - vintage)[used]).float(),
        calendar=torch.from_numpy(calendar_features(paths.start_month + np.arange(paths.n_months))),
        is_floating=floating,
        spread=torch.from_numpy(np.nan_to_num(raw[:, _SPREAD])).double(),
        coupon=torch.from_numpy(np.nan_to_num(raw[:, _RATE])).double(),
        severity=severity_C[torch.from_numpy(code[picked])],
        months=months,
    )


# ---- what the models expect -------------------------------------------------------------------


def probe_residuals(model: LoanTrajectoryModel, problem: Problem) -> Tensor:
    """(L, T, G, 7) residual logits of each line in each memory class, with gradients.

    Performing and never late: the loan's residual along a clean history. Other classes: the residual
    after a short typical history ending there, at two ages, interpolated and held outside them (eq. (7)).
    """
    features, months = problem.features, problem.months
    n_lines = len(features)
    clean = torch.zeros(n_lines, months, dtype=torch.long)
    never, _ = model.residual(features, state_history(clean))
    times = sorted({months // 6, 2 * months // 3})

    def probe(tail: list[int]) -> Tensor:
        """(L, T, 7) residual after performing months and `tail`."""
        past = torch.tensor([[0] * _LEAD + tail]).expand(n_lines, -1)
        found = [
            model.residual(features, state_history(past), first_month=time - past.shape[1] + 1)[0][:, -1]
            for time in times
        ]
        return _interpolate(torch.stack(found, dim=1), times, months)

    base = probe([0, 0])
    recent = [never + probe([1] + [0] * since) - base for since in _SINCE_TYPICAL]
    late = [probe(list(range(1, state + 1))) for state in range(1, N_LIVING)]
    return torch.stack([never, *recent, *late], dim=2)


def _interpolate(values: Tensor, times: list[int], months: int) -> Tensor:
    """(L, K, 7) at `times` -> (L, T, 7), linear."""
    weights = np.stack([np.interp(np.arange(months), times, row) for row in np.eye(len(times))], axis=1)
    return torch.einsum("tk,lkj->ltj", torch.from_numpy(weights).to(values), values)


def line_cash(
    problem: Problem,
    macro_PTM: Tensor,
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
) -> Tensor:
    """(P, L, T, 5) cash of one loan of each line, expected along macro paths, eq. (8)."""
    columns = problem.start_L[:, None] + torch.arange(problem.months)
    calendar = problem.calendar[: macro_PTM.shape[1]]
    rows = transition_model.rows(problem.cohorts, macro_PTM, calendar, problem.age0_C)
    own = rows[:, problem.cohort_of[:, None], columns]  # (P, L, T, 4, 7)
    residual = probe_residuals(trajectory_model, problem)
    by_class = own[..., _CLASS_STATE, :]
    tiny = torch.finfo(own.dtype).tiny
    logits = torch.where(by_class > 0, by_class.clamp(min=tiny).log() + residual, -torch.inf)
    index = macro_PTM[:, columns, POLICY].double()
    floating = (index + problem.spread[:, None]).clamp(min=0)
    rate = torch.where(problem.is_floating[:, None], floating, problem.coupon[:, None])
    since_class = torch.tensor(SINCE_CLASS)
    severity = problem.severity[:, None]
    return expected_cash(logits.softmax(-1), problem.lines, rate, severity, since_class=since_class)[0]


def model_cash(
    problem: Problem,
    macro_PTM: Tensor,
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
) -> tuple[Tensor, Tensor]:
    """(cash (P, T, 5) as shares of the pool, policy rate (P, T)) expected along macro paths."""
    cash = line_cash(problem, macro_PTM, transition_model, trajectory_model)
    weight = problem.lines.weight_L / problem.pool_balance
    middle = int(problem.start_L.median())
    index = macro_PTM[:, middle : middle + problem.months, POLICY].double()
    return torch.einsum("pltc,l->ptc", cash, weight), index


@torch.no_grad()
def balance_weights(
    problem: Problem,
    reference: Problem,
    macro_PTM: Tensor,
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
) -> Problem:
    """The problem with weights moved as little as possible to agree with a larger set of lines.

    A calibration estimator (Deville and Saerndal 1992): balance, and the loss along each given path, become
    those of `reference`. The weights stay as they were where that would turn one negative.
    """

    def figures(which: Problem) -> Tensor:
        """(L, 1 + P): opening balance and loss per loan."""
        cash = line_cash(which, macro_PTM, transition_model, trajectory_model)
        loss = (cash[..., 3] - cash[..., 4]).sum(-1)
        return torch.cat([which.lines.outstanding_L[:, None], loss.T], dim=1)

    weight, here = problem.lines.weight_L, figures(problem)
    gap = reference.lines.weight_L @ figures(reference) - weight @ here
    # Distance in shares of balance, so that large loans do not dominate.
    metric = (weight / here[:, 0].clamp(min=0.01))[:, None] * here
    gram = here.T @ metric
    ridge = 1e-9 * torch.diag(gram.diagonal())
    moved = weight + metric @ torch.linalg.solve(gram + ridge, gap)
    if not bool((moved > 0).all()):
        return problem
    return dataclasses.replace(problem, lines=dataclasses.replace(problem.lines, weight_L=moved))


# ---- the distance -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the models' portfolio is held to: history, with its loss rate set to `loss_rate`.

    Attributes:
        loss_rate: over the horizon. scenario_loss: (S,). loss_sd, loss_tail: of losses across paths;
            None with fewer than three paths. returns, return_sd: (N,) cash of each class over its balance.
    """

    loss_rate: float
    scenario_loss: Tensor
    loss_sd: float | None
    loss_tail: float | None
    returns: Tensor
    return_sd: Tensor | None


def tranche_returns(pay: PayTranches, cash_PTC: Tensor, index_PT: Tensor) -> Tensor:
    """(P, N) cash received by each class over the life, as a share of the pool."""
    paid = pay(cash_PTC, pool_balance=1.0, index_rate=index_PT)
    return paid["tranche_cashflows"].sum(1)


def make_targets(history: History, pay: PayTranches, target_loss_rate: float | None) -> Targets:
    """Targets of eqs. (9)-(10).

    Args:
        target_loss_rate: loss rate wanted over the horizon; None keeps the observed one. Scenario losses
            and the tail move in proportion.
    """
    wanted = history.loss_rate if target_loss_rate is None else target_loss_rate
    if not wanted > 0:
        raise DataError(
            "no loss to match", expected="a loss rate above 0", got=wanted, where="target_loss_rate"
        )
    ratio = wanted / history.loss_rate if history.loss_rate > 0 else 1.0
    losses = history.losses() * ratio
    with torch.no_grad():
        returns = tranche_returns(pay, history.cash_PTC, history.index_PT)
    many = len(losses) >= 3
    mean = (returns * history.weight_P[:, None]).sum(0)
    return Targets(
        loss_rate=wanted,
        scenario_loss=history.scenario_loss * ratio
        if history.loss_rate > 0
        else history.scenario_loss + wanted,
        loss_sd=float(losses.std()) if many else None,
        loss_tail=float(tail_mean(losses)) if many else None,
        returns=mean,
        return_sd=returns.std(0) * history.shrink if many else None,
    )


def tail_mean(losses_P: Tensor) -> Tensor:
    """Mean of the losses at or above their `TAIL_LEVEL` quantile; differentiable."""
    n_tail = max(1, round((1 - TAIL_LEVEL) * len(losses_P)))
    return losses_P.sort().values[-n_tail:].mean()


def portfolio_gaps(
    cash_PTC: Tensor, scenario_P: Tensor, returns_PN: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """Squared relative gaps to the targets; `portfolio_loss` is their weighted sum, eq. (10)."""
    losses = (cash_PTC[..., 3] - cash_PTC[..., 4]).sum(1)
    codes = scenario_P.unique().tolist()
    by_scenario = torch.stack([losses[scenario_P == code].mean() for code in codes])
    wanted = targets.scenario_loss[codes].to(losses)
    gaps = {
        "loss_rate": ((by_scenario.mean() - wanted.mean()) / wanted.mean().clamp(min=1e-4)).square(),
        "scenario_loss": ((by_scenario - wanted) / wanted.mean().clamp(min=1e-4)).square().mean(),
        "tranche_return": ((returns_PN.mean(0) - targets.returns) / 0.05).square().mean(),
    }
    if targets.loss_sd is not None and targets.loss_tail is not None and len(losses) >= 8:
        scale = max(targets.loss_tail, 1e-4)
        gaps["tail"] = ((tail_mean(losses) - targets.loss_tail) / scale).square()
        gaps["loss_sd"] = ((losses.std() - targets.loss_sd) / scale).square()
        if targets.return_sd is not None:
            gaps["return_sd"] = ((returns_PN.std(0) - targets.return_sd) / 0.05).square().mean()
    return gaps


def portfolio_loss(gaps: dict[str, Tensor]) -> Tensor:
    """Sum of the gaps with the loss rate counted fully and the rest by half, eq. (10)."""
    return gaps["loss_rate"] + 0.5 * sum(
        (gap for name, gap in gaps.items() if name != "loss_rate"), torch.zeros(())
    )
