"""Diffusion head for the continuous values of a loan-month: payment ratio and loss severity.

Here: noise schedule, value transform, denoiser, few-step sampler. Not here: the loan's state model
(`loan_trajectory`), the ledger that turns ratios into money (`paid_through`).

Values are mapped to normal scores, state by state (randomised probability integral transform), so an
atom such as 'pays exactly the instalment' is an interval of scores and comes back exact, and nothing
leaves the range seen in training. On the scores runs a DDPM (Ho et al. 2020) with v-prediction
(Salimans & Ho 2022) whose terminal signal is near 0 (Lin et al. 2024), drawn along the
probability-flow ODE (Song et al. 2021) in its angle.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.layers import zero_init
from pc_pipeline.schemas.states import LIVING_STATES, N_STATES, LoanState

VALUE_NAMES: Final = ("payment_ratio", "severity")
N_VALUES: Final = len(VALUE_NAMES)
MAX_PAYMENT_RATIO: Final = 6.0  # a cure from 90dpd pays four instalments; above it, prepayment
N_KNOTS: Final = 129
_EDGE: Final = 0.5 / (N_KNOTS - 1)
_MIN_OBSERVATIONS: Final = 5


class NoiseSchedule(nn.Module):
    """Cosine schedule (Nichol & Dhariwal 2021) over `steps` steps, terminal signal sqrt(1e-5)."""

    signal: Tensor
    noise: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        if steps < 2:
            raise ConfigError("too few diffusion steps", expected=">= 2", got=steps)
        time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        kept = (
            torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )
        kept = kept.clamp(1e-5, 0.9999)
        self.register_buffer("signal", kept.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)
        self.steps = steps

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy scores and their v-target: z = a x + s e, v = a e - s x."""
        a, s = self.signal[step][:, None], self.noise[step][:, None]
        return a * clean + s * noise, a * noise - s * clean


