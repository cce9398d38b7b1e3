"""Stages that learn: the component models, the baseline, the joint model. Tables in, models out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.periods import month_index
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.stages.scoring import (
    Rival,
    ScoringSet,
    before_and_after,
    learning_rows,
    model_scores_on,
)
from pc_pipeline.evaluation.boosted import BoostedConfig, BoostedTrees
from pc_pipeline.evaluation.rows import scoring_rows
from pc_pipeline.evaluation.scoring import COLUMNS
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.segments import with_payments
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.checkpoint import read_card
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.markov import MarkovTransitionModel
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.states import LIVING_STATES, LOAN_STATE_NAMES, N_STATES
from pc_pipeline.schemas.units import OBSERVED, STANDARD_SCENARIOS
from pc_pipeline.simulation.distil import CompiledLoans, DistilConfig, distil_loans
from pc_pipeline.training.calibration import calibrate
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.joint import EndToEndTrainer, JointConfig
from pc_pipeline.training.macro_vae import MacroVAETrainer
from pc_pipeline.training.trajectories import TrajectoryTrainer
from pc_pipeline.training.transitions import TransitionTrainer
from pc_pipeline.waterfall.deal import Deal

Network = TypeVar("Network", bound=torch.nn.Module)
Models = dict[str, tuple[Any, dict[str, Any]]]
JOINT_FOLDER = "joint_model"
JOINT_NOTES = ("metrics", "training", "before", "after", "calibration")
_TEACHER_FOLDS = 6
_REAL_STEPS, _REAL_BATCH, _EPOCHS_TIMES, _REAL_DECAY = 700, 128, 4, 1e-2
_REAL_WIDTH, _REAL_HEADS, _REAL_LAYERS, _REAL_RATE = 32, 2, 2, 2e-3
_MIN_TAUGHT_LOANS = 300
NETWORKS = ("macro_vae", "transition_transformer", "loan_trajectory")


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroVAEStage:
    """Size and training of the macro VAE."""

    network: MacroVAEConfig = field(default_factory=MacroVAEConfig)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=200, batch_size=32, patience=40))


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionStage:
    """Size and training of the transition transformer."""

    network: TransitionConfig = field(default_factory=TransitionConfig)
    training: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoanTrajectoryStage:
    """Size and training of the loan model.

    Attributes:
        max_loans: train on at most so many histories; None takes all.
        real_members: networks whose residuals are averaged on a real panel, where a few thousand loans leave
            each of them much to chance.
    """

    network: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    max_loans: int | None = None
    real_members: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JointStage:
    """Joint fine-tuning and the compiled form.

    Attributes:
        training: epochs and rate of joint fine-tuning. sizes: of its batches and portfolio term.
        compile_paths: macro paths per scenario the loan model is rolled along when it is compiled.
        compile_loans: sample loans. compile_steps: optimiser steps of the compiled form.
        seed: of compiling.
    """

    training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10, lr=1e-4, patience=1000))
    sizes: JointConfig = field(default_factory=JointConfig)
    compile_paths: int = 4
    compile_loans: int = 384
    compile_steps: int = 250
    seed: int = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training stage hands on.

    Attributes:
        models: name -> (model, card).
        history: curves, e.g. 'loss' and 'val_loss' per epoch; empty where nothing was iterated.
        scores: rows of a small table: what was measured.
    """

    models: Models
    history: dict[str, Any]
    scores: list[dict[str, Any]]

    @property
    def epochs(self) -> list[dict[str, float]]:
        """One row per epoch: loss, val_loss, lr."""
        names = [name for name in ("loss", "val_loss", "lr") if self.history.get(name)]
        curves = zip(*(self.history[name] for name in names), strict=True)
        return [{"epoch": k, **dict(zip(names, row, strict=True))} for k, row in enumerate(curves, start=1)]

    @property
    def final_losses(self) -> dict[str, float]:
        """Last value of each loss curve."""
        return {
            f"final {name}": float(self.history[name][-1])
            for name in ("loss", "val_loss")
            if self.history.get(name)
        }


