"""Where a training run stands, and the file from which it goes on to the same bits.

Here: `Progress`. Not here: what happens in an epoch (`training.loop`), the final model's file
(`models.checkpoint`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.store import replace_file
from pc_pipeline.training.config import TrainConfig

# Settings that change how a run is watched or when it gives up, not what an epoch computes.
_PASSING: Final = ("log_every_seconds", "patience", "explosion")


class Progress:
    """Weights, moments, best weights, history; all of it goes to the resume file.

    Args:
        model, optimizer: trained in place. config, name: of the run. data: digest of its data.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, name: str, data: str
    ) -> None:
        self.model, self.optimizer, self.config, self.name = model, optimizer, config, name
        self.epoch = 0
        self.history: dict[str, list[float]] = {"loss": [], "val_loss": [], "lr": []}
        self.best_loss, self.best_epoch = math.inf, 0
        self.best_state = self._copy_state()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        lasting = {key: value for key, value in dataclasses.asdict(config).items() if key not in _PASSING}
        self.identity = json.dumps(
            {"name": name, "data": data, "config": lasting, "shapes": shapes}, sort_keys=True
        )

    @property
    def digest(self) -> str:
        """Of data, settings and network: the same for a run and its continuation only."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:16]

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
        header = {"identity": self.identity, "position": json.dumps(position)}
        with replace_file(path) as temporary:
            save_file(packed, temporary, metadata=header)

    def restore(self, path: Path) -> None:
        """Continue where a resume file stopped.

        Raises:
            ModelError: the file is torn, or belongs to another run.
        """
        device = next(self.model.parameters()).device
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                header = handle.metadata() or {}
                tensors = {key: handle.get_tensor(key).to(device) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError("the resume file cannot be read", got=error, where=path) from None
        if header.get("identity") != self.identity:
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


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