class ValueTransform(nn.Module):
    """Per state and value: empirical quantiles, as a map to and from normal scores.

    A value that a state does not have (severity of a living loan) keeps standard normal scores.
    """

    knots: Tensor

    def __init__(self, n_groups: int = N_STATES) -> None:
        super().__init__()
        knots = torch.zeros(n_groups, N_VALUES, N_KNOTS)
        knots[: LoanState.dpd90, 0] = 1.0
        knots[:, 1] = torch.linspace(0.2, 0.8, N_KNOTS)
        self.register_buffer("knots", knots)

    def fit(self, values_NV: Tensor, known_NV: Tensor, state_N: Tensor) -> None:
        """Take quantiles; a state with under 5 observations of a value keeps the stated ones."""
        probabilities = torch.linspace(0, 1, N_KNOTS, dtype=torch.float64)
        for value in range(N_VALUES):
            for state in range(len(self.knots)):
                mine = values_NV[known_NV[:, value] & (state_N == state), value].double()
                if len(mine) >= _MIN_OBSERVATIONS:
                    at = (probabilities * (len(mine) - 1)).round().long()
                    self.knots[state, value] = mine.sort().values[at].float()

    def to_scores(self, values_NV: Tensor, state_N: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normal scores (N,V); an atom is spread evenly over its interval of probabilities."""
        scores = []
        for value in range(N_VALUES):
            knots = self.knots[state_N, value]
            x = values_NV[:, value, None].contiguous()
            x = x.clamp(min=knots[:, :1], max=knots[:, -1:])
            low = torch.searchsorted(knots, x, right=False)[:, 0]
            high = torch.searchsorted(knots, x, right=True)[:, 0]
            is_atom = high > low
            left = (low - 1).clamp(min=0)
            gap = (knots.gather(1, low.clamp(max=N_KNOTS - 1)[:, None]) - knots.gather(1, left[:, None]))[
                :, 0
            ]
            within = (x[:, 0] - knots.gather(1, left[:, None])[:, 0]) / gap.clamp(min=1e-12)
            spread = torch.rand(len(x), generator=generator, device=x.device)
            position = torch.where(is_atom, low + spread * (high - 1 - low).clamp(min=0), left + within)
            scores.append(torch.special.ndtri((position / (N_KNOTS - 1)).clamp(_EDGE, 1 - _EDGE)))
        return torch.stack(scores, dim=-1)

    def to_values(self, scores_NV: Tensor, state_N: Tensor) -> Tensor:
        """Values (N,V) within the range of the training data."""
        position = torch.special.ndtr(scores_NV).clamp(0, 1) * (N_KNOTS - 1)
        left = position.floor().long().clamp(max=N_KNOTS - 2)
        knots = self.knots[state_N]
        low = knots.gather(2, left[..., None])[..., 0]
        high = knots.gather(2, left[..., None] + 1)[..., 0]
        return low + (position - left) * (high - low)


class DiffusionHead(nn.Module):
    """p(payment ratio, severity | state, loan, history).

    Args:
        context_width: width of the conditioning vector (`LoanTrajectoryModel` value_params).
        steps: diffusion steps while training.
        width: hidden width of the denoiser.
        n_groups: states, and what else has quantiles of its own (`payment_head`).
    """

    def __init__(
        self, context_width: int, steps: int = 100, width: int = 64, n_groups: int = N_STATES
    ) -> None:
        super().__init__()
        self.schedule = NoiseSchedule(steps)
        self.transform = ValueTransform(n_groups)
        self.state = nn.Embedding(n_groups, 16)
        self.denoise = nn.Sequential(
            nn.Linear(N_VALUES + 16 + 16 + context_width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            zero_init(nn.Linear(width, N_VALUES)),
        )

    def velocity(self, noisy_NV: Tensor, step_N: Tensor, context_ND: Tensor, state_N: Tensor) -> Tensor:
        """Predicted v (N,V)."""
        when = step_N.to(noisy_NV.dtype)[:, None] / self.schedule.steps
        frequency = 2.0 ** torch.arange(8, device=noisy_NV.device, dtype=noisy_NV.dtype) * math.pi / 2
        clock = torch.cat([torch.sin(when * frequency), torch.cos(when * frequency)], dim=-1)
        return self.denoise(torch.cat([noisy_NV, clock, self.state(state_N), context_ND], dim=-1))

    def fit_values(
        self, values_NV: Tensor, known_NV: Tensor, state_N: Tensor, window_NW: Tensor | None = None
    ) -> None:
        """Take quantiles from training months; windows of past payments say nothing here."""
        self.transform.fit(values_NV, known_NV, state_N)

    def loss(
        self,
        context_ND: Tensor,
        state_N: Tensor,
        values_NV: Tensor,
        known_NV: Tensor,
        generator: torch.Generator | None = None,
        window_NW: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of v over the known values; 0 where nothing is known."""
        clean = self.transform.to_scores(torch.nan_to_num(values_NV), state_N, generator)
        device = clean.device
        free = torch.randn(clean.shape, generator=generator, device=device)
        clean = torch.where(known_NV, clean, free)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        step = torch.randint(self.schedule.steps, (len(clean),), generator=generator, device=device)
        noisy, target = self.schedule.add_noise(clean, noise, step)
        error = (self.velocity(noisy, step, context_ND, state_N) - target) ** 2
        return (error * known_NV).sum() / known_NV.sum().clamp(min=1)

    def sample(
        self,
        context_ND: Tensor,
        state_N: Tensor,
        n_steps: int = 8,
        generator: torch.Generator | None = None,
        window_NW: Tensor | None = None,
    ) -> Tensor:
        """Draw (N,V) values in `n_steps` steps; each lies in its state's training range.

        With z = x cos(angle) + e sin(angle), v is dz/d(angle): steps of second order (Adams-Bashforth) follow
        it down to the data. Eight steps of first order (DDIM) return 12 % too little spread.
        """
        if len(context_ND) != len(state_N):
            raise ModelError("one state per context", expected=len(context_ND), got=len(state_N))
        device = context_ND.device
        z = torch.randn((len(state_N), N_VALUES), generator=generator, device=device)
        last = self.schedule.steps - 1
        steps = torch.linspace(last, 0, min(n_steps, last) + 1).round().long().tolist()
        angle = torch.atan2(self.schedule.noise.double(), self.schedule.signal.double()).tolist()
        v_before, way_before = z, math.inf  # the first step has none before it
        for here, after in pairwise(steps):
            v = self.velocity(z, torch.full((len(z),), here, device=device), context_ND, state_N)
            way = angle[after] - angle[here]
            z = z + way * (v + way / (2.0 * way_before) * (v - v_before))
            v_before, way_before = v, way
        return self.transform.to_values(z, state_N)


def observed_values(
    payments: Tensor, scheduled: Tensor, charge_off: Tensor, recovery: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Ratios and which of them are known, from money of the same loan-months.

    payment_ratio = payment / scheduled payment, of living states with something due, within
    0..MAX_PAYMENT_RATIO; severity = 1 - recovery / charge-off, of defaults, within 0..1.

    Returns:
        values (...,V), known (...,V) bool.
    """
    is_living = (state >= 0) & (state < len(LIVING_STATES)) & (scheduled > 0) & torch.isfinite(payments)
    ratio = (payments / scheduled.clamp(min=0.01)).clamp(0.0, MAX_PAYMENT_RATIO)
    is_default = (state == LoanState.default) & (charge_off > 0) & torch.isfinite(recovery)
    severity = (1.0 - recovery / charge_off.clamp(min=0.01)).clamp(0.0, 1.0)
    values = torch.stack([ratio, severity], dim=-1)
    known = torch.stack([is_living, is_default], dim=-1)
    return torch.where(known, values, torch.zeros_like(values)).float(), known
