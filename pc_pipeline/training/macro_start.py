"""The macro VAE before the first gradient: curves, dynamics and factors in closed form.

Here: `warm_start`, which reads a linear law off sample moments and writes it into the network, and the
anchor for few paths. Not here: the fit of that law (`training.macro_curves`), gradients
(`training.macro_vae`). Method: docs/methods/macro_vae.md, section 4.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import torch

from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.schemas.units import MACRO_SERIES, N_MACRO
from pc_pipeline.training.macro_curves import (
    FLOOR,
    Dynamics,
    LinearLaw,
    PathMoments,
    fit_dynamics,
    fit_law,
    roughness_matrix,
)

FEW_PATHS: Final = 8
_ROUGHNESS: Final = 30.0  # penalty on squared second differences of a curve known from little data
_PULLS: Final = (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0)
_TRY_ROUNDS: Final = 4
_ROUNDS: Final = 6
_TWINS: Final = 0.99  # correlation of two scenarios' paths, month by month, above which they share shocks
_FIRST_WEIGHT: Final = 100.0
_FANS_OUT: Final = 0.6  # dispersion of the first month over that of the last below which paths start together


@torch.no_grad()
def warm_start(model: MacroVAE, paths: torch.Tensor, labels: torch.Tensor) -> list[str]:
    """Set the decoder's linear part and the encoder that is exact for it; returns notes on fallbacks taken.

    Scenarios without a path keep the average curves and are marked untrained.
    """
    opened = model.open_up(paths)
    model.shift_M.copy_(opened.mean((0, 1)))
    model.scale_M.copy_(opened.std((0, 1)).clamp(min=FLOOR))
    y = model.to_scaled(paths)
    present = sorted({int(code) for code in labels.unique()})
    for code in range(model.config.n_scenarios):
        rows = y[labels == code] if code in present else y
        model.centre_SGM[code] = _fit_knots(model, rows.mean(0), _ROUGHNESS)
        model.is_trained_S[code] = code in present
    if any(int((labels == code).sum()) < FEW_PATHS for code in present):
        _anchor(model, y, labels)
        _write_encoder(model)
        return [
            f"fewer than {FEW_PATHS} paths of a scenario: dispersion and persistence as decided, not learned"
        ]
    _write(model, _likeliest_law(model, y.cpu().double().numpy(), labels.cpu().numpy()))
    _write_encoder(model)
    return []


def position_in_scenario(labels: torch.Tensor) -> torch.Tensor:
    """(N,) number of each path among those of its scenario.

    Path k of one scenario may share its random numbers with path k of another (ours do), so samples are
    split by this number: otherwise what was held out would be known from its twin.
    """
    position = torch.zeros_like(labels)
    for code in labels.unique():
        rows = labels == code
        position[rows] = torch.arange(int(rows.sum()), device=labels.device)
    return position


def _likeliest_law(model: MacroVAE, y: np.ndarray, labels: np.ndarray) -> LinearLaw:
    """Choose on every fifth path how to estimate, then estimate on all; twins follow their leader.

    Paths that start together and fan out can be read in two ways (a moving scale, or a small first month),
    so both starts are tried where they do.
    """
    basis = model.knots_TG.cpu().double().numpy()
    followed = twins(y, labels)
    mine = np.isin(labels, list(set(labels.tolist()) - set(followed)))
    left = position_in_scenario(torch.from_numpy(labels)).numpy() % 5 == 0
    kept, held = (_moments(y[rows], labels[rows]) for rows in (mine & ~left, mine & left))
    fans_out = np.median(y[:, 0].std(0) / np.maximum(y[:, -1].std(0), FLOOR)) < _FANS_OUT
    found: list[tuple[float, int, LinearLaw, Dynamics]] = []
    for flat in (False, True) if fans_out else (False,):
        free = Dynamics(pull=0.1, stationary=False)
        law = fit_law(_first_law(kept, basis, flat), kept, basis, free, _TRY_ROUNDS)
        for pull in _PULLS:
            for stationary in (True, False):
                dynamics = Dynamics(pull=pull, stationary=stationary)
                trial = fit_dynamics(law, kept, basis, dynamics)
                found.append((trial.negative_log_likelihood(held, basis), len(found), trial, dynamics))
    _, _, law, dynamics = min(found, key=lambda entry: entry[:2])
    law = fit_law(law, _moments(y[mine], labels[mine]), basis, dynamics, _ROUNDS)
    return _follow(law, y, labels, basis, followed)


def twins(y: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Scenarios whose paths share their shocks with those of another: follower -> leader.

    Path k of a follower is a shifted and stretched path k of its leader, the one with the smoother mean.
    """
    flat = {int(code): y[labels == code].reshape(-1, y.shape[1] * N_MACRO) for code in np.unique(labels)}

    def roughness(code: int) -> float:
        paths = flat[code].reshape(-1, y.shape[1], N_MACRO)
        spread = np.maximum(paths.std((0, 1)), FLOOR)
        return float((np.diff(paths.mean(0), axis=0) ** 2 / spread**2).sum())

    leaders: list[int] = []
    found: dict[int, int] = {}
    for code in sorted(flat, key=roughness):
        leader = next((other for other in leaders if _correlate(flat[code], flat[other])), None)
        if leader is None:
            leaders.append(code)
        else:
            found[code] = leader
    return found


def _correlate(one: np.ndarray, other: np.ndarray) -> bool:
    if len(one) != len(other):
        return False
    gaps = [paths - paths.mean(0) for paths in (one, other)]
    spread = [np.sqrt((gap**2).mean(0)) for gap in gaps]
    covariance = (gaps[0] * gaps[1]).mean(0)
    return bool((covariance > _TWINS * spread[0] * spread[1]).all())


