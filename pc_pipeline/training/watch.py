"""How a training run is watched: progress on a terminal or in the log, curves for TensorBoard.

Here: `EpochReport`, and `keep_training`, which says where runs in this process leave curves and resume files.
Not here: the loop (`training.loop`), the curve in an asset's metadata (`reports.model_plots`).

Curves go through tensorboardX, a writer of event files that needs nothing the project has not;
`torch.utils.tensorboard` asks for the whole of tensorboard, which is needed only to look at them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pc_pipeline.training.config import TrainConfig

LOG = logging.getLogger("pc_pipeline.training")
CURVES = "curves"
Record = Mapping[str, Any]
OnEpoch = Callable[[Record], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """What runs in this process leave, and where."""

    folder: Path
    keep_finished: bool = False


_KEPT: ContextVar[Kept | None] = ContextVar("kept_training", default=None)


@contextlib.contextmanager
def keep_training(folder: Path | str, *, keep_finished: bool = False) -> Iterator[Path]:
    """Runs inside leave curves under `<folder>/curves/<name>` and go on from a resume file if killed.

    A resume file is named by data, settings and network, so that only the same run goes on from it. It is
    removed when its run is over, unless `keep_finished`: then the same run asked for again returns at once.
    Look at curves with `tensorboard --logdir <folder>/curves`.
    """
    path = Path(folder)
    token = _KEPT.set(Kept(path, keep_finished))
    try:
        yield path
    finally:
        _KEPT.reset(token)


def kept_training() -> Kept | None:
    """Where runs leave what they leave; None outside `keep_training`."""
    return _KEPT.get()


class EpochReport:
    """A bar on a terminal, a log line at intervals otherwise; curves and a callback in both cases.

    Args:
        done: epochs that an earlier part of the run has told; its curves are kept, else they are replaced.
        is_quiet: tell nothing but the callback (the other processes of a distributed run).
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        on_epoch: OnEpoch | None,
        *,
        done: int = 0,
        is_quiet: bool = False,
    ) -> None:
        self._name, self._config, self._on_epoch, self._is_quiet = name, config, on_epoch, is_quiet
        self._last_line = -math.inf
        self._bar: Progress | None = None
        self._curves: Any = None
        kept = kept_training()
        if kept is not None and not is_quiet:
            self._curves = _curve_writer(kept.folder / CURVES / name, fresh=done == 0)
        console = Console(stderr=True)
        if console.is_terminal and not is_quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f} val {task.fields[val]:.4f}"),
                TimeElapsedColumn(),
                console=console,
            )
            self._task = self._bar.add_task(
                name, total=config.epochs, completed=done, loss=math.nan, val=math.nan
            )

    def __enter__(self) -> EpochReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._curves is not None:
            self._curves.close()

    def tell(self, record: Record) -> None:
        """One epoch is over."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=record["epoch"], loss=record["loss"], val=record["val_loss"]
            )
        elif not self._is_quiet and record["seconds"] - self._last_line >= self._config.log_every_seconds:
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
        if self._curves is not None:
            for key in ("loss", "val_loss", "lr", "gradient_norm"):
                if key in record:
                    self._curves.add_scalar(key, record[key], record["epoch"])
        if self._on_epoch is not None:
            self._on_epoch(record)


def _curve_writer(folder: Path, fresh: bool) -> Any:
    from tensorboardX import SummaryWriter

    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))
