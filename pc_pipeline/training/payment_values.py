"""Train the payments of a loan model that reads them: after its states, which they must not steer.

Here: `fit_payments`. Not here: the states (`training.trajectories`), the head itself (`models.payment_head`),
the loop (`training.loop`).

The head stands on what the state network says of a month, so it learns best once that no longer moves: the
network's answers are taken once, with every month's true past, and the head alone is trained on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training
from pc_pipeline.training.trajectory_data import TrajectoryData

Outputs = Callable[[LoanTrajectoryModel, TrajectoryData], dict[str, Tensor]]
_LR, _PASSES = 1e-2, 10
_LARGEST_BATCH, _LEAST_BATCH, _BATCHES = 2048, 64, 32
_MOST_MONTHS, _MOST_JUDGED = 400_000, 40_000
_AT_ONCE: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentMonths:
    """N months with a payment or a severity: what the head stands on and what happened.

    Attributes:
        context: (N,D). state: (N,). values, known: (N,V). window: (N,12) payments before.
    """

    context: Tensor
    state: Tensor
    values: Tensor
    known: Tensor
    window: Tensor

    def __len__(self) -> int:
        return len(self.state)

    def take(self, rows: Tensor) -> PaymentMonths:
        """Some months."""
        return PaymentMonths(
            **{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        )


def fit_payments(
    model: LoanTrajectoryModel,
    training: TrajectoryData,
    validation: TrajectoryData,
    outputs: Outputs,
    config: TrainConfig,
    *,
    resume: Path | str | None = None,
    fingerprint: str = "",
) -> dict[str, Any]:
    """Train `model.value_head` alone, on histories whose states are learned.

    Args:
        outputs: of the model on histories. config: of the states; the head has its own rate and batch, and
            ten passes at most. resume: file to continue from, beside that of the states.

    Returns:
        The loop's history.
    """
    head = model.value_head
    rows = payment_months(model, training, outputs, _MOST_MONTHS, config.seed)
    judged = payment_months(model, validation, outputs, _MOST_JUDGED, config.seed)
    batch = min(_LARGEST_BATCH, max(_LEAST_BATCH, len(rows) // _BATCHES))
    passes = min(config.epochs, _PASSES)
    settings = dataclasses.replace(
        config, lr=_LR, epochs=passes, patience=passes, batch_size=batch, precision="float32"
    )

    def loss_of(numbers: Tensor, generator: torch.Generator) -> Tensor:
        some = rows.take(numbers.to(rows.state.device))
        return head.loss(some.context, some.state, some.values, some.known, generator, some.window)

    def check() -> float:
        generator = torch.Generator(judged.state.device).manual_seed(derive_seed(0, "loan_payments", "check"))
        return float(
            head.loss(judged.context, judged.state, judged.values, judged.known, generator, judged.window)
        )

    return run_training(
        head,
        len(rows),
        loss_of,
        settings,
        name="loan_payments",
        validation_loss=check if len(judged) else None,
        resume=None if resume is None else f"{resume}.payments",
        fingerprint=fingerprint,
    )


@torch.no_grad()
def payment_months(
    model: LoanTrajectoryModel, data: TrajectoryData, outputs: Outputs, most: int, seed: int
) -> PaymentMonths:
    """Months with a known value, each with what the network says before it; a sample of about `most`."""
    model.eval()
    share = min(1.0, most / max(int(data.known.any(-1).sum()), 1))
    generator = torch.Generator().manual_seed(derive_seed(seed, "loan_payments"))
    parts = []
    for some in data.lengths.argsort().split(_AT_ONCE):
        batch = data.take(some)
        drawn = torch.rand(batch.states.shape, generator=generator) < share
        at = batch.known.any(-1) & drawn.to(batch.states.device)
        parts.append(
            (
                outputs(model, batch)["value_params"][at],
                batch.raw_states[at],
                batch.values[at],
                batch.known[at],
                batch.windows[at],
            )
        )
    names = [field.name for field in dataclasses.fields(PaymentMonths)]
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return PaymentMonths(**dict(zip(names, joined, strict=True)))
