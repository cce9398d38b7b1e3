"""Expected loss, VaR, CVaR and loss probability with 95 % intervals, for plain and weighted paths.

Here: estimators over one loss per path. Not here: how the paths were drawn (`simulation.monte_carlo`). A
loss is a fraction of the pool balance at the cut-off (its original balance where the pool is new). VaR_q is
the q-quantile, the smallest loss x with F(x) >= q; CVaR_q the mean of the losses at or above it.

Intervals: expected loss, delta method for a ratio (Owen 2013, eq. 9.8); VaR, order statistics with binomial
ranks (David and Nagaraja 2003, 7.1), for weighted paths by inverting the interval of F (Woodruff 1952);
CVaR, its influence function (Manistre and Hancock 2005) corrected for the skewness of a mean over the few
paths of a tail (Hall 1992); probability, Wilson 1927.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pc_pipeline.core.errors import SimulationError

CONFIDENCE = 0.95
VAR_LEVELS = {"95": 0.95, "99": 0.99, "999": 0.999}
MEASURES = ("expected_loss", *(f"{kind}_{name}" for kind in ("var", "cvar") for name in VAR_LEVELS))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; all in the unit of the losses."""

    value: float
    lower: float
    upper: float


def check_weights(losses_P: np.ndarray, weights_P: np.ndarray | None) -> np.ndarray:
    """Weights that sum to one.

    Raises:
        SimulationError: no paths, a loss that is not finite, weights negative, all zero or misshapen.
    """
    if losses_P.ndim != 1 or losses_P.size == 0 or not np.isfinite(losses_P).all():
        raise SimulationError("losses must be one finite number per path", got=losses_P.shape)
    if weights_P is None:
        return np.full(losses_P.size, 1.0 / losses_P.size)
    weights = np.asarray(weights_P, dtype=float)
    if weights.shape != losses_P.shape or not np.isfinite(weights).all() or weights.min() < 0:
        raise SimulationError(
            "weights must be one non-negative number per path", expected=losses_P.shape, got=weights.shape
        )
    if weights.sum() <= 0:
        raise SimulationError("weights do not sum to anything", expected="a positive sum", got=weights.sum())
    return weights / weights.sum()


