"""From the autoregressive loan model to the finite-history table that the kernel reads.

Here: `distil_loans` (roll the teacher out, teach the student, solve the intercepts, report the distance) and
`CompiledLoans`. Not here: the student network (`models.loan_residual`), the kernel.

Per-step KL does not bound the error of a pool (docs/methods/simulation.md, section 4): a small bias in
every month adds up. By the identity (3) there the pool error is the teacher's mean of (p_teacher - p_student)
times a value. So after the student has learnt the residual, levels by (score third, history class) and
intercepts b(t, state) are solved so that on the teacher's own histories that mean is zero in each of these
cells; then the residual learns on, and they are solved again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.models.device import same_bits_twice
from pc_pipeline.models.loan_residual import N_MOVES, NO_EDGE, SCORE, LoanResidual, LoanResidualConfig
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.simulation.history import HISTORY_STATE, N_HISTORY, history_along
from pc_pipeline.simulation.own_luck import exposed_losses, predicted_losses
from pc_pipeline.simulation.pool import DEFAULT_SEVERITY, DUE_AT_CUTOFF, mean_severity, pool_arrays
from pc_pipeline.simulation.rows import NetworkRows, calendar_tensor, loan_inputs

MIN_SCORES, SOLVER_ROUNDS, SMOOTH_MONTHS = 30, 4, 3
HORIZONS = (12, 36, 60)
MIN_DEFAULTS_FOR_SEVERITY = 50
MOST_RANKED = 512  # paths ranked by predicted loss
# Clock positions: never missed; 1..12 months since a miss (12 stands); each bucket's months 1-3 (3 stands).
N_CLOCK = 1 + 12 + 9


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilConfig:
    """How much the teacher is asked.

    Attributes:
        n_loans: sample loans. n_paths: macro paths each is rolled along (half of them for the distance).
        n_steps: optimiser steps. learning_rate: of AdamW. batch: loan-months a step.
        shrinkage: pseudo-observations that hold a correction at none, loan-months.
        seed: of sampling and rollouts.
    """

    n_loans: int = 256
    n_paths: int = 8
    n_steps: int = 250
    learning_rate: float = 1e-2
    batch: int = 8192
    shrinkage: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_loans < 3 or self.n_paths < 2 or self.n_steps < 1 or self.batch < 1:
            raise ConfigError(
                "too little to distil from",
                expected="n_loans >= 3, n_paths >= 2, n_steps, batch >= 1",
                got=(self.n_loans, self.n_paths, self.n_steps, self.batch),
            )
        if self.shrinkage < 0 or not self.learning_rate > 0:
            raise ConfigError("shrinkage must be >= 0 and learning_rate > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledLoans:
    """A loan model that the kernel can read.

    Attributes:
        model: the student with its intercepts and severities.
        distance: to the teacher, on loans' histories and macro paths not taught: 'kl_per_step' (nats),
            'default_gap_<months>' relative gap of cumulative defaults, overall and by score third
            ('_low', '_mid', '_high'); 'loss_gap', 'var_99_gap', 'cvar_99_gap', relative gaps of expected
            loss, VaR 99 and CVaR 99; each with '_se' from the teacher's sample (95 % interval: 1.96 of it).
    """

    model: LoanResidual
    distance: dict[str, float] = field(default_factory=dict)

    def weights(self, features_LF: np.ndarray) -> np.ndarray:
        """(L, 15, 6) float32 exp(residual) of loans given raw features."""
        with torch.inference_mode():
            return torch.exp(self.model(torch.from_numpy(np.array(features_LF, dtype=np.float32)))).numpy()

    def intercept(self, n_months: int) -> np.ndarray:
        """(T, 4, 7) float32 additive logits; `matured` moves with `prepaid`."""
        table = self.model.intercept.numpy()
        months = np.minimum(np.arange(n_months), table.shape[0] - 1)
        return np.concatenate([table[months], table[months][..., -1:]], axis=-1)

    @property
    def severity_GQ(self) -> np.ndarray:
        """(4, Q) quantiles of loss given default by asset class."""
        return self.model.severity.numpy().astype(float)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the teacher said, N sample histories of T months.

    Attributes:
        rows_NTKJ: cohort rows (N, T, 4, 6), matured folded. previous_NT, class_NT: state and history
            class before each month, class -1 after the end. target_NTJ: teacher's probabilities (N, T, 6).
        is_final_NT: in or after the final month. start: clock position (N,). loan: sample loan (N,).
        severity_N, asset_N: loss given default where a default occurred (NaN elsewhere), and asset class.
        exposed_NTK: (N, T + 1, 4) balance charged off by a default out of a state in a month, share of the
            sample's; last: standing at the horizon.
    """

    rows_NTKJ: Tensor
    previous_NT: Tensor
    class_NT: Tensor
    target_NTJ: Tensor
    is_final_NT: Tensor
    start_N: Tensor
    loan_N: np.ndarray
    severity_N: np.ndarray
    asset_N: np.ndarray
    exposed_NTK: Tensor


