"""`LSTMCascadeGenerator`: learn payment histories, generate them, turn them into records.

Here: the object users hold. It works without torch, with little data or untrained: then the fallback matrix
(`loans.payment_status`) makes the histories, and every result says so in `.engine`. Not here: the network
(`models.payment_cascade`), its training (`training.payment_cascade`), validation (`evaluation.sequences`).

torch is imported where a network is trained or sampled, so that the fallback needs none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError, DataError
from pc_pipeline.core.periods import month_index, parse_month
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.cascade_data import (
    CascadeHistories,
    features_for,
    histories_of_lists,
    histories_of_panel,
    is_panel,
)
from pc_pipeline.engines.cascade_inputs import (
    CascadeSettings,
    check_months,
    column,
    forced_statuses,
    ids,
    macro_array,
)
from pc_pipeline.loans.borrower_features import FEATURE_NAMES
from pc_pipeline.loans.features import FeatureScaler, calendar_features
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.payment_macro import tilted_matrices
from pc_pipeline.loans.payment_records import payment_dates, payment_records, write_records
from pc_pipeline.loans.payment_sequences import PaymentSequence, PaymentSequences
from pc_pipeline.loans.payment_status import (
    FALLBACK_ENGINE,
    FALLBACK_MATRIX,
    LSTM_ENGINE,
    encode_sequences,
    matrix_array,
    matrix_names,
)
from pc_pipeline.loans.status_breaks import find_breaks, learnable
from pc_pipeline.simulation.payment_chain import sample_chain

if TYPE_CHECKING:
    from pc_pipeline.models.cascade_sampler import CascadeSampler
    from pc_pipeline.models.payment_cascade import LSTMCascadeModel
    from pc_pipeline.training.payment_cascade import CascadeData

FEWEST_SEQUENCES: Final = 1000
MIN_MACRO_PATHS: Final = 8  # below this a macro effect is not identified and keeps its stated size
_NEVER: Final = 1 << 30
_PRINCIPAL, _TERM, _RATE = (
    FEATURE_NAMES.index(name) for name in ("principal", "term_months", "interest_rate")
)


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


class LSTMCascadeGenerator:
    """Payment histories: learned P(next status | history, borrower), or the fallback matrix.

    Args:
        hidden_dim, num_layers, dropout: of the LSTM.
        learning_rate: peak rate. batch_size: histories a step.
        epochs: passes; None takes 20 below 10,000 sequences, 50 up to 100,000, 100 beyond. Training stops
            early when the borrowers left out no longer gain.
        random_seed: of training and, unless a call brings its own seed, of generation.
        precision: of generation, 'bfloat16' or 'float32'.

    Attributes:
        history: of the last training ('loss', 'val_loss', ...); empty while untrained.
        engine: 'LSTM' or 'fallback matrix', what generates now. reason: why.
    """

    def __init__(
        self,
        hidden_dim: int = 64,
        num_layers: int = 2,
        learning_rate: float = 0.003,
        epochs: int | None = None,
        batch_size: int = 256,
        dropout: float = 0.1,
        *,
        random_seed: int = 0,
        precision: str = "bfloat16",
    ) -> None:
        self.settings = CascadeSettings(
            hidden_dim, num_layers, learning_rate, epochs, batch_size, dropout, random_seed, precision
        )
        self.history: dict[str, Any] = {}
        self.reason = "untrained" if has_torch() else "torch is not installed"
        self._model: LSTMCascadeModel | None = None
        self._sampler: CascadeSampler | None = None
        self._scaler: FeatureScaler | None = None
        self._matrix = matrix_array(FALLBACK_MATRIX)
        self._ends_contracts = True
        self._calls = 0

    @property
    def engine(self) -> str:
        """'LSTM' or 'fallback matrix'."""
        return FALLBACK_ENGINE if self._model is None else LSTM_ENGINE

    @property
    def cascade_matrix(self) -> dict[str, dict[str, float]]:
        """The fallback matrix by names."""
        return {origin: dict(row) for origin, row in FALLBACK_MATRIX.items()}

    @property
    def model(self) -> LSTMCascadeModel | None:
        """The trained network, or None."""
        return self._model

    def transition_matrix(self) -> dict[str, dict[str, float]]:
        """Probabilities of next month's status by this month's: the mean prediction over the histories the
        network was trained on, or the fallback matrix. Moves of probability 0 are left out.
        """
        return matrix_names(self._matrix)

    def transition_array(self) -> np.ndarray:
        """`transition_matrix` as (8, 8)."""
        return self._matrix.copy()

    # ---- learning ---------------------------------------------------------------------------

    def fit(
        self,
        payment_sequences: Any,
        borrower_features: Any = None,
        *,
        macro: Any = None,
        start_dates: Any = None,
        resume: Path | str | None = None,
        on_epoch: Any = None,
    ) -> LSTMCascadeGenerator:
        """Learn from histories.

        Args:
            payment_sequences: lists of statuses, an array of codes, a frame with loan_id, month and
                payment_status, or a loan panel.
            borrower_features: one mapping a sequence, or a frame; for a panel its loan tape.
            macro: for a panel, the macro paths its loans lived through.
            start_dates: first month of the sequences, one or one each; lets seasonality be learned.
            resume: file to continue from after a stop.
            on_epoch: called after each epoch with its record.

        Returns:
            The generator. Below 1,000 sequences, or without torch, nothing is trained and the fallback
            matrix stays; `reason` says so.

        Raises:
            DataError: statuses, features or counts are not usable.
        """
        if is_panel(payment_sequences):
            if borrower_features is None:
                raise DataError("a panel needs its loan tape", expected="borrower_features=loans", got=None)
            histories = histories_of_panel(
                payment_sequences, borrower_features, macro, hide_seed=self.settings.random_seed
            )
        else:
            histories = histories_of_lists(payment_sequences, borrower_features, start_dates)
        return self.fit_histories(histories, resume=resume, on_epoch=on_epoch)

    def fit_store(self, store: Store, **options: Any) -> LSTMCascadeGenerator:
        """`fit` on the panel, tape and macro paths of a store (the warehouse)."""
        return self.fit(
            store.read_table("loan_panel"),
            store.read_table("loan_tape"),
            macro=store.read_table("macro_scenarios"),
            **options,
        )

    def fit_histories(
        self, histories: CascadeHistories, *, resume: Path | str | None = None, on_epoch: Any = None
    ) -> LSTMCascadeGenerator:
        """Learn from prepared histories; see `fit`."""
        self._model, self._sampler, self.history = None, None, {}
        self._matrix = matrix_array(FALLBACK_MATRIX)
        if not has_torch():
            self.reason = "torch is not installed"
            return self
        if len(histories) < FEWEST_SEQUENCES:
            self.reason = f"{len(histories)} sequences, fewer than {FEWEST_SEQUENCES:,}"
            return self
        self._scaler = histories.scaler
        self._ends_contracts = not histories.outlives_term
        breaks = find_breaks(histories.codes, histories.months)
        if breaks and histories.months is not None:
            histories = replace(histories, learn=learnable(histories.codes, histories.months, breaks))
        self._train(histories, resume, on_epoch)
        self.history["notes"] = [
            f"{found}; its side with fewer reports is not learned from" for found in breaks
        ]
        self.reason = f"trained on {len(histories):,} sequences"
        return self

    def _train(self, histories: CascadeHistories, resume: Path | str | None, on_epoch: Any) -> None:
        import torch

        from pc_pipeline.models.payment_cascade import CascadeConfig, LSTMCascadeModel
        from pc_pipeline.training.config import TrainConfig
        from pc_pipeline.training.payment_cascade import CascadeTrainer, mean_rows

        settings, data = self.settings, training_data(histories)
        learns_macro = data.macro is not None and len(data.macro.keys) >= MIN_MACRO_PATHS
        config = CascadeConfig(
            borrower_feature_dim=data.features.shape[1],
            hidden_dim=settings.hidden_dim,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
            extra_features=histories.extra_features,
            uses_calendar=data.months is not None,
            macro="learned" if learns_macro else "stated",
            has_contract_end=data.is_final is not None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(settings.random_seed, "payment_cascade", "weights") % 2**63)
            model = LSTMCascadeModel(config)
        training = TrainConfig(batch_size=settings.batch_size, patience=5, seed=settings.random_seed)
        trainer = CascadeTrainer(model, lr=settings.learning_rate, config=training)
        self.history = trainer.fit(data, epochs=settings.epochs, resume=resume, on_epoch=on_epoch)
        self._model = model
        self._matrix = mean_rows(model, data)

    # ---- generating -------------------------------------------------------------------------

    def generate_sequence(
        self,
        borrower: Mapping[str, Any],
        num_months: int,
        initial_status: str | Sequence[str] | None = "on_time",
        *,
        seed: int | None = None,
        start_date: str | date | None = None,
        macro: Any = None,
    ) -> PaymentSequence:
        """One history: `generate_sequences` for one borrower."""
        return self.generate_sequences(
            [borrower], num_months, initial_status, seed=seed, start_date=start_date, macro=macro
        )[0]

    def generate_sequences(
        self,
        borrowers: Any,
        num_months: int,
        initial_status: str | Sequence[str] | np.ndarray | None = "on_time",
        *,
        seed: int | None = None,
        start_date: str | date | None = None,
        macro: Any = None,
        macro_row: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ) -> PaymentSequences:
        """Histories of many borrowers.

        Args:
            borrowers: N mappings, a frame with the ten features, or a loan tape or pool.
            num_months: length; a history ends earlier at a terminal status.
            initial_status: of month 1; or the statuses of the first months, known already; or an array
                (N, k) of codes, borrower by borrower. None draws month 1 from the learned law of first
                statuses (the fallback begins on time).
            seed: of the draws; None derives one from `random_seed` and the number of calls so far.
            start_date: date of month 1; gives the calendar to a network that learned seasonality.
            macro: (T, 9) or (P, T, 9) raw series from month 1, or a frame with month and the nine series.
            macro_row: (N,) path of each borrower; default 0.
            numbers: (N,) key of each borrower's draws, by default its place. The same seed and number
                give the same history in any batch.

        Raises:
            DataError, ConfigError: a borrower, status, month count or macro path is not usable.
        """
        check_months(num_months)
        extra = () if self._model is None else self._model.config.extra_features
        features, raw = features_for(borrowers, extra, self._scaler)
        count = len(features)
        if seed is None:
            seed = derive_seed(self.settings.random_seed, "generate", self._calls)
        self._calls += 1
        keys = np.arange(count, dtype=np.uint64) if numbers is None else np.asarray(numbers, np.uint64)
        forced = forced_statuses(initial_status, count, num_months, self._model is not None)
        paths = None if macro is None else macro_array(macro, num_months, start_date)
        final = self._final_months(borrowers, raw)
        codes = (
            self._sample_chain(forced, num_months, seed, keys, final, paths, macro_row)
            if self._model is None
            else self._sample_network(
                features, forced, num_months, seed, keys, final, paths, macro_row, start_date
            )
        )
        return PaymentSequences(codes, engine=self.engine, reason=self.reason, seed=seed)

    def resample(self, histories: CascadeHistories, *, seed: int) -> np.ndarray:
        """(N, T) int8: a generated history for each given one, with its borrower, first status, dates, macro
        path and last contractual month. What a validation compares.
        """
        count, months = histories.codes.shape
        first = histories.codes[:, :1].astype(np.int64)
        final = np.full(count, _NEVER, dtype=np.int64)
        if histories.is_final is not None:
            ends = histories.is_final.any(axis=1)
            final[ends] = histories.is_final[ends].argmax(axis=1) + 1
        keys = np.arange(count, dtype=np.uint64)
        if self._model is None:
            return sample_chain(
                matrix_array(FALLBACK_MATRIX), first[:, 0], months, seed, numbers=keys, final_month=final
            )
        from pc_pipeline.models.cascade_sampler import SamplingTask

        calendar = macro = offset = None
        if histories.months is not None:
            start = int(histories.months.min())
            offset = histories.months - start
            at = start + np.arange(int(offset.max()) + months)
            calendar = calendar_features(at)
            if histories.macro is not None:
                place = np.clip(at - histories.macro.start_month, 0, histories.macro.n_months - 1)
                macro = histories.macro.values[:, place]
        task = SamplingTask(
            features=histories.features,
            n_months=months,
            seed=seed,
            numbers=keys,
            forced=first,
            final_month=final,
            calendar=calendar,
            macro=macro,
            path=histories.macro_row if macro is not None else None,
            column=offset,
        )
        return self._network_sampler().sample(task)

    def _network_sampler(self) -> CascadeSampler:
        from pc_pipeline.models.cascade_sampler import CascadeSampler

        if self._model is None:
            raise ConfigError("no network to sample from", expected="fit(...)", got="an untrained generator")
        if self._sampler is None:
            self._sampler = CascadeSampler(self._model, self.settings.precision)
        return self._sampler

    def _final_months(self, borrowers: Any, raw: np.ndarray) -> np.ndarray:
        """(N,) last contractual month counted from month 1; never where no term is stated."""
        stated = column(borrowers, "term_months", len(raw))
        age = column(borrowers, "age_months", len(raw))
        final = np.full(len(raw), _NEVER, dtype=np.int64)
        if self._ends_contracts:
            known = ~np.isnan(stated)
            passed = np.nan_to_num(age[known])
            final[known] = np.maximum(stated[known] - passed, 1).astype(np.int64)
        return final

    def _sample_chain(
        self,
        forced: np.ndarray,
        num_months: int,
        seed: int,
        keys: np.ndarray,
        final: np.ndarray,
        paths: np.ndarray | None,
        macro_row: np.ndarray | None,
    ) -> np.ndarray:
        matrix = matrix_array(FALLBACK_MATRIX)
        rows = matrix if paths is None else tilted_matrices(matrix, paths)
        known = forced.shape[1]
        out = np.empty((len(forced), num_months), dtype=np.int8)
        out[:, : known - 1] = forced[:, :-1]
        tail = rows if paths is None else rows[:, known - 1 :]
        out[:, known - 1 :] = sample_chain(
            tail,
            forced[:, -1],
            num_months - known + 1,
            seed if known == 1 else derive_seed(seed, "after", known),
            numbers=keys,
            final_month=final - (known - 1),
            which=macro_row,
        )
        return out

    def _sample_network(
        self,
        features: np.ndarray,
        forced: np.ndarray,
        num_months: int,
        seed: int,
        keys: np.ndarray,
        final: np.ndarray,
        paths: np.ndarray | None,
        macro_row: np.ndarray | None,
        start_date: str | date | None,
    ) -> np.ndarray:
        from pc_pipeline.models.cascade_sampler import SamplingTask

        calendar = None
        if start_date is not None:
            calendar = calendar_features(month_index(parse_month(start_date)) + np.arange(num_months))
        task = SamplingTask(
            features=features,
            n_months=num_months,
            seed=seed,
            numbers=keys,
            forced=forced,
            final_month=final,
            calendar=calendar,
            macro=paths,
            path=macro_row,
        )
        return self._network_sampler().sample(task)

    # ---- records ----------------------------------------------------------------------------

    def sequence_to_records(
        self, sequence: Sequence[str], borrower: Mapping[str, Any], start_date: str | date
    ) -> list[dict[str, Any]]:
        """Monthly records of one history, with amounts that follow contract and status.

        Args:
            sequence: statuses from month 1. borrower: principal, interest_rate, term_months (neutral values
                where missing), loan_id, borrower_id. start_date: due date of month 1.

        Returns:
            Dicts with loan_id, borrower_id, month, payment_status, payment_amount, principal_remaining,
            days_past_due, payment_date.
        """
        return self.sequences_to_records([list(sequence)], [borrower], start_date).to_dicts()

    def sequences_to_records(self, sequences: Any, borrowers: Any, start_date: str | date) -> pl.DataFrame:
        """The rectangular table of many histories; a terminal status is repeated with zero payments.

        Args:
            sequences: `PaymentSequences`, an array of codes, or lists of equal length but for ended ones.
            borrowers: as in `generate_sequences`. start_date: due date of month 1.
        """
        codes = getattr(sequences, "codes", sequences)
        codes = codes if isinstance(codes, np.ndarray) else encode_sequences(codes)
        _, raw = features_for(borrowers, (), None)
        if len(raw) != len(codes):
            raise DataError("every sequence needs its borrower", expected=len(codes), got=len(raw))
        loan_ids, borrower_ids = ids(borrowers, len(raw), 0)
        return payment_records(
            codes, raw[:, _PRINCIPAL], raw[:, _RATE], raw[:, _TERM], start_date, loan_ids, borrower_ids
        )

    def stream_records(
        self,
        borrowers: Any,
        num_months: int,
        start_date: str | date,
        *,
        seed: int | None = None,
        batch_size: int = 10_000,
        **options: Any,
    ) -> Iterator[pl.DataFrame]:
        """Records of many borrowers, one frame a batch; the rows do not depend on `batch_size`."""
        payment_dates(start_date, 1)
        whole = borrowers if hasattr(borrowers, "columns") else list(borrowers)
        whole = to_polars(whole, [], "borrowers") if hasattr(whole, "columns") else whole
        count = len(whole)
        if seed is None:
            seed = derive_seed(self.settings.random_seed, "generate", self._calls)
        for low in range(0, count, batch_size):
            part = whole[low : low + batch_size]
            numbers = np.arange(low, low + len(part), dtype=np.uint64)
            made = self.generate_sequences(
                part, num_months, seed=seed, start_date=start_date, numbers=numbers, **options
            )
            _, raw = features_for(part, (), None)
            loan_ids, borrower_ids = ids(part, len(raw), low)
            yield payment_records(
                made.codes,
                raw[:, _PRINCIPAL],
                raw[:, _RATE],
                raw[:, _TERM],
                start_date,
                loan_ids,
                borrower_ids,
            )

    def write_records(
        self, path: Path | str, borrowers: Any, num_months: int, start_date: str | date, **options: Any
    ) -> int:
        """Stream records to a .csv or .parquet file, whole or not at all; returns the rows."""
        return write_records(path, self.stream_records(borrowers, num_months, start_date, **options))

    # ---- disk -------------------------------------------------------------------------------

    def card(self) -> dict[str, Any]:
        """What `save` writes beside the weights: settings, engine, matrix, training history."""
        return {
            "engine": self.engine,
            "reason": self.reason,
            "transition_matrix": self.transition_matrix(),
            "settings": asdict(self.settings),
            "scaler": None if self._scaler is None else self._scaler.to_json(),
            "ends_contracts": self._ends_contracts,
            "history": {name: value for name, value in self.history.items() if name != "seconds"},
            "data_fingerprint": self.history.get("data_fingerprint"),
            "metrics": {
                name: self.history[name]
                for name in ("best_val_loss", "validation_markov", "best_epoch", "n_sequences")
                if name in self.history
            },
            "seeds": {"training": self.settings.random_seed},
        }

    def saved_model(self) -> Any:
        """The network, or the fallback matrix in a network's clothes: what `save` writes."""
        import torch

        from pc_pipeline.models.payment_cascade import StatusChain

        if self._model is not None:
            return self._model
        chain = StatusChain()
        chain.matrix.copy_(torch.from_numpy(self._matrix))
        return chain

    def save(self, folder: Path | str) -> Path:
        """Write weights (safetensors) and card (JSON); returns the card's path."""
        from pc_pipeline.models.checkpoint import save_model

        return save_model(folder, self.saved_model(), self.card())

    @classmethod
    def load(cls, folder: Path | str) -> LSTMCascadeGenerator:
        """A saved generator.

        Raises:
            ModelError: nothing was saved there, or it was changed.
        """
        from pc_pipeline.models.checkpoint import load_model

        return cls.of_saved(*load_model(folder))

    @classmethod
    def of_saved(cls, model: Any, card: Mapping[str, Any]) -> LSTMCascadeGenerator:
        """The generator of a loaded model and its card."""
        from pc_pipeline.models.payment_cascade import LSTMCascadeModel

        generator = cls(**card["settings"])
        generator.reason = str(card["reason"])
        generator.history = dict(card["history"])
        generator._scaler = None if card["scaler"] is None else FeatureScaler.from_json(card["scaler"])
        generator._ends_contracts = bool(card["ends_contracts"])
        generator._matrix = matrix_array(card["transition_matrix"])
        generator._model = model if isinstance(model, LSTMCascadeModel) else None
        return generator


def training_data(histories: CascadeHistories) -> CascadeData:
    """Histories as the trainer takes them; months beyond a data break are not learned from."""
    from pc_pipeline.training.payment_cascade import CascadeData

    return CascadeData(
        codes=histories.codes,
        features=histories.features,
        months=histories.months,
        macro=histories.macro,
        macro_row=histories.macro_row,
        is_final=histories.is_final,
        learn=histories.learn,
    )
