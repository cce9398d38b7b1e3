"""Joint fine-tuning of the three models against the portfolio they are for.

Here: `EndToEndTrainer`. Not here: portfolio targets and expected cash (`training.portfolio`), the last
step, `training.calibration`.

    L = L_macro + L_trans + L_traj + lambda L_portfolio                       (docs/methods/joint.md, eq. 1)

Gradients of L_portfolio run through the soft waterfall, expected cash, transition rows and loan
residuals, and through the reparameterised macro paths, into all three models. Guard: the weights kept
are the best of those whose component log-losses, on loans and macro paths that no step has seen, stay within
1 % of where they began and within 1 % of what the component gains on its class's mean rows. A step too far
is halved; where nothing is left, the models come back unchanged.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl
import torch
from torch import Tensor, nn

from pc_pipeline.core.periods import month_from_index, month_index_expr, month_range
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.models.transition_transformer import TransitionTransformer, matrix_from
from pc_pipeline.schemas.units import (
    ASSET_CLASSES,
    COHORT_FEATURES,
    MACRO_NAMES,
    OBSERVED,
    canonical_scenario,
)
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training
from pc_pipeline.training.macro_vae import split_by_path
from pc_pipeline.training.portfolio import (
    History,
    Problem,
    Targets,
    balance_weights,
    make_problem,
    make_targets,
    model_cash,
    portfolio_gaps,
    portfolio_loss,
    tranche_returns,
)
from pc_pipeline.training.trajectories import (
    TrajectoryData,
    batch_losses,
    class_rows,
    cohort_rows,
    evaluate,
    split_loans,
    trajectory_data,
)
from pc_pipeline.training.transitions import (
    TransitionData,
    calendar_of,
    log_loss,
    moves_nats,
    negative_log_likelihood,
    split,
    transition_data,
)

LOG: Final = logging.getLogger("pc_pipeline.training")
GUARD: Final = 0.01  # largest relative worsening of a component's log-loss
SKILL_GUARD: Final = 0.01  # and of its gain on the mean rows of its class, which is a small part of the loss
SHORTER: Final = (1.0, 0.5, 0.25, 0.125)  # shares of the way from the start that are tried
INTERCEPT_LR: Final = 100.0  # the cohort model's intercepts learn this much faster than weights
CENTRE_LR: Final = 5.0  # the VAE's centres
MACRO_LR: Final = 0.05  # its weights, which stand at a maximum of likelihood: noise moves them off it
_PENALTY: Final = 1e3
_STAND_IN_PATHS: Final = 64  # sampled per scenario where no macro data are given
_CHECK_LOANS: Final = 1024
_CHECK_MOVES: Final = 512
_HELD_PATHS: Final = 0.2  # of macro paths, kept from L_macro's steps
_GUARDED: Final = ("macro_loss", "transition_loss", "trajectory_loss")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JointConfig:
    """Sizes of joint fine-tuning.

    Attributes:
        weight: lambda of L_portfolio, >= 0.
        n_lines: representative loans in the portfolio term; n_reference: the larger set to which their
            weights are balanced once.
        n_paths: macro paths per scenario and step; pairs are antithetic.
        steps_per_epoch: optimiser steps.
        loans_per_step, cohorts_per_step, paths_per_step: rows of each component's batch.
    """

    weight: float = 5.0
    n_lines: int = 40
    n_reference: int = 512
    n_paths: int = 4
    steps_per_epoch: int = 4
    loans_per_step: int = 128
    cohorts_per_step: int = 128
    paths_per_step: int = 64


class EndToEndTrainer:
    """Fine-tunes the three models together, in place.

    Args:
        macro_vae, transition_model, trajectory_model: trained.
        aggregator: `PortfolioAggregator`, or anything whose `apply_waterfall(cash (P,T,5) tensor,
            pool_balance, index_rate)` returns 'tranche_cashflows' (P,T,N) with gradients.
        lr: learning rate of weights; other parameters learn at a multiple of it (`_lr_share`).
        config: settings of the loop; joint: sizes.
    """

    # One thread: the work is many small operations, which several threads only slow down.
    def __init__(
        self,
        macro_vae: MacroVAE,
        transition_model: TransitionTransformer,
        trajectory_model: LoanTrajectoryModel,
        aggregator: Any,
        lr: float = 1e-5,
        *,
        config: TrainConfig | None = None,
        joint: JointConfig | None = None,
    ) -> None:
        self.models = nn.ModuleDict(
            {"macro": macro_vae, "transitions": transition_model, "trajectory": trajectory_model}
        )
        self.vae, self.transitions, self.trajectory = macro_vae, transition_model, trajectory_model
        self.aggregator = aggregator
        self.joint = joint or JointConfig()
        self.config = dataclasses.replace(config or TrainConfig(patience=1000, n_threads=1), lr=lr)

    def fit(
        self,
        loans_df: Any,
        panel_df: Any,
        target_loss_rate: float | None = 0.02,
        epochs: int = 20,
        *,
        macro_data: Any = None,
        transitions: Any = None,
        resume: Path | str | None = None,
        on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Fine-tune.

        Args:
            loans_df, panel_df: tape and panel, polars or pandas.
            target_loss_rate: share of the opening balance lost over the horizon; None takes the panel's.
            macro_data: table `macro_scenarios` that the panel lived through. None: paths sampled from the
                VAE stand in, one history per scenario; the notes say so.
            transitions: table `transitions`; None counts it from the panel.

        Returns:
            The loop's history and: 'before', 'after' (component log-losses on held-out rows, portfolio gaps,
            loss rates), 'is_changed', 'step' (share of the way that was kept, 0 for none), 'class_rows_loss'
            (the mean rows' log-losses), 'horizon_months', 'loss_rate_history', 'loss_rate_target', 'notes'.
            A history without any loss has nothing to match: the models come back as they are, and 'notes' and
            'fallback' ('components') say so.

        Raises:
            DataError: tables that do not fit; ModelError: a scenario the VAE does not know.
        """
        data = self._read(loans_df, panel_df, macro_data, transitions)
        if target_loss_rate is None and not data.history.loss_rate > 0:
            return self._without_losses(data)
        targets = make_targets(data.history, self.aggregator.apply_waterfall, target_loss_rate)
        start = {name: value.clone() for name, value in self.models.state_dict().items()}
        before = self._measure(data, targets)
        config = dataclasses.replace(self.config, epochs=epochs, batch_size=1)
        history = run_training(
            self.models,
            self.joint.steps_per_epoch,
            lambda rows, generator: self._loss(data, targets, generator),
            config,
            name="joint_model",
            validation_loss=lambda: self._objective(self._measure(data, targets), before, data),
            resume=resume,
            fingerprint=data_fingerprint(data.trajectory.features, data.trajectory.states, data.paths.values),
            on_epoch=on_epoch,
            lr_share=_lr_share,
        )
        step, after = self._furthest_allowed(data, targets, start, before)
        self.models.eval()
        return history | {
            "before": before,
            "after": after,
            "is_changed": step > 0,
            "step": step,
            "class_rows_loss": data.plain_losses,
            "horizon_months": data.problem.months,
            "loss_rate_history": data.history.loss_rate,
            "loss_rate_target": targets.loss_rate,
            "notes": data.notes,
        }

    def _without_losses(self, data: _Data) -> dict[str, Any]:
        """The record of a run that had no loss to match and moved nothing."""
        note = "no loan of the history lost anything: the models were not fine-tuned to the portfolio"
        LOG.warning(note)
        losses = self._component_losses(data)[0]
        self.models.eval()
        return {
            "data_fingerprint": data_fingerprint(data.trajectory.features, data.trajectory.states),
            "before": losses,
            "after": losses,
            "is_changed": False,
            "step": 0.0,
            "class_rows_loss": data.plain_losses,
            "horizon_months": data.problem.months,
            "loss_rate_history": 0.0,
            "loss_rate_target": 0.0,
            "fallback": "components",
            "notes": [*data.notes, note],
        }

    # ---- data -------------------------------------------------------------------------------

    def _read(self, loans_df: Any, panel_df: Any, macro_data: Any, transitions: Any) -> _Data:
        loans = to_polars(loans_df, ["loan_id", "vintage_month"], "loans")
        panel = to_polars(panel_df, ["loan_id", "reporting_month"], "panel")
        notes = []
        if macro_data is None:
            macro_data = self._stand_in(panel)
            notes.append("no macro data given: the median of paths sampled from the VAE stands in")
        paths = macro_paths(macro_data)
        trajectories = prepare_trajectories(panel, loans, macro_data)
        problem, history = make_problem(trajectories, panel, loans, paths, self.joint.n_lines)
        reference, _ = make_problem(trajectories, panel, loans, paths, self.joint.n_reference)
        shown = torch.from_numpy(
            paths.values[[paths.keys.index(key) for key in _first_of_each(paths)]]
        ).float()
        problem = balance_weights(problem, reference, shown, self.transitions, self.trajectory)
        counts = transition_table(panel, loans) if transitions is None else transitions
        moves, held_moves = split(transition_data(cohort_table(loans), counts, macro_data))
        known = [k for k, key in enumerate(paths.keys) if key[0] != OBSERVED]
        codes = [self._code(paths.keys[k][0]) for k in known]
        scenario_codes = [self._code(name) for name in history.scenarios]
        whole = paths.n_months == self.vae.config.seq_length and not notes and bool(known)
        own = None if whole else self._own_paths(sorted(set(scenario_codes)))
        values = torch.from_numpy(paths.values[known]).float() if own is None else own[0]
        labels = torch.tensor(codes) if own is None else own[1]
        shown_paths, held_paths = split_by_path(labels, _HELD_PATHS, self.config.seed)
        rows = trajectory_data(trajectories, cohort_rows(self.transitions, trajectories, paths))
        shown_loans, held_loans = split_loans(rows, trajectories, self.config.seed, None)
        return _Data(
            paths=paths,
            problem=problem,
            history=history,
            moves=moves,
            held_moves=held_moves,
            trajectory=rows,
            shown_loans=shown_loans,
            held_loans=held_loans,
            pairs=_Pairs.of(trajectories, paths),
            macro=values,
            labels=labels,
            shown_paths=shown_paths,
            held_paths=held_paths if len(held_paths) else shown_paths,
            plain_losses=_class_rows_losses(trajectories, held_loans, moves, held_moves),
            scenario_codes=torch.tensor(scenario_codes),
            notes=notes,
        )

    def _code(self, scenario: str) -> int:
        """VAE code of a panel's scenario; a real history is read as the baseline."""
        return 0 if scenario == OBSERVED else self.vae.scenario_code(canonical_scenario(scenario))

    def _stand_in(self, panel: pl.DataFrame) -> pl.DataFrame:
        """Table `macro_scenarios`: the VAE's median path for every (scenario, path) of the panel."""
        first = panel.select(month_index_expr("reporting_month").min() - 1).item()
        first = min(first, panel.select(month_index_expr("vintage_month").min()).item())
        last = panel.select(month_index_expr("reporting_month").max()).item()
        n_months = max(last - first + 1, self.vae.config.seq_length)
        parts = []
        for name, path in (
            panel.select("scenario", "macro_path_id").unique().sort("scenario", "macro_path_id").rows()
        ):
            sampled = self.vae.generate(self._code(name), n_months, _STAND_IN_PATHS).median(0).values
            columns = {series: sampled[:, k].double().numpy() for k, series in enumerate(MACRO_NAMES)}
            frame = pl.DataFrame({"month": month_range(month_from_index(first), n_months), **columns})
            parts.append(frame.with_columns(scenario=pl.lit(name), macro_path_id=pl.lit(path, pl.Int64)))
        return pl.concat(parts)

    def _own_paths(self, codes: list[int]) -> tuple[Tensor, Tensor]:
        """(paths, codes) drawn from the VAE as it came: what L_macro holds it to where data are missing."""
        drawn = [self.vae.generate(c, self.vae.config.seq_length, _STAND_IN_PATHS, seed=1) for c in codes]
        return torch.cat(drawn), torch.tensor(codes).repeat_interleave(_STAND_IN_PATHS)

    # ---- losses -----------------------------------------------------------------------------

    def _loss(self, data: _Data, targets: Targets, generator: torch.Generator) -> Tensor:
        """One step's L of eq. (1)."""
        self.models.eval()  # no dropout: the portfolio term is an expectation
        self.vae.train()
        joint = self.joint
        macro_rows = data.shown_paths[_some(len(data.shown_paths), joint.paths_per_step, generator)]
        macro = self.vae.loss(data.macro[macro_rows], data.labels[macro_rows])
        moves = data.moves.take(_some(len(data.moves), joint.cohorts_per_step, generator))
        transitions = negative_log_likelihood(self.transitions, moves) / max(moves.n_moves, 1.0)
        some = data.shown_loans[_some(len(data.shown_loans), joint.loans_per_step, generator)]
        batch = self._with_rows(data, some)
        state, value = batch_losses(self.trajectory, batch, generator)
        gaps = self._gaps(data, targets, generator)
        return macro + transitions + state.mean() + value + joint.weight * portfolio_loss(gaps)

    def _gaps(self, data: _Data, targets: Targets, generator: torch.Generator) -> dict[str, Tensor]:
        cash, index, scenario = self._model_cash(data, generator)
        returns = tranche_returns(self.aggregator.apply_waterfall, cash, index)
        return portfolio_gaps(cash, scenario, returns, targets)

    def _model_cash(self, data: _Data, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Expected pool cash (P, T, 5), policy rates (P, T) and scenario positions (P,) on sampled paths."""
        n_scenarios, months = len(data.scenario_codes), data.paths.n_months
        half = max(1, self.joint.n_paths // 2)
        z = torch.randn(half, self.vae.config.latent_dim, generator=generator)
        noise = torch.randn(half, months, len(MACRO_NAMES), generator=generator)
        z, noise = torch.cat([z, -z]), torch.cat([noise, -noise])
        position = torch.arange(n_scenarios).repeat_interleave(len(z))
        paths = self.vae.decode(
            z.repeat(n_scenarios, 1), data.scenario_codes[position], noise.repeat(n_scenarios, 1, 1)
        )
        cash, index = model_cash(data.problem, paths, self.transitions, self.trajectory)
        return cash.clamp(min=0.0), index, position

    def _with_rows(self, data: _Data, which: Tensor) -> TrajectoryData:
        """Histories beside their cohorts' rows from the transition model as it is now, with gradients."""
        batch = data.trajectory.take(which)
        used, rows_of = batch.rows_of.unique(return_inverse=True)
        rows = data.pairs.rows(self.transitions, used)
        return dataclasses.replace(batch, rows=rows, rows_of=rows_of)

    # ---- measuring --------------------------------------------------------------------------

    @torch.no_grad()
    def _component_losses(self, data: _Data) -> tuple[dict[str, float], torch.Generator]:
        """Log-losses on held-out rows, and the fixed noise after them."""
        self.models.eval()
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "joint_model", "check"))
        which = data.held_loans[_some(len(data.held_loans), _CHECK_LOANS, generator)]
        some_moves = _some(len(data.held_moves), _CHECK_MOVES, generator)
        state, value = batch_losses(self.trajectory, self._with_rows(data, which), generator)
        losses = {
            "macro_loss": float(self.vae.loss(data.macro[data.held_paths], data.labels[data.held_paths])),
            "transition_loss": log_loss(self.transitions, data.held_moves.take(some_moves)),
            "trajectory_loss": float(state.double().mean()),
            "value_loss": float(value),
        }
        return losses, generator

    @torch.no_grad()
    def _measure(self, data: _Data, targets: Targets) -> dict[str, float]:
        """Component log-losses on held-out rows, portfolio gaps; rows and noise are fixed."""
        components, generator = self._component_losses(data)
        cash, index, scenario = self._model_cash(data, generator)
        gaps = portfolio_gaps(
            cash, scenario, tranche_returns(self.aggregator.apply_waterfall, cash, index), targets
        )
        losses = (cash[..., 3] - cash[..., 4]).sum(1)
        rates = {
            f"loss_rate_{name}": float(losses[scenario == k].mean())
            for k, name in enumerate(data.history.scenarios)
        }
        return {
            **components,
            "portfolio_loss": float(portfolio_loss(gaps)),
            "loss_rate": float(losses.mean()),
            **{f"gap_{name}": float(gap) for name, gap in gaps.items()},
            **rates,
        }

    def _objective(self, now: Mapping[str, float], before: Mapping[str, float], data: _Data) -> float:
        """Portfolio loss, with a steep penalty where a component is worse than the guard allows."""
        excess = sum(max(0.0, now[name] - self.allowed(name, before, data.plain_losses)) for name in _GUARDED)
        return now["portfolio_loss"] + (_PENALTY * (1.0 + excess) if excess > 0 else 0.0)

    @staticmethod
    def allowed(name: str, before: Mapping[str, float], plain: Mapping[str, float]) -> float:
        """Largest log-loss a component may end with."""
        room = GUARD * abs(before[name])
        if name in plain:
            room = min(room, SKILL_GUARD * max(plain[name] - before[name], 0.0))
        return before[name] + room

    def _furthest_allowed(
        self, data: _Data, targets: Targets, start: Mapping[str, Tensor], before: dict[str, float]
    ) -> tuple[float, dict[str, float]]:
        """(share of the way kept, measures there): the first of `SHORTER` that improves within the guard."""
        end = {name: value.clone() for name, value in self.models.state_dict().items()}
        for share in SHORTER:
            self.models.load_state_dict({name: _between(start[name], end[name], share) for name in end})
            after = self._measure(data, targets)
            if self._objective(after, before, data) < before["portfolio_loss"]:
                return share, after
        self.models.load_state_dict(dict(start))
        return 0.0, before


