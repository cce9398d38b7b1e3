"""Expected loss, VaR, CVaR and loss probability with 95 % intervals, for plain and weighted paths.

Here: estimators over one loss per path. Not here: how the paths were drawn (`simulation.monte_carlo`). A
loss is a fraction of the pool balance at the cut-off (its original balance where the pool is new). VaR_q is
the q-quantile, the smallest loss x with F(x) >= q; CVaR_q the mean of the losses at or above it.

Intervals: expected loss, delta method for a ratio (Owen 2013, eq. 9.8); VaR, order statistics with binomial
ranks (David and Nagaraja 2003, 7.1), for weighted paths by inverting the interval of F (Woodruff 1952);
CVaR, its influence function (Manistre and Hancock 2005) corrected for the skewness of a mean over the few
paths of a tail (Hall 1992); probability, Wilson 1927. `strata_P` labels the stratum each path was drawn in
(`simulation.tails`): variances are then those within strata.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation.control import Control

CONFIDENCE = 0.95
CONTROL_ROUNDS = 3  # quantile and its control, in turns
FEW_PATHS = 4  # a tail of fewer says little of its own mean: a fitted tail bounds that from above
CONTROL_PATHS = 4  # effective paths a tail must hold for that
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


def expected_loss(
    losses_P: np.ndarray,
    weights_P: np.ndarray | None = None,
    strata_P: np.ndarray | None = None,
    control: Control | None = None,
) -> Estimate:
    """Mean loss; variance sum w^2 (x - mean)^2, within strata where there are any."""
    weights = check_weights(losses_P, weights_P)
    values = losses_P if control is None else losses_P - control.of_mean()
    mean = float(weights @ values)
    n = losses_P.size
    small = n / max(n - 1, 1) if strata_P is None else 1.0
    error = np.sqrt(_variance(weights * (values - mean), strata_P) * small)
    width = _quantile(weights * (values - mean), strata_P) * float(error)
    return Estimate(mean, mean - width, mean + width)


def value_at_risk(
    losses_P: np.ndarray,
    level: float,
    weights_P: np.ndarray | None = None,
    strata_P: np.ndarray | None = None,
    control: Control | None = None,
) -> Estimate:
    """The level-quantile with an order-statistic interval.

    Equal weights: ranks from the binomial law of the number of losses below the quantile. Otherwise the
    ranks of n_eff draws, n_eff = q (1 - q) / var F(VaR), var F the variance of sum w (1{x <= VaR} - q).
    Where the upper rank lies beyond the sample, the upper end is that of a fitted tail's quantile. A control
    moves F by what luck did to the exceedances, and takes that out of var F.
    """
    weights = check_weights(losses_P, weights_P)
    order = np.argsort(losses_P, kind="stable")
    sorted_losses, cumulative = losses_P[order], np.cumsum(weights[order])
    value = sorted_losses[_rank(cumulative, level)]
    luck = np.zeros(losses_P.size)
    control = control if is_deep(losses_P >= value, weights) else None
    if control is not None:
        for _ in range(CONTROL_ROUNDS):
            luck = control.of_exceedance(float(value), losses_P, weights, strata_P)
            value = sorted_losses[_rank(cumulative, min(level - float(weights @ luck), 1.0))]
        cumulative = cumulative + float(weights @ luck)
    if weights_P is None and strata_P is None and control is None:
        n_effective = float(losses_P.size)
    else:
        terms = weights * ((losses_P <= value) - level + luck)
        own = 0.25 * float(weights[losses_P == value].max()) ** 2  # strata that all agree still err by a path
        n_effective = level * (1 - level) / max(_variance(terms, _joined(strata_P)), own)
    alpha = (1 - CONFIDENCE) / 2
    n_whole = max(round(n_effective), 1)
    low = stats.binom.ppf(alpha, n_whole, level) / n_whole
    high = (stats.binom.ppf(1 - alpha, n_whole, level) + 1) / n_whole
    upper = float(sorted_losses[_rank(cumulative, min(high, 1.0))])
    if high > 1.0 - 1e-12:
        upper = max(upper, _beyond_the_sample(sorted_losses, weights[order], level))
    return Estimate(float(value), float(sorted_losses[_rank(cumulative, low)]), upper)


def is_deep(in_tail_P: np.ndarray, weights_P: np.ndarray) -> bool:
    """Whether enough paths lie in a tail for its rank to move smoothly with a control."""
    weights = weights_P[in_tail_P]
    return bool(effective_sample_size(weights) >= CONTROL_PATHS) if weights.size else False


def _beyond_the_sample(
    sorted_P: np.ndarray, weights_P: np.ndarray, level: float, *, of_mean: bool = False
) -> float:
    """Upper end of the interval of a quantile about the largest loss seen, or of the mean beyond it.

    A generalised Pareto tail is fitted by probability-weighted moments (Hosking and Wallis 1987) to the
    largest tenth (20 to 250 losses); its quantile at the level, with the delta method's error at shape 0.
    """
    k = int(np.clip(sorted_P.size // 10, min(20, sorted_P.size - 1), 250))
    if k < 5:
        return float(sorted_P[-1])
    floor, excess, weights = sorted_P[-k - 1], sorted_P[-k:] - sorted_P[-k - 1], weights_P[-k:]
    mass = float(weights.sum())
    rank = (np.cumsum(weights) - 0.5 * weights) / mass
    first, second = float(weights @ excess) / mass, float(weights @ (excess * (1.0 - rank))) / mass
    if first <= 0 or first <= 2 * second * 1.0001:
        return float(sorted_P[-1])
    shape = float(np.clip(2.0 - first / (first - 2 * second), -0.5, 0.9))
    scale = 2 * first * second / (first - 2 * second)
    odds = max(np.log(mass / (1 - level)), 0.0)
    over = scale * (np.expm1(shape * odds) / shape if abs(shape) > 1e-6 else odds)
    if of_mean:
        over, odds = (over + scale) / (1.0 - shape), odds + 1.0
    # log error: of the scale (relative, 1/sqrt k) and of the shape (~ odds / 2, 1/sqrt k)
    error = over * np.sqrt((2.0 + (odds / 2.0) ** 2) / effective_sample_size(weights))
    return float(floor + over + stats.norm.ppf((1 + CONFIDENCE) / 2) * error)


def conditional_value_at_risk(
    losses_P: np.ndarray,
    level: float,
    weights_P: np.ndarray | None = None,
    strata_P: np.ndarray | None = None,
    control: Control | None = None,
) -> Estimate:
    """Mean of the losses at or above the level-quantile.

    Influence function, continuous law: (x - v)+ / (1 - q) - (CVaR - v). Where v is an atom (more mass at or
    above v than 1 - q by over two paths) v does not move and it is 1{x >= v} (x - CVaR) / P(x >= v). A
    control takes loans' own luck out of the excess.
    """
    weights = check_weights(losses_P, weights_P)
    v = weighted_quantile(losses_P, level, weights_P)
    control = control if is_deep(losses_P >= v, weights) else None
    if control is not None:
        v = value_at_risk(losses_P, level, weights_P, strata_P, control).value
    in_tail = losses_P >= v
    mass = float(weights[in_tail].sum())
    value = max(float(weights[in_tail] @ losses_P[in_tail]) / mass, v)
    if control is None and mass - (1 - level) > 2.5 * float(weights[in_tail].max()):
        influence = np.where(in_tail, losses_P - value, 0.0) / mass
    else:
        excess = np.where(in_tail, losses_P - v, 0.0)
        if control is not None:
            excess = excess - control.of_excess(v, losses_P, weights, strata_P)
            value = max(v + float(weights @ excess) / (1 - level), v)
        influence = excess / (1 - level) - (value - v)
    below, above = _skewed_interval(weights * influence, strata_P)
    upper = value + above
    if strata_P is None and int(in_tail.sum()) < FEW_PATHS:
        order = np.argsort(losses_P, kind="stable")
        upper = max(upper, _beyond_the_sample(losses_P[order], weights[order], level, of_mean=True))
    return Estimate(value, value - below, upper)


def _variance(terms_P: np.ndarray, strata_P: np.ndarray | None) -> float:
    """Variance of the sum of terms: of mean zero, or drawn within strata (Cochran 1977, 5.4)."""
    if strata_P is None:
        return float((terms_P**2).sum())
    return float((_within(terms_P, strata_P) ** 2).sum())


def _joined(strata_P: np.ndarray | None) -> np.ndarray | None:
    """Neighbouring strata four by four: near a quantile few pairs disagree, their variance is a gamble."""
    if strata_P is None:
        return None
    _, place = np.unique(strata_P, return_inverse=True)
    return place // 4


def _within(terms_P: np.ndarray, strata_P: np.ndarray) -> np.ndarray:
    """Terms less their stratum's mean, scaled so that their squares add up to the variance of the sum."""
    _, place = np.unique(strata_P, return_inverse=True)
    counts = np.bincount(place)
    if counts.min() < 2:
        raise SimulationError(
            "a stratum holds one path", expected="two or more in each", got=int(counts.min())
        )
    centre = np.bincount(place, weights=terms_P) / counts
    return (terms_P - centre[place]) * np.sqrt(counts / (counts - 1.0))[place]