def distil_loans(
    teacher: Any,
    transition_model: Any,
    pool: pl.DataFrame,
    macro_PTM: np.ndarray,
    config: DistilConfig | None = None,
    *,
    start: date | None = None,
    reference_month: int | None = None,
) -> CompiledLoans:
    """Compile a loan model for a pool.

    Args:
        teacher: `LoanTrajectoryModel`. transition_model: whose rows it was trained on.
        pool: `pool` table with tape columns. macro_PTM: (P, T, 9) paths to roll along, P >= 2.
        start, reference_month: as in `simulation.rows`.
    """
    config = config or DistilConfig()
    paths = macro_PTM[
        np.unique(np.linspace(0, len(macro_PTM) - 1, min(config.n_paths, len(macro_PTM))).astype(int))
    ]
    if len(paths) < 2:
        raise ConfigError("distillation needs two macro paths or more", got=len(macro_PTM))
    draw = stream(config.seed, "distil", "loans")
    sample = pool[np.sort(draw.permutation(pool.height)[: config.n_loans])]
    rows = NetworkRows(model=transition_model, cohorts=cohort_table(pool), start=start)
    ask = _Teacher(teacher, rows, sample, reference_month)
    taught = ask.lessons(paths[::2], derive_seed(config.seed, "distil", "taught"))
    held_out = ask.lessons(paths[1::2], derive_seed(config.seed, "distil", "held out"))
    at_var, beyond = ask.tail_paths(macro_PTM, max(config.n_paths // 4, 1))
    tail = {
        name: ask.lessons(macro_PTM[rows_of], derive_seed(config.seed, "distil", name))
        for name, rows_of in (("var_99", at_var), ("cvar_99", beyond))
    }
    features = torch.from_numpy(ask.features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "distil", "student") % 2**63)
        student = LoanResidual(LoanResidualConfig(n_classes=N_HISTORY, n_months=macro_PTM.shape[1]))
    student.scale.fit(features)
    student.third_edges.copy_(_thirds(features[:, SCORE]))
    with same_bits_twice():
        for n_steps in (config.n_steps, config.n_steps // 2):
            _teach(student, taught, features, config, n_steps)
            with torch.no_grad():
                _solve_levels(student, taught, features, config.shrinkage)
    with torch.inference_mode():
        student.severity.copy_(torch.from_numpy(_severity_table(taught, held_out)))
        distance = _distance(student, held_out, features)
        for name, lessons in {"loss": held_out, **tail}.items():
            distance |= _loss_gap(f"{name}_gap", student, lessons, features)
    return CompiledLoans(model=student.eval(), distance=distance)


class _Teacher:
    """Rolls the autoregressive model along macro paths and reads its probabilities on what it drew."""

    def __init__(
        self, teacher: Any, rows: NetworkRows, sample: pl.DataFrame, reference_month: int | None
    ) -> None:
        self.teacher, self.rows, self.start = teacher, rows, rows.start
        self.features = loan_inputs(sample, reference_month)
        keys = ["asset_class", "vintage_month"]
        numbered = rows.cohorts.select(keys).with_row_index("cohort")
        placed = sample.join(numbered, on=keys, how="left", maintain_order="left")
        self.cohort = placed["cohort"].to_numpy().astype(np.int64)
        self.state = sample["loan_state"].to_numpy().astype(np.int64)
        self.since = sample["months_since_miss"].to_numpy().astype(np.int64)
        self.final = sample["remaining_term_months"].to_numpy().astype(np.int64) - 1
        self.sample = sample

    def tail_paths(self, macro_PTM: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """At most so many paths about the 99 % quantile of the loss that rows predict, and beyond it."""
        n_paths, n_months = macro_PTM.shape[:2]
        some = np.unique(np.linspace(0, n_paths - 1, min(n_paths, MOST_RANKED)).astype(int))
        arrays = pool_arrays(self.sample, self.rows.cohorts, n_months)
        severity_G = mean_severity(arrays)
        share = np.zeros((self.rows.cohorts.height, 4))
        np.add.at(share, (arrays.cohort_L, arrays.state_L), arrays.balance_L)
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-9)
        exposed = exposed_losses(arrays, len(share), severity_G)
        predicted = np.concatenate(
            [
                predicted_losses(self.rows(macro_PTM[some[low : low + 64]]), exposed, share)
                for low in range(0, some.size, 64)
            ]
        )
        ranked = some[np.argsort(predicted, kind="stable")]
        edge = int(0.99 * ranked.size)
        band = slice(
            min(int(0.98 * ranked.size), edge - 1), min(edge + max(ranked.size // 200, 1), ranked.size)
        )
        return _few_of(ranked[band], most), _few_of(ranked[edge:], most)

    def lessons(self, macro_PTM: np.ndarray, seed: int) -> Lessons:
        """Histories of every sample loan along every path, path after path."""
        n_paths, n_months = macro_PTM.shape[:2]
        state, since = np.tile(self.state, n_paths), np.tile(self.since, n_paths)
        features = torch.from_numpy(np.tile(self.features, (n_paths, 1)))
        rows = torch.from_numpy(self.rows(macro_PTM)[:, self.cohort]).flatten(0, 1)
        square = torch.cat([rows, torch.eye(7)[4:].expand(*rows.shape[:2], 3, 7)], dim=2)
        days = calendar_tensor(self.start, n_months)
        calendar = None if days is None else days[None].expand(len(features), -1, -1)
        macro = torch.from_numpy(np.repeat(macro_PTM.astype(np.float32), self.state.size, axis=0))
        begin, missed = torch.from_numpy(state), torch.from_numpy(since)
        with torch.inference_mode():
            options = {"initial_state": begin, "months_since_miss": missed, "calendar": calendar}
            drawn = self.teacher.generate(features, square, macro, 1, seed=seed, with_logits=True, **options)
            states, logits = drawn["states"][0], drawn["state_logits"][0]
        final = torch.from_numpy(np.tile(self.final, n_paths))
        return Lessons(
            rows_NTKJ=fold_matured(rows),
            previous_NT=torch.cat([begin[:, None], states[:, :-1]], dim=1),
            class_NT=torch.from_numpy(history_along(states.numpy(), state, since)),
            target_NTJ=fold_matured(torch.softmax(logits, dim=-1)),
            is_final_NT=torch.arange(n_months)[None] >= final[:, None],
            start_N=torch.from_numpy(_clock_start(state, since)),
            loan_N=np.tile(np.arange(self.state.size), n_paths),
            severity_N=_severities(states, drawn["charge_offs"][0], drawn["losses"][0]),
            asset_N=np.tile(self.features[:, :4].argmax(axis=1), n_paths),
            exposed_NTK=torch.from_numpy(self._exposed(n_months)).repeat(n_paths, 1, 1),
        )

    def _exposed(self, n_months: int) -> np.ndarray:
        """(L, T + 1, 4) as `Lessons.exposed_NTK` of the sample loans, float32."""
        arrays = pool_arrays(self.sample, self.rows.cohorts, n_months)
        due = np.minimum(np.arange(n_months + 1), arrays.final_L[:, None] + 1) + DUE_AT_CUTOFF
        column = np.maximum(due[:, :, None] - np.arange(4), 0).reshape(arrays.n_loans, -1)
        balance = np.take_along_axis(arrays.schedule_LW, column, axis=1).reshape(arrays.n_loans, -1, 4)
        return (balance / arrays.total_balance).astype(np.float32)


def _few_of(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly spaced."""
    return rows[np.unique(np.linspace(0, rows.size - 1, min(most, rows.size)).astype(int))]


def _severities(states: Tensor, charge_offs: Tensor, losses: Tensor) -> np.ndarray:
    """(N,) loss given default of each history, NaN where none occurred."""
    charged = charge_offs.double().sum(dim=1)
    lost = torch.where(states == LoanState.default, losses.double(), 0.0).sum(dim=1)
    return torch.where(charged > 0, lost / charged.clamp(min=1e-9), torch.nan).numpy()


def fold_matured(values: Tensor) -> Tensor:
    """(..., 7) -> (..., 6): the matured column joins prepaid."""
    return torch.cat([values[..., :5], values[..., 5:6] + values[..., 6:7]], dim=-1)


def _teach(
    student: LoanResidual, lessons: Lessons, features: Tensor, config: DistilConfig, n_steps: int
) -> None:
    """Minimise KL(teacher || student) over loan-months; a delinquent one counts as often as it occurs."""
    where = torch.nonzero(lessons.class_NT >= 0)
    loan = torch.from_numpy(lessons.loan_N)
    optimiser = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(n_steps, 1))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "distil", "batches"))
    for _ in range(n_steps):
        pick = where[torch.randint(len(where), (min(config.batch, len(where)),), generator=generator)]
        n, t = pick[:, 0], pick[:, 1]
        prior = lessons.rows_NTKJ[n, t, lessons.previous_NT[n, t]]
        residual = student(features)[loan[n], lessons.class_NT[n, t]]
        residual = residual + student.intercept[t, lessons.previous_NT[n, t]]
        loss = _kl(lessons.target_NTJ[n, t], prior, residual, lessons.is_final_NT[n, t]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _kl(target: Tensor, prior: Tensor, residual: Tensor, is_final: Tensor) -> Tensor:
    """(N,) KL(target || softmax(log prior + residual)); moves the prior excludes cost nothing.

    From the final month on performing and prepaid are one move, the contract's end.
    """
    possible = prior > 0
    logits = torch.where(possible, prior.clamp(min=1e-30).log() + residual, torch.full_like(residual, -1e30))
    log_student, log_teacher = torch.log_softmax(logits, dim=-1), target.clamp(min=1e-30).log()
    ends = torch.logaddexp(log_student[:, 0], log_student[:, 5])
    log_ended = torch.cat([log_student[:, :5], ends[:, None]], dim=-1)
    log_student = torch.where(is_final[:, None], log_ended, log_student)
    return torch.where(possible, target * (log_teacher - log_student), torch.zeros_like(target)).sum(dim=-1)


# ---- the student's own law, propagated over clock positions ------------------------------------------


def _clock_start(state: np.ndarray, since: np.ndarray) -> np.ndarray:
    performing = np.where(since < 0, 0, np.clip(since, 1, 12))
    return np.where(state == 0, performing, 13 + 3 * (state - 1)).astype(np.int64)


def _clock_classes() -> Tensor:
    """(22,) history class of each clock position."""
    from_since = [0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5]
    return torch.tensor([*from_since, *range(6, 15)])


def _advance(flow_NHJ: Tensor) -> Tensor:
    """Clock distribution after a month, from flows (N, 22, 6) between positions and states."""
    later = torch.zeros(flow_NHJ.shape[:2])
    later[:, 0] = flow_NHJ[:, 0, 0]
    later[:, 2:13] = flow_NHJ[:, 1:12, 0]
    later[:, 12] += flow_NHJ[:, 12, 0]
    later[:, 1] = flow_NHJ[:, 13:, 0].sum(dim=1)
    for state in (1, 2, 3):
        own = slice(13 + 3 * (state - 1), 16 + 3 * (state - 1))
        staying = flow_NHJ[:, own, state]
        first = own.start
        later[:, first] = flow_NHJ[:, :, state].sum(dim=1) - staying.sum(dim=1)
        later[:, first + 1] = staying[:, 0]
        later[:, first + 2] = staying[:, 1] + staying[:, 2]
    return later


def _moves(rows_NKJ: Tensor, residual_NHJ: Tensor, intercept_KJ: Tensor) -> Tensor:
    """(N, 22, 6) move probabilities at every clock position."""
    classes = _clock_classes()
    states = torch.from_numpy(HISTORY_STATE)[classes]
    weights = rows_NKJ[:, states] * torch.exp(residual_NHJ[:, classes] + intercept_KJ[states])
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def _settle(flow: Tensor, is_final: Tensor) -> Tensor:
    """Take out what matures from (N, X, 6): performing and prepaid where final, (N,) or (N, X)."""
    keep = torch.ones(N_MOVES)
    keep[[0, 5]] = 0.0
    final = is_final[:, None] if is_final.dim() == 1 else is_final
    return torch.where(final[..., None], flow * keep, flow)


def _settle_rows(shares_MJ: Tensor, is_final_M: Tensor) -> Tensor:
    """`_settle` of single loan-months (M, 6)."""
    return _settle(shares_MJ[:, None], is_final_M)[:, 0]


def _thirds(score: Tensor) -> Tensor:
    """(2,) edges of the score's thirds; one third alone where too few scores are known."""
    known = score[torch.isfinite(score)]
    if len(known) < MIN_SCORES:
        return torch.tensor([-NO_EDGE, NO_EDGE])
    return torch.quantile(known, torch.tensor([1 / 3, 2 / 3]))


def _solve_levels(student: LoanResidual, lessons: Lessons, features: Tensor, shrinkage: float) -> None:
    """Levels by (third, class) and intercepts by (month, state), in turns, on the teacher's histories.

    Both sides are summed over the same loan-months, so chance in who was where cancels. Intercepts see a
    few months to either side. What ends by contract is left out: no level moves it.
    """
    where = torch.nonzero(lessons.class_NT >= 0)
    n, t = where[:, 0], where[:, 1]
    loan = torch.from_numpy(lessons.loan_N)[n]
    state, held = lessons.previous_NT[n, t], lessons.class_NT[n, t]
    is_final = lessons.is_final_NT[n, t]
    prior, target = lessons.rows_NTKJ[n, t, state], _settle_rows(lessons.target_NTJ[n, t], is_final)
    third = student.third(features)[loan]
    by_class, by_month = third * N_HISTORY + held, t * 4 + state
    n_months = student.intercept.shape[0]
    taught_class = _sums(target, by_class, 3 * N_HISTORY)
    taught_month = _smooth(_sums(target, by_month, n_months * 4), n_months)
    for _ in range(SOLVER_ROUNDS):
        for group, size, taught, table in (
            (by_class, 3 * N_HISTORY, taught_class, student.third_level),
            (by_month, n_months * 4, taught_month, student.intercept),
        ):
            logits = student(features)[loan, held] + student.intercept[t, state]
            weights = prior * torch.exp(logits)
            shares = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
            mine = _sums(_settle_rows(shares, is_final), group, size)
            if table is student.intercept:
                mine = _smooth(mine, n_months)
            table += _correction(taught, mine, shrinkage).view(table.shape)


def _sums(values_MJ: Tensor, group_M: Tensor, size: int) -> Tensor:
    """(size, 6) sums by group."""
    return torch.zeros(size, values_MJ.shape[-1]).index_add_(0, group_M, values_MJ)


def _smooth(sums: Tensor, n_months: int) -> Tensor:
    """Sums (T * 4, 6) by month and state, spread over neighbouring months by triangular weights."""
    by_month = sums.view(n_months, -1)
    out = by_month.clone()
    for away in range(1, min(SMOOTH_MONTHS, n_months)):
        share = 1.0 - away / SMOOTH_MONTHS
        out[away:] += share * by_month[:-away]
        out[:-away] += share * by_month[away:]
    return out.view(sums.shape)


def _correction(taught: Tensor, mine: Tensor, shrinkage: float) -> Tensor:
    """Logit steps towards equal sums; both sides get `shrinkage` loan-months of the student's own shares."""
    total = mine.sum(dim=-1, keepdim=True)
    own = shrinkage * mine / total.clamp(min=1e-12)
    step = torch.log((taught + own).clamp(min=1e-12) / (mine + own).clamp(min=1e-12))
    return torch.where((mine > 1e-9) & (total > 0.5), step, 0.0).clamp(-2.0, 2.0)


def _default_value(student: LoanResidual, lessons: Lessons, residual: Tensor, months: int) -> list[Tensor]:
    """Per month 0..months the (N, 22) probability, under the student, of a default by `months` from there."""
    value = torch.zeros(len(residual), N_CLOCK)
    values = [value]
    for t in range(months - 1, -1, -1):
        moves = _moves(lessons.rows_NTKJ[:, t], residual, student.intercept[t])
        moves = _settle(moves, lessons.is_final_NT[:, t])
        value = (moves * _worth(value)).sum(dim=-1)
        values.append(value)
    return values[::-1]


def _worth(value_NH: Tensor, lost_NK: Tensor | None = None) -> Tensor:
    """(N, 22, 6) worth of each move from each clock position, given the worth of positions a month on.

    A default is worth `lost_NK` by the state it comes from, or 1.
    """
    worth = torch.zeros(*value_NH.shape, N_MOVES)
    onward = torch.tensor([0, *range(2, 13), 12])
    worth[:, :13, 0] = value_NH[:, onward]
    worth[:, 13:, 0] = value_NH[:, 1:2]
    for state in (1, 2, 3):
        first = 13 + 3 * (state - 1)
        worth[:, :, state] = value_NH[:, first : first + 1]
        worth[:, first : first + 3, state] = value_NH[:, [first + 1, first + 2, first + 2]]
    if lost_NK is None:
        worth[:, :, LoanState.default] = 1.0
    else:
        worth[:, :, LoanState.default] = lost_NK[:, torch.from_numpy(HISTORY_STATE)[_clock_classes()]]
    return worth


def _positions(lessons: Lessons) -> Tensor:
    """(N, T) clock position before each month, -1 after the end."""
    found, position = [], lessons.start_N.clone()
    rows = torch.arange(len(position))
    n_months = lessons.previous_NT.shape[1]
    for t in range(n_months):
        alive = lessons.class_NT[:, t] >= 0
        found.append(torch.where(alive, position, -1))
        if t + 1 < n_months:
            one_hot = torch.zeros(len(position), N_CLOCK, N_MOVES)
            one_hot[rows, position, lessons.previous_NT[:, t + 1].clamp(max=5)] = 1.0
            moved = _advance(one_hot)
            position = torch.where(moved.sum(dim=1) > 0, moved.argmax(dim=1), position)
    return torch.stack(found, dim=1)


def _distance(student: LoanResidual, lessons: Lessons, features: Tensor) -> dict[str, float]:
    """Per-step KL and relative gaps of cumulative defaults; see `CompiledLoans`.

    Gap by the performance-difference identity (Kakade and Langford 2002, lemma 6.1): along the teacher's own
    histories, D_teacher - D_student = E sum_t sum_j (p_teacher - p_student)(j) V_student(t + 1, j). Its noise
    shrinks with the difference itself, so a few hundred histories settle a per cent.
    """
    residual = student(features)[torch.from_numpy(lessons.loan_N)]
    positions, living = _positions(lessons), lessons.class_NT >= 0
    rows = torch.arange(len(positions))
    probabilities = [
        _moves(lessons.rows_NTKJ[:, t], residual, student.intercept[t])[rows, positions[:, t].clamp(min=0)]
        for t in range(positions.shape[1])
    ]
    mine_NTJ = torch.stack(probabilities, dim=1)
    told, said = (
        _ended(moves[living], lessons.is_final_NT[living]) for moves in (lessons.target_NTJ, mine_NTJ)
    )
    found = {"kl_per_step": float((told * (_log(told) - _log(said))).sum(dim=-1).mean())}
    difference = torch.where(living[..., None], lessons.target_NTJ - mine_NTJ, 0.0)
    difference = _settle(difference, lessons.is_final_NT)
    score = features[:, SCORE].numpy()[lessons.loan_N]
    for months in sorted({min(h, positions.shape[1]) for h in HORIZONS}):
        values = _default_value(student, lessons, residual, months)
        gap = torch.zeros(len(positions), dtype=torch.float64)
        for t in range(months):
            worth = _worth(values[t + 1])[rows, positions[:, t].clamp(min=0)]
            gap -= (difference[:, t] * worth).sum(dim=-1).double()
        level = values[0][rows, lessons.start_N].double().numpy()
        for name, picked in _score_thirds(score).items():
            found |= _relative_gap(f"default_gap_{months}{name}", gap.numpy()[picked], level[picked])
    return found


def _loss_gap(key: str, student: LoanResidual, lessons: Lessons, features: Tensor) -> dict[str, float]:
    """Relative gap of the expected loss on some macro paths, as `_distance`, defaults worth what they lose.

    On paths about (beyond) the 99 % quantile it is the gap of VaR 99 (CVaR 99) to first order: both move
    by the mean of what moves losses there.
    """
    residual = student(features)[torch.from_numpy(lessons.loan_N)]
    positions, living = _positions(lessons), lessons.class_NT >= 0
    rows, n_months = torch.arange(len(positions)), positions.shape[1]
    severity = student.severity.mean(dim=1)[torch.from_numpy(lessons.asset_N)]
    lost = lessons.exposed_NTK * severity[:, None, None]
    value = torch.zeros(len(positions), N_CLOCK)
    value[:, 19:] = lost[:, n_months, 3:]  # convention `horizon_sale`
    gap = torch.zeros(len(positions), dtype=torch.float64)
    for t in range(n_months - 1, -1, -1):
        worth = _worth(value, lost[:, t])
        moves = _settle(
            _moves(lessons.rows_NTKJ[:, t], residual, student.intercept[t]), lessons.is_final_NT[:, t]
        )
        here = positions[:, t].clamp(min=0)
        taught = _settle_rows(lessons.target_NTJ[:, t], lessons.is_final_NT[:, t])
        told = (moves[rows, here] - taught) * worth[rows, here]
        gap += torch.where(living[:, t], told.sum(dim=-1), 0.0).double()
        value = (moves * worth).sum(dim=-1)
    return _relative_gap(key, gap.numpy(), value[rows, lessons.start_N].double().numpy())


def _ended(moves_MJ: Tensor, is_final_M: Tensor) -> Tensor:
    """(M, 6) moves of loan-months; from the final month on performing joins prepaid, the contract's end."""
    ended = torch.cat(
        [torch.zeros_like(moves_MJ[:, :1]), moves_MJ[:, 1:5], moves_MJ[:, :1] + moves_MJ[:, 5:]], 1
    )
    return torch.where(is_final_M[:, None], ended, moves_MJ)


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=1e-30).log()


def _relative_gap(key: str, gap: np.ndarray, student_level: np.ndarray) -> dict[str, float]:
    """(student - teacher) / teacher of mean cumulative defaults, and its standard error."""
    teacher = student_level.mean() - gap.mean()
    if gap.size < 2 or teacher <= 0:
        return {}
    return {
        key: float(gap.mean() / teacher),
        f"{key}_se": float(gap.std(ddof=1) / np.sqrt(gap.size) / teacher),
    }


def _score_thirds(score_N: np.ndarray) -> dict[str, np.ndarray]:
    """Masks: everything (''), and the thirds by internal score where known."""
    known = np.isfinite(score_N)
    masks = {"": np.ones(score_N.size, dtype=bool)}
    if known.sum() >= 6:
        low, high = np.quantile(score_N[known], [1 / 3, 2 / 3])
        masks |= {
            "_low": known & (score_N <= low),
            "_mid": known & (score_N > low) & (score_N <= high),
            "_high": known & (score_N > high),
        }
    return masks


def _severity_table(*lessons: Lessons) -> np.ndarray:
    """(4, 33) quantiles of the teacher's severities by class; the stated table where it drew too few."""
    severity = np.concatenate([part.severity_N for part in lessons])
    asset = np.concatenate([part.asset_N for part in lessons])
    table = DEFAULT_SEVERITY.copy()
    for group in range(table.shape[0]):
        drawn = severity[(asset == group) & np.isfinite(severity)]
        if drawn.size >= MIN_DEFAULTS_FOR_SEVERITY:
            table[group] = np.quantile(np.clip(drawn, 0.0, 1.0), np.linspace(0, 1, table.shape[1]))
    return table.astype(np.float32)
