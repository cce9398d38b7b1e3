"""Train the loan model on histories: states by their likelihood, values by diffusion.

Here: `TrajectoryTrainer`, and how trajectories become tensors beside their cohorts' rows. Not here: the
network (`models.loan_trajectory`), aligned histories (`loans.trajectories`), the loop (`training.loop`).

    L = - mean over observed loan-months of log p(state) + mean squared error of v (values)

Padding is never trained on. Loans, not months, are held out for validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pc_pipeline.core.errors import DataError, ModelError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.loans.features import FeatureScaler, calendar_features, loan_features
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.trajectories import Trajectories
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.diffusion import MAX_PAYMENT_RATIO, N_VALUES
from pc_pipeline.models.history import state_history
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig, previous_states
from pc_pipeline.models.transition_transformer import TransitionTransformer, matrix_from
from pc_pipeline.schemas.states import LOAN_STATE_NAMES, N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, COHORT_FEATURES, LOAN_FEATURES
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training

_VALUE_SAMPLE: Final = 512  # living loan-months per batch whose payment ratio is learned from
HISTORY_FEATURES: Final = ("last_ratio", "met_3", "met_12", "largest_3", "arrears", "balance_share")
_HELD_OUT_SHARE: Final = 1 / 8
_HIDDEN_SHARE: Final = 1 / 3
_VALUE_WEIGHT: Final = 0.01  # of the value loss in early stopping
_VINTAGE_PRIOR: Final = 0.5  # vintage effects are standard normal a priori


@dataclass(frozen=True, kw_only=True)
class TrajectoryData:
    """N histories of at most T months on tensors.

    Attributes:
        features: (N,24) raw units, NaN where missing, age at the end of the month before column 0.
        states: (N,T) int64, -1 after the end; maturity booked as `schemas.states.mature_rows` does.
        raw_states: (N,T) as reported. initial_state, since0: (N,). is_final: (N,T) bool.
        rows: (R,T',4,7) cohort rows; rows_of, first_column: (N,) where each history reads them.
        values, known: (N,T,V) ratios and which are observed. lengths: (N,). history: (N,T,F) or None.
    """

    features: Tensor
    states: Tensor
    raw_states: Tensor
    initial_state: Tensor
    since0: Tensor
    is_final: Tensor
    rows: Tensor
    rows_of: Tensor
    first_column: Tensor
    values: Tensor
    known: Tensor
    lengths: Tensor
    history: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_months(self) -> int:
        """Observed loan-months."""
        return int(self.lengths.sum())

    def take(self, which: Tensor) -> TrajectoryData:
        """Some histories, cut to the longest of them."""
        months = int(self.lengths[which].max()) if len(which) else 1
        cut = {
            name: getattr(self, name)[which][:, :months]
            for name in ("states", "raw_states", "is_final", "values", "known")
        }
        history = None if self.history is None else self.history[which][:, :months]
        single = {
            name: getattr(self, name)[which]
            for name in ("features", "initial_state", "since0", "rows_of", "first_column", "lengths")
        }
        return dataclasses.replace(self, **cut, **single, history=history)

    def cohort_rows(self, previous: Tensor) -> Tensor:
        """(N,T,7) the cohort's row of each month's starting state; absorbing states stay."""
        months = torch.arange(previous.shape[1], device=previous.device)
        column = (self.first_column[:, None] + months).clamp(max=self.rows.shape[1] - 1)
        living = previous.clamp(max=N_LIVING - 1)
        place = (self.rows_of[:, None] * self.rows.shape[1] + column) * N_LIVING + living
        rows = self.rows.reshape(-1, N_STATES)[place]
        stay = torch.eye(N_STATES, dtype=rows.dtype, device=rows.device)[previous]
        return torch.where((previous < N_LIVING)[..., None], rows, stay)

    def to(self, device: torch.device) -> TrajectoryData:
        """On another device."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **moved)


# ---- from tables to tensors -----------------------------------------------------------------


def raw_features(trajectories: Trajectories) -> Tensor:
    """(N,24) loan features in their own units, NaN where missing."""
    scaler = trajectories.scaler
    raw = trajectories.features.astype(np.float64) * np.array(scaler.sd) + np.array(scaler.mean)
    return torch.from_numpy(np.where(trajectories.missing, np.nan, raw).astype(np.float32))


def model_features(model: LoanTrajectoryModel, loans: Any) -> Tensor:
    """(L,24) raw features of a tape or pool, as `model` expects them (its own reference month).

    Args:
        loans: tape, or pool with `age_months`; polars or pandas.
    """
    size = len(LOAN_FEATURES)
    plain = FeatureScaler(
        names=LOAN_FEATURES,
        mean=(0.0,) * size,
        sd=(1.0,) * size,
        reference_month=int(model.reference_month),
    )
    found = loan_features(loans, plain)
    return torch.from_numpy(np.where(found.missing, np.nan, found.values).astype(np.float32))


def observed_history(trajectories: Trajectories) -> np.ndarray:
    """(N,T,6) what payments told by the end of the month before each column; NaN where nothing was seen.

    `HISTORY_FEATURES`: last payment over instalment; the share of each instalment met (at most 1), mean of
    3 and of 12 months; the largest of 3 months; instalments owed since the record begins (shortfalls add,
    excess pays back, never below 0); balance over that at the start.
    """
    ratio = np.where(trajectories.mask, trajectories.payment_ratio, np.nan).astype(np.float64)
    ratio = np.clip(ratio, 0.0, 3.0)
    count, months = ratio.shape
    before = np.full((count, months), np.nan)
    before[:, 1:] = ratio[:, :-1]
    balance = np.full((count, months), np.nan)
    balance[:, 1:] = np.where(trajectories.mask[:, :-1], trajectories.balances[:, :-1], np.nan)
    balance[:, 0] = trajectories.initial_balance
    met = np.minimum(before, 1.0)
    known, total = np.isfinite(met), np.nan_to_num(met)
    largest = np.fmax(before, np.fmax(_lag(before, 1), _lag(before, 2)))
    means = [_window(total, w) / np.maximum(_window(known.astype(float), w), 1.0) for w in (3, 12)]
    means = [np.where(known, mean, np.nan) for mean in means]
    arrears, owing = np.full_like(before, np.nan), np.zeros(count)
    for month in range(1, months):
        owing = np.maximum(owing + 1.0 - np.nan_to_num(before[:, month], nan=1.0), 0.0)
        arrears[:, month] = np.where(known[:, month], np.minimum(owing, 6.0), np.nan)
    owed = balance / np.maximum(trajectories.initial_balance, 0.01)[:, None]
    return np.stack([before, *means, largest, arrears, owed], axis=-1).astype(np.float32)


def _lag(values: np.ndarray, months: int) -> np.ndarray:
    lagged = np.full_like(values, np.nan)
    lagged[:, months:] = values[:, :-months]
    return lagged


def _window(values: np.ndarray, months: int) -> np.ndarray:
    total = values.cumsum(axis=1)
    total[:, months:] -= total[:, :-months].copy()
    return total


def cohort_rows(
    transition_model: TransitionTransformer, trajectories: Trajectories, paths: MacroPaths
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the (path, cohort) pairs that occur: (R,T,4,7), and per history its pair and first column.

    Raises:
        DataError: a history lies outside the macro paths' months.
    """
    first = trajectories.start_month - paths.start_month
    last = first + trajectories.lengths
    if first.min() < 0 or last.max() > paths.n_months:
        raise DataError(
            "histories outside the macro paths' months",
            expected=f"0..{paths.n_months} months after the paths begin",
            got=f"{first.min()}..{last.max()}",
        )
    path = paths.rows_of(trajectories.keys)
    cohorts = trajectories.cohorts
    pairs, rows_of = np.unique(path * cohorts.height + trajectories.cohort_row, return_inverse=True)
    vintage = np.array([month.year * 12 + month.month - 1 for month in cohorts["vintage_month"]])
    used, path_of = np.unique(pairs // cohorts.height, return_inverse=True)
    cohort_of = pairs % cohorts.height
    device = transition_model.base.device
    features = matrix_from(cohorts, COHORT_FEATURES)[cohort_of]
    age0 = torch.from_numpy((paths.start_month - 1 - vintage)[cohort_of]).float()
    macro = torch.from_numpy(paths.values[used].astype(np.float32)).to(device)
    calendar = torch.from_numpy(calendar_features(paths.start_month + np.arange(paths.n_months))).to(device)
    transition_model.eval()
    with torch.no_grad():
        parts = [
            transition_model.pair_rows(
                features[some].to(device),
                macro,
                torch.from_numpy(path_of)[some].to(device),
                calendar,
                age0[some].to(device),
            )
            for some in torch.arange(len(pairs)).split(512)
        ]
    return torch.cat(parts).cpu(), torch.from_numpy(rows_of), torch.from_numpy(first)


def rows_for(
    trajectories: Trajectories, transition_model: TransitionTransformer | None, macro_data: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`cohort_rows` of a transition model along `macro_data` or the histories' own macro, else `class_rows`.

    Raises:
        DataError: there is a transition model but no macro.
    """
    if transition_model is None:
        return class_rows(trajectories)
    paths = macro_paths(macro_data) if macro_data is not None else trajectories.macro
    if paths is None:
        raise DataError("cohort rows need the macro paths", expected="macro_data=...", got=None)
    return cohort_rows(transition_model, trajectories, paths)


def class_rows(trajectories: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """`cohort_rows` without a transition model: each class's mean row before the final month."""
    states = torch.from_numpy(trajectories.states).long()
    initial = torch.from_numpy(trajectories.initial_state).long()
    previous = previous_states(states, initial, states.shape[0], states.shape[1], states.device)
    code = torch.nan_to_num(raw_features(trajectories)[:, : len(ASSET_CLASSES)]).argmax(1)
    chosen = torch.from_numpy(trajectories.mask & ~trajectories.is_final) & (previous < N_LIVING)
    target = torch.where(states == LoanState.matured, torch.full_like(states, LoanState.prepaid), states)
    cell = (code[:, None] * N_LIVING + previous) * N_STATES + target
    counts = torch.bincount(cell[chosen], minlength=len(ASSET_CLASSES) * N_LIVING * N_STATES)
    counts = counts.view(len(ASSET_CLASSES), N_LIVING, N_STATES).double()
    alive = torch.from_numpy(trajectories.mask) & (previous < N_LIVING)
    seen = torch.bincount((previous * N_STATES + target)[alive], minlength=N_LIVING * N_STATES)
    # A move seen only in final months is rare, not impossible.
    pooled = counts.sum(0) + 1e-3 * (seen.view(N_LIVING, N_STATES) > 0)
    stay = torch.eye(N_STATES, dtype=torch.double)[:N_LIVING]
    total = pooled.sum(-1, keepdim=True)
    pooled = torch.where(total > 0, pooled / total.clamp(min=1e-9), stay)
    rows = (counts + 5.0 * pooled) / (counts.sum(-1, keepdim=True) + 5.0)
    return rows.float()[:, None], code, torch.zeros(len(code), dtype=torch.long)


def trajectory_data(
    trajectories: Trajectories, rows: tuple[Tensor, Tensor, Tensor], history: np.ndarray | None = None
) -> TrajectoryData:
    """Tensors of histories beside their cohorts' rows; histories that never begin alive are left out."""
    raw = torch.from_numpy(trajectories.states).long()
    final = torch.from_numpy(trajectories.is_final)
    paid_up = final & ((raw == LoanState.performing) | (raw == LoanState.prepaid))
    early = ~final & (raw == LoanState.matured)
    booked = torch.where(paid_up, torch.full_like(raw, LoanState.matured), raw)
    booked = torch.where(early, torch.full_like(raw, LoanState.prepaid), booked)
    living = (raw >= 0) & (raw < N_LIVING)
    is_default = raw == LoanState.default
    recovery = torch.from_numpy(trajectories.recovery_rate)[:, None].expand(raw.shape)
    ratio = torch.from_numpy(trajectories.payment_ratio).clamp(0.0, MAX_PAYMENT_RATIO)
    values = torch.stack([ratio, (1.0 - torch.nan_to_num(recovery)).clamp(0.0, 1.0)], dim=-1)
    known = torch.stack([living & torch.isfinite(ratio), is_default & torch.isfinite(recovery)], dim=-1)
    data = TrajectoryData(
        features=raw_features(trajectories),
        states=booked,
        raw_states=raw,
        initial_state=torch.from_numpy(trajectories.initial_state).long(),
        since0=torch.from_numpy(trajectories.initial_months_since_miss).long(),
        is_final=final,
        rows=rows[0],
        rows_of=rows[1],
        first_column=rows[2],
        values=torch.where(known, torch.nan_to_num(values), torch.zeros_like(values)).float(),
        known=known,
        lengths=torch.from_numpy(trajectories.lengths).long(),
        history=None if history is None else torch.from_numpy(history.astype(np.float32)),
    )
    return data


# ---- training -------------------------------------------------------------------------------


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
        history: np.ndarray | None = None,
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
            history: (N,T,F) observed inputs, known at the end of the month before each column.
            max_loans: train on at most so many histories, drawn by seed.
            resume: file to continue from. on_epoch: called with each epoch's record.

        Returns:
            The loop's history, and: val_state_loss, cohort_state_loss (zero residual, same rows; nats per
            loan-month), val_value_loss, n_trajectories, n_loan_months, has_cohort_rows, data_fingerprint.

        Raises:
            DataError: no histories, or they hold moves that the cohort rows exclude.
        """
        if trajectories is None or len(trajectories) == 0:
            raise DataError("no histories to learn from", expected="trajectories=prepare_trajectories(...)")
        if self.model.config.n_history_features and history is None:
            raise ModelError("the network expects observed history", expected="history=(N,T,F)", got=None)
        rows = rows_for(trajectories, transition_model, macro_data)
        data = trajectory_data(trajectories, rows, history).to(self.model.out.weight.device)
        training, validation = split_loans(data, trajectories, self.config.seed, max_loans)
        self._prepare(data.take(training), trajectories)
        check_possible(self.model, data, torch.cat([training, validation]))
        batches = length_batches(data.lengths, training, batch_size, self.config.seed)
        share = len(batches) / max(int(data.lengths[training].sum()), 1)
        # Batches are fixed and of one length each, so that little is spent on padding.
        config = dataclasses.replace(self.config, lr=self.lr, epochs=epochs, batch_size=1)
        fingerprint = data_fingerprint(data.features, data.states, data.rows)
        cohort_loss, _ = evaluate(self.model, data, validation, residual=False)

        def loss_of(numbers: Tensor, generator: torch.Generator) -> Tensor:
            batch = _hide_history(data.take(batches[int(numbers[0])]), generator)
            state, value = batch_losses(self.model, batch, generator)
            prior = _VINTAGE_PRIOR * (self.model.vintage**2).sum() / data.n_months
            return state.sum() * share + value + prior

        history_of = run_training(
            self.model,
            len(batches),
            loss_of,
            config,
            name="loan_trajectory",
            validation_loss=lambda: _stopping_loss(*evaluate(self.model, data, validation)),
            resume=resume,
            fingerprint=fingerprint,
            on_epoch=on_epoch,
        )
        state_loss, value_loss = evaluate(self.model, data, validation)
        return history_of | {
            "val_state_loss": state_loss,
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
        model.fit_scaling(data.features, trajectories.scaler.reference_month, data.history)
        flat = data.known.any(-1).flatten()
        states = data.raw_states.flatten()[flat]
        model.value_head.transform.fit(
            data.values.reshape(-1, N_VALUES)[flat], data.known.reshape(-1, N_VALUES)[flat], states
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
    model: LoanTrajectoryModel, batch: TrajectoryData, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """(-log p of every observed state (n,), value loss); the value head does not steer the states."""
    out = outputs(model, batch)
    observed = batch.states >= 0
    state = F.cross_entropy(out["state_logits"][observed], batch.states[observed], reduction="none")
    chosen = _value_months(batch, generator)
    value = model.value_head.loss(
        out["value_params"].detach()[chosen],
        batch.raw_states[chosen],
        batch.values[chosen],
        batch.known[chosen],
        generator,
    )
    return state, value


def outputs(model: LoanTrajectoryModel, batch: TrajectoryData, residual: bool = True) -> dict[str, Tensor]:
    """`LoanTrajectoryModel.condition` on a batch; without the residual, the cohort itself."""
    count, months = batch.raw_states.shape
    device = batch.raw_states.device
    previous = previous_states(batch.raw_states, batch.initial_state, count, months, device)
    past = state_history(previous, batch.since0)
    rows = batch.cohort_rows(previous)
    if not residual:
        return {"state_logits": model.cohort_logits(rows, past, batch.is_final)}
    return model.condition(batch.features, rows, past, batch.history, None, batch.is_final)


def evaluate(
    model: LoanTrajectoryModel,
    data: TrajectoryData,
    rows: Tensor,
    residual: bool = True,
    batch_size: int = 1024,
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
                state, value = batch_losses(model, batch, generator)
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
    history: np.ndarray | None = None,
) -> np.ndarray:
    """(N,7) probabilities of every observed month's state, history by history, month by month.

    The order is that of `trajectories.mask[only]`, and of `evaluation.scoring_rows`.

    Args:
        model: the loan model; None gives the cohort itself.
        transition_model, macro_data, history: as in `TrajectoryTrainer.fit`.
        only: (H,) bool, the histories wanted; None takes all.
    """
    rows = rows_for(trajectories, transition_model, macro_data)
    device = torch.device("cpu") if model is None else model.out.weight.device
    data = trajectory_data(trajectories, rows, history).to(device)
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


def _hide_history(batch: TrajectoryData, generator: torch.Generator) -> TrajectoryData:
    """Take the observed history from a third of the loans, so that the network also knows life without."""
    if batch.history is None:
        return batch
    hidden = torch.rand(len(batch), generator=generator, device=batch.history.device) < _HIDDEN_SHARE
    history = batch.history.masked_fill(hidden[:, None, None], torch.nan)
    return dataclasses.replace(batch, history=history)


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