def _quantile(terms_P: np.ndarray, strata_P: np.ndarray | None) -> float:
    """Half width of a 95 % interval in standard errors: normal, Student's t where strata carry the variance.

    Degrees of freedom (Satterthwaite 1946) from the strata's variances v with k - 1 each: (sum v)^2 over
    sum v^2 / (k - 1), both without the bias that v^2 overstates its square by (k + 1) / (k - 1).
    """
    if strata_P is None:
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    _, place = np.unique(strata_P, return_inverse=True)
    free = np.bincount(place) - 1.0
    variance = np.bincount(place, weights=_within(terms_P, strata_P) ** 2)
    fourth = float((variance**2 / (free + 2.0)).sum())
    if fourth <= 0.0:
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    degrees = max(float(variance.sum()) ** 2 / fourth - 2.0, 1.0)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


def _skewed_interval(terms_P: np.ndarray, strata_P: np.ndarray | None = None) -> tuple[float, float]:
    """Distances to the ends of the 95 % interval of a sum of independent terms of mean zero.

    Hall's transformation (1992, Journal of the Royal Statistical Society B 54, 221-228): with the skewness
    g = sum t^3 / (sum t^2)^1.5 of the sum, the standardised error is normal after
    x -> (3 / g) ((1 + g (x - g / 6))^(1/3) - 1). Without it the interval of a tail mean misses high values.
    Small strata say nothing of skewness and need none: they put many paths into the tail.
    """
    error = float(np.sqrt(_variance(terms_P, strata_P)))
    z = _quantile(terms_P, strata_P)
    if error == 0.0 or strata_P is not None:
        return z * error, z * error
    g = float((terms_P**3).sum()) / error**3
    if abs(g) < 1e-6:
        return z * error, z * error
    low, high = ((np.cbrt(1.0 + g * (x - g / 6.0)) - 1.0) * 3.0 / g for x in (z, -z))
    return max(float(low), 0.0) * error, max(float(-high), 0.0) * error


