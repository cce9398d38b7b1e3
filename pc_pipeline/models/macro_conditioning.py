"""Macro paths that pass through given values: posterior sampling in the noise of a decoder.

Here: reading and judging conditions, choosing the scenario, drawing noise given the conditions; what this
needs of a network (`NoiseDecoder`). Not here: the network (`models.macro_vae`), which imports this module.

The scaled path y is a smooth function of standard normal noise e = (z, eps'). A draw of e is moved
along the gradient of the conditioned values until they hit their targets (docs/methods/macro_vae.md,
eqs. (9)-(10)):

    e <- e + J^T (J J^T)^{-1} (target - y_c(e)),    J = d y_c / d e

For a linear decoder one step is Matheron's rule, an exact draw from the conditional law; for a bent
one it is randomised maximum likelihood (Oliver, He and Reynolds 1996), exact to first order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO

TOLERANCE: Final = 1e-4  # share of the series' range within which every condition is met
PLAUSIBLE_SD: Final = 5.0  # furthest a single condition may lie from the model's mean
_N_PILOT: Final = 2000
_MAX_STEPS: Final = 25
_STEP_LIMIT: Final = 8.0  # longest move of the noise in one step, in norm


@dataclass(frozen=True, slots=True)
class Condition:
    """One value to be met: series index, month index from 0, value in original units."""

    series: int
    month: int
    value: float

    @property
    def label(self) -> str:
        """Readable name."""
        return f"{MACRO_NAMES[self.series]} at month {self.month}"


class NoiseDecoder(Protocol):
    """Paths as a smooth function of standard normal noise: a latent (Z) and one shock a month (T, M)."""

    config: Any  # with latent_dim and n_scenarios
    shift_M: torch.Tensor
    lower_M: torch.Tensor
    upper_M: torch.Tensor

    def check_length(self, seq_length: int) -> None:
        """Raise ModelError for a number of months that cannot be decoded."""

    def scenario_code(self, scenario: int | str) -> int:
        """Code of a scenario given by code or name."""

    def draw_noise(
        self, seq_length: int, n_samples: int, *, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(z (B, Z), noise (B, T, M)) of standard normals."""

    def decode(
        self,
        z: torch.Tensor,
        scenario: torch.Tensor,
        noise: torch.Tensor,
        *,
        months: int | None = None,
    ) -> torch.Tensor:
        """Paths (B, T, M) in original units, differentiable; only the first `months`."""

    def generate(
        self, scenario: int | str, seq_length: int, n_samples: int, *, seed: int = 0
    ) -> torch.Tensor:
        """Paths (B, T, M) in original units."""

    def open_up(self, x: torch.Tensor) -> torch.Tensor:
        """Values in original units on the open scale."""


def read_conditions(conditions: Mapping[str, Any], seq_length: int) -> list[Condition]:
    """{series: {'month': int from 0, 'value': float}, or a list of such} -> conditions.

    Raises:
        ModelError: unknown series, month outside the path, a value that is not finite or out of
            bounds, the same place twice, or nothing asked for.
    """
    found: list[Condition] = []
    for name, entries in conditions.items():
        if name not in MACRO_NAMES:
            raise ModelError("unknown macro series", expected=", ".join(MACRO_NAMES), got=name)
        series = MACRO_NAMES.index(name)
        for entry in entries if isinstance(entries, Sequence) else [entries]:
            if not isinstance(entry, Mapping) or set(entry) != {"month", "value"}:
                raise ModelError(
                    "not a condition", expected="{'month': int, 'value': float}", got=entry, where=name
                )
            month, value = int(entry["month"]), float(entry["value"])
            if not 0 <= month < seq_length:
                raise ModelError(
                    "month outside the path", expected=f"0..{seq_length - 1}", got=month, where=name
                )
            bounds = MACRO_SERIES[series]
            if not bounds.lower < value < bounds.upper:
                raise ModelError(
                    "value out of bounds",
                    expected=f"between {bounds.lower} and {bounds.upper}",
                    got=value,
                    where=name,
                )
            found.append(Condition(series, month, value))
    places = {(condition.series, condition.month) for condition in found}
    if not found or len(places) < len(found):
        raise ModelError(
            "conditions are empty or name a month twice", expected="one value per series and month"
        )
    return found


