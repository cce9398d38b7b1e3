"""`TailSource`: macro paths of a VAE drawn along the loss of a pool, with their weights and strata.

Here: the loss direction (gradients through transition network and expected cash), the pilot, and the
noise decoded to paths. Not here: the design of strata and weights (`simulation.tails`), intervals
(`simulation.estimators`). Plain sampling is the VAE itself as the macro source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.engines.analysis.study import Lines, Study
from pc_pipeline.schemas.units import N_MACRO
from pc_pipeline.simulation.gradient_cash import pool_losses
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline.simulation.tails import (
    Surface,
    TailConfig,
    design,
    fit_surface,
    main_directions,
    place_noise,
)

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
        study: pool and models. config: of the design.
    """

    study: Study
    config: TailConfig = field(default_factory=TailConfig)
    longest: int | None = None
    _known: dict[tuple[str, int], Direction] = field(default_factory=dict, repr=False)

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
            scenario_P=np.array(names)[plan.scenario_P],
            source=f"macro VAE, stratified along the loss of the pool ({shares})",
        )

    def decode(self, scenario: str, noise_PTM: np.ndarray) -> np.ndarray:
        """(P, T, 9) paths in original units from standard normal noise."""
        with torch.inference_mode():
            return (
                decode(self.study, scenario, torch.from_numpy(noise_PTM.astype(np.float32)))
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
        config, lines = self.config, self.study.lines(self.config.n_lines)
        draw = stream(derive_seed(self.study.seed, "tails", scenario), "gradients")
        noise = draw.standard_normal((config.n_gradients, n_months, N_MACRO)).astype(np.float32)
        gradients = loss_gradient(self.study, lines, scenario, noise)
        towards = gradients.mean(axis=0) / np.linalg.norm(gradients.mean(axis=0))
        moved = noise.reshape(len(noise), -1) + 2.0 * towards
        tail = loss_gradient(self.study, lines, scenario, moved.reshape(noise.shape).astype(np.float32))
        found = main_directions(np.concatenate([gradients, tail]), config.n_directions)
        lost = config.n_directions - len(found)
        return found if lost == 0 else np.concatenate([found, np.zeros((lost, found.shape[1]))])

    def _pilot(self, scenario: str, n_months: int, directions_KD: np.ndarray) -> Surface:
        """Exact expected losses of a sample of loans on paths spread along the directions."""
        config, study = self.config, self.study
        draw = stream(derive_seed(study.seed, "tails", scenario), "pilot")
        s = draw.standard_normal((config.n_pilot, config.n_directions)) * 1.3
        s[:, 0] += np.linspace(-1.0, 2.5, config.n_pilot)
        fresh = draw.standard_normal((config.n_pilot, n_months * N_MACRO))
        macro = self.decode(scenario, place_noise(s, directions_KD, fresh).reshape(-1, n_months, N_MACRO))
        n = study.arrays.n_loans
        loans = np.sort(draw.permutation(n)[: config.pilot_loans])
        losses = study.expected_losses(macro, study.conditional(loans))
        return fit_surface(s, losses, extra_spread=_own_luck(study, float(losses.mean())))


def decode(study: Study, scenario: str, noise_PTM: Tensor) -> Tensor:
    """(P, T, 9) paths from noise, with gradients."""
    vae = study.macro_vae
    code = torch.full((len(noise_PTM),), vae.scenario_code(scenario))
    return vae.to_units(vae.roll(noise_PTM, code))


def loss_gradient(study: Study, lines: Lines, scenario: str, noise_PTM: np.ndarray) -> np.ndarray:
    """(P, T * 9) gradient of log expected loss to the noise at each point."""
    noise = torch.from_numpy(noise_PTM).requires_grad_(True)
    losses = pool_losses(lines.cash(decode(study, scenario, noise)), lines.pool.balance)
    (gradient,) = torch.autograd.grad(losses.clamp(min=1e-9).log().sum(), noise)
    return gradient.flatten(1).double().numpy()


def _own_luck(study: Study, loss: float) -> float:
    """Relative sd of the pool's loss from independent loans, roughly: sqrt(sum b^2 / (sum b)^2 / loss)."""
    balance = study.arrays.balance_L
    severity = 0.5
    return float(np.sqrt((balance**2).sum() / balance.sum() ** 2 * severity / max(loss, 1e-6)))


def _fresh(seed: int, n_paths: int, size: int) -> np.ndarray:
    """(P, D) standard normals; path k has the same whatever is drawn with it."""
    blocks = range(0, n_paths, _BLOCK)
    parts = [
        stream(seed, "tails", "noise", size, low // _BLOCK).standard_normal((_BLOCK, size), dtype=np.float32)
        for low in blocks
    ]
    return np.concatenate(parts)[:n_paths].astype(float)