def _lr_share(name: str) -> float:
    """Learning rate of a parameter as a multiple of the run's."""
    if name.startswith("transitions.base"):
        return INTERCEPT_LR
    if name.startswith("macro."):
        return CENTRE_LR if name.startswith("macro.centre_SGM") else MACRO_LR
    return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pairs:
    """(macro path, cohort) pairs in the order of `cohort_rows`, with what makes their rows."""

    features: Tensor
    macro: Tensor
    path_of: Tensor
    calendar: Tensor
    age0: Tensor

    @classmethod
    def of(cls, trajectories: Trajectories, paths: MacroPaths) -> _Pairs:
        path = torch.tensor(paths.rows_of(trajectories.keys))
        cohorts = trajectories.cohorts
        pairs = (path * cohorts.height + torch.from_numpy(trajectories.cohort_row).long()).unique()
        cohort_of = pairs % cohorts.height
        vintage = torch.tensor([month.year * 12 + month.month - 1 for month in cohorts["vintage_month"]])
        return cls(
            features=matrix_from(cohorts, COHORT_FEATURES)[cohort_of],
            macro=torch.from_numpy(paths.values).float(),
            path_of=pairs // cohorts.height,
            calendar=calendar_of(paths.start_month, paths.n_months),
            age0=(paths.start_month - 1 - vintage)[cohort_of].float(),
        )

    def rows(self, model: TransitionTransformer, which: Tensor) -> Tensor:
        """(R, T, 4, 7) rows of some pairs."""
        used, path_of = self.path_of[which].unique(return_inverse=True)
        return model.pair_rows(
            self.features[which], self.macro[used], path_of, self.calendar, self.age0[which]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    """All that a run reads: shown_* rows are for steps, held_* rows for the guard."""

    paths: MacroPaths
    problem: Problem
    history: History
    moves: TransitionData
    held_moves: TransitionData
    trajectory: TrajectoryData
    shown_loans: Tensor
    held_loans: Tensor
    pairs: _Pairs
    macro: Tensor
    labels: Tensor
    shown_paths: Tensor
    held_paths: Tensor
    plain_losses: dict[str, float]
    scenario_codes: Tensor
    notes: list[str]


def _first_of_each(paths: MacroPaths) -> list[tuple[str, int]]:
    """The first path of every scenario."""
    return list({scenario: (scenario, path) for scenario, path in reversed(paths.keys)}.values())


def _between(first: Tensor, last: Tensor, share: float) -> Tensor:
    """A share of the way between two tensors; counters and flags are those of the end."""
    if share == 1.0 or not first.is_floating_point():
        return last
    return torch.lerp(first, last, share)


@torch.no_grad()
def _class_rows_losses(
    trajectories: Trajectories, held_loans: Tensor, moves: TransitionData, held_moves: TransitionData
) -> dict[str, float]:
    """Nats per move of each class's mean rows on the held-out rows: what a component must gain on."""
    plain = trajectory_data(trajectories, class_rows(trajectories))
    reader = LoanTrajectoryModel(TrajectoryConfig(d_model=2, n_heads=1, n_layers=1))
    classes = torch.nan_to_num(moves.cohorts[:, : len(ASSET_CLASSES)])
    counts = torch.einsum("nc,nkj->ckj", classes[moves.cohort_of], (moves.plain + moves.final).sum(1)) + 0.5
    rows = torch.log(counts / counts.sum(-1, keepdim=True))
    own = torch.einsum("nc,ckj->nkj", classes[held_moves.cohort_of], rows)[:, None]
    nats = moves_nats(own.expand_as(held_moves.plain), held_moves.plain, held_moves.final)
    return {
        "transition_loss": float(nats) / max(held_moves.n_moves, 1.0),
        "trajectory_loss": evaluate(reader, plain, held_loans, residual=False)[0],
    }


def _some(n_rows: int, n_wanted: int, generator: torch.Generator) -> Tensor:
    """Row numbers without replacement, sorted; all of them where few."""
    if n_rows <= n_wanted:
        return torch.arange(n_rows)
    return torch.randperm(n_rows, generator=generator)[:n_wanted].sort().values