def _card(history: Mapping[str, Any], training: TrainConfig, **more: Any) -> dict[str, Any]:
    metrics = {k: v for k, v in history.items() if isinstance(v, int | float | bool | str)}
    return {
        "data_fingerprint": history.get("data_fingerprint"),
        "metrics": {k: v for k, v in metrics.items() if k not in ("data_fingerprint", "seconds")},
        "seeds": {"training": training.seed},
        "training": dataclasses.asdict(training),
        **more,
    }


def _as_scores(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"measure": name, "value": value} for name, value in metrics.items()]


def _seeded(build: Callable[[], Network], seed: int) -> Network:
    """A network whose first weights depend on the seed alone; the global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def lived_paths(macro: pl.DataFrame, lived: pl.DataFrame) -> pl.DataFrame:
    """The macro paths that loans of a panel (or counts of it) lived through."""
    keys = ["scenario", "macro_path_id"]
    return macro.join(lived.select(keys).unique(), on=keys, how="semi")


def train_macro_vae(stage: MacroVAEStage, macro: pl.DataFrame, device: str) -> Trained:
    """Train the VAE on the paths of all scenarios but the observed one."""
    paths = macro.filter(pl.col("scenario") != OBSERVED)
    present = paths["scenario"].unique().to_list()
    names = (*STANDARD_SCENARIOS, *sorted(set(present) - set(STANDARD_SCENARIOS)))
    months = paths.group_by("scenario", "macro_path_id").len()["len"].min()
    network = dataclasses.replace(
        stage.network, n_scenarios=len(names), scenario_names=names, seq_length=int(str(months))
    )
    model = _seeded(lambda: MacroVAE(network), stage.training.seed).to(device)
    trainer = MacroVAETrainer(model, lr=stage.training.lr, config=stage.training)
    history = trainer.fit(paths, epochs=stage.training.epochs, batch_size=stage.training.batch_size)
    card = _card(history, stage.training, notes=history.get("notes", []))
    return Trained(
        models={"macro_vae": (model.cpu().eval(), card)}, history=history, scores=_as_scores(card["metrics"])
    )


def train_transition_transformer(
    stage: TransitionStage, transitions: pl.DataFrame, tape: pl.DataFrame, macro: pl.DataFrame, device: str
) -> Trained:
    """Train the cohort network on the counts of all scenarios."""
    cohorts = cohort_table(tape)
    network = stage.network
    if OBSERVED in transitions["scenario"].unique().to_list():
        network = dataclasses.replace(network, moves="observable")
    model = _seeded(lambda: TransitionTransformer(network), stage.training.seed).to(device)
    trainer = TransitionTrainer(model, lr=stage.training.lr, config=stage.training)
    history = trainer.fit(
        cohorts,
        transitions,
        lived_paths(macro, transitions),
        epochs=stage.training.epochs,
        batch_size=stage.training.batch_size,
    )
    card = _card(history, stage.training)
    return Trained(
        models={"transition_transformer": (model.cpu().eval(), card)},
        history=history,
        scores=_as_scores(card["metrics"]),
    )


def train_loan_trajectory(
    stage: LoanTrajectoryStage,
    panel: pl.DataFrame,
    tape: pl.DataFrame,
    macro: pl.DataFrame,
    cohort_models: Models,
    device: str,
) -> Trained:
    """Train the loan model on histories beside the rows of their cohorts."""
    trajectories = prepare_trajectories(learning_rows(panel), tape, lived_paths(macro, panel))
    transition_model = cohort_models["transition_transformer"][0].to(device)
    network, training, taught = stage.network, stage.training, None
    if OBSERVED in panel["scenario"].unique().to_list():
        network = network_for_few_loans(network, stage.real_members)
        training = enough_steps(training, len(trajectories))
        taught = boosted_lessons(trajectories, stage.training.seed)
    model = _seeded(lambda: LoanTrajectoryModel(network), stage.training.seed).to(device)
    trainer = TrajectoryTrainer(model, lr=training.lr, config=training)
    history = trainer.fit(
        tape,
        trajectories,
        epochs=training.epochs,
        batch_size=training.batch_size,
        transition_model=transition_model,
        taught=taught,
        max_loans=stage.max_loans,
    )
    card = _card(history, training)
    return Trained(
        models={"loan_trajectory": (model.cpu().eval(), card)},
        history=history,
        scores=_as_scores(card["metrics"]),
    )


def network_for_few_loans(network: TrajectoryConfig, members: int) -> TrajectoryConfig:
    """The network of a real panel: reads payments, no larger than a few thousand loans bear, averaged."""
    return dataclasses.replace(
        network,
        reads_payments=True,
        idio_scale=1.0,
        d_model=min(network.d_model, _REAL_WIDTH),
        n_heads=min(network.n_heads, _REAL_HEADS),
        n_layers=min(network.n_layers, _REAL_LAYERS),
        n_members=members,
    )


def enough_steps(training: TrainConfig, n_histories: int) -> TrainConfig:
    """Smaller batches and more epochs for a real panel, which has fewer histories than a generated one."""
    batch_size = min(training.batch_size, _REAL_BATCH)
    per_epoch = max(1, -(-n_histories // batch_size))
    epochs = max(training.epochs, min(_EPOCHS_TIMES * training.epochs, -(-_REAL_STEPS // per_epoch)))
    wait = max(training.patience, epochs // 3)
    return dataclasses.replace(
        training,
        batch_size=batch_size,
        epochs=epochs,
        patience=wait,
        lr=min(training.lr, _REAL_RATE),
        weight_decay=_REAL_DECAY,
    )


def boosted_lessons(trajectories: Trajectories, seed: int) -> np.ndarray | None:
    """(N,T,7) what boosted trees say of months of loans that they were not fitted to; NaN after the end.

    A network learns a steep response to past payments faster from their smooth answers than from what
    happened (docs/methods/loan_models.md, section 2). None with too few loans for `_TEACHER_FOLDS` folds.
    """
    rows = scoring_rows(trajectories, with_payments=True)
    if len(np.unique(rows.cluster)) < _MIN_TAUGHT_LOANS:
        return None
    taught = np.full((*trajectories.states.shape, N_STATES), np.nan, dtype=np.float32)
    fold = stream(seed, "boosted_lessons").integers(0, _TEACHER_FOLDS, int(rows.cluster.max()) + 1)
    for number in range(_TEACHER_FOLDS):
        apart = fold[rows.cluster] == number
        trees = BoostedTrees(BoostedConfig(seed=derive_seed(seed, "boosted_lessons", number) % 2**31))
        trees.fit(rows.take(~apart))
        taught[rows.history[apart], rows.month[apart]] = trees.probabilities(rows.take(apart))
    return taught


def fit_markov_baseline(panel: pl.DataFrame, tape: pl.DataFrame) -> Trained:
    """Fit the class x maturity Markov table."""
    model = MarkovTransitionModel(by=("asset_class", "is_final"))
    model.fit(learning_rows(panel), tape)
    matrix = model.transition_matrix
    scores = [
        {
            "from": LOAN_STATE_NAMES[state],
            **dict(zip(LOAN_STATE_NAMES, map(float, matrix[state]), strict=True)),
        }
        for state in LIVING_STATES
    ]
    return Trained(models={"markov_baseline": (model, {})}, history={}, scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningTables:
    """What the joint stage reads."""

    panel: pl.DataFrame
    loans: pl.DataFrame
    macro: pl.DataFrame
    pool: pl.DataFrame


def fine_tune(
    stage: JointStage,
    models: Models,
    tables: LearningTables,
    deal: Deal,
    test: ScoringSet,
    device: str,
    rivals: Mapping[str, Rival] | None = None,
) -> Trained:
    """Fine-tune the three networks together, calibrate, compile the loan model for this pool, and score.

    `rivals` (`cascade.cascade_answers`) are scored in the same table.
    """
    panel = learning_rows(tables.panel)
    before = {name: copy.deepcopy(models[name][0]) for name in NETWORKS}
    vae, transitions, trajectory = (models[name][0] for name in NETWORKS)
    trainer = EndToEndTrainer(
        vae.to(device),
        transitions.to(device),
        trajectory.to(device),
        PortfolioAggregator(deal),
        lr=stage.training.lr,
        config=stage.training,
        joint=stage.sizes,
    )
    history = trainer.fit(
        tables.loans,
        panel,
        target_loss_rate=None,
        epochs=stage.training.epochs,
        macro_data=lived_paths(tables.macro, panel),
    )
    for network in (vae, transitions, trajectory):
        network.cpu().eval()
    lived = lived_paths(tables.macro, panel)
    corrected = calibrate(vae, transitions, trajectory, tables.loans, panel, lived, seed=stage.training.seed)
    compiled = compile_loans(stage, models, tables)
    learned = prepare_trajectories(panel, tables.loans, lived)
    scores = model_scores_on(
        test, learned, before_and_after(before, {name: models[name][0] for name in NETWORKS}), rivals=rivals
    )
    card = _card(
        history,
        stage.training,
        before=history["before"],
        after=history["after"],
        calibration={"is_kept": corrected.is_kept, "table": corrected.table.to_dicts()},
    )
    joint = {name: (model, _merged(old, card)) for name, (model, old) in models.items()}
    joint["loan_trajectory"] = (trajectory, joint["loan_trajectory"][1] | {"scores": scores})
    joint["loan_residual"] = (compiled.model, {"metrics": compiled.distance})
    return Trained(models=joint, history=history, scores=scores)


def _merged(old: Mapping[str, Any], joint: Mapping[str, Any]) -> dict[str, Any]:
    """A component's card with what joint fine-tuning did to it."""
    kept = ("data_fingerprint", "metrics", "seeds", "training", "notes")
    card = {name: old[name] for name in kept if name in old}
    return card | {"joint": {name: joint[name] for name in JOINT_NOTES}}


