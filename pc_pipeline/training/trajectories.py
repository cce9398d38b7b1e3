"""Train the loan model on histories: states by their likelihood, values by diffusion.

Here: `TrajectoryTrainer`. Not here: tensors (`training.trajectory_data`), the network
(`models.loan_trajectory`), aligned histories (`loans.trajectories`), the loop (`training.loop`).

    L = - mean over observed loan-months of log p(state) + mean squared error of v (values)

Padding is never trained on. Loans, not months, are held out for validation.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.diffusion import N_VALUES
from pc_pipeline.models.history import state_history
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig, previous_states
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.schemas.states import LOAN_STATE_NAMES, N_STATES
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training
from pc_pipeline.training.payment_values import fit_payments
from pc_pipeline.training.trajectory_data import (
    TrajectoryData,
    class_rows,
    cohort_rows,
    model_features,
    raw_features,
    rows_for,
    trajectory_data,
)

__all__ = [
    "TrajectoryData",
    "TrajectoryTrainer",
    "batch_losses",
    "class_rows",
    "cohort_rows",
    "evaluate",
    "held_out",
    "length_batches",
    "model_features",
    "move_probabilities",
    "outputs",
    "raw_features",
    "rows_for",
    "split_loans",
    "trajectory_data",
]

LOG: Final = logging.getLogger("pc_pipeline.training")
_VALUE_SAMPLE: Final = 512  # living loan-months per batch whose payment ratio is learned from
_HELD_OUT_SHARE: Final = 1 / 8
_HIDDEN_SHARE: Final = 1 / 8
_TAUGHT_SHARE: Final = 0.5
_VALUE_WEIGHT: Final = 0.01  # of the value loss in early stopping
_EFFECT_PRIOR: Final = 0.5  # vintage and segment effects are standard normal a priori
_SEASON_SD: Final = 0.2  # logits, prior of the loan's own calendar term beyond its cohort's


class TrajectoryTrainer:
    """Fit a `LoanTrajectoryModel` to histories.

    Args:
        model: trained in place.
        lr: peak learning rate.
        config: further settings; its `lr`, `epochs` and `batch_size` give way to the arguments here.
    """

    def __init__(
        self, model: LoanTrajectoryModel, lr: float = 1e-4, *, config: TrainConfig | None = None
    ) -> None:
        self.model, self.lr, self.config = model, lr, config or TrainConfig()

    def fit(
        self,
        loan_features: Any = None,
        trajectories: Trajectories | None = None,
        epochs: int = 50,
        batch_size: int = 256,
        *,
        transition_model: TransitionTransformer | None = None,
        macro_data: Any = None,
        taught: np.ndarray | None = None,
        max_loans: int | None = None,
        resume: Path | str | None = None,
        on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Train.

        Args:
            loan_features: the tape; accepted for the seed's signature, the histories carry their features.
            trajectories: from `loans.prepare_trajectories`.
            epochs: passes over the training loans. batch_size: loans per step.
            transition_model: gives the cohort rows along `macro_data` (table `macro_scenarios`, or the
                trajectories' own macro). Without it each class's mean rows stand in.
            taught: (N,T,7) probabilities of a teacher for every month observed, NaN where it says nothing.
                Half of the training loss is then against them, which are less noisy than what happened;
                validation never is.
            max_loans: train on at most so many histories, drawn by seed.
            resume: file to continue from. on_epoch: called with each epoch's record.

        Returns:
            The loop's history, and: val_state_loss, cohort_state_loss (zero residual, same rows; nats per
            loan-month), fallback ('cohort' where the network predicted held-out loans worse than the cohort
            alone, whose residual is then zero), val_value_loss, n_trajectories, n_loan_months,
            has_cohort_rows, data_fingerprint.

        Raises:
            DataError: no histories, or they hold moves that the cohort rows exclude.
        """
        if trajectories is None or len(trajectories) == 0:
            raise DataError("no histories to learn from", expected="trajectories=prepare_trajectories(...)")
        rows = rows_for(trajectories, transition_model, macro_data)
        data = trajectory_data(trajectories, rows, taught).to(self.model.out.weight.device)
        training, validation = split_loans(data, trajectories, self.config.seed, max_loans)
        self._prepare(data.take(training), trajectories)
        check_possible(self.model, data, torch.cat([training, validation]))
        batches = length_batches(data.lengths, training, batch_size, self.config.seed)
        share = len(batches) / max(int(data.lengths[training].sum()), 1)
        # Batches are fixed and of one length each, so that little is spent on padding.
        config = dataclasses.replace(self.config, lr=self.lr, epochs=epochs, batch_size=1)
        fingerprint = data_fingerprint(data.features, data.states, data.rows)
        cohort_loss, _ = evaluate(self.model, data, validation, residual=False)
        n_months = data.n_months
        # A head that reads payments learns afterwards, from what the finished network says.
        with_values = not self.model.config.reads_payments
        self.model.value_head.requires_grad_(with_values)

        def loss_of(numbers: Tensor, generator: torch.Generator) -> Tensor:
            batch = _hide_payments(data.take(batches[int(numbers[0])]), generator)
            state, value = batch_losses(self.model, batch, generator, True, with_values)
            return state.sum() * share + value + _prior(self.model) / n_months

        history_of = run_training(
            self.model,
            len(batches),
            loss_of,
            config,
            name="loan_trajectory",
            validation_loss=lambda: _stopping_loss(
                *evaluate(self.model, data, validation, with_values=with_values)
            ),
            resume=resume,
            fingerprint=fingerprint,
            on_epoch=on_epoch,
        )
        if not with_values:
            self.model.value_head.requires_grad_(True)
            fit_payments(
                self.model,
                data.take(training),
                data.take(validation),
                outputs,
                config,
                resume=resume,
                fingerprint=fingerprint,
            )
        state_loss, value_loss = evaluate(self.model, data, validation)
        is_worse = state_loss > cohort_loss
        if is_worse:
            LOG.warning(
                "the loan network is worse than its cohort on held-out loans (%.5f against %.5f nats): its "
                "residual is set to zero",
                state_loss,
                cohort_loss,
            )
            self.model.silence()
            state_loss = cohort_loss
        return history_of | {
            "val_state_loss": state_loss,
            "fallback": "cohort" if is_worse else "",
            "cohort_state_loss": cohort_loss,
            "val_value_loss": value_loss,
            "n_trajectories": len(data),
            "n_loan_months": data.n_months,
            "has_cohort_rows": transition_model is not None,
            "data_fingerprint": fingerprint,
        }

    def _prepare(self, data: TrajectoryData, trajectories: Trajectories) -> None:
        """Scaling constants and value quantiles from the training loans."""
        model = self.model
        model.fit_scaling(data.features, trajectories.scaler.reference_month)
        flat = data.known.any(-1).flatten()
        states = data.raw_states.flatten()[flat]
        model.value_head.fit_values(
            data.values.reshape(-1, N_VALUES)[flat],
            data.known.reshape(-1, N_VALUES)[flat],
            states,
            data.windows.flatten(0, 1)[flat],
        )


