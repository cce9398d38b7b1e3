"""Training of the macro VAE: reading paths, gradients on the bound, and what the gradients were worth.

Here: `MacroVAETrainer`, `read_paths`, `split_by_path`. Not here: the closed-form start
(`training.macro_start`), the network and its bound (`models.macro_vae`), judging generated paths
(`evaluation.macro_fidelity`), the epochs (`training.loop`).

The start leaves little to learn where paths are linear underneath. Gradients teach decoder and encoder what
is bent; what they taught is kept if held-out paths say so (`keep_if_likelier`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import narwhals as nw
import numpy as np
import polars as pl
import torch

from pc_pipeline.core.errors import DataError, ModelError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.models.checkpoint import data_fingerprint
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO, canonical_scenario
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import Record, run_training
from pc_pipeline.training.macro_start import FEW_PATHS, position_in_scenario, warm_start

DECODER_LR_SHARE: Final = 0.1


def read_paths(macro_data: Any, model: MacroVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """(paths (N, T, 9), scenario codes (N,)) from a frame of table `macro_scenarios`.

    Args:
        macro_data: polars or pandas; every scenario in it must be known to the model by name, every
            path must have the same months without gaps.

    Raises:
        DataError: a column, month or value is missing; ModelError: unknown scenario.
    """
    frame = nw.from_native(macro_data, eager_only=True).to_polars()
    needed = ["scenario", "macro_path_id", "month", *MACRO_NAMES]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise DataError("macro paths lack columns", expected=needed, got=missing, where="macro_scenarios")
    frame = frame.select(needed).sort("scenario", "macro_path_id", "month")
    keys = frame.group_by("scenario", "macro_path_id", maintain_order=True).agg(
        pl.len().alias("n"), pl.col("month").n_unique().alias("months")
    )
    lengths = keys["n"].unique()
    if len(lengths) != 1 or not (keys["n"] == keys["months"]).all():
        raise DataError(
            "macro paths differ in length", expected="equal months", got=sorted(lengths.to_list())
        )
    values = frame.select(MACRO_NAMES).to_numpy().reshape(keys.height, int(lengths[0]), N_MACRO)
    if not np.isfinite(values).all():
        raise DataError("macro paths hold missing values", expected="finite numbers", where="macro_scenarios")
    codes = [model.scenario_code(canonical_scenario(name)) for name in keys["scenario"]]
    return torch.tensor(values, dtype=torch.float32), torch.tensor(codes)


def history_windows(path_TM: np.ndarray | torch.Tensor, seq_length: int, stride: int = 1) -> torch.Tensor:
    """(N, seq_length, 9) overlapping windows of one long history, oldest first.

    Raises:
        DataError: the history is shorter than a window.
    """
    path = torch.as_tensor(path_TM, dtype=torch.float32)
    if len(path) < seq_length:
        raise DataError("history too short", expected=f">= {seq_length} months", got=len(path))
    return path.unfold(0, seq_length, stride).transpose(1, 2).contiguous()


class MacroVAETrainer:
    """Fits a `MacroVAE` in place.

    Args:
        model: the network; its `seq_length` must be that of the paths.
        lr: peak learning rate.
        config: further settings of the loop; `lr`, and the arguments of `fit`, override it.
    """

    def __init__(self, model: MacroVAE, lr: float = 1e-3, *, config: TrainConfig | None = None) -> None:
        self.model = model
        self.config = dataclasses.replace(config or TrainConfig(patience=40), lr=lr)

    def fit(
        self,
        macro_data: Any,
        scenario_labels: torch.Tensor | None = None,
        epochs: int = 200,
        batch_size: int = 32,
        *,
        validation_share: float = 0.1,
        seed: int | None = None,
        resume: Path | str | None = None,
        on_epoch: Callable[[Record], None] | None = None,
    ) -> dict[str, Any]:
        """Train.

        Args:
            macro_data: (N, T, 9) paths in original units, or a frame of table `macro_scenarios`.
            scenario_labels: (N,) codes of the paths of a tensor.
            validation_share: share of each scenario's paths held out; 0, or too few paths, for none.
            seed: of split, batches and dropout; None keeps the config's.

        Returns:
            The loop's history (losses are -ELBO per value in nats) and 'nll', 'kl', 'gap' per value of
            the final model, 'n_paths', 'data_fingerprint', 'notes'; with held-out paths also those of
            `keep_if_likelier`.

        Raises:
            DataError, ModelError: paths or labels that do not fit.
        """
        if isinstance(macro_data, torch.Tensor | np.ndarray):
            paths = torch.as_tensor(macro_data, dtype=torch.float32)
            labels = self._check_labels(paths, scenario_labels)
        else:
            paths, labels = read_paths(macro_data, self.model)
        model, config = self.model, self._settings(epochs, batch_size, seed)
        model._check_paths(paths, labels)
        if paths.shape[1] != model.config.seq_length:
            raise ModelError("paths of another length", expected=model.config.seq_length, got=paths.shape[1])
        device = model.shift_M.device
        paths, labels = paths.to(device), labels.to(device)
        train, held = split_by_path(labels, validation_share, config.seed)
        notes = warm_start(model, paths[train], labels[train])
        start = _parameters(model, _DECODER + _ENCODER)

        def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            batch = train[rows.to(device)]
            return model.loss(paths[batch], labels[batch])

        history = run_training(
            model,
            len(train),
            loss_of,
            config,
            name="macro_vae",
            validation_loss=(lambda: float(model.loss(paths[held], labels[held]))) if len(held) else None,
            resume=resume,
            fingerprint=data_fingerprint(paths, labels),
            on_epoch=on_epoch,
            lr_share=_lr_share,
        )
        if len(held) and not notes:
            history |= keep_if_likelier(model, start, paths[held], labels[held])
        return history | self._closing_terms(paths, labels) | {"notes": notes, "n_paths": len(paths)}

    def _settings(self, epochs: int, batch_size: int, seed: int | None) -> TrainConfig:
        chosen = self.config.seed if seed is None else seed
        return dataclasses.replace(self.config, epochs=epochs, batch_size=batch_size, seed=chosen)

    def _check_labels(self, paths: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise ModelError("a tensor of paths needs scenario_labels", expected="(N,) codes", got="None")
        codes = torch.as_tensor(labels, dtype=torch.long)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.model.config.n_scenarios:
            top = self.model.config.n_scenarios - 1
            raise ModelError("unknown scenario code", expected=f"0..{top}", got=sorted(set(codes.tolist())))
        return codes

    @torch.no_grad()
    def _closing_terms(self, paths: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        terms = self.model.bound(paths, labels)
        n_values = paths.shape[1] * N_MACRO
        per_value = {name: float(terms[name].mean()) / n_values for name in ("nll", "kl", "gap")}
        return per_value | {"data_fingerprint": data_fingerprint(paths, labels)}


def _lr_share(parameter: str) -> float:
    """The decoder starts near its optimum and moves slowly; the encoder starts from nothing."""
    return 1.0 if parameter.startswith(("encoder", "posterior", "embedding")) else DECODER_LR_SHARE


_DECODER: Final = (
    "centre_SGM",
    "log_scale_SGM",
    "phi_MM",
    "log_diagonal_M",
    "below_diagonal",
    "first_",
    "head.",
)
_ENCODER: Final = ("encoder.", "posterior.", "embedding.")


def _parameters(model: MacroVAE, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.named_parameters() if k.startswith(prefixes)}


@torch.no_grad()
def keep_if_likelier(
    model: MacroVAE, start: dict[str, torch.Tensor], paths: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """Back to the start, part by part, unless held-out paths say that training was better.

    The decoder is judged by the likelihood, then the encoder by its gap; better means by two standard errors.

    Args:
        start: parameters of the closed-form start.

    Returns:
        'decoder' and 'encoder' ('trained' or 'closed form'), and for each '<part>_gain' (nats per held-out
        path, trained over start) and '<part>_gain_error'.
    """
    said: dict[str, Any] = {}
    for part, prefixes, term in (("decoder", _DECODER, "nll"), ("encoder", _ENCODER, "gap")):
        trained = _parameters(model, prefixes)
        before = model.bound(paths, labels)[term].double()
        _put(model, {name: start[name] for name in trained})
        gain = model.bound(paths, labels)[term].double() - before
        mean, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else math.inf
        is_better = mean > 2 * error
        if is_better:
            _put(model, trained)
        said |= {
            part: "trained" if is_better else "closed form",
            f"{part}_gain": mean,
            f"{part}_gain_error": error,
        }
    return said


def _put(model: MacroVAE, values: dict[str, torch.Tensor]) -> None:
    state = dict(model.named_parameters())
    for name, value in values.items():
        state[name].copy_(value)


def split_by_path(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(training rows, held-out rows): the same path numbers in each scenario, none where paths are few.

    Why the same: see `training.macro_start.position_in_scenario`.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "macro_vae", "split"))
    position = position_in_scenario(labels).cpu()
    chance = torch.rand(int(position.max()) + 1, generator=generator)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for code in labels.unique():
        rows = (labels == code).nonzero()[:, 0].cpu()
        if len(rows) >= FEW_PATHS:
            order = chance[position[rows]].argsort(stable=True)
            held[rows[order[: round(share * len(rows))]]] = True
    rows = torch.arange(len(labels))
    return rows[~held].to(labels.device), rows[held].to(labels.device)