def trained_scenarios(vae: MacroVAE) -> list[str]:
    """Names of the scenarios whose paths were in the VAE's training."""
    return [name for name, seen in zip(vae.scenario_labels, vae.is_trained_S.tolist(), strict=True) if seen]


def compile_loans(stage: JointStage, models: Models, tables: LearningTables) -> CompiledLoans:
    """Distil the loan model for the pool, along paths of every scenario the VAE knows."""
    vae, n_months = models["macro_vae"][0], int(str(tables.pool["remaining_term_months"].max()))
    n_months = min(n_months, vae.config.seq_length)
    paths = np.concatenate(
        [
            vae.generate(name, n_months, stage.compile_paths, seed=derive_seed(stage.seed, "compile")).numpy()
            for name in trained_scenarios(vae)
        ]
    ).astype(np.float64)
    first = tables.macro.filter(pl.col("scenario") != OBSERVED)["month"].min()
    trajectory = models["loan_trajectory"][0]
    pool = tables.pool
    if trajectory.config.reads_payments and isinstance(first, date):
        pool = with_payments(pool, tables.panel, as_of_month=month_index(first) - 1)
    return distil_loans(
        trajectory,
        models["transition_transformer"][0],
        pool,
        paths,
        DistilConfig(
            n_loans=stage.compile_loans,
            n_paths=len(paths),
            n_steps=stage.compile_steps,
            seed=derive_seed(stage.seed, "distil"),
        ),
        start=first if isinstance(first, date) else None,
        reference_month=int(trajectory.reference_month),
    )


def has_trained_models(store: Store) -> bool:
    """Whether a joint model lies in the store."""
    return (store.model_folder(JOINT_FOLDER) / "transition_transformer").is_dir()


def model_scores(store: Store) -> list[dict[str, Any]]:
    """The scoring table on the joint model's card."""
    rows = read_card(store.model_folder(JOINT_FOLDER) / "loan_trajectory").get("scores", [])
    return [{name: row[name] for name in COLUMNS} for row in rows]


def beats_markov(scores: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the fine-tuned model's log-loss is below the class x maturity Markov table's."""
    by_model = {row["model"]: row["log_loss"] for row in scores}
    ours, table = by_model.get("joint_model"), by_model.get("class x maturity Markov")
    return ours is not None and table is not None and ours < table
