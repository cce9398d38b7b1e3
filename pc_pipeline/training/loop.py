"""The one training loop, used by every trainer.

Here: AdamW with warm-up and cosine, clipping, early stopping with the best weights restored. Not here: any
loss (each trainer brings its own), the resume file (`training.resume`), bars and curves (`training.watch`),
several processes (`training.distributed`), the final model's file (`models.checkpoint`).

A trainer hands over the number of training rows and a function from row numbers to a loss:

    history = run_training(model, n_rows, loss_of, config, name="macro_vae", validation_loss=check)

Everything random in an epoch (order, dropout, sampling) comes from streams named by the epoch, so a
run that was killed and resumed at an epoch's end gives the same bits on a CPU as one that was not. Under
torchrun the same script trains one model in several processes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.models.device import same_bits_twice
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.distributed import Team
from pc_pipeline.training.resume import Progress
from pc_pipeline.training.watch import EpochReport, OnEpoch, Record, kept_training

__all__ = ["LossOf", "Record", "learning_rate", "make_optimizer", "run_training", "shuffled_batches"]

LossOf = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def learning_rate(step: int, n_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_lr_share * lr`; `step` counts from 0."""
    warmup = round(config.warmup_share * n_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    along = (step - warmup) / max(n_steps - warmup - 1, 1)
    floor = config.final_lr_share
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(along, 1.0))))