def sample_conditional(
    model: NoiseDecoder,
    conditions: Mapping[str, Any],
    seq_length: int,
    n_samples: int,
    *,
    scenario: int | str | None,
    seed: int,
) -> torch.Tensor:
    """Paths (n_samples, T, M) from the model's law given the conditions.

    Args:
        conditions: see `read_conditions`.
        scenario: code or name; None weighs all scenarios by how likely they make the conditions
            (Bayes with equal prior weights), so a recession value brings recession paths.

    Returns:
        Paths that meet every condition within `TOLERANCE` of its series' range.

    Raises:
        ModelError: a condition that cannot be read, or values the model deems implausible in every
            scenario asked for (the message gives its own range), or that it cannot reach.
    """
    if n_samples < 1:
        raise ModelError("nothing to generate", expected="n_samples >= 1", got=n_samples)
    model.check_length(seq_length)
    wanted = read_conditions(conditions, seq_length)
    codes = range(model.config.n_scenarios) if scenario is None else [model.scenario_code(scenario)]
    weights = _scenario_weights(model, wanted, list(codes), seq_length, seed)
    choice = stream(seed, "macro_conditional", "scenario").choice(list(codes), size=n_samples, p=weights)
    n_latent = model.config.latent_dim
    z, noise = model.draw_noise(seq_length, n_samples, seed=derive_seed(seed, "macro_conditional", "noise"))
    device = model.shift_M.device
    start = torch.cat([z, noise.flatten(1)], dim=1).to(device)
    labels = torch.as_tensor(choice, device=device)
    moved = _meet(model, wanted, labels, start, n_latent, seq_length)
    with torch.no_grad():
        paths = model.decode(
            moved[:, :n_latent], labels, moved[:, n_latent:].reshape(-1, seq_length, N_MACRO)
        )
    _check_met(paths, wanted)
    return paths


def _meet(
    model: NoiseDecoder,
    wanted: list[Condition],
    labels: torch.Tensor,
    start: torch.Tensor,
    n_latent: int,
    seq_length: int,
) -> torch.Tensor:
    """Noise (B, Z + T M) moved until the decoded values meet their targets."""
    months = torch.tensor([condition.month for condition in wanted])
    series = torch.tensor([condition.series for condition in wanted])
    targets = start.new_zeros(len(wanted), N_MACRO) + 0.5 * (model.lower_M + model.upper_M)
    targets[torch.arange(len(wanted)), series] = start.new_tensor([condition.value for condition in wanted])
    target_C = model.open_up(targets)[torch.arange(len(wanted)), series]
    horizon = int(months.max()) + 1  # later noise cannot move the conditioned months, save through z
    noise = start
    for _ in range(_MAX_STEPS):
        noise = noise.detach().requires_grad_(True)
        eps = noise[:, n_latent:].reshape(-1, seq_length, N_MACRO)
        opened = model.open_up(model.decode(noise[:, :n_latent], labels, eps, months=horizon))
        values_BC = opened[:, months, series]
        gap_BC = (target_C - values_BC).detach()
        if float(gap_BC.abs().max()) < 0.1 * TOLERANCE:
            break
        rows = [
            torch.autograd.grad(values_BC[:, k].sum(), noise, retain_graph=k + 1 < len(wanted))[0]
            for k in range(len(wanted))
        ]
        jacobian_BCE = torch.stack(rows, dim=1)
        gram = jacobian_BCE @ jacobian_BCE.transpose(1, 2)
        gram = gram + 1e-6 * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
        step = (jacobian_BCE.transpose(1, 2) @ torch.linalg.solve(gram, gap_BC[..., None]))[..., 0]
        length = step.norm(dim=1, keepdim=True)
        noise = noise + step * (_STEP_LIMIT / length.clamp(min=_STEP_LIMIT))
    return noise.detach()


