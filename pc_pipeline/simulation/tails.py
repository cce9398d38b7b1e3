"""Which macro paths to draw, and what each counts: stratified along the loss, more of them in the tail.

Here: a fitted loss surface over a few directions of the noise, candidates on it, strata by predicted
loss, how many paths each stratum gets, weights. Not here: where directions and pilots come from
(`engines.tail_source`), intervals that know the strata (`simulation.estimators`).

Noise e of D standard normals makes a macro path. A is (K, D) with orthonormal rows; s = A e; the loss surface
is a quadratic of s for log loss, fitted to a pilot. Steps (docs/methods/tails.md):

    1. N candidates s on a scrambled Sobol net, each with its scenario: predicted loss l(s), sorted       (1)
    2. density of paths over the ranks, g(u) = a + sum_m c_m sd_m(l(u)) / mean sd_m, integral 1          (2)
    3. cells of equal integral of g are the strata; a few candidates of each are taken at random
    4. weight = share of the candidates in the stratum / share of the paths in it                        (3)
    5. e = A' s + (I - A' A) e', e' fresh standard normals                                               (4)

Every candidate is a draw from the law, and within a stratum all are equally likely: weighted means are
unbiased whatever the surface is; a poor surface only costs precision. a > 0 bounds the weights by 1 / a.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy import stats
from scipy.special import ndtr

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.simulation.estimators import weighted_quantile

_HERMITE: Final = np.polynomial.hermite_e.hermegauss(21)
_LEFT: Final = 0.02  # of the variance of own luck, what a control known from reference rows leaves
_DEFAULT_AIMS: Final = {"expected_loss": 0.15, "cvar_95": 0.10, "cvar_99": 0.45, "cvar_999": 0.15}
_LEVELS: Final = {"cvar_95": 0.95, "cvar_99": 0.99, "cvar_999": 0.999}


@dataclass(frozen=True, slots=True, kw_only=True)
class TailConfig:
    """How paths are drawn along the loss.

    Attributes:
        n_directions: K, directions of the noise that the surface sees, >= 1.
        n_gradients: points at which the loss is differentiated to find them, per scenario.
        n_pilot: macro paths per scenario the surface is fitted to.
        n_candidates: N, rounded up to a power of two; 64 a path where that is more, so that the net's own
            error stays below theirs.
        per_stratum: paths of a stratum, >= 2.
        aims: measure -> share of the paths spent on it; what is left of 1 is spread evenly (a of eq. (2)).
    """

    n_directions: int = 8
    n_gradients: int = 10
    n_pilot: int = 400
    n_candidates: int = 2**17
    per_stratum: int = 2
    aims: dict[str, float] = field(default_factory=lambda: dict(_DEFAULT_AIMS))

    def __post_init__(self) -> None:
        if min(self.n_directions, self.n_gradients) < 1:
            raise ConfigError("sizes must be positive")
        if self.n_directions > self.n_gradients:
            raise ConfigError(
                "more directions than gradients", expected=self.n_gradients, got=self.n_directions
            )
        if self.n_pilot < 4 * n_terms(self.n_directions):
            raise ConfigError(
                "too few pilots for the surface", expected=4 * n_terms(self.n_directions), got=self.n_pilot
            )
        if self.per_stratum < 2:
            raise ConfigError("a stratum needs two paths", got=self.per_stratum)
        unknown = set(self.aims) - set(_DEFAULT_AIMS)
        if unknown or min(self.aims.values(), default=0.0) < 0 or sum(self.aims.values()) > 0.95:
            raise ConfigError(
                "aims make no sense", expected=f"shares of {', '.join(_DEFAULT_AIMS)}, at most 0.95 in all"
            )


def n_terms(n_directions: int) -> int:
    """Coefficients of the quadratic surface."""
    return (n_directions + 1) * (n_directions + 2) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """log loss as a quadratic of s.

    Attributes:
        coefficients: of 1, s_i, s_i s_j. spread: sd of log expected loss around it. share: of the pilot's
            variance that it explains (R^2). luck: variance of the loans' own luck per unit of expected loss.
    """

    coefficients: np.ndarray
    spread: float
    share: float
    luck: float = 0.0

    def predict(self, s_NK: np.ndarray) -> np.ndarray:
        """(N,) predicted loss. Beyond 6 from the centre the surface is held: a quadratic may turn back."""
        found = np.empty(len(s_NK))
        for low in range(0, len(s_NK), _AT_ONCE):
            part = s_NK[low : low + _AT_ONCE]
            length = np.linalg.norm(part, axis=1, keepdims=True)
            held = part * np.minimum(1.0, 6.0 / np.maximum(length, 1e-9))
            found[low : low + _AT_ONCE] = np.exp(quadratic(held) @ self.coefficients)
        return found


def quadratic(s_NK: np.ndarray) -> np.ndarray:
    """(N, terms) 1, s_i, s_i s_j."""
    rows, columns = np.triu_indices(s_NK.shape[1])
    return np.concatenate([np.ones((len(s_NK), 1)), s_NK, s_NK[:, rows] * s_NK[:, columns]], axis=1)


def fit_surface(s_NK: np.ndarray, losses_N: np.ndarray, luck: float = 0.0) -> Surface:
    """Least squares of log loss on a pilot's expected losses; `luck` as in `Surface`."""
    target = np.log(np.maximum(losses_N, 1e-6))
    design = quadratic(s_NK)
    coefficients, *_ = np.linalg.lstsq(design, target, rcond=None)
    left = target - design @ coefficients
    variance = float(left @ left) / max(len(target) - design.shape[1], 1)
    share = 1.0 - float(left.var()) / max(float(target.var()), 1e-300)
    return Surface(coefficients=coefficients, spread=float(np.sqrt(variance)), share=share, luck=luck)