def shuffled_batches(n_rows: int, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Row numbers 0..n_rows-1 in random order, cut into batches of nearly equal size (none tiny)."""
    order = torch.randperm(n_rows, generator=generator)
    return list(torch.tensor_split(order, max(1, math.ceil(n_rows / batch_size))))


def make_optimizer(
    model: nn.Module, config: TrainConfig, lr_share: Callable[[str], float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices decay.

    Args:
        lr_share: parameter name -> share of the learning rate it learns with; None is 1 for all.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            share = 1.0 if lr_share is None else lr_share(name)
            groups.setdefault((decay, share), []).append(parameter)
    fused = bool(groups) and all(p.is_cuda for members in groups.values() for p in members)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "lr_share": share}
            for (decay, share), members in groups.items()
        ],
        lr=config.lr,
        fused=fused or None,
    )


@contextlib.contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """`n_threads` and repeatable sums inside, the former settings after."""
    former = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with same_bits_twice():
            yield
    finally:
        torch.set_num_threads(former)


def run_training(
    model: nn.Module,
    n_rows: int,
    loss_of: LossOf,
    config: TrainConfig,
    *,
    name: str,
    validation_loss: Callable[[], float] | None = None,
    resume: Path | str | None = None,
    fingerprint: str = "",
    on_epoch: OnEpoch | None = None,
    after_step: Callable[[], None] | None = None,
    lr_share: Callable[[str], float] | None = None,
) -> dict[str, Any]:
    """Train in place; the model ends in eval mode with the weights of its best epoch.

    Args:
        n_rows: training rows; batches are drawn from 0..n_rows-1.
        loss_of: (row numbers (B,) int64, generator) -> scalar loss with a gradient, a mean over its rows.
        validation_loss: called in eval mode without gradients after each epoch; without it the
            training loss takes its place.
        resume: file to continue from and to write after every epoch. It is removed by nobody: a finished
            run resumed again returns at once. None: one of its own inside `keep_training`, removed at the
            end of the run; none outside.
        fingerprint: digest of the data; a resume file of other data, config or model is refused.
        on_epoch: called with {'epoch', 'loss', 'val_loss', 'lr', 'gradient_norm', 'seconds'}.
        after_step: called after each optimiser step (projections).
        lr_share: see `make_optimizer`.

    Returns:
        {'loss', 'val_loss', 'lr': one number per epoch, 'epochs': run, 'best_epoch': from 1,
        'best_val_loss', 'stopped_early', 'seconds': wall clock, not for saved tables}.

    Raises:
        ModelError: no rows, nothing to train, a loss or gradient that is not finite, a gradient that
            explodes, a foreign resume file. The resume file then holds the last sound epoch.
    """
    if n_rows < 1:
        raise ModelError(f"{name}: nothing to train on", expected="at least one row", got=n_rows)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{name}: nothing to train", expected="trainable parameters", got="none")
    started = time.monotonic()
    device = next(model.parameters()).device
    team = Team.join(device)
    team.begin_alike(model)
    progress = Progress(
        model, make_optimizer(model, config, lr_share), config, name, f"{fingerprint}:{n_rows}"
    )
    team.check_digest(progress.digest, device)
    path = _resume_path(resume, progress)
    if path is not None and path.exists():
        progress.restore(path)
    epoch = _Epoch(progress, n_rows, loss_of, after_step, team)
    with (
        torch_threads(config.n_threads),
        torch.random.fork_rng(devices=[]),
        EpochReport(name, config, on_epoch, done=progress.epoch, is_quiet=not team.is_first) as report,
    ):
        while not progress.is_over():
            loss, rate, norm = epoch.run()
            checked = _validate(model, validation_loss, name, progress.epoch) if validation_loss else loss
            progress.close_epoch(loss, team.agree(checked, device), rate)
            if path is not None and team.is_first:
                progress.save(path)
            report.tell(
                {
                    "epoch": progress.epoch,
                    "loss": loss,
                    "val_loss": checked,
                    "lr": rate,
                    "gradient_norm": norm,
                    "seconds": time.monotonic() - started,
                }
            )
    progress.restore_best()
    model.eval()
    if team.is_first:
        _clear_up(path, resume)
    return progress.summary() | {"seconds": time.monotonic() - started}


def _resume_path(resume: Path | str | None, progress: Progress) -> Path | None:
    """The file a caller named, or one of this run's own in the folder of `keep_training`."""
    if resume is not None:
        return Path(resume)
    kept = kept_training()
    return None if kept is None else kept.folder / f"{progress.name}-{progress.digest}.safetensors"


def _clear_up(path: Path | None, resume: Path | str | None) -> None:
    """A finished run of `keep_training` needs its resume file no more; nor do older ones of its name."""
    kept = kept_training()
    if path is None or resume is not None or kept is None or kept.keep_finished:
        return
    for file in path.parent.glob(f"{path.name.rsplit('-', 1)[0]}-*.safetensors"):
        file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One pass over the rows."""

    progress: Progress
    n_rows: int
    loss_of: LossOf
    after_step: Callable[[], None] | None
    team: Team

    def run(self) -> tuple[float, float, float]:
        """Mean loss, last learning rate, largest gradient norm before clipping."""
        progress, config, team = self.progress, self.progress.config, self.team
        stream = (config.seed, progress.name)
        generator = torch.Generator().manual_seed(derive_seed(*stream, "epoch", progress.epoch))
        batches = shuffled_batches(self.n_rows, config.batch_size * team.size, generator)
        own = () if team.is_first else ("rank", team.rank)
        if own:
            generator.manual_seed(derive_seed(*stream, "epoch", progress.epoch, *own))
        torch.manual_seed(derive_seed(*stream, "dropout", progress.epoch, *own))
        n_steps = len(batches) * config.epochs
        progress.model.train()
        total, rate, largest = 0.0, config.lr, 0.0
        for index, rows in enumerate(batches):
            step = progress.epoch * len(batches) + index
            where = (
                f"{progress.name}, epoch {progress.epoch + 1}, batch {index + 1} of {len(batches)} "
                f"(step {step + 1})"
            )
            rate = learning_rate(step, n_steps, config)
            for group in progress.optimizer.param_groups:
                group["lr"] = rate * group["lr_share"]
            value = self._backward(rows, generator, where)
            largest = max(largest, self._clip(where))
            progress.optimizer.step()
            if self.after_step is not None:
                self.after_step()
            total += value * len(rows)
        return total / self.n_rows, rate, largest

    def _backward(self, rows: torch.Tensor, generator: torch.Generator, where: str) -> float:
        """Gradients of the whole team's batch; returns its loss."""
        progress, team = self.progress, self.team
        device = next(progress.model.parameters()).device
        progress.optimizer.zero_grad(set_to_none=True)
        mine = team.share(rows)
        loss, value = None, 0.0
        if len(mine):
            is_half = progress.config.precision == "bfloat16"
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half):
                loss = self.loss_of(mine, generator)
            value = float(loss.detach())
        weight = len(mine) / len(rows)
        value = team.total(value * weight, device) if team.size > 1 else value
        if not math.isfinite(value):
            raise ModelError("the loss is not finite", expected="a finite number", got=value, where=where)
        if loss is not None:
            loss.backward()
        team.join_gradients(progress.model, weight)
        return value

    def _clip(self, where: str) -> float:
        """Clip; returns the norm before."""
        model, config = self.progress.model, self.progress.config
        total = nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        norm = float(total)
        if not math.isfinite(norm):
            raise ModelError(
                "the gradient is not finite", expected="a finite norm", got=_worst(model), where=where
            )
        if norm > config.explosion * config.clip:
            raise ModelError(
                "the gradient explodes",
                expected=f"a norm of at most {config.explosion * config.clip:g}",
                got=f"{norm:.3g}, most of it in {_worst(model)}",
                where=where,
            )
        nn.utils.clip_grads_with_norm_(model.parameters(), config.clip, total)
        return norm


def _worst(model: nn.Module) -> str:
    """The parameter whose gradient is not finite, or else the largest."""
    norms = {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return max(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else math.inf)


def _validate(model: nn.Module, validation_loss: Callable[[], float], name: str, epoch: int) -> float:
    model.eval()
    with torch.no_grad():
        value = float(validation_loss())
    if not math.isfinite(value):
        raise ModelError(
            "the validation loss is not finite",
            expected="a finite number",
            got=value,
            where=f"{name}, epoch {epoch + 1}",
        )
    return value