def _follow(
    law: LinearLaw, y: np.ndarray, labels: np.ndarray, basis_TG: np.ndarray, followed: dict[int, int]
) -> LinearLaw:
    """Curves of followers, y = a + b y' path by path: control variates.

    What the leader's sample is off by is known from its own (smoother, better known) curves.
    """
    to_knots = np.linalg.pinv(basis_TG)
    centres, log_scales = dict(law.centre), dict(law.log_scale)
    for code, leader in followed.items():
        own, rows = (y[labels == k].reshape(-1, y.shape[1] * N_MACRO) for k in (leader, code))
        centre, scale = law.curves(leader, basis_TG)
        gap, deviation = own - own.mean(0), rows - rows.mean(0)
        slope = (deviation * gap).mean(0) / (gap**2).mean(0)
        level = rows.mean(0) - slope * (own.mean(0) - centre)
        centres[code] = to_knots @ level.reshape(-1, N_MACRO)
        wider = deviation.std(0) / gap.std(0)
        log_scales[code] = to_knots @ np.log(scale * wider).reshape(-1, N_MACRO)
    return dataclasses.replace(law, centre=centres, log_scale=log_scales)


def _moments(y: np.ndarray, labels: np.ndarray) -> dict[int, PathMoments]:
    return {int(code): PathMoments.of(y[labels == code]) for code in np.unique(labels)}


def _first_law(samples: dict[int, PathMoments], basis_TG: np.ndarray, flat: bool) -> LinearLaw:
    """Where the fit starts: smoothed means, and the sample's spread per month (or one spread for all)."""
    n_knots = basis_TG.shape[1]
    solve = np.linalg.solve(
        basis_TG.T @ basis_TG + _ROUGHNESS / 10 * roughness_matrix(n_knots) + 1e-9 * np.eye(n_knots),
        basis_TG.T,
    )
    centre, log_scale = {}, {}
    for code, sample in samples.items():
        centre[code] = solve @ sample.mean.reshape(-1, N_MACRO)
        spread = np.maximum(np.sqrt(np.diag(sample.covariance)), FLOOR).reshape(-1, N_MACRO)
        spread = np.broadcast_to(spread[-1], spread.shape) if flat else spread
        log_scale[code] = solve @ np.log(spread)
    weights = {code: np.full(N_MACRO, _FIRST_WEIGHT) for code in samples}
    eye = np.eye(N_MACRO)
    law = LinearLaw(centre, log_scale, 0.9 * eye, 0.2 * eye, eye, weights, dict(weights))
    return fit_dynamics(law, samples, basis_TG, Dynamics(pull=0.1, stationary=False))


def _write(model: MacroVAE, law: LinearLaw) -> None:
    """Put a law into the network; scenarios it does not know get the average of its curves."""
    means = [np.mean(list(curves.values()), axis=0) for curves in (law.centre, law.log_scale)]
    for code in range(model.config.n_scenarios):
        model.centre_SGM[code] = torch.as_tensor(law.centre.get(code, means[0]))
        model.log_scale_SGM[code] = torch.as_tensor(law.log_scale.get(code, means[1]))
    model.phi_MM.copy_(torch.as_tensor(law.phi))
    later, first = (torch.as_tensor(np.linalg.cholesky(c)) for c in (law.shocks, law.first))
    _copy_factor(model.log_diagonal_M, model.below_diagonal, later, model)
    _copy_factor(model.first_log_diagonal_M, model.first_below, first, model)


def _write_encoder(model: MacroVAE) -> None:
    """The posterior layer that is exact while nothing bends: its mean is rho P eps, eq. (5).

    With pooled deviations among its inputs, P eps = (L0^-1 u_0, L^-1 (waves' u_t - Phi waves' u_{t-1})) is
    linear in them. The recurrent states get no weight yet.
    """
    config, width = model.config, model.config.hidden_dim
    block = width + 2 * N_MACRO  # states, u, u of the month before; once for month 0, once per wave
    eye = torch.eye(N_MACRO, device=model.shift_M.device)
    first, later = (
        torch.linalg.solve_triangular(model._factor(diagonal, below), eye, upper=False)
        for diagonal, below in (
            (model.first_log_diagonal_M, model.first_below),
            (model.log_diagonal_M, model.below_diagonal),
        )
    )
    rows = torch.zeros((1 + model.n_waves) * N_MACRO, model.posterior.in_features, device=eye.device)
    rows[:N_MACRO, width : width + N_MACRO] = first
    for wave in range(1, 1 + model.n_waves):
        here, at = slice(wave * N_MACRO, (wave + 1) * N_MACRO), wave * block + width
        rows[here, at : at + N_MACRO] = later
        rows[here, at + N_MACRO : at + 2 * N_MACRO] = -later @ model.phi_MM
    model.posterior.weight.zero_()
    model.posterior.bias.zero_()
    model.posterior.weight[: config.latent_dim] = config.latent_share * rows[: config.latent_dim]


def _fit_knots(model: MacroVAE, target_TM: torch.Tensor, roughness: float) -> torch.Tensor:
    """(G, M) spline coefficients nearest to a path, squared second differences weighing `roughness`."""
    basis = model.knots_TG.double()
    rough = torch.as_tensor(roughness_matrix(basis.shape[1]), device=basis.device)
    normal = basis.T @ basis + roughness * rough
    return torch.linalg.solve(normal, basis.T @ target_TM.double()).to(target_TM.dtype)


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


def _copy_factor(
    log_diagonal: torch.Tensor, below: torch.Tensor, factor: torch.Tensor, model: MacroVAE
) -> None:
    rows, columns = model.below_MM
    log_diagonal.copy_(torch.log(factor.diagonal()))
    below.copy_(factor[rows, columns])
