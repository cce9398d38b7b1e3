"""`TrainConfig`: what every trainer can be told. Not here: what a network is made of (`models`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pc_pipeline.core.errors import ConfigError

PRECISIONS: Final = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        epochs: passes over the training rows, >= 1.
        batch_size: rows per step (and process, under torchrun), >= 1.
        lr: peak learning rate, > 0.
        weight_decay: AdamW decay of matrices (vectors and biases are not decayed), >= 0.
        warmup_share: share of all steps with a linearly rising rate, 0..1; a cosine falls after it.
        final_lr_share: rate of the last step as a share of `lr`, 0..1.
        clip: largest gradient norm, > 0.
        explosion: a norm of more than so many times `clip` is an error, not a step, > 1.
        patience: epochs without a better validation loss before stopping, >= 1.
        min_epochs: no stop before this many epochs, >= 0.
        seed: of batch order, dropout and sampling.
        n_threads: torch threads while training, >= 1.
        precision: 'float32', or 'bfloat16' for autocast.
        log_every_seconds: a line in the log at this interval when there is no terminal, > 0.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup_share: float = 0.05
    final_lr_share: float = 0.02
    clip: float = 1.0
    explosion: float = 1e6
    patience: int = 20
    min_epochs: int = 0
    seed: int = 0
    n_threads: int = 2
    precision: str = "float32"
    log_every_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "n_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", expected=">= 1", got=getattr(self, name))
        for name in ("lr", "clip", "log_every_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is not positive", expected="> 0", got=getattr(self, name))
        for name in ("warmup_share", "final_lr_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is no share", expected="0..1", got=getattr(self, name))
        if not self.explosion > 1:
            raise ConfigError("explosion is no multiple of clip", expected="> 1", got=self.explosion)
        if self.weight_decay < 0 or self.min_epochs < 0:
            raise ConfigError("weight_decay and min_epochs are at least 0", got=self)
        if self.precision not in PRECISIONS:
            raise ConfigError("unknown precision", expected=", ".join(PRECISIONS), got=self.precision)
