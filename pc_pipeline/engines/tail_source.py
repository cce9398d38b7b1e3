"""`TailSource`: macro paths of a VAE drawn along the loss of a pool, with their weights and strata.

Here: the loss direction (gradients through transition network and expected cash), the pilot, and the
noise decoded to paths. Not here: the design of strata and weights (`simulation.tails`), intervals
(`simulation.estimators`). Plain sampling is the VAE itself as the macro source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.engines.pool_models import BATCH_PATHS, Lines, PoolModels
from pc_pipeline.schemas.states import N_LIVING
from pc_pipeline.schemas.units import N_MACRO
from pc_pipeline.simulation.gradient_cash import pool_losses
from pc_pipeline.simulation.history import HISTORY_STATE
from pc_pipeline.simulation.lanes import N_MOVES
from pc_pipeline.simulation.own_luck import OwnLuck, exposed_losses
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline.simulation.pool import mean_severity
from pc_pipeline.simulation.tails import (
    Surface,
    TailConfig,
    design,
    fit_surface,
    main_directions,
    place_noise,
)

_FIRST_CLASSES = [int(np.flatnonzero(k == HISTORY_STATE)[0]) for k in range(N_LIVING)]
_LUCK_PATHS = 16  # pilot paths on which loans are drawn, for the variance of their luck
_BLOCK = 256  # paths of a random stream: noise of a path depends on its number alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Where a scenario's losses lie: directions (K, T * 9) and the surface over them."""

    directions_KD: np.ndarray
    surface: Surface


