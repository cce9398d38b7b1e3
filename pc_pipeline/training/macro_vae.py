"""Training of the macro VAE: reading paths, a least-squares start, and the likelihood.

Here: `MacroVAETrainer`, `read_paths`, `warm_start`. Not here: the network and its bound
(`models.macro_vae`), judging generated paths (`evaluation.macro_fidelity`), the epochs
(`training.loop`).

The start is closed form: smooth centres by least squares, dynamics by regression, the factor from
residuals (docs/methods/macro_vae.md, section 4). Gradients then fit what is left. With fewer than
`FEW_PATHS` paths of some scenario, level and dispersion cannot be told apart: the decoder is then
anchored at the decided constants of `schemas.units` and only the encoder is trained; the history says so.
"""

from __future__ import annotations

import dataclasses
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
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO, canonical_scenario
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import Record, run_training

FEW_PATHS: Final = 8
DECODER_LR_SHARE: Final = 0.1
_ROUGHNESS: Final = 30.0  # penalty on squared second differences of a curve known from little data
_FREE: Final = 1e-6
_MIN_SCALE: Final = 1e-3  # smallest innovation sd, scaled units: keeps a constant series finite


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
            the final model, 'n_paths', 'data_fingerprint', 'notes'.

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


def split_by_path(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(training rows, held-out rows): the same share of each scenario, none where paths are few."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "macro_vae", "split"))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for code in labels.unique():
        rows = (labels == code).nonzero()[:, 0].cpu()
        if len(rows) >= FEW_PATHS:
            order = torch.randperm(len(rows), generator=generator)
            held[rows[order[: round(share * len(rows))]]] = True
    rows = torch.arange(len(labels))
    return rows[~held].to(labels.device), rows[held].to(labels.device)


@torch.no_grad()
def warm_start(model: MacroVAE, paths: torch.Tensor, labels: torch.Tensor) -> list[str]:
    """Set the decoder's linear part by least squares; returns notes on fallbacks taken.

    Scenarios without a path keep the average centre and are marked untrained.
    """
    opened = model.open_up(paths)
    model.shift_M.copy_(opened.mean((0, 1)))
    model.scale_M.copy_(opened.std((0, 1)).clamp(min=_MIN_SCALE))
    y = model.to_scaled(paths)
    present = sorted({int(code) for code in labels.unique()})
    is_few = any(int((labels == code).sum()) < FEW_PATHS for code in present)
    for code in range(model.config.n_scenarios):
        rows = y[labels == code] if code in present else y
        model.centre_SGM[code] = (
            _fit_knots(model, rows.mean(0), _ROUGHNESS)
            if is_few
            else _fit_smoothest(model, rows[::2].mean(0), rows[1::2].mean(0))
        )
        model.is_trained_S[code] = code in present
    if is_few:
        _anchor(model, y, labels)
        return [
            f"fewer than {FEW_PATHS} paths of a scenario: dispersion and persistence as decided, not learned"
        ]
    _fit_likeliest(model, paths, labels, present)
    return []


def _fit_likeliest(model: MacroVAE, paths: torch.Tensor, labels: torch.Tensor, present: list[int]) -> None:
    """Try the ways to set scales on most paths, keep the one that makes the rest likeliest.

    Scales come from the spread across paths (right when dispersion is stationary around a moving scale)
    or from innovations (right when paths start together and fan out), then smoothed over time.
    """
    y = model.to_scaled(paths)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    kept = torch.arange(len(paths), device=paths.device) % 5 != 0
    found = []
    for from_innovations in (False, True):
        model.load_state_dict(start)
        _fit_dynamics(model, y[kept], labels[kept], present, from_innovations)
        eps, log_det = model.innovations(paths[~kept], labels[~kept])
        nll = float((0.5 * eps.square().sum((1, 2)) + log_det).mean())
        found.append((nll, from_innovations))
    model.load_state_dict(start)
    _, from_innovations = min(found)
    _fit_dynamics(model, y, labels, present, from_innovations)


def _fit_knots(model: MacroVAE, target_TM: torch.Tensor, roughness: float) -> torch.Tensor:
    """(G, M) spline coefficients nearest to a path, squared second differences weighing `roughness`."""
    basis = model.knots_TG.double()
    n_knots = basis.shape[1]
    second = torch.diff(torch.eye(n_knots, dtype=torch.float64, device=basis.device), n=2, dim=0)
    normal = basis.T @ basis + roughness * second.T @ second
    return torch.linalg.solve(normal, basis.T @ target_TM.double()).to(target_TM.dtype)


def _fit_smoothest(model: MacroVAE, first_TM: torch.Tensor, second_TM: torch.Tensor) -> torch.Tensor:
    """(G, M) coefficients of the mean of two half-sample curves; each series as smooth as suits it.

    Smoothness is chosen by how well the fit of one half predicts the other (eq. (7) of
    docs/methods/macro_vae.md).
    """
    errors, fits = [], []
    for roughness in (_FREE, 0.3, 3.0, _ROUGHNESS):
        halves = [_fit_knots(model, half, roughness) for half in (first_TM, second_TM)]
        across = (model.knots_TG @ halves[0] - second_TM).square().sum(0)
        errors.append(across + (model.knots_TG @ halves[1] - first_TM).square().sum(0))
        fits.append(0.5 * (halves[0] + halves[1]))
    best = torch.stack(errors).argmin(0)
    return torch.stack(fits)[best, :, torch.arange(N_MACRO, device=best.device)].T


def _fit_dynamics(
    model: MacroVAE,
    y: torch.Tensor,
    labels: torch.Tensor,
    present: list[int],
    from_innovations: bool,
) -> None:
    """Scales, Phi by regression, factors from residuals; scales and Phi alternate when they depend."""
    for _ in range(3 if from_innovations else 1):
        centre, sigma = model.centre_and_scale(labels, y.shape[1])
        deviation = (y - centre) / sigma
        overall = deviation.std((0, 1)).clamp(min=_MIN_SCALE)
        model.log_scale_SGM.add_(torch.log(overall))
        u = deviation / overall
        moving = u
        if from_innovations:
            residual = u[:, 1:] - u[:, :-1] @ _regress(u).T
            moving = torch.cat([residual[:, :1], residual], dim=1)  # month 0 has no innovation of its own
        overall = moving.std((0, 1)).clamp(min=_MIN_SCALE)
        for code in present:
            rows = moving[labels == code].square() / overall**2
            halves = [
                torch.log(half.mean(0).clamp(min=_MIN_SCALE**2)) / 2 for half in (rows[::2], rows[1::2])
            ]
            model.log_scale_SGM[code] += (
                _fit_knots(model, torch.log(rows.mean(0).clamp(min=_MIN_SCALE**2)) / 2, _ROUGHNESS)
                if from_innovations
                else _fit_smoothest(model, halves[0], halves[1])
            )
    centre, sigma = model.centre_and_scale(labels, y.shape[1])
    u = (y - centre) / sigma
    model.phi_MM.copy_(_regress(u))
    residual = (u[:, 1:] - u[:, :-1] @ model.phi_MM.T).reshape(-1, N_MACRO)
    _set_factor(model.log_diagonal_M, model.below_diagonal, residual, model)
    _set_factor(model.first_log_diagonal_M, model.first_below, u[:, 0], model)


def _regress(u_BTM: torch.Tensor) -> torch.Tensor:
    """(M, M) least-squares Phi of u_t on u_{t-1}."""
    before, after = u_BTM[:, :-1].reshape(-1, N_MACRO).double(), u_BTM[:, 1:].reshape(-1, N_MACRO).double()
    ridge = 1e-6 * len(before) * torch.eye(N_MACRO, dtype=torch.float64, device=u_BTM.device)
    return torch.linalg.solve(before.T @ before + ridge, before.T @ after).T.to(u_BTM.dtype)


def _anchor(model: MacroVAE, y: torch.Tensor, labels: torch.Tensor) -> None:
    """Decided persistence and dispersion around the centres; the decoder is frozen there."""
    persistence = y.new_tensor([series.persistence for series in MACRO_SERIES])
    spread = y.new_tensor([series.sd for series in MACRO_SERIES])
    reach = model.upper_M - model.lower_M
    for code in range(model.config.n_scenarios):
        share = torch.sigmoid(model.knots_TG @ model.centre_SGM[code] * model.scale_M + model.shift_M)
        slope = reach * share * (1 - share) * model.scale_M  # dx / dy along the centre
        model.log_scale_SGM[code] = _fit_knots(model, torch.log(spread / slope), _ROUGHNESS)
    model.phi_MM.copy_(torch.diag(persistence))
    centre, sigma = model.centre_and_scale(labels, y.shape[1])
    u = (y - centre) / sigma
    residual = (u[:, 1:] - u[:, :-1] * persistence).reshape(-1, N_MACRO)
    correlation = torch.corrcoef(residual.T).nan_to_num(0.0)
    shrunk = 0.5 * correlation + 0.5 * torch.eye(N_MACRO, device=y.device)
    innovation = torch.sqrt(1 - persistence**2)
    _copy_factor(
        model.log_diagonal_M, model.below_diagonal, innovation[:, None] * torch.linalg.cholesky(shrunk), model
    )
    _copy_factor(model.first_log_diagonal_M, model.first_below, torch.linalg.cholesky(shrunk), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("encoder", "posterior")))


def _set_factor(
    log_diagonal: torch.Tensor, below: torch.Tensor, residual: torch.Tensor, model: MacroVAE
) -> None:
    """Cholesky factor of the residuals' second moments (shrunk a little when they are few)."""
    moments = residual.double().T @ residual.double() / len(residual)
    weight = N_MACRO / (N_MACRO + len(residual))
    moments = (1 - weight) * moments + weight * torch.diag(moments.diagonal())
    floor = _MIN_SCALE**2 * torch.eye(N_MACRO, dtype=torch.float64, device=residual.device)
    _copy_factor(log_diagonal, below, torch.linalg.cholesky(moments + floor).to(residual.dtype), model)


def _copy_factor(
    log_diagonal: torch.Tensor, below: torch.Tensor, factor: torch.Tensor, model: MacroVAE
) -> None:
    rows, columns = model.below_MM
    log_diagonal.copy_(torch.log(factor.diagonal()))
    below.copy_(factor[rows, columns])
