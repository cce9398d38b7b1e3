"""The one training loop, used by every trainer.

Here: AdamW with warm-up and cosine, clipping, early stopping with the best weights restored, exact
resume, progress. Not here: any loss (each trainer brings its own) and the final model's file
(`models.checkpoint`).

A trainer hands over the number of training rows and a function from row numbers to a loss:

    history = run_training(model, n_rows, loss_of, config, name="macro_vae", validation_loss=check)

Everything random in an epoch (order, dropout, sampling) comes from streams named by the epoch, so a
run that was killed and resumed at an epoch's end gives the same bits on a CPU as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import replace_file
from pc_pipeline.models.device import same_bits_twice
from pc_pipeline.training.config import TrainConfig

LOG = logging.getLogger("pc_pipeline.training")

LossOf = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Record = Mapping[str, Any]


class EpochReport:
    """Progress on a terminal; a log line at intervals otherwise; a callback in both cases."""

    def __init__(self, name: str, config: TrainConfig, on_epoch: Callable[[Record], None] | None) -> None:
        self._name, self._config, self._on_epoch = name, config, on_epoch
        self._last_line = -math.inf
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f} val {task.fields[val]:.4f}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bar.add_task(name, total=config.epochs, loss=math.nan, val=math.nan)

    def __enter__(self) -> EpochReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, record: Record) -> None:
        """One epoch is over."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=record["epoch"], loss=record["loss"], val=record["val_loss"]
            )
        elif record["seconds"] - self._last_line >= self._config.log_every_seconds:
            self._last_line = record["seconds"]
            LOG.info(
                "%s epoch %d/%d loss %.5f val %.5f lr %.2e %.1f s",
                self._name,
                record["epoch"],
                self._config.epochs,
                record["loss"],
                record["val_loss"],
                record["lr"],
                record["seconds"],
            )
        if self._on_epoch is not None:
            self._on_epoch(record)


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
    on_epoch: Callable[[Record], None] | None = None,
    after_step: Callable[[], None] | None = None,
    lr_share: Callable[[str], float] | None = None,
) -> dict[str, Any]:
    """Train in place; the model ends in eval mode with the weights of its best epoch.

    Args:
        n_rows: training rows; batches are drawn from 0..n_rows-1.
        loss_of: (row numbers (B,) int64, generator) -> scalar loss with a gradient.
        validation_loss: called in eval mode without gradients after each epoch; without it the
            training loss takes its place.
        resume: file to continue from and to write after every epoch; None for neither. It is
            removed by nobody: a finished run resumed again returns at once.
        fingerprint: digest of the data; a resume file of other data, config or model is refused.
        on_epoch: called with {'epoch', 'loss', 'val_loss', 'lr', 'seconds'}.
        after_step: called after each optimiser step (projections).
        lr_share: see `make_optimizer`.

    Returns:
        {'loss', 'val_loss', 'lr': one number per epoch, 'epochs': run, 'best_epoch': from 1,
        'best_val_loss', 'stopped_early', 'seconds': wall clock, not for saved tables}.

    Raises:
        ModelError: no rows, nothing to train, a loss or gradient that is not finite, a foreign
            resume file.
    """
    if n_rows < 1:
        raise ModelError(f"{name}: nothing to train on", expected="at least one row", got=n_rows)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{name}: nothing to train", expected="trainable parameters", got="none")
    started = time.monotonic()
    optimizer = make_optimizer(model, config, lr_share)
    progress = _Progress(model, optimizer, config, name, f"{fingerprint}:{n_rows}")
    path = Path(resume) if resume is not None else None
    if path is not None and path.exists():
        progress.restore(path)
    with (
        torch_threads(config.n_threads),
        torch.random.fork_rng(devices=[]),
        EpochReport(name, config, on_epoch) as report,
    ):
        while not progress.is_over():
            loss, rate = _run_epoch(progress, n_rows, loss_of, after_step)
            checked = _validate(model, validation_loss, name, progress.epoch) if validation_loss else loss
            progress.close_epoch(loss, checked, rate)
            if path is not None:
                progress.save(path)
            report.tell(
                {
                    "epoch": progress.epoch,
                    "loss": loss,
                    "val_loss": checked,
                    "lr": rate,
                    "seconds": time.monotonic() - started,
                }
            )
    progress.restore_best()
    model.eval()
    return progress.summary() | {"seconds": time.monotonic() - started}