def main_directions(gradients_ND: np.ndarray, n_directions: int) -> np.ndarray:
    """(K, D) orthonormal rows that carry most of the gradients (an active subspace, Constantine 2015).

    The mean gradient comes first, so that a single direction is the loss direction.
    """
    mean = gradients_ND.mean(axis=0)
    first = mean / np.linalg.norm(mean)
    left = gradients_ND - np.outer(gradients_ND @ first, first)
    _, size, others = np.linalg.svd(left, full_matrices=False)
    rows = [first, *others[: n_directions - 1][size[: n_directions - 1] > 1e-9 * np.linalg.norm(mean)]]
    basis, _ = np.linalg.qr(np.stack(rows, axis=1))
    return np.ascontiguousarray(basis.T * np.sign(basis.T @ mean + 1e-300)[:, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Chosen candidates, in the order of predicted loss.

    Attributes:
        s_PK: their place along the directions. scenario_P: row of the scenarios. weights_P: mean 1.
        strata_P: stratum labels. predicted_P: loss predicted. offset_P: that less its mean over the stratum's
            candidates.
    """

    s_PK: np.ndarray
    scenario_P: np.ndarray
    weights_P: np.ndarray
    strata_P: np.ndarray
    predicted_P: np.ndarray
    offset_P: np.ndarray


def candidates(
    shares_S: np.ndarray, n_paths: int, config: TailConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(s (N, K), scenario (N,)): a scrambled Sobol net; its first coordinate picks the scenario."""
    power = int(np.ceil(np.log2(max(config.n_candidates, _PER_PATH * n_paths))))
    net = stats.qmc.Sobol(
        config.n_directions + 1, rng=np.random.default_rng(derive_seed(seed, "tails", "net"))
    )
    u = np.clip(net.random_base2(power), 1e-12, 1 - 1e-12)
    scenario = np.searchsorted(np.cumsum(shares_S)[:-1], u[:, 0], side="right")
    return stats.norm.ppf(u[:, 1:]), scenario


def path_density(
    predicted_N: np.ndarray, spread_N: np.ndarray, luck_N: np.ndarray, config: TailConfig
) -> np.ndarray:
    """(N,) eq. (2) on the candidates sorted by predicted loss; mean 1.

    sd of what each measure averages, given the predicted loss: the expected loss is lognormal around it, own
    luck is normal around that, and of luck only what its control leaves counts (`simulation.control`).
    """
    nodes, masses = _HERMITE[0], _HERMITE[1] / _HERMITE[1].sum()
    centre = predicted_N[:, None]
    expected = centre * np.exp(spread_N[:, None] * nodes - 0.5 * spread_N[:, None] ** 2)
    luck = np.sqrt(np.maximum(luck_N[:, None] * expected, 1e-24))
    whole = np.sqrt(spread_N[:, None] ** 2 + luck_N[:, None] / np.maximum(centre, 1e-12))
    outcomes = centre * np.exp(whole * nodes - 0.5 * whole**2)
    every = np.broadcast_to(masses, outcomes.shape).ravel()
    density = np.full(len(predicted_N), 1.0 - sum(config.aims.values()))
    for measure, share in config.aims.items():
        floor = 0.0
        if measure in _LEVELS:
            floor = weighted_quantile(outcomes.ravel(), _LEVELS[measure], every)
        mean, left = _excess(expected - floor, luck)
        variance = np.maximum((mean**2) @ masses - (mean @ masses) ** 2, 0.0) + left @ masses
        sd = np.sqrt(variance)
        density += share * sd / sd.mean() if sd.mean() > 0 else share
    return density


def _excess(over: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of (over + s Z)+, and the variance that is left of it when its control has been taken out."""
    a = over / s
    phi, tail = np.exp(-0.5 * a**2) / np.sqrt(2 * np.pi), ndtr(a)
    mean = over * tail + s * phi
    variance = (over**2 + s**2) * tail + over * s * phi - mean**2
    left = variance - s**2 * ((1 - _LEFT) * tail**2 + 0.5 * phi**2)
    return mean, np.maximum(left, 0.0)


def design(
    surfaces: list[Surface],
    shares_S: np.ndarray,
    n_paths: int,
    config: TailConfig,
    seed: int,
) -> Design:
    """Steps 1-4 of the module.

    Args:
        surfaces, shares_S: by scenario; shares sum to 1.

    Raises:
        ConfigError: fewer paths than one stratum holds.
    """
    if n_paths < config.per_stratum:
        raise ConfigError("too few paths for a stratum", expected=config.per_stratum, got=n_paths)
    s, scenario = candidates(shares_S, n_paths, config, seed)
    predicted, spread, luck = np.empty(len(s)), np.empty(len(s)), np.empty(len(s))
    for row, surface in enumerate(surfaces):
        here = scenario == row
        predicted[here], spread[here], luck[here] = surface.predict(s[here]), surface.spread, surface.luck
    order = np.argsort(predicted, kind="stable")
    s, scenario, predicted = s[order], scenario[order], predicted[order]
    thin = slice(_STEP // 2, None, _STEP)
    density = path_density(predicted[thin], spread[order][thin], luck[order][thin], config)
    edges = _cells(density, len(s), n_paths // config.per_stratum)
    picked, strata = _pick(edges, n_paths, stream(seed, "tails", "picks"))
    share = np.diff(edges)[strata] / len(s)
    centre = np.add.reduceat(predicted, edges[:-1]) / np.diff(edges)
    held = np.bincount(strata)[strata] / n_paths
    return Design(
        s_PK=s[picked],
        scenario_P=scenario[picked],
        weights_P=share / held,
        strata_P=strata,
        predicted_P=predicted[picked],
        offset_P=predicted[picked] - centre[strata],
    )


_STEP: Final = 16  # the density is worked out at every so many candidates
_PER_PATH, _AT_ONCE = 64, 16_384  # candidates: for each path at least; whose surface is worked out at a time


def _cells(density_M: np.ndarray, n: int, n_strata: int) -> np.ndarray:
    """(H + 1,) ranks between strata: equal integrals of the density, two candidates or more in each."""
    whole = np.concatenate([[0.0], np.cumsum(density_M)])
    marks = np.interp(np.linspace(0.0, whole[-1], n_strata + 1), whole, np.linspace(0, n, len(whole)))
    edges = np.round(marks).astype(np.int64)
    least = 8  # candidates, so that the pair taken is nearly independent
    for h in range(1, n_strata + 1):
        edges[h] = max(edges[h], edges[h - 1] + least)
    edges[-1] = n
    for h in range(n_strata - 1, 0, -1):
        edges[h] = min(edges[h], edges[h + 1] - least)
    if edges[0] != 0 or np.diff(edges).min() < 1:
        raise ConfigError("too few candidates for so many paths", expected=least * n_strata, got=n)
    return edges


def _pick(edges_H: np.ndarray, n_paths: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rank (P,), stratum (P,)): random candidates without replacement; the last strata take what is over."""
    n_strata = len(edges_H) - 1
    counts = np.full(n_strata, n_paths // n_strata)
    counts[n_strata - n_paths % n_strata :] += 1
    ranks, strata = [], np.repeat(np.arange(n_strata), counts)
    for h in range(n_strata):
        ranks.append(edges_H[h] + draw.choice(edges_H[h + 1] - edges_H[h], size=counts[h], replace=False))
    return np.concatenate(ranks), strata


def place_noise(s_PK: np.ndarray, directions_KD: np.ndarray, fresh_PD: np.ndarray) -> np.ndarray:
    """(P, D) eq. (4)."""
    return fresh_PD + (s_PK - fresh_PD @ directions_KD.T) @ directions_KD
