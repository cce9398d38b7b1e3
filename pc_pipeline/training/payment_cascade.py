"""Training of the payment cascade on ragged histories.

Here: `CascadeData` (histories as padded arrays), `CascadeTrainer` on the shared loop: masked loss,
first-order law and possible moves taken from the training rows, validation on borrowers left out, epochs by
data size. Not here: the network (`models.payment_cascade`), where histories come from
(`engines.cascade_data`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.features import calendar_features
from pc_pipeline.loans.macro_index import MacroPaths
from pc_pipeline.loans.payment_macro import macro_scale, stated_status_effect
from pc_pipeline.loans.payment_status import (
    GRACE,
    ON_TIME,
    PAID_OFF,
    PREPAID,
    START,
    possible_moves,
)
from pc_pipeline.models.cascade_lstm import has_fast_bfloat16
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.payment_cascade import N_CALENDAR, LSTMCascadeModel
from pc_pipeline.schemas.states import N_STATUSES
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training

FEWEST_SEQUENCES: Final = 1000
_VALIDATION_SHARE: Final = 0.1
_EVALUATION_ROWS: Final = 4096


def default_epochs(n_sequences: int) -> int:
    """20 below 10,000 sequences, 50 up to 100,000, 100 beyond (an upper limit: training stops early)."""
    return 20 if n_sequences < 10_000 else 50 if n_sequences <= 100_000 else 100


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeData:
    """N histories of at most T months.

    Attributes:
        codes: (N, T) int8 statuses, -1 after the end; column 0 is the status a history begins with.
        features: (N, F) float32 normalised.
        months: (N,) month index of column 0, or None where dates are unknown.
        macro: paths on the calendar, or None. macro_row: (N,) row in them.
        is_final: (N, T) bool, in or after the last contractual month; None where terms are unknown.
        learn: (N, T) bool, columns to learn from (all observed ones by default).
    """

    codes: np.ndarray
    features: np.ndarray
    months: np.ndarray | None = None
    macro: MacroPaths | None = None
    macro_row: np.ndarray | None = None
    is_final: np.ndarray | None = None
    learn: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> CascadeData:
        """Some histories, by number or mask."""

        def some(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return dataclasses.replace(
            self,
            codes=self.codes[rows],
            features=self.features[rows],
            months=some(self.months),
            macro_row=some(self.macro_row),
            is_final=some(self.is_final),
            learn=some(self.learn),
        )

    @property
    def before(self) -> np.ndarray:
        """(N, T) int64 status before each column; START before the first; 0 in the padding."""
        first = np.full((len(self), 1), START, dtype=np.int64)
        return np.concatenate([first, np.maximum(self.codes[:, :-1], 0).astype(np.int64)], axis=1)

    @property
    def targets(self) -> np.ndarray:
        """(N, T) int64 statuses as the contract books them, -1 where nothing is learned."""
        codes = self.codes.astype(np.int64)
        if self.is_final is not None:
            paid_up = np.isin(codes, (ON_TIME, GRACE, PREPAID))
            moved = np.arange(codes.shape[1]) > 0
            codes = np.where(self.is_final & paid_up & moved, PAID_OFF, codes)
            codes = np.where(~self.is_final & (codes == PAID_OFF) & moved, PREPAID, codes)
        return codes if self.learn is None else np.where(self.learn, codes, -1)

    def calendar(self) -> np.ndarray | None:
        """(N, T, 2) month of year and weekday of its last day."""
        if self.months is None:
            return None
        return calendar_features(self.months[:, None] + np.arange(self.codes.shape[1]))

    def macro_values(self, rows: np.ndarray, n_months: int) -> np.ndarray | None:
        """(B, T, 9) macro of some histories; a path's last month is repeated beyond its end."""
        if self.macro is None or self.macro_row is None or self.months is None:
            return None
        column = self.months[rows][:, None] + np.arange(n_months) - self.macro.start_month
        return self.macro.values[self.macro_row[rows][:, None], np.clip(column, 0, self.macro.n_months - 1)]