def effective_sample_size(weights_P: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted paths carry the same variance (Kong 1992)."""
    weights = np.asarray(weights_P, dtype=float)
    return float(weights.sum() ** 2 / (weights**2).sum())


def weighted_quantile(losses_P: np.ndarray, level: float, weights_P: np.ndarray | None = None) -> float:
    """Smallest loss x with F(x) >= level."""
    weights = check_weights(losses_P, weights_P)
    order = np.argsort(losses_P, kind="stable")
    return float(losses_P[order][_rank(np.cumsum(weights[order]), level)])


def _rank(cumulative: np.ndarray, level: float) -> int:
    """First position whose cumulative weight reaches the level, rounding noise forgiven."""
    return min(int(np.searchsorted(cumulative, level - 1e-12, side="left")), cumulative.size - 1)


def expected_loss(losses_P: np.ndarray, weights_P: np.ndarray | None = None) -> Estimate:
    """Mean loss; se^2 = sum w^2 (x - mean)^2 with weights that sum to one."""
    weights = check_weights(losses_P, weights_P)
    mean = float(weights @ losses_P)
    n = losses_P.size
    error = float(np.sqrt((weights**2 @ (losses_P - mean) ** 2) * n / max(n - 1, 1)))
    width = stats.norm.ppf((1 + CONFIDENCE) / 2) * error
    return Estimate(mean, mean - width, mean + width)


def value_at_risk(losses_P: np.ndarray, level: float, weights_P: np.ndarray | None = None) -> Estimate:
    """The level-quantile with an order-statistic interval.

    Equal weights: ranks from the binomial law of the number of losses below the quantile. Otherwise the
    ranks of n_eff draws, n_eff = q (1 - q) / var F(VaR), with var F = sum w^2 (1{x <= VaR} - q)^2.
    """
    weights = check_weights(losses_P, weights_P)
    order = np.argsort(losses_P, kind="stable")
    sorted_losses, cumulative = losses_P[order], np.cumsum(weights[order])
    value = sorted_losses[_rank(cumulative, level)]
    if weights_P is None:
        n_effective = float(losses_P.size)
    else:
        below = (losses_P <= value).astype(float)
        variance = float(weights**2 @ (below - level) ** 2)
        n_effective = level * (1 - level) / max(variance, 1e-300)
    alpha = (1 - CONFIDENCE) / 2
    n_whole = max(round(n_effective), 1)
    low = stats.binom.ppf(alpha, n_whole, level) / n_whole
    high = (stats.binom.ppf(1 - alpha, n_whole, level) + 1) / n_whole
    return Estimate(
        float(value),
        float(sorted_losses[_rank(cumulative, low)]),
        float(sorted_losses[_rank(cumulative, min(high, 1.0))]),
    )


def conditional_value_at_risk(
    losses_P: np.ndarray, level: float, weights_P: np.ndarray | None = None
) -> Estimate:
    """Mean of the losses at or above the level-quantile.

    Influence function, continuous law: (x - v)+ / (1 - q) - (CVaR - v). Where v is an atom (more mass at or
    above v than 1 - q by over two paths) v does not move and it is 1{x >= v} (x - CVaR) / P(x >= v).
    """
    weights = check_weights(losses_P, weights_P)
    v = weighted_quantile(losses_P, level, weights_P)
    in_tail = losses_P >= v
    mass = float(weights[in_tail].sum())
    value = max(float(weights[in_tail] @ losses_P[in_tail]) / mass, v)
    if mass - (1 - level) > 2.5 * float(weights[in_tail].max()):
        influence = np.where(in_tail, losses_P - value, 0.0) / mass
    else:
        excess = np.where(in_tail, losses_P - v, 0.0)
        influence = excess / (1 - level) - (value - v)
    below, above = _skewed_interval(weights * influence)
    return Estimate(value, value - below, value + above)


def _skewed_interval(terms_P: np.ndarray) -> tuple[float, float]:
    """Distances to the ends of the 95 % interval of a sum of independent terms of mean zero.

    Hall's transformation (1992, Journal of the Royal Statistical Society B 54, 221-228): with the skewness
    g = sum t^3 / (sum t^2)^1.5 of the sum, the standardised error is normal after
    x -> (3 / g) ((1 + g (x - g / 6))^(1/3) - 1). Without it the interval of a tail mean misses high values.
    """
    error = float(np.sqrt((terms_P**2).sum()))
    if error == 0.0:
        return 0.0, 0.0
    g = float((terms_P**3).sum()) / error**3
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    if abs(g) < 1e-6:
        return z * error, z * error
    low, high = ((np.cbrt(1.0 + g * (x - g / 6.0)) - 1.0) * 3.0 / g for x in (z, -z))
    return max(float(low), 0.0) * error, max(float(-high), 0.0) * error


def loss_probability(
    losses_P: np.ndarray, threshold: float = 0.0, weights_P: np.ndarray | None = None
) -> Estimate:
    """Share of paths that lose more than the threshold; Wilson's interval at the effective sample size."""
    weights = check_weights(losses_P, weights_P)
    hit = losses_P > threshold
    share = float(weights[hit].sum())
    n = effective_sample_size(weights)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    width = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(centre - width, 0.0), min(centre + width, 1.0))


def pool_measures(losses_P: np.ndarray, weights_P: np.ndarray | None = None) -> dict[str, Estimate]:
    """All measures of table `pool_report`, by name."""
    found = {"expected_loss": expected_loss(losses_P, weights_P)}
    for name, level in VAR_LEVELS.items():
        found[f"var_{name}"] = value_at_risk(losses_P, level, weights_P)
    for name, level in VAR_LEVELS.items():
        found[f"cvar_{name}"] = conditional_value_at_risk(losses_P, level, weights_P)
    return found