def _run_epoch(
    progress: _Progress, n_rows: int, loss_of: LossOf, after_step: Callable[[], None] | None
) -> tuple[float, float]:
    """One pass; returns the mean loss and the last learning rate."""
    config, model, optimizer = progress.config, progress.model, progress.optimizer
    generator = torch.Generator().manual_seed(
        derive_seed(config.seed, progress.name, "epoch", progress.epoch)
    )
    torch.manual_seed(derive_seed(config.seed, progress.name, "dropout", progress.epoch))
    batches = shuffled_batches(n_rows, config.batch_size, generator)
    n_steps = len(batches) * config.epochs
    device = next(model.parameters()).device
    model.train()
    total, rate = 0.0, config.lr
    for index, rows in enumerate(batches):
        where = f"{progress.name}, epoch {progress.epoch + 1}, batch {index + 1} of {len(batches)}"
        rate = learning_rate(progress.epoch * len(batches) + index, n_steps, config)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_share"]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = loss_of(rows, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError("the loss is not finite", expected="a finite number", got=value, where=where)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip))
        if not math.isfinite(norm):
            raise ModelError("the gradient is not finite", expected="a finite norm", got=norm, where=where)
        optimizer.step()
        if after_step is not None:
            after_step()
        total += value * len(rows)
    return total / n_rows, rate


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


class _Progress:
    """Where a run stands: weights, moments, best weights, history; all of it goes to the resume file."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, name: str, data: str
    ) -> None:
        self.model, self.optimizer, self.config, self.name = model, optimizer, config, name
        self.epoch = 0
        self.history: dict[str, list[float]] = {"loss": [], "val_loss": [], "lr": []}
        self.best_loss, self.best_epoch = math.inf, 0
        self.best_state = self._copy_state()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        self._identity = json.dumps(
            {"name": name, "data": data, "config": _lasting(config), "shapes": shapes}, sort_keys=True
        )

    def _copy_state(self) -> dict[str, torch.Tensor]:
        return {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def is_over(self) -> bool:
        """All epochs run, or patience exhausted."""
        waited = self.epoch - self.best_epoch
        stopped = waited >= self.config.patience and self.epoch >= self.config.min_epochs
        return self.epoch >= self.config.epochs or (self.epoch > 0 and stopped)

    def close_epoch(self, loss: float, checked: float, rate: float) -> None:
        """Book one epoch; keep its weights if they are the best so far."""
        self.epoch += 1
        for key, value in (("loss", loss), ("val_loss", checked), ("lr", rate)):
            self.history[key].append(value)
        if checked < self.best_loss:
            self.best_loss, self.best_epoch = checked, self.epoch
            self.best_state = self._copy_state()

    def restore_best(self) -> None:
        """Put the best weights into the model."""
        self.model.load_state_dict(self.best_state)

    def summary(self) -> dict[str, Any]:
        """The history a trainer returns."""
        return {
            **{key: list(values) for key, values in self.history.items()},
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "best_val_loss": self.best_loss,
            "stopped_early": self.epoch < self.config.epochs,
        }

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file (the rest as JSON in its header)."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best_state.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"moment.{number}.{key}": value for key, value in moments.items()}
        packed = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        position = {"epoch": self.epoch, "history": self.history, "best": [self.best_loss, self.best_epoch]}
        header = {"identity": self._identity, "position": json.dumps(position)}
        with replace_file(path) as temporary:
            save_file(packed, temporary, metadata=header)

    def restore(self, path: Path) -> None:
        """Continue where a resume file stopped."""
        device = next(self.model.parameters()).device
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                header = handle.metadata() or {}
                tensors = {key: handle.get_tensor(key).to(device) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError("the resume file cannot be read", got=error, where=path) from None
        if header.get("identity") != self._identity:
            raise ModelError(
                "the resume file belongs to another run",
                expected="the same name, data, config and network",
                got=header.get("identity", "no identity")[:200],
                where=path,
            )
        self.model.load_state_dict(_under(tensors, "model."))
        self.best_state = _under(tensors, "best.")
        state = self.optimizer.state_dict()
        state["state"] = {}
        for key, value in _under(tensors, "moment.").items():
            number, moment = key.split(".", 1)
            # AdamW keeps its step count on the CPU unless fused; moments go with the weights.
            state["state"].setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict(state)
        position = json.loads(header["position"])
        self.epoch, self.history = position["epoch"], position["history"]
        self.best_loss, self.best_epoch = position["best"]


def _lasting(config: TrainConfig) -> dict[str, Any]:
    """The settings that change what is learned; a longer patience or another log rhythm do not."""
    fields = dataclasses.asdict(config)
    return {key: value for key, value in fields.items() if key not in ("log_every_seconds", "patience")}


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