@dataclass(slots=True)
class _Batches:
    """Tensors of the histories, cut to what a batch needs."""

    data: CascadeData
    before: Tensor
    targets: Tensor
    features: Tensor
    calendar: Tensor | None
    is_final: Tensor | None
    lengths: Tensor

    @classmethod
    def of(cls, data: CascadeData) -> _Batches:
        calendar, targets = data.calendar(), torch.from_numpy(data.targets)
        known = torch.arange(1, targets.shape[1] + 1) * (targets >= 0)
        return cls(
            data=data,
            before=torch.from_numpy(data.before),
            targets=targets,
            features=torch.from_numpy(np.ascontiguousarray(data.features, dtype=np.float32)),
            calendar=None if calendar is None else torch.from_numpy(calendar),
            is_final=None if data.is_final is None else torch.from_numpy(data.is_final),
            lengths=known.amax(1),
        )

    def inputs(self, rows: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """Inputs of the network and targets (B, T') for some rows, T' their longest history."""
        months = max(1, int(self.lengths[rows].max()))
        macro = self.data.macro_values(rows.numpy(), months)
        inputs = (
            self.before[rows, :months],
            self.features[rows],
            None if self.calendar is None else self.calendar[rows, :months],
            None if macro is None else torch.from_numpy(macro).float(),
            None if self.is_final is None else self.is_final[rows, :months],
        )
        return inputs, self.targets[rows, :months]


class CascadeTrainer:
    """Trains an `LSTMCascadeModel`.

    Args:
        model: changed in place.
        lr: peak learning rate; overrides the config's.
        config: everything else of the run.
        is_fused: the layers of `models.cascade_lstm`; None takes them where the processor has bfloat16.
    """

    def __init__(
        self,
        model: LSTMCascadeModel,
        lr: float = 3e-3,
        config: TrainConfig | None = None,
        is_fused: bool | None = None,
    ) -> None:
        self.model = model
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.is_fused = on_cpu and has_fast_bfloat16() if is_fused is None else is_fused
        self.config = dataclasses.replace(config or TrainConfig(batch_size=256, patience=6), lr=lr)

    def fit(
        self,
        data: CascadeData,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        validation: CascadeData | None = None,
        resume: Path | str | None = None,
        on_epoch: Callable[..., None] | None = None,
    ) -> dict[str, Any]:
        """Learn; the model ends with the weights of its best epoch.

        Args:
            data: training histories; a tenth of the borrowers is left out for validation unless
                `validation` is given.
            epochs: passes; None takes `default_epochs`.

        Returns:
            The history of `run_training`, with n_sequences, validation_markov (first-order log-loss) and
            data_fingerprint. Losses are nats per month, the first month of a history left out.

        Raises:
            ModelError: no history has a second month.
        """
        chosen = dataclasses.replace(
            self.config,
            epochs=epochs or default_epochs(len(data)),
            batch_size=batch_size or self.config.batch_size,
        )
        training, held = (data, validation) if validation is not None else _split(data, chosen.seed)
        if not (training.targets[:, 1:] >= 0).any():
            raise ModelError("nothing to learn", expected="histories of two months or more", got=len(data))
        self._prepare(training)
        self._check_moves(held)
        batches, checks = _Batches.of(training), _Batches.of(held)
        self.model.is_fused = self.is_fused
        with _unfilled_memory():
            history = run_training(
                self.model,
                len(training),
                lambda rows, _: self._loss(batches, rows),
                chosen,
                name="payment_cascade",
                validation_loss=lambda: self._mean_nats(checks),
                resume=resume,
                fingerprint=data_fingerprint(data.codes, data.features),
                on_epoch=on_epoch,
            )
        self.model.is_fused = False
        before, after = held.before[:, 1:], held.targets[:, 1:]
        known = after >= 0
        prior = self.model.log_prior.cpu().numpy()
        return history | {
            "n_sequences": len(data),
            "validation_markov": float(-prior[before[known], after[known]].mean())
            if known.any()
            else float("nan"),
            "data_fingerprint": data_fingerprint(data.codes, data.features),
        }

    def _prepare(self, training: CascadeData) -> None:
        """First-order law, possible moves, scaling constants, stated macro effects."""
        allowed = possible_moves()
        before, after = training.before, training.targets
        known = after >= 0
        allowed[before[known], after[known]] = True
        counts = np.zeros((N_STATUSES + 1, N_STATUSES))
        quiet = known if training.is_final is None else known & ~training.is_final
        np.add.at(counts, (before[quiet], after[quiet]), 1.0)
        self.model.set_prior(
            torch.from_numpy(smoothed_rows(counts, allowed)).float(), torch.from_numpy(allowed)
        )
        calendar = training.calendar()
        share = None
        if calendar is not None:
            share = torch.cat(
                [
                    torch.from_numpy(np.bincount(calendar[..., column][known], minlength=size) / known.sum())
                    for column, size in enumerate((12, N_CALENDAR - 12))
                ]
            ).float()
        self.model.describe_features(torch.from_numpy(training.features).float(), share)
        with torch.no_grad():
            self.model.macro_effect.copy_(torch.tensor(stated_status_effect()))
            self.model.macro_mean.copy_(torch.tensor(_neutral_macro(training)))
            self.model.macro_sd.copy_(torch.tensor(macro_scale()[1]))
        self.model.macro_effect.requires_grad_(self.model.config.macro == "learned")

    def _check_moves(self, held: CascadeData) -> None:
        """A move seen only among the borrowers left out is possible too."""
        before, after = held.before, held.targets
        known = after >= 0
        new = np.zeros((N_STATUSES + 1, N_STATUSES), dtype=bool)
        new[before[known], after[known]] = True
        added = torch.from_numpy(new) & ~self.model.allowed
        self.model.allowed |= added
        self.model.log_prior[added] = float(np.log(1e-6))

    def _loss(self, batches: _Batches, rows: Tensor) -> Tensor:
        inputs, targets = batches.inputs(rows)
        logits = self.model(*inputs)
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        ) / (targets >= 0).sum().clamp(min=1)

    def _mean_nats(self, batches: _Batches) -> float:
        nats, count = 0.0, 0
        for rows in torch.arange(len(batches.targets)).split(_EVALUATION_ROWS):
            inputs, targets = batches.inputs(rows)
            later = targets.clone()
            later[:, 0] = -1
            logits = self.model(*inputs).float().flatten(0, 1)
            nats += float(
                torch.nn.functional.cross_entropy(logits, later.flatten(), ignore_index=-1, reduction="sum")
            )
            count += int((later >= 0).sum())
        return nats / max(count, 1)


