"""The stage of the payment cascade: trained from the panel, validated on loans left out, scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.cascade_data import CascadeHistories, histories_of_trajectories
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator, training_data
from pc_pipeline.engines.stages.learning import Trained, lived_paths
from pc_pipeline.engines.stages.scoring import learning_rows
from pc_pipeline.evaluation.sequences import SequenceConfig, SequenceValidation, validate_sequences
from pc_pipeline.loans.borrower_features import FEATURE_NAMES
from pc_pipeline.loans.payment_status import state_probabilities, trim_after_end
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.checkpoint import read_card
from pc_pipeline.models.payment_cascade import LSTMCascadeModel
from pc_pipeline.reports.cascade_page import write_cascade_page
from pc_pipeline.schemas.states import N_STATES, LoanState
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.payment_cascade import predicted_rows

CASCADE_FOLDER = "payment_cascade"
CASCADE_PAGE = "payment_cascade.html"
_HELD_OUT_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentCascadeStage:
    """Size and training of the payment cascade.

    Attributes:
        hidden_dim, num_layers, dropout: of the LSTM.
        training: epochs, batch size, rate, seed.
        max_histories: train on at most so many; None takes all.
        most_validated: histories a side for the classifier of the validation.
    """

    hidden_dim: int = 64
    num_layers: int = 2
    dropout: float = 0.1
    training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=20, batch_size=256, lr=3e-3))
    max_histories: int | None = None
    most_validated: int = 3000


def train_payment_cascade(
    stage: PaymentCascadeStage, store: Store, panel: pl.DataFrame, tape: pl.DataFrame, macro: pl.DataFrame
) -> Trained:
    """Train on the panel's histories but for a share of the loans, which the validation compares with.

    The validation page is written to the store's reports; its table lies on the model's card.
    """
    rows = learning_rows(panel)
    lived = lived_paths(macro, rows)
    trajectories = prepare_trajectories(rows, tape, lived)
    seed = stage.training.seed
    histories = histories_of_trajectories(trajectories, tape, rows, hide_seed=seed)
    held = _is_left_out(trajectories.keys["loan_id"])
    learned = np.flatnonzero(~held)
    if stage.max_histories is not None and len(learned) > stage.max_histories:
        learned = learned[np.unique(np.linspace(0, len(learned) - 1, stage.max_histories).astype(int))]
    generator = LSTMCascadeGenerator(
        stage.hidden_dim,
        stage.num_layers,
        stage.training.lr,
        stage.training.epochs,
        stage.training.batch_size,
        stage.dropout,
        random_seed=seed,
    ).fit_histories(histories.take(learned))
    validation = validate_generator(
        generator, histories.take(np.flatnonzero(held)), stage.most_validated, seed
    )
    store.write_report(CASCADE_PAGE, lambda path: write_page(path, generator, validation))
    card = generator.card() | {"validation": validation.table.to_dicts()}
    return Trained(
        models={CASCADE_FOLDER: (generator.saved_model(), card)},
        history=generator.history,
        scores=validation.table.to_dicts(),
    )


def write_page(path: Path, generator: LSTMCascadeGenerator, validation: SequenceValidation) -> None:
    """The validation as one self-contained page."""
    lines = [f"{generator.engine}: {generator.reason}", *generator.history.get("notes", [])]
    write_cascade_page(path, validation.table, validation.cells, validation.survival, lines)


def _is_left_out(loan_ids: pl.Series) -> np.ndarray:
    """(N,) bool by the hash of the loan id, so that all histories of a loan stay together."""
    distinct = {
        loan_id: int.from_bytes(hashlib.sha256(f"cascade {loan_id}".encode()).digest()[:8], "big")
        < _HELD_OUT_SHARE * 2**64
        for loan_id in loan_ids.unique()
    }
    return np.array([distinct[loan_id] for loan_id in loan_ids])


def validate_generator(
    generator: LSTMCascadeGenerator, held: CascadeHistories, most: int = 3000, seed: int = 0
) -> SequenceValidation:
    """Generate a history for every real one (same borrower, first status, dates and macro) and compare.

    Generated histories are cut where the real ones are censored, so that both are watched equally long.
    """
    made = generator.resample(held, seed=derive_seed(seed, "validation"))
    known = held.codes >= 0
    ended = np.isin(held.codes, (5, 6, 7)).any(axis=1)
    watched = np.where(ended, held.codes.shape[1], known.sum(axis=1))
    last_report = held.last_column if held.last_column is not None else watched
    watched = np.where(ended, np.maximum(last_report, known.sum(axis=1)), watched)
    synthetic = trim_after_end(made)
    synthetic[np.arange(held.codes.shape[1]) >= watched[:, None]] = -1
    return validate_sequences(
        held.codes,
        synthetic,
        real_features=held.features[:, : len(FEATURE_NAMES)],
        synthetic_features=held.features[:, : len(FEATURE_NAMES)],
        real_months=held.months,
        synthetic_months=held.months,
        config=SequenceConfig(seed=seed, most_classified=most),
    )


def cascade_answers(
    models: Mapping[str, Any], loans: pl.DataFrame
) -> Callable[[Trajectories, np.ndarray], np.ndarray]:
    """A function of judged trajectories and the histories wanted -> (N, 7) loan-state probabilities."""
    generator = LSTMCascadeGenerator.of_saved(*models[CASCADE_FOLDER])

    def answers(judged: Trajectories, only: np.ndarray) -> np.ndarray:
        histories = histories_of_trajectories(judged, loans, None, hide_seed=None)
        chosen = histories.take(np.flatnonzero(only))
        rows = state_probabilities(_probabilities(generator, chosen)[:, 1:])[judged.mask[only]]
        booked = _booked(rows.astype(float), judged.is_final[only][judged.mask[only]])
        return booked / booked.sum(axis=1, keepdims=True)

    return answers


def _probabilities(generator: LSTMCascadeGenerator, histories: CascadeHistories) -> np.ndarray:
    """(N, T, 8) of every column given the history before it."""
    if isinstance(generator.model, LSTMCascadeModel):
        return predicted_rows(generator.model, training_data(histories))
    before = np.maximum(histories.codes[:, :-1], 0).astype(int)
    matrix = generator.transition_array()
    first = np.zeros((len(before), 1, matrix.shape[1]))
    return np.concatenate([first, matrix[before]], axis=1)


def _booked(rows: np.ndarray, is_final: np.ndarray) -> np.ndarray:
    """Maturity as the contract books it (`schemas.states.mature_rows`), for rows (N, 7)."""
    paid_up = rows[:, [LoanState.performing, LoanState.prepaid, LoanState.matured]].sum(axis=1)
    early = rows[:, [LoanState.prepaid, LoanState.matured]].sum(axis=1)
    out = rows.copy()
    out[:, LoanState.performing] = np.where(is_final, 0.0, rows[:, LoanState.performing])
    out[:, LoanState.prepaid] = np.where(is_final, 0.0, early)
    out[:, LoanState.matured] = np.where(is_final, paid_up, 0.0)
    return (out + 1e-7) / (1.0 + 1e-7 * N_STATES)


def cascade_validation(store: Store) -> list[dict[str, Any]]:
    """The validation table on the stored cascade's card."""
    return list(read_card(store.model_folder(CASCADE_FOLDER) / CASCADE_FOLDER).get("validation", []))