@dataclass(frozen=True)
class TailSource:
    """A macro source that draws stratified paths along the loss of one pool.

    Args:
        models: pool and models. config: of the design.
    """

    models: PoolModels
    config: TailConfig = field(default_factory=TailConfig)
    longest: int | None = None
    _known: dict[tuple[str, int], Direction] = field(default_factory=dict, repr=False)
    _luck: dict[int, OwnLuck] = field(default_factory=dict, repr=False)

    def draw(self, scenario: str, n_paths: int, n_months: int, seed: int, first_path: int = 0) -> MacroPaths:
        """Paths of one scenario. A design is one whole: `first_path` does not move it."""
        return self.draw_mix({scenario: 1.0}, n_paths, n_months, seed)

    def draw_mix(self, mix: Mapping[str, float], n_paths: int, n_months: int, seed: int) -> MacroPaths:
        """Paths of a mix of scenarios; the tail may take most of them from the worst one."""
        names = list(mix)
        found = [self.direction(name, n_months) for name in names]
        plan = design(
            [one.surface for one in found], np.array(list(mix.values())), n_paths, self.config, seed
        )
        fresh = _fresh(seed, n_paths, n_months * N_MACRO)
        values = np.empty((n_paths, n_months, N_MACRO))
        for row, (name, one) in enumerate(zip(names, found, strict=True)):
            here = np.flatnonzero(plan.scenario_P == row)
            if here.size:
                noise = place_noise(plan.s_PK[here, : len(one.directions_KD)], one.directions_KD, fresh[here])
                values[here] = self.decode(name, noise.reshape(-1, n_months, N_MACRO))
        shares = ", ".join(
            f"{name} R2 {one.surface.share:.2f}" for name, one in zip(names, found, strict=True)
        )
        return MacroPaths(
            values_PTM=values,
            weights_P=plan.weights_P,
            strata_P=plan.strata_P,
            offset_P=plan.offset_P,
            scenario_P=np.array(names)[plan.scenario_P],
            source=f"macro VAE, stratified along the loss of the pool ({shares})",
        )

    def decode(self, scenario: str, noise_PTM: np.ndarray) -> np.ndarray:
        """(P, T, 9) paths in original units from standard normal noise."""
        with torch.inference_mode():
            return (
                decode(self.models, scenario, torch.from_numpy(noise_PTM.astype(np.float32)))
                .numpy()
                .astype(float)
            )

    def direction(self, scenario: str, n_months: int) -> Direction:
        """The loss directions and surface of a scenario; worked out once."""
        key = (scenario, n_months)
        if key not in self._known:
            directions = self._directions(scenario, n_months)
            self._known[key] = Direction(
                directions_KD=directions, surface=self._pilot(scenario, n_months, directions)
            )
        return self._known[key]

    def _directions(self, scenario: str, n_months: int) -> np.ndarray:
        """Gradients of log expected loss at a few noises, half of them moved towards the tail."""
        config, losses = self.config, _CohortLosses(self.models)
        draw = stream(derive_seed(self.models.seed, "tails", scenario), "gradients")
        noise = draw.standard_normal((config.n_gradients, n_months, N_MACRO)).astype(np.float32)
        gradients = log_gradient(self.models, losses, scenario, noise)
        towards = gradients.mean(axis=0) / np.linalg.norm(gradients.mean(axis=0))
        moved = noise.reshape(len(noise), -1) + 2.0 * towards
        tail = log_gradient(self.models, losses, scenario, moved.reshape(noise.shape).astype(np.float32))
        found = main_directions(np.concatenate([gradients, tail]), config.n_directions)
        lost = config.n_directions - len(found)
        return found if lost == 0 else np.concatenate([found, np.zeros((lost, found.shape[1]))])

    def own_luck(self, macro_PTM: np.ndarray) -> OwnLuck:
        """Own luck of the pool's loans for a horizon, worked out around the first paths it is asked for."""
        n_months = macro_PTM.shape[1]
        if n_months not in self._luck:
            self._luck[n_months] = self.models.own_luck(macro_PTM)
        return self._luck[n_months]

    def _pilot(self, scenario: str, n_months: int, directions_KD: np.ndarray) -> Surface:
        """Expected losses of the pool, as its rows predict them, on paths spread along the directions."""
        config, models = self.config, self.models
        draw = stream(derive_seed(models.seed, "tails", scenario), "pilot")
        s = draw.standard_normal((config.n_pilot, config.n_directions))
        s[:, 0] = 1.3 * s[:, 0] + np.linspace(-1.0, 2.5, config.n_pilot)
        fresh = draw.standard_normal((config.n_pilot, n_months * N_MACRO))
        macro = self.decode(scenario, place_noise(s, directions_KD, fresh).reshape(-1, n_months, N_MACRO))
        luck = self.own_luck(macro)
        predicted = np.concatenate(
            [
                luck.begin(models.rows(macro[low : low + BATCH_PATHS]))[1]
                for low in range(0, len(macro), BATCH_PATHS)
            ]
        )
        drawn = models.simulate(macro[:: max(len(macro) // _LUCK_PATHS, 1)], luck=luck).control
        square, level = (0.0, 1.0) if drawn is None else (drawn.square_P.sum(), drawn.predicted_P.sum())
        return fit_surface(s, predicted / models.balance, luck=float(square / max(level, 1e-300)))


def decode(models: PoolModels, scenario: str, noise_PTM: Tensor) -> Tensor:
    """(P, T, 9) paths from noise, with gradients."""
    vae = models.macro_vae
    code = torch.full((len(noise_PTM),), vae.scenario_code(scenario))
    return vae.to_units(vae.roll(noise_PTM, code))


def loss_gradient(models: PoolModels, lines: Lines, scenario: str, noise_PTM: np.ndarray) -> np.ndarray:
    """(P, T * 9) gradient of log expected loss of representative loans to the noise at each point."""

    def losses(macro_PTM: Tensor) -> Tensor:
        return pool_losses(lines.cash(macro_PTM), lines.pool.balance)

    return log_gradient(models, losses, scenario, noise_PTM)


def log_gradient(
    models: PoolModels, losses: Callable[[Tensor], Tensor], scenario: str, noise_PTM: np.ndarray
) -> np.ndarray:
    """(P, T * 9) gradient of the log of a loss of macro paths to the noise at each point."""
    noise = torch.from_numpy(noise_PTM).requires_grad_(True)
    found = losses(decode(models, scenario, noise))
    (gradient,) = torch.autograd.grad(found.clamp(min=1e-9).log().sum(), noise)
    return gradient.flatten(1).double().numpy()


class _CohortLosses:
    """Expected loss of cohorts that move as their average loan: rough, but a tenth of the work of loans."""

    def __init__(self, models: PoolModels) -> None:
        arrays, n_cohorts = models.arrays, models.cohorts.height
        balance = np.zeros((n_cohorts, N_LIVING))
        np.add.at(balance, (arrays.cohort_L, arrays.state_L), arrays.balance_L)
        total = np.maximum(balance.sum(axis=1, keepdims=True), 1e-9)
        exposed = exposed_losses(arrays, n_cohorts, mean_severity(arrays)) / arrays.total_balance
        self.models = models
        self.exposed_CT, self.share_CK = torch.from_numpy(exposed).float(), torch.from_numpy(balance / total)
        self.residual_CKJ = torch.ones(n_cohorts, N_LIVING, N_MOVES + 1)
        if models.residual_LHJ is not None:
            mean = np.zeros((n_cohorts, N_LIVING, N_MOVES))
            share = arrays.balance_L / total[arrays.cohort_L, 0]
            np.add.at(mean, arrays.cohort_L, share[:, None, None] * models.residual_LHJ[:, _FIRST_CLASSES])
            known = torch.from_numpy(np.where(mean > 0, mean, 1.0)).float()
            self.residual_CKJ = torch.cat([known, known[..., -1:]], dim=-1)

    def __call__(self, macro_PTM: Tensor) -> Tensor:
        """(P,) loss as a share of the pool, with gradients."""
        rows = self.models.tensor_rows(macro_PTM) * self.residual_CKJ[:, None]
        rows = rows / rows.sum(dim=-1, keepdim=True)
        later = torch.zeros(len(macro_PTM), len(self.share_CK), N_LIVING)
        later[..., 3] = self.exposed_CT[:, -1]
        for t in range(macro_PTM.shape[1] - 1, -1, -1):
            now = rows[:, :, t]
            lost = now[..., 4] * self.exposed_CT[:, t, None]
            later = lost + (now[..., :N_LIVING] @ later[..., None])[..., 0]
        return (later * self.share_CK).sum(dim=(1, 2))


def _fresh(seed: int, n_paths: int, size: int) -> np.ndarray:
    """(P, D) standard normals; path k has the same whatever is drawn with it."""
    blocks = range(0, n_paths, _BLOCK)
    parts = [
        stream(seed, "tails", "noise", size, low // _BLOCK).standard_normal((_BLOCK, size), dtype=np.float32)
        for low in blocks
    ]
    return np.concatenate(parts)[:n_paths].astype(float)