@contextlib.contextmanager
def _unfilled_memory() -> Iterator[None]:
    """Every buffer here is written before it is read; filling it first costs a quarter of the time."""
    before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


def _neutral_macro(training: CascadeData) -> np.ndarray:
    """(9,) macro at which the first-order law was counted: the mean of its months, or baseline."""
    rows = np.arange(len(training))[:: max(1, len(training) // 5000)]
    values = training.macro_values(rows, training.codes.shape[1])
    if values is None:
        return macro_scale()[0]
    return values[training.targets[rows] >= 0].mean(axis=0).astype(np.float32)


def smoothed_rows(counts: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(9, 8) first-order rows; half a move is spread over the possible moves of each row."""
    spread = 0.5 * allowed / allowed.sum(axis=1, keepdims=True)
    return (counts + spread) / (counts + spread).sum(axis=1, keepdims=True)


def _split(data: CascadeData, seed: int) -> tuple[CascadeData, CascadeData]:
    order = stream(seed, "payment_cascade", "validation").permutation(len(data))
    held = max(1, round(_VALIDATION_SHARE * len(data)))
    return data.take(np.sort(order[held:])), data.take(np.sort(order[:held]))


def predicted_rows(model: LSTMCascadeModel, data: CascadeData) -> np.ndarray:
    """(N, T, 8) float32 probabilities of the status of every column, given the history before it."""
    batches = _Batches.of(data)
    out = np.zeros((*data.codes.shape, N_STATUSES), dtype=np.float32)
    model.eval()
    with torch.inference_mode():
        for rows in torch.arange(len(data)).split(_EVALUATION_ROWS):
            inputs, _ = batches.inputs(rows)
            p = torch.softmax(model(*inputs).float(), -1).numpy()
            out[rows.numpy(), : p.shape[1]] = p
    return out


def mean_rows(model: LSTMCascadeModel, data: CascadeData, most: int = 20_000) -> np.ndarray:
    """(8, 8) mean prediction by status before, over the histories of the data; never seen: the prior."""
    some = data.take(np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).astype(int)))
    p = predicted_rows(model, some)
    known = some.codes >= 0
    known[:, 0] = False
    before = some.before[known]
    sums = np.zeros((N_STATUSES, N_STATUSES))
    np.add.at(sums, before, p[known].astype(float))
    prior = np.exp(model.log_prior.numpy().astype(float))[:N_STATUSES] * model.allowed.numpy()[:N_STATUSES]
    counts = np.bincount(before, minlength=N_STATUSES)[:, None]
    rows = np.where(counts > 0, sums, prior)
    return rows / rows.sum(axis=1, keepdims=True)
