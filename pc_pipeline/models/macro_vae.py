"""`MacroVAE`: a conditional variational autoencoder for paths of the nine macro series.

Here: the network, its likelihood and its sampling. Not here: conditioning on given values
(`models.macro_conditioning`), starting values and training (`training.macro_vae`), the generator of
training paths (`scenarios`). Formulas are numbered in docs/methods/macro_vae.md.

Shapes: B batch or sample, T month, M macro series, Z latent, D decoder width, S scenario, G spline knot.

A path x is opened to the real line and scaled by training constants,

    y = (logit((x - lower) / (upper - lower)) - shift) / scale                             (1)

so what is generated never leaves the bounds and is not clamped. Each scenario has a smooth centre
m(s, t) and scale sigma(s, t). Deviations u = (y - m) / sigma follow

    u_0 = L0 eps_0,    u_t = Phi u_{t-1} + a(g_t) + L(g_t) eps_t                         (2)

where g_t is the state of a recurrent net that has read u_0 .. u_{t-1}, s and t, and L is a full
Cholesky factor. Noise eps is standard normal. The latent z is tied to its slow part: with P the map
from eps to (first shock, lowest cosine coefficients of later shocks) and rho = `latent_share`,

    eps = eps' + P^T (rho z + sqrt(1 - rho^2) P eps' - P eps'),    z, eps' ~ N(0, I)       (3)

so eps is N(0, I) whatever rho is: the latent is used by construction and costs no fidelity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.models.checkpoint import register
from pc_pipeline.models.macro_conditioning import sample_conditional
from pc_pipeline.models.spec import TensorSpec
from pc_pipeline.schemas.units import (
    MACRO_NAMES,
    MACRO_SERIES,
    N_MACRO,
    STANDARD_SCENARIOS,
    canonical_scenario,
)

NOISE_BLOCK: Final = 1024  # samples per random stream: sample k has the same noise whatever is drawn with it
EDGE: Final = 1e-3  # share of its range that a value keeps from its bounds before the logit
_KNOT_MONTHS: Final = 1
_EMBEDDING: Final = 8
_LOG_2PI: Final = math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True, slots=True)
class MacroVAEConfig:
    """Size and meaning of a `MacroVAE`.

    Attributes:
        n_macro_vars: series per month; the nine of `schemas.units`.
        seq_length: months of the training paths, >= 2.
        latent_dim: latent numbers per path, >= 1.
        hidden_dim: width of the recurrent encoder, >= 1.
        n_layers: layers of the recurrent encoder, >= 1.
        beta: weight of the KL term, > 0.
        n_scenarios: scenario codes 0..n-1 the network knows, >= 1.
        scenario_names: names of the first codes.
        decoder_dim: width of the recurrent decoder, >= 1.
        latent_share: rho of eq. (3), correlation of a latent with the slow shock it stands for, 0..1.
        max_length: longest path that can be generated, months; beyond `seq_length` centres and scales
            keep their last value.
    """

    n_macro_vars: int = N_MACRO
    seq_length: int = 60
    latent_dim: int = 32
    hidden_dim: int = 128
    n_layers: int = 2
    beta: float = 1.0
    n_scenarios: int = 4
    scenario_names: tuple[str, ...] = STANDARD_SCENARIOS
    decoder_dim: int = 32
    latent_share: float = 0.95
    max_length: int = 480

    def __post_init__(self) -> None:
        for name in ("latent_dim", "hidden_dim", "n_layers", "n_scenarios", "decoder_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", expected=">= 1", got=getattr(self, name))
        if self.n_macro_vars != N_MACRO:
            raise ConfigError("the macro series are fixed", expected=N_MACRO, got=self.n_macro_vars)
        if not 2 <= self.seq_length <= self.max_length:
            raise ConfigError(
                "seq_length out of range", expected=f"2..{self.max_length}", got=self.seq_length
            )
        if not self.beta > 0:
            raise ConfigError("beta is not positive", expected="> 0", got=self.beta)
        if not 0 < self.latent_share < 1:
            raise ConfigError("latent_share out of range", expected="0..1, open", got=self.latent_share)


def spline_basis(n_months: int) -> np.ndarray:
    """(T, G) cubic B-splines, a knot every month (training smooths them); the identity for short paths."""
    if n_months <= 4:
        return np.eye(n_months)
    n_pieces = max(1, round((n_months - 1) / _KNOT_MONTHS))
    inner = np.linspace(0, n_months - 1, n_pieces + 1)
    knots = np.concatenate([[inner[0]] * 3, inner, [inner[-1]] * 3])
    return BSpline.design_matrix(np.arange(n_months, dtype=float), knots, 3).toarray()


def slow_basis(n_months: int, n_waves: int) -> np.ndarray:
    """(T-1, W) orthonormal cosines, slowest first: mean, tilt, curvature of the shocks after the first."""
    steps = n_months - 1
    time = np.arange(steps) + 0.5
    waves = [
        np.cos(np.pi * k * time / steps) * math.sqrt((1 if k == 0 else 2) / steps) for k in range(n_waves)
    ]
    return np.stack(waves, axis=1) if waves else np.zeros((steps, 0))


@register(MacroVAEConfig)
class MacroVAE(nn.Module):
    """Conditional VAE with a recurrent encoder and an autoregressive, noisy, full-covariance decoder.

    Values at the boundary are in the units of `schemas.units`; generated ones lie strictly inside the
    bounds there (a bounded transform, eq. (1), not a clamp).
    """

    knots_TG: torch.Tensor
    shift_M: torch.Tensor
    scale_M: torch.Tensor
    lower_M: torch.Tensor
    upper_M: torch.Tensor
    below_MM: torch.Tensor
    is_trained_S: torch.Tensor

    def __init__(self, config: MacroVAEConfig) -> None:
        super().__init__()
        self.config = config
        knots = spline_basis(config.seq_length)
        n_knots, wide = knots.shape[1], N_MACRO * (N_MACRO - 1) // 2
        self.register_buffer("knots_TG", torch.tensor(knots, dtype=torch.float32))
        self.register_buffer("shift_M", torch.zeros(N_MACRO))
        self.register_buffer("scale_M", torch.ones(N_MACRO))
        self.register_buffer("lower_M", torch.tensor([s.lower for s in MACRO_SERIES]))
        self.register_buffer("upper_M", torch.tensor([s.upper for s in MACRO_SERIES]))
        self.register_buffer("below_MM", torch.tril_indices(N_MACRO, N_MACRO, -1))

        persistence = torch.tensor([s.persistence for s in MACRO_SERIES])
        self.centre_SGM = nn.Parameter(torch.zeros(config.n_scenarios, n_knots, N_MACRO))
        self.log_scale_SGM = nn.Parameter(torch.zeros(config.n_scenarios, n_knots, N_MACRO))
        self.phi_MM = nn.Parameter(torch.diag(persistence))
        self.log_diagonal_M = nn.Parameter(0.5 * torch.log(1 - persistence**2))
        self.below_diagonal = nn.Parameter(torch.zeros(wide))
        self.first_log_diagonal_M = nn.Parameter(torch.zeros(N_MACRO))
        self.first_below = nn.Parameter(torch.zeros(wide))
        self.register_buffer("is_trained_S", torch.zeros(config.n_scenarios, dtype=torch.bool))

        self.embedding = nn.Embedding(config.n_scenarios, _EMBEDDING)
        self.decoder = nn.GRU(N_MACRO + _EMBEDDING + 2, config.decoder_dim, batch_first=True)
        self.head = nn.Linear(config.decoder_dim, 2 * N_MACRO + wide)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

        self.encoder = nn.GRU(
            N_MACRO + _EMBEDDING, config.hidden_dim, num_layers=config.n_layers, batch_first=True
        )
        pooled = (self.n_waves + 1) * (config.hidden_dim + 2 * N_MACRO) + _EMBEDDING
        self.posterior = nn.Linear(pooled, 2 * config.latent_dim)
        nn.init.zeros_(self.posterior.weight)
        nn.init.zeros_(self.posterior.bias)

    # ---- scaling ----------------------------------------------------------------------------

    @property
    def n_waves(self) -> int:
        """Cosines per shock that the latent covers after the first shock."""
        return max(0, math.ceil((self.config.latent_dim - N_MACRO) / N_MACRO))

    def open_up(self, x: torch.Tensor) -> torch.Tensor:
        """Logit of x (..., M) within its bounds; values on a bound count as `EDGE` of the range inside."""
        share = (x - self.lower_M) / (self.upper_M - self.lower_M)
        return torch.logit(share.clamp(EDGE, 1 - EDGE))

    def to_scaled(self, x: torch.Tensor) -> torch.Tensor:
        """Original units (..., M) -> y, eq. (1)."""
        return (self.open_up(x) - self.shift_M) / self.scale_M

    def to_units(self, y: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_scaled`."""
        share = torch.sigmoid(y * self.scale_M + self.shift_M)
        return self.lower_M + (self.upper_M - self.lower_M) * share

    def centre_and_scale(self, scenario: torch.Tensor, n_months: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres m and scales sigma, each (B, T, M), of scenario codes (B,)."""
        index = torch.arange(n_months, device=scenario.device).clamp(max=self.config.seq_length - 1)
        basis = self.knots_TG[index]
        return basis @ self.centre_SGM[scenario], torch.exp(basis @ self.log_scale_SGM[scenario])

    def _decoder_inputs(self, u_BTM: torch.Tensor, scenario: torch.Tensor, first_month: int) -> torch.Tensor:
        """What the recurrent decoder reads to predict months `first_month`, ...: u a month before, s, t."""
        months = torch.arange(u_BTM.shape[1], device=u_BTM.device) + first_month
        time = months.clamp(max=self.config.seq_length - 1) / (self.config.seq_length - 1)
        clock = torch.stack([time, time**2], dim=-1).expand(len(u_BTM), -1, -1)
        label = self.embedding(scenario)[:, None].expand(-1, u_BTM.shape[1], -1)
        return torch.cat([u_BTM, label, clock.to(u_BTM.dtype)], dim=-1)

    def _factor(self, log_diagonal: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        """Lower triangular factors (..., M, M) from log diagonals (..., M) and the 36 entries below."""
        factor = torch.diag_embed(torch.exp(log_diagonal))
        rows, columns = self.below_MM
        spread = factor.new_zeros(factor.shape)
        spread[..., rows, columns] = below
        return factor + spread

    def _step_law(
        self, g: torch.Tensor, before: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean of u_t, log diagonal and lower part of L_t from decoder states and u_{t-1}, eq. (2)."""
        out = self.head(g)
        mean = before @ self.phi_MM.T + out[..., :N_MACRO]
        log_diagonal = self.log_diagonal_M + torch.tanh(out[..., N_MACRO : 2 * N_MACRO])
        return mean, log_diagonal, self.below_diagonal + out[..., 2 * N_MACRO :]

    # ---- likelihood -------------------------------------------------------------------------

    def innovations(self, x: torch.Tensor, scenario: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(eps (B, T, M), log |d y / d eps| (B,)): the noise that makes these paths, eq. (2) inverted."""
        y = self.to_scaled(x)
        centre, sigma = self.centre_and_scale(scenario, x.shape[1])
        u = (y - centre) / sigma
        first = self._factor(self.first_log_diagonal_M, self.first_below)
        eps_first = torch.linalg.solve_triangular(first, u[:, 0, :, None], upper=False)[..., 0]
        g, _ = self.decoder(self._decoder_inputs(u[:, :-1], scenario, 1))
        mean, log_diagonal, below = self._step_law(g, u[:, :-1])
        eps_later = _solve_lower(log_diagonal, below, u[:, 1:] - mean)
        log_det = torch.log(sigma).sum((1, 2)) + self.first_log_diagonal_M.sum() + log_diagonal.sum((1, 2))
        return torch.cat([eps_first[:, None], eps_later], dim=1), log_det

    def slow_part(self, eps: torch.Tensor) -> torch.Tensor:
        """P of eq. (3): the slow shocks (B, Z) that the latent stands for (0 where the path is too short)."""
        basis = self._waves(eps)
        waves = torch.einsum("btm,tw->bwm", eps[:, 1:], basis).flatten(1)
        slow = torch.cat([eps[:, 0], waves], dim=1)[:, : self.config.latent_dim]
        return nn.functional.pad(slow, (0, self.config.latent_dim - slow.shape[1]))

    def _waves(self, eps: torch.Tensor) -> torch.Tensor:
        n_waves = min(self.n_waves, eps.shape[1] - 1)
        return torch.as_tensor(slow_basis(eps.shape[1], n_waves), dtype=eps.dtype, device=eps.device)

    def _replace_slow(self, eps: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """eps + P^T change for a change (B, Z) of the slow part."""
        basis = self._waves(eps)
        room = N_MACRO * (1 + basis.shape[1])
        full = nn.functional.pad(change, (0, max(0, room - change.shape[1])))[:, :room]
        later = torch.einsum("bwm,tw->btm", full[:, N_MACRO:].reshape(len(eps), -1, N_MACRO), basis)
        return eps + torch.cat([full[:, None, :N_MACRO], later], dim=1)

    def encode(self, x: torch.Tensor, scenario: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mu, log_var), each (B, Z), of q(z | x, s): recurrent states pooled over the slow cosines."""
        y = self.to_scaled(x)
        centre, sigma = self.centre_and_scale(scenario, x.shape[1])
        u = ((y - centre) / sigma).detach()
        label = self.embedding(scenario)
        states, _ = self.encoder(torch.cat([u, label[:, None].expand(-1, u.shape[1], -1)], dim=-1))
        basis = self._waves(u)
        seen = (states[:, 1:], u[:, 1:], u[:, :-1])
        pooled = torch.cat([torch.einsum("btd,tw->bwd", part, basis) for part in seen], dim=-1)
        pooled = nn.functional.pad(pooled, (0, 0, 0, self.n_waves - basis.shape[1])).flatten(1)
        first = torch.cat([states[:, 0], u[:, 0], torch.zeros_like(u[:, 0])], dim=-1)
        mu, raw = self.posterior(torch.cat([first, pooled, label], dim=-1)).chunk(2, dim=-1)
        return mu, raw.clamp(-8.0, 4.0) + math.log(1 - self.config.latent_share**2)

    def bound(self, x: torch.Tensor, scenario: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms of the evidence bound, each (B,), nats per path.

        Returns:
            'nll': exact -log p(y | s), eq. (4). 'gap': KL(q(z|x) || p(z|x)), eqs. (5)-(6).
            'kl': KL(q(z|x) || N(0, I)); 'reconstruction': -E_q log p(x | z) = nll + gap - kl.
        """
        eps, log_det = self.innovations(x, scenario)
        nll = 0.5 * (eps.square().sum((1, 2)) + eps[0].numel() * _LOG_2PI) + log_det
        mu, log_var = self.encode(x, scenario)
        rho = self.config.latent_share
        # The true posterior is N(rho P eps, 1 - rho^2). It is held fixed here, so that the decoder
        # climbs the exact likelihood and only the encoder closes the gap.
        gap = _gaussian_kl(mu, log_var, rho * self.slow_part(eps.detach()), math.log(1 - rho**2))
        kl = _gaussian_kl(mu, log_var, torch.zeros_like(mu), 0.0)
        return {"nll": nll, "gap": gap, "kl": kl, "reconstruction": nll + gap - kl}

    def loss(self, x: torch.Tensor, scenario: torch.Tensor) -> torch.Tensor:
        """Mean -ELBO per value (KL weighted by beta), a scalar in nats."""
        terms = self.bound(x, scenario)
        weighted = terms["nll"] + terms["gap"] + (self.config.beta - 1.0) * terms["kl"]
        return weighted.mean() / (x.shape[1] * N_MACRO)

    def forward(
        self, x: torch.Tensor, scenario: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode and decode.

        Args:
            x: (B, T, M) paths in original units.
            scenario: (B,) scenario codes.

        Returns:
            (reconstruction (B, T, M), mu (B, Z), log_var (B, Z)). The reconstruction is the path of
            the latent mean without further noise: what Z numbers can say of the path.
        """
        self._check_paths(x, scenario)
        mu, log_var = self.encode(x, scenario)
        silent = torch.zeros_like(x)
        path = self.decode(mu / self.config.latent_share, scenario, silent, keep=1.0)
        return path, mu, log_var

    # ---- sampling ---------------------------------------------------------------------------

    def decode(
        self,
        z: torch.Tensor,
        scenario: torch.Tensor,
        noise: torch.Tensor,
        initial: torch.Tensor | None = None,
        keep: float | None = None,
        months: int | None = None,
    ) -> torch.Tensor:
        """Paths (B, T, M) in original units from latents (B, Z) and noise (B, T, M); differentiable.

        Args:
            initial: (M,) or (B, M) values of the month before the path; None starts from the scenario.
            keep: rho of eq. (3) to use instead of the configured one.
            months: decode only this many of the T months.
        """
        rho = self.config.latent_share if keep is None else keep
        change = rho * z + (math.sqrt(max(0.0, 1 - rho**2)) - 1.0) * self.slow_part(noise)
        eps = self._replace_slow(noise, change)[:, :months]
        return self.to_units(self.roll(eps, scenario, initial))

    def roll(
        self, eps: torch.Tensor, scenario: torch.Tensor, initial: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run eq. (2): scaled paths y (B, T, M) from noise of the same shape."""
        n_rows, n_months = eps.shape[:2]
        single = bool((scenario == scenario[0]).all())
        codes = scenario[:1] if single else scenario
        centre, sigma = self.centre_and_scale(codes, n_months)
        hidden = eps.new_zeros(n_rows, self.config.decoder_dim)
        weights = dict(self.decoder.named_parameters()).values()  # w_ih, w_hh, b_ih, b_hh of the one layer
        path: list[torch.Tensor] = []
        before: torch.Tensor | None = None
        if initial is not None:
            start = self.to_scaled(initial.to(eps)).expand(n_rows, N_MACRO)
            before = (start - centre[:, 0]) / sigma[:, 0]
        for month in range(n_months):
            if before is None:
                factor = self._factor(self.first_log_diagonal_M, self.first_below)
                before = (factor @ eps[:, 0, :, None])[..., 0]
            else:
                inputs = self._decoder_inputs(before[:, None], scenario, month)[:, 0]
                hidden = torch.gru_cell(inputs, hidden, *weights)
                mean, log_diagonal, below = self._step_law(hidden, before)
                before = mean + (self._factor(log_diagonal, below) @ eps[:, month, :, None])[..., 0]
            path.append(centre[:, month] + sigma[:, month] * before)
        return torch.stack(path, dim=1)

    def generate(
        self,
        scenario: int | str = 0,
        seq_length: int = 60,
        n_samples: int = 100,
        *,
        seed: int = 0,
        first_sample: int = 0,
        initial: Sequence[float] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sample macro paths (n_samples, seq_length, M) in original units.

        Args:
            scenario: code or name.
            seq_length: months, 1..max_length.
            seed: sample k is a function of (weights, scenario, seq_length, seed, initial, k) alone, and
                shares its random numbers with sample k of every other scenario.
            first_sample: number k of the first sample, for drawing in batches.
            initial: (M,) values of the month before the first; None starts as the training paths did.

        Raises:
            ModelError: unknown scenario, length or count out of range, initial values out of bounds.
        """
        code = self.scenario_code(scenario)
        self.check_length(seq_length)
        if bool(self.is_trained_S.any()) and not bool(self.is_trained_S[code]):
            known = [
                name
                for name, seen in zip(self.scenario_labels, self.is_trained_S.tolist(), strict=True)
                if seen
            ]
            raise ModelError("no path of this scenario was in training", expected=known, got=scenario)
        if n_samples < 1 or first_sample < 0:
            raise ModelError("nothing to generate", expected="n_samples >= 1", got=n_samples)
        start = self._check_initial(initial)
        device = self.shift_M.device
        z, noise = self.draw_noise(seq_length, n_samples, seed=seed, first_sample=first_sample)
        codes = torch.full((n_samples,), code, device=device)
        with torch.no_grad():
            return self.decode(z.to(device), codes, noise.to(device), start)

    def draw_noise(
        self, seq_length: int, n_samples: int, *, seed: int = 0, first_sample: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(z (B, Z), noise (B, T, M)): standard normals of samples first_sample, first_sample + 1, ..."""
        n_latent = self.config.latent_dim
        width, parts, sample = n_latent + seq_length * N_MACRO, [], first_sample
        while sample < first_sample + n_samples:
            block, offset = divmod(sample, NOISE_BLOCK)
            stop = min(NOISE_BLOCK, offset + first_sample + n_samples - sample)
            draws = stream(seed, "macro_vae", seq_length, block).standard_normal(
                (stop, width), dtype=np.float32
            )
            parts.append(draws[offset:])
            sample += stop - offset
        drawn = torch.from_numpy(np.concatenate(parts))
        return drawn[:, :n_latent], drawn[:, n_latent:].reshape(n_samples, seq_length, N_MACRO)

    def generate_conditional(
        self,
        conditions: Mapping[str, Any],
        seq_length: int = 60,
        n_samples: int = 100,
        *,
        scenario: int | str | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Paths (n_samples, T, M) from the law given values at months; see `models.macro_conditioning`."""
        return sample_conditional(self, conditions, seq_length, n_samples, scenario=scenario, seed=seed)

    # ---- scenarios --------------------------------------------------------------------------

    def scenario_code(self, scenario: int | str) -> int:
        """Code of a scenario given by code or name.

        Raises:
            ModelError: the network does not know it.
        """
        names = self.scenario_labels
        if isinstance(scenario, str):
            name = canonical_scenario(scenario)
            if name in names:
                return names.index(name)
            raise ModelError("unknown scenario", expected=", ".join(names), got=scenario)
        if not 0 <= int(scenario) < self.config.n_scenarios:
            raise ModelError("unknown scenario", expected=f"0..{self.config.n_scenarios - 1}", got=scenario)
        return int(scenario)

    @property
    def scenario_labels(self) -> tuple[str, ...]:
        """A name for every code; those without one are 'scenario_<code>'."""
        names = self.config.scenario_names[: self.config.n_scenarios]
        return names + tuple(f"scenario_{code}" for code in range(len(names), self.config.n_scenarios))

    def with_scenario(self, name: str, centre: torch.Tensor | np.ndarray, like: int | str = 0) -> MacroVAE:
        """A copy that also knows scenario `name`: the dispersion of `like` around another centre path.

        Args:
            centre: (T, M) path in original units; shorter than seq_length is held at its last row.
        """
        code, old = self.scenario_code(like), self.config.n_scenarios
        if name in self.scenario_labels:
            raise ModelError("the scenario exists already", expected="a new name", got=name)
        config = dataclasses.replace(
            self.config, n_scenarios=old + 1, scenario_names=(*self.scenario_labels, name)
        )
        twin = MacroVAE(config)
        state = {
            key: torch.cat([value, value[code : code + 1]])
            if key.endswith(("_SGM", "_S")) or key == "embedding.weight"
            else value
            for key, value in self.state_dict().items()
        }
        path = torch.as_tensor(centre, dtype=torch.float32)
        path = path[torch.arange(config.seq_length).clamp(max=len(path) - 1)]
        self._check_paths(path[None], torch.zeros(1, dtype=torch.long))
        knots = torch.linalg.pinv(self.knots_TG) @ self.to_scaled(path)
        state["centre_SGM"] = torch.cat([self.centre_SGM.detach(), knots[None]])
        twin.load_state_dict(state)
        return twin.eval()

    def latent_meaning(self) -> list[str]:
        """One line per latent: which slow shock it is, in the order of the series."""
        kinds = ["level at the start", *(f"slow shock {k}" for k in range(self.n_waves))]
        labels = {
            "slow shock 0": "mean shock",
            "slow shock 1": "early less late",
            "slow shock 2": "ends less middle",
        }
        lines = [f"{labels.get(kind, kind)}: {name}" for kind in kinds for name in MACRO_NAMES]
        return lines[: self.config.latent_dim]

    def describe_inputs(self) -> dict[str, TensorSpec]:
        """Inputs of `forward`."""
        mean, sd = tuple(s.mean for s in MACRO_SERIES), tuple(0.3 * s.sd for s in MACRO_SERIES)
        return {
            "x": TensorSpec(("B", "T", N_MACRO), shift=mean, scale=sd),
            "scenario": TensorSpec(("B",), kind="index", n=self.config.n_scenarios),
        }

    # ---- checks -----------------------------------------------------------------------------

    def check_length(self, seq_length: int) -> None:
        """Raise ModelError for a number of months that cannot be decoded."""
        if not 1 <= seq_length <= self.config.max_length:
            raise ModelError(
                "path length out of range", expected=f"1..{self.config.max_length}", got=seq_length
            )

    def _check_initial(self, initial: Sequence[float] | torch.Tensor | None) -> torch.Tensor | None:
        if initial is None:
            return None
        start = torch.as_tensor(initial, dtype=torch.float32, device=self.shift_M.device)
        if start.shape != (N_MACRO,) or not bool(torch.isfinite(start).all()):
            raise ModelError("initial is not one finite value per series", expected=MACRO_NAMES, got=initial)
        outside = (start < self.lower_M) | (start > self.upper_M)
        if bool(outside.any()):
            series = MACRO_SERIES[int(outside.nonzero()[0, 0])]
            value = float(start[outside][0])
            raise ModelError(
                "initial value out of bounds",
                expected=f"{series.lower}..{series.upper}",
                got=value,
                where=series.name,
            )
        return start

    def _check_paths(self, x: torch.Tensor, scenario: torch.Tensor) -> None:
        if x.ndim != 3 or x.shape[2] != N_MACRO or x.shape[1] < 2:
            raise ModelError(
                "not macro paths", expected=f"(batch, 2 or more months, {N_MACRO})", got=tuple(x.shape)
            )
        if scenario.shape != x.shape[:1]:
            raise ModelError("one scenario per path", expected=tuple(x.shape[:1]), got=tuple(scenario.shape))
        if not bool(torch.isfinite(x).all()):
            raise ModelError(
                "macro paths hold values that are not finite", expected="finite numbers", got="nan or inf"
            )


def _solve_lower(log_diagonal: torch.Tensor, below: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(..., M) solutions of L x = target by forward substitution, row by row over all systems at once.

    For many small systems this is several times faster, forward and backward, than one LAPACK call each.
    """
    found: list[torch.Tensor] = []
    scale, gap, start = torch.exp(-log_diagonal), target.unbind(-1), 0
    for row in range(target.shape[-1]):
        left = gap[row]
        if row:
            left = left - (below[..., start : start + row] * torch.stack(found, dim=-1)).sum(-1)
        found.append(left * scale[..., row])
        start += row
    return torch.stack(found, dim=-1)


def _gaussian_kl(
    mu: torch.Tensor, log_var: torch.Tensor, other_mu: torch.Tensor, other_log_var: float
) -> torch.Tensor:
    """KL(N(mu, e^log_var) || N(other_mu, e^other_log_var)) summed over the last dimension."""
    ratio = torch.exp(log_var - other_log_var) + (mu - other_mu).square() * math.exp(-other_log_var)
    return 0.5 * (ratio - 1.0 - log_var + other_log_var).sum(-1)
