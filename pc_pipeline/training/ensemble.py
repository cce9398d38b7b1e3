"""How far would the loan models be from themselves, had other loans and macro paths been seen?

Here: `train_ensemble`, members refitted from the trained pair on resamples of its data. Not here: what is
simulated with them (`engines`), the first training (`training.transitions`, `training.trajectories`).

A resample draws macro paths with replacement within each scenario, then histories with replacement within
each drawn path: loans of one path share its luck, so the path is the unit (Davison and Hinkley 1997, 3.8).
With one path of a scenario its loans alone are drawn, and uncertainty about macro effects is not seen.

A member starts at the trained weights. The additive part of the transition model (levels, season, macro
effects) moves by the difference of two convex fits, resample less sample; then both networks learn on the
resample for a few epochs. Epochs are few, so the spread of the networks' own part is a lower bound.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training
from pc_pipeline.training.trajectories import (
    batch_losses,
    cohort_rows,
    evaluate,
    length_batches,
    split_loans,
    trajectory_data,
)
from pc_pipeline.training.transitions import (
    TransitionData,
    fit_additive,
    log_loss,
    negative_log_likelihood,
    path_groups,
    transition_data,
)

_ADDITIVE: Final = ("base", "macro_effect", "season.month", "season.weekday")
_KEYS: Final = ["scenario", "macro_path_id", "loan_id"]
_GROUP_CELLS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleConfig:
    """Size and training of an ensemble.

    Attributes:
        members: >= 1.
        epochs: of the loan network on each resample, >= 0. transition_epochs: of the cohort network, >= 0.
        lr: peak learning rate of both. batch_size: histories per step.
        is_bootstrap: resample; False trains every member on the same data (seeds of batches differ).
        max_loans: at most so many histories per member; None takes all.
        seed: of resamples and batches.
    """

    members: int = 4
    epochs: int = 1
    transition_epochs: int = 1
    lr: float = 5e-4
    batch_size: int = 256
    is_bootstrap: bool = True
    max_loans: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or min(self.epochs, self.transition_epochs) < 0 or not self.lr > 0:
            raise ConfigError("an ensemble needs members, epochs >= 0 and a rate above 0", got=self)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One refitted pair.

    Attributes:
        transitions, trajectory: in eval mode. seed: of its resample.
        transition_loss, state_loss: nats per move on the whole sample, to be set beside the trained pair's.
    """

    transitions: TransitionTransformer
    trajectory: LoanTrajectoryModel
    seed: int
    transition_loss: float
    state_loss: float


def train_ensemble(
    transition_model: TransitionTransformer,
    trajectory_model: LoanTrajectoryModel,
    loans: pl.DataFrame,
    panel: pl.DataFrame,
    macro_data: pl.DataFrame,
    config: EnsembleConfig | None = None,
    *,
    on_member: Callable[[int, Member], None] | None = None,
) -> list[Member]:
    """Refit the trained pair on resamples; the pair itself is left alone.

    Args:
        loans, panel, macro_data: what the pair learned from; `macro_data` the paths the panel lived through.
        on_member: called with number and member as each is done.

    Returns:
        Members; member k depends on the seed and on k only, not on how many there are.

    Raises:
        DataError: tables that do not fit.
    """
    chosen = config or EnsembleConfig()
    trajectories = prepare_trajectories(panel, loans, macro_data)
    cohorts = cohort_table(loans)
    sample = transition_data(cohorts, transition_table(panel, loans), macro_data)
    first = _additive_fit(transition_model, sample)
    found = []
    for number in range(chosen.members):
        seed = derive_seed(chosen.seed, "ensemble", number)
        rows = resample(trajectories.keys, seed) if chosen.is_bootstrap else np.arange(len(trajectories))
        counts = transition_data(cohorts, _counts(panel, loans, trajectories, rows), macro_data)
        transitions = copy.deepcopy(transition_model)
        _move_additive(transitions, first, _additive_fit(transition_model, counts))
        _learn_transitions(transitions, counts, chosen, seed)
        trajectory = copy.deepcopy(trajectory_model)
        drawn = take_histories(trajectories, rows)
        _learn_trajectories(trajectory, transitions, drawn, macro_data, chosen, seed)
        member = _judged(transitions, trajectory, trajectories, sample, macro_data, seed)
        found.append(member)
        if on_member is not None:
            on_member(number, member)
    return found


def resample(keys: pl.DataFrame, seed: int) -> np.ndarray:
    """(N',) rows drawn: macro paths within scenario, then histories within each drawn path."""
    random = stream(seed, "ensemble", "resample")
    places = keys.with_row_index("row").group_by("scenario", "macro_path_id", maintain_order=True)
    by_scenario: dict[str, list[np.ndarray]] = {}
    for (scenario, _), rows in places:
        by_scenario.setdefault(str(scenario), []).append(rows["row"].to_numpy())
    drawn = []
    for paths in by_scenario.values():
        for path in random.integers(0, len(paths), len(paths)):
            drawn.append(random.choice(paths[path], len(paths[path])))
    return np.concatenate(drawn).astype(np.int64)