def _stopping_loss(state_loss: float, value_loss: float) -> float:
    """States decide when to stop; values break near ties (their loss is noisier by two orders)."""
    return state_loss + _VALUE_WEIGHT * value_loss


def split_loans(
    data: TrajectoryData, trajectories: Trajectories, seed: int, max_loans: int | None
) -> tuple[Tensor, Tensor]:
    """(training, validation) row numbers: one loan in eight held out, with all its histories."""
    held = torch.from_numpy(held_out(trajectories, seed))
    if not bool(held.any()) or bool(held.all()):
        every = torch.arange(len(data))
        return every, every
    training, validation = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    if max_loans is not None and len(training) > max_loans:
        order = torch.randperm(
            len(training),
            generator=torch.Generator().manual_seed(derive_seed(seed, "loan_trajectory", "sample")),
        )
        training = training[order[:max_loans].sort().values]
        validation = validation[: max(max_loans // 4, 1)]
    return training, validation


def length_batches(lengths: Tensor, rows: Tensor, batch_size: int, seed: int) -> list[Tensor]:
    """Row numbers in batches of `batch_size` histories of similar length, ties in random order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "loan_trajectory", "batches"))
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    ordered = shuffled[lengths.cpu()[shuffled].argsort(stable=True)]
    return list(torch.tensor_split(ordered, max(1, -(-len(ordered) // batch_size))))


def batch_losses(
    model: LoanTrajectoryModel,
    batch: TrajectoryData,
    generator: torch.Generator | None,
    is_taught: bool = False,
    with_values: bool = True,
) -> tuple[Tensor, Tensor]:
    """(-log p of every observed state (n,), value loss); the value head does not steer the states.

    In training (`is_taught`) each member of the model learns by its own answers, and the loss is their mean.
    """
    out = outputs(model, batch, apart=is_taught)
    observed = batch.states >= 0
    if is_taught:
        every = [
            _state_losses(logits[observed], batch.states[observed], _taught(batch, observed))
            for logits in out["state_logits"]
        ]
        state = torch.stack(every).mean(0)
    else:
        state = _state_losses(out["state_logits"][observed], batch.states[observed], None)
    if not with_values:
        return state, state.new_zeros(())
    chosen = _value_months(batch, generator)
    value = model.value_head.loss(
        out["value_params"].detach()[chosen],
        batch.raw_states[chosen],
        batch.values[chosen],
        batch.known[chosen],
        generator,
        batch.windows[chosen],
    )
    return state, value


def _taught(batch: TrajectoryData, observed: Tensor) -> Tensor | None:
    return None if batch.taught is None else batch.taught[observed]


def _state_losses(logits: Tensor, states: Tensor, taught: Tensor | None) -> Tensor:
    state = F.cross_entropy(logits, states, reduction="none")
    return state if taught is None else _with_teacher(state, logits, taught)


def _with_teacher(state: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
    """(n,) losses, `_TAUGHT_SHARE` of each against the teacher where it speaks; excluded moves are free."""
    speaks = torch.isfinite(taught).all(-1)
    possible = ~torch.isneginf(logits)
    weights = torch.nan_to_num(taught) * possible
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    log_p = logits.log_softmax(-1).masked_fill(~possible, 0.0)
    soft = -(weights * log_p).sum(-1)
    return torch.where(speaks, (1.0 - _TAUGHT_SHARE) * state + _TAUGHT_SHARE * soft, state)


def outputs(
    model: LoanTrajectoryModel, batch: TrajectoryData, residual: bool = True, apart: bool = False
) -> dict[str, Tensor]:
    """`LoanTrajectoryModel.condition` on a batch; without the residual, the cohort itself."""
    count, months = batch.raw_states.shape
    device = batch.raw_states.device
    previous = previous_states(batch.raw_states, batch.initial_state, count, months, device)
    past = state_history(previous, batch.since0)
    rows = batch.cohort_rows(previous)
    if not residual:
        return {"state_logits": model.cohort_logits(rows, past, batch.is_final)}
    windows = batch.windows if model.config.reads_payments else None
    return model.condition(batch.features, rows, past, windows, batch.calendar.long(), batch.is_final, apart)


def _prior(model: LoanTrajectoryModel) -> Tensor:
    """Negative log prior of the effects that only data in plenty should move."""
    effects = (model.vintage**2).sum() + (model.segment**2).sum()
    season = (model.season.month**2).sum() + (model.season.weekday**2).sum()
    scale = model.config.idio_scale / _SEASON_SD
    own = _EFFECT_PRIOR * effects + 0.5 * scale**2 * season
    # Each member's data term is a share of the loss, so its prior is the same share.
    for member in model.others():
        own = own + _prior(member) * member.config.n_members
    return own / model.config.n_members


def evaluate(
    model: LoanTrajectoryModel,
    data: TrajectoryData,
    rows: Tensor,
    residual: bool = True,
    batch_size: int = 1024,
    with_values: bool = True,
) -> tuple[float, float]:
    """(nats per loan-month, value loss) on some histories, without gradients and with fixed noise."""
    model.eval()
    generator = torch.Generator(data.features.device).manual_seed(
        derive_seed(0, "loan_trajectory", "validation")
    )
    total, value_total, count, parts = 0.0, 0.0, 0, 0
    ordered = rows[data.lengths[rows].argsort()]
    with torch.no_grad():
        for some in ordered.split(batch_size):
            batch = data.take(some)
            if residual:
                state, value = batch_losses(model, batch, generator, with_values=with_values)
                value_total += float(value)
            else:
                observed = batch.states >= 0
                logits = outputs(model, batch, residual=False)["state_logits"][observed]
                state = F.cross_entropy(logits, batch.states[observed], reduction="none")
            total, count, parts = total + float(state.double().sum()), count + len(state), parts + 1
    return total / max(count, 1), value_total / max(parts, 1)


def move_probabilities(
    model: LoanTrajectoryModel | None,
    trajectories: Trajectories,
    transition_model: TransitionTransformer | None = None,
    macro_data: Any = None,
    only: np.ndarray | None = None,
    with_payments: bool = True,
) -> np.ndarray:
    """(N,7) probabilities of every observed month's state, history by history, month by month.

    The order is that of `trajectories.mask[only]`, and of `evaluation.scoring_rows`.

    Args:
        model: the loan model; None gives the cohort itself.
        transition_model, macro_data: as in `TrajectoryTrainer.fit`.
        only: (H,) bool, the histories wanted; None takes all.
        with_payments: False hides past payments from a model that reads them.
    """
    rows = rows_for(trajectories, transition_model, macro_data)
    device = torch.device("cpu") if model is None else model.out.weight.device
    data = trajectory_data(trajectories, rows).to(device)
    if not with_payments:
        data = dataclasses.replace(data, paid=torch.full_like(data.paid, torch.nan))
    reader = (
        LoanTrajectoryModel(TrajectoryConfig(d_model=2, n_heads=1, n_layers=1)) if model is None else model
    )
    reader.eval()
    chosen = torch.arange(len(data)) if only is None else torch.from_numpy(only).nonzero()[:, 0]
    found = np.zeros((len(chosen), data.states.shape[1], N_STATES), dtype=np.float32)
    order = data.lengths.cpu()[chosen].argsort()
    with torch.no_grad():
        for some in order.split(1024):
            batch = data.take(chosen[some].to(device))
            logits = outputs(reader, batch, residual=model is not None)["state_logits"]
            found[some.numpy(), : logits.shape[1]] = logits.softmax(-1).cpu().numpy()
    return found[trajectories.mask[chosen.numpy()]].astype(np.float64)


def held_out(trajectories: Trajectories, seed: int) -> np.ndarray:
    """(H,) bool: histories of the loans that training under `seed` holds out for validation."""
    draw = stream(seed, "loan_trajectory", "split").random(int(trajectories.loan_row.max()) + 1)
    return draw[trajectories.loan_row] < _HELD_OUT_SHARE


def _hide_payments(batch: TrajectoryData, generator: torch.Generator) -> TrajectoryData:
    """Take the payments from a share of the loans, so that the network also knows life without."""
    hidden = torch.rand(len(batch), generator=generator, device=batch.paid.device) < _HIDDEN_SHARE
    return dataclasses.replace(batch, paid=batch.paid.masked_fill(hidden[:, None], torch.nan))


def _value_months(batch: TrajectoryData, generator: torch.Generator | None) -> Tensor:
    """(N,T) bool: every default, and a sample of living loan-months."""
    known = batch.known
    living = known[..., 0]
    share = min(1.0, _VALUE_SAMPLE / max(int(living.sum()), 1))
    draw = torch.rand(living.shape, generator=generator, device=living.device)
    return known[..., 1] | (living & (draw < share))


def check_possible(model: LoanTrajectoryModel, data: TrajectoryData, rows: Tensor) -> None:
    """Raise DataError where the cohort rows exclude a move that the histories hold."""
    for some in rows.split(4096):
        batch = data.take(some)
        observed = batch.states >= 0
        with torch.no_grad():
            logits = outputs(model, batch, residual=False)["state_logits"][observed]
        target = batch.states[observed]
        excluded = torch.isneginf(logits.gather(1, target[:, None])[:, 0])
        if bool(excluded.any()):
            name = LOAN_STATE_NAMES[int(target[excluded][0])]
            raise DataError(
                "histories hold moves that the cohort rows exclude",
                expected="rows of a transition model with moves='observable', or cleaner data",
                got=f"{int(excluded.sum())} months, the first into {name}",
                where="trajectories",
            )