def loss_probability(
    losses_P: np.ndarray,
    threshold: float = 0.0,
    weights_P: np.ndarray | None = None,
    strata_P: np.ndarray | None = None,
) -> Estimate:
    """Share of paths that lose more than the threshold; Wilson's interval at the effective sample size.

    Weighted: n_eff is where share (1 - share) / n_eff is the variance of the share, Kong's without hits.
    """
    weights = check_weights(losses_P, weights_P)
    hit = losses_P > threshold
    share = float(weights[hit].sum())
    n = effective_sample_size(weights)
    if weights_P is not None or strata_P is not None:
        variance = _variance(weights * (hit - share), strata_P)
        if variance > 0 and 0 < share < 1:
            n = share * (1 - share) / variance
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    width = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(centre - width, 0.0), min(centre + width, 1.0))


def pool_measures(
    losses_P: np.ndarray,
    weights_P: np.ndarray | None = None,
    strata_P: np.ndarray | None = None,
    control: Control | None = None,
) -> dict[str, Estimate]:
    """All measures of table `pool_report`, by name."""
    found = {"expected_loss": expected_loss(losses_P, weights_P, strata_P, control)}
    for name, level in VAR_LEVELS.items():
        found[f"var_{name}"] = value_at_risk(losses_P, level, weights_P, strata_P, control)
    for name, level in VAR_LEVELS.items():
        found[f"cvar_{name}"] = conditional_value_at_risk(losses_P, level, weights_P, strata_P, control)
    return found