def _scenario_weights(
    model: NoiseDecoder, wanted: list[Condition], codes: list[int], seq_length: int, seed: int
) -> list[float]:
    """Posterior weight of each scenario from a Gaussian fitted to the opened values of a pilot sample.

    Raises:
        ModelError: every scenario finds some condition, or their combination, implausible.
    """
    logs, ranges, combined = [], [], []
    for code in codes:
        paths = model.generate(
            code, seq_length, _N_PILOT, seed=derive_seed(seed, "macro_conditional", "pilot")
        )
        opened = model.open_up(paths)
        values = torch.stack([opened[:, c.month, c.series] for c in wanted], dim=1).double()
        mean, covariance = values.mean(0), torch.cov(values.T).reshape(len(wanted), len(wanted))
        target = torch.stack([_open_value(model, c) for c in wanted]).double()
        spread = covariance.diagonal().sqrt()
        ridge = covariance + 1e-9 * torch.diag(covariance.diagonal())
        gap = target - mean
        squared = float(gap @ torch.linalg.solve(ridge, gap))
        too_far = bool((gap.abs() > PLAUSIBLE_SD * spread).any())
        logs.append(-math.inf if too_far else -0.5 * squared - 0.5 * float(torch.logdet(ridge)))
        combined.append(squared)
        ranges.append(
            [
                _range_in_units(model, c, float(m), float(s))
                for c, m, s in zip(wanted, mean, spread, strict=True)
            ]
        )
    limit = (PLAUSIBLE_SD + math.sqrt(len(wanted))) ** 2
    if all(log == -math.inf for log in logs):
        raise _implausible(wanted, ranges)
    possible = [log if value <= limit else -math.inf for log, value in zip(logs, combined, strict=True)]
    if all(log == -math.inf for log in possible):
        raise ModelError(
            "the conditions are implausible together",
            expected=f"a Mahalanobis distance up to {math.sqrt(limit):.1f}",
            got=f"{math.sqrt(min(combined)):.1f}",
            where="; ".join(condition.label for condition in wanted),
        )
    best = max(possible)
    raw = [math.exp(log - best) for log in possible]
    return [value / sum(raw) for value in raw]


def _open_value(model: NoiseDecoder, condition: Condition) -> torch.Tensor:
    row = 0.5 * (model.lower_M + model.upper_M)
    row = row.clone()
    row[condition.series] = condition.value
    return model.open_up(row)[condition.series]


def _range_in_units(
    model: NoiseDecoder, condition: Condition, mean: float, spread: float
) -> tuple[float, float]:
    low, high = model.lower_M[condition.series], model.upper_M[condition.series]
    ends = [
        float(low + (high - low) / (1 + math.exp(-(mean + k * spread))))
        for k in (-PLAUSIBLE_SD, PLAUSIBLE_SD)
    ]
    return ends[0], ends[1]


def _implausible(wanted: list[Condition], ranges: list[list[tuple[float, float]]]) -> ModelError:
    """The error for single values; names the first condition outside every scenario's range."""
    for index, condition in enumerate(wanted):
        low, high = min(r[index][0] for r in ranges), max(r[index][1] for r in ranges)
        if not low <= condition.value <= high:
            break
    else:
        index, condition = 0, wanted[0]
        low, high = min(r[0][0] for r in ranges), max(r[0][1] for r in ranges)
    return ModelError(
        "the model deems a condition implausible" + ("" if len(ranges) == 1 else " in every scenario"),
        expected=f"{low:.4g}..{high:.4g} ({PLAUSIBLE_SD:g} standard deviations)",
        got=condition.value,
        where=condition.label,
    )


def _check_met(paths: torch.Tensor, wanted: list[Condition]) -> None:
    for condition in wanted:
        bounds = MACRO_SERIES[condition.series]
        gap = (paths[:, condition.month, condition.series] - condition.value).abs()
        missed = float(gap.max()) / (bounds.upper - bounds.lower)
        if not missed <= TOLERANCE:
            raise ModelError(
                "the model cannot reach a condition",
                expected=f"within {TOLERANCE:g} of the range",
                got=f"{missed:.2e} away",
                where=condition.label,
            )