def take_histories(trajectories: Trajectories, rows: np.ndarray) -> Trajectories:
    """Some histories, repeated ones included; tape, cohorts and macro stay whole."""
    whole = {"scaler", "cohorts", "macro", "keys"}
    changed: dict[str, Any] = {
        field.name: value[rows]
        for field in dataclasses.fields(trajectories)
        if field.name not in whole and (value := getattr(trajectories, field.name)) is not None
    }
    return dataclasses.replace(trajectories, keys=trajectories.keys[rows], **changed)


def _counts(
    panel: pl.DataFrame, loans: pl.DataFrame, trajectories: Trajectories, rows: np.ndarray
) -> pl.DataFrame:
    """Table `transitions` with each loan counted as often as its histories were drawn."""
    pieces = trajectories.keys.group_by(_KEYS).len("pieces")  # a gap cuts a loan's life into several
    drawn = trajectories.keys[rows].group_by(_KEYS).len("drawn").join(pieces, on=_KEYS)
    often = drawn.select(*_KEYS, often=(pl.col("drawn") / pl.col("pieces")).ceil().cast(pl.Int64))
    keyed = panel.join(often, on=_KEYS, how="inner", maintain_order="left")
    most = int(str(often["often"].max()))
    parts = [
        transition_table(keyed.filter(pl.col("often") >= k).drop("often"), loans) for k in range(1, most + 1)
    ]
    together = pl.concat(parts)
    names = [name for name in together.columns if name != "n_moves"]
    return together.group_by(names, maintain_order=True).agg(pl.col("n_moves").sum()).sort(names)


def _additive_fit(model: TransitionTransformer, data: TransitionData) -> dict[str, torch.Tensor]:
    """Levels, season and macro effects of the additive part alone on some counts."""
    fitted = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        fit_additive(fitted, data)
    state = fitted.state_dict()
    return {name: state[name].clone() for name in _ADDITIVE}


def _move_additive(
    model: TransitionTransformer, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> None:
    state = model.state_dict()
    model.load_state_dict(state | {name: state[name] + second[name] - first[name] for name in _ADDITIVE})


def _learn_transitions(
    model: TransitionTransformer, data: TransitionData, config: EnsembleConfig, seed: int
) -> None:
    if config.transition_epochs == 0:
        return
    groups = path_groups(data.path_of, _GROUP_CELLS)
    weight = len(data) / max(data.n_moves, 1.0)

    def loss_of(numbers: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        rows = torch.cat([groups[number] for number in numbers.tolist()])
        return negative_log_likelihood(model, data.take(rows)) * weight / len(rows)

    run_training(
        model,
        len(groups),
        loss_of,
        _settings(config, config.transition_epochs, 8, seed),
        name="ensemble_cohorts",
    )


def _learn_trajectories(
    model: LoanTrajectoryModel,
    transitions: TransitionTransformer,
    trajectories: Trajectories,
    macro_data: Any,
    config: EnsembleConfig,
    seed: int,
) -> None:
    if config.epochs == 0:
        return
    rows = cohort_rows(transitions, trajectories, macro_paths(macro_data))
    data = trajectory_data(trajectories, rows)
    training, _ = split_loans(data, trajectories, seed, config.max_loans)
    batches = length_batches(data.lengths, training, config.batch_size, seed)
    share = len(batches) / max(int(data.lengths[training].sum()), 1)

    def loss_of(numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        state, value = batch_losses(model, data.take(batches[int(numbers[0])]), generator)
        return state.sum() * share + value

    run_training(
        model, len(batches), loss_of, _settings(config, config.epochs, 1, seed), name="ensemble_loans"
    )


def _settings(config: EnsembleConfig, epochs: int, batch_size: int, seed: int) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=config.lr,
        patience=epochs,
        n_threads=torch.get_num_threads(),
        seed=seed % 2**31,
    )


def _judged(
    transitions: TransitionTransformer,
    trajectory: LoanTrajectoryModel,
    trajectories: Trajectories,
    sample: TransitionData,
    macro_data: Any,
    seed: int,
) -> Member:
    rows = cohort_rows(transitions, trajectories, macro_paths(macro_data))
    data = trajectory_data(trajectories, rows)
    _, held = split_loans(data, trajectories, seed, None)
    return Member(
        transitions=transitions.eval(),
        trajectory=trajectory.eval(),
        seed=seed,
        transition_loss=log_loss(transitions, sample),
        state_loss=evaluate(trajectory, data, held)[0],
    )
